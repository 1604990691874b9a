from __future__ import annotations

import pytest
import torch
from tiny_fold import ALONE, make_fold, make_plans

from llmreg.training.options import TrainingOptions
from llmreg.training.run import set_up_run
from llmreg.training.samples import load_batches, number_samples
from llmreg.training.time_budget import TRIAL_STEPS, count_epochs, measure_step_seconds


def test_the_time_of_a_step_is_measured_without_a_trace(tmp_path) -> None:
    run = set_up_run(make_plans(), "full", make_fold(tmp_path), TrainingOptions(workers=0), ALONE)
    optimizer = torch.optim.Adam(run.network.parameters(), lr=0.1)
    weights = [parameter.detach().clone() for parameter in run.network.parameters()]
    random_state = torch.get_rng_state()
    batches = load_batches(run.pairs, number_samples(range(TRIAL_STEPS), run.settings, ALONE), 0)
    # Without the first step, which takes 50 seconds, the steps take 2, 3, 4 and 9 seconds.
    clock = iter((0.0, 50.0, 100.0, 102.0, 200.0, 203.0, 300.0, 304.0, 400.0, 409.0))
    assert measure_step_seconds(run.learner, optimizer, batches, lambda: next(clock)) == 3.5
    assert all(map(torch.equal, run.network.parameters(), weights))
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("minutes", "expected"), [(10, 4), (9.9, 3), (0.01, 1)])
def test_epochs_that_fit(minutes: float, expected: int) -> None:
    assert count_epochs(minutes, 3.0, 50) == expected
