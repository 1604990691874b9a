from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_fold import ALONE, make_fold, make_plans

from llmreg.training.options import TrainingOptions
from llmreg.training.run import fit_epochs_to_minutes, set_up_run
from llmreg.training.training_errors import NothingToTrainOn, TrainingInterrupted

OPTIONS = TrainingOptions(workers=0)


def test_a_run_is_set_up_from_its_plans(tmp_path: Path) -> None:
    plans, fold = make_plans(), make_fold(tmp_path)
    run = set_up_run(plans, "full", fold, OPTIONS, ALONE)
    assert run.state.plans_digest == plans.digest("full")
    assert (run.state.epoch, run.state.epochs, run.steps_done, run.steps_in_total) == (0, 2, 0, 6)
    assert len(run.pairs) == 2
    assert run.network.shape == (16, 16, 16)
    assert not fold.folder.exists()
    longer_run = set_up_run(plans, "full", fold, replace(OPTIONS, epochs=5), ALONE)
    assert longer_run.steps_in_total == 15
    # The weights follow from the seed, whatever was drawn before.
    assert all(map(torch.equal, run.network.parameters(), longer_run.network.parameters()))
    other_run = set_up_run(make_plans({"seed": 1}), "full", fold, OPTIONS, ALONE)
    assert not all(map(torch.equal, run.network.parameters(), other_run.network.parameters()))


def test_a_fold_without_a_common_structure_needs_an_image_term(tmp_path: Path) -> None:
    fold = make_fold(tmp_path, unlabelled=("b",))
    with pytest.raises(NothingToTrainOn) as refusal:
        set_up_run(make_plans(), "full", fold, OPTIONS, ALONE)
    assert refusal.value.fold == "0"
    run = set_up_run(make_plans(loss={"similarity": 1}), "full", fold, OPTIONS, ALONE)
    assert len(run.pairs) == 2


def test_minutes_decide_the_number_of_epochs_when_a_training_starts(tmp_path: Path) -> None:
    options = replace(OPTIONS, minutes=1e-6, epochs=None)
    run = set_up_run(make_plans(), "full", make_fold(tmp_path), options, ALONE)
    assert run.state.epochs == 1
    # A resumed training keeps the number that was measured when it started.
    run.state = run.state.model_copy(update={"epoch": 1, "epochs": 3})
    run.checkpoints.write(run.state, "latest")
    resumed_run = set_up_run(make_plans(), "full", run.fold, replace(options, resume=True), ALONE)
    assert resumed_run.state.epochs == 3


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(network: torch.nn.Module, **settings: object) -> torch.nn.Module:
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with caplog.at_level(logging.WARNING):
        run = set_up_run(make_plans(), "full", make_fold(tmp_path), replace(OPTIONS, compile=True), ALONE)
    assert "(no compiler here)" in caplog.text
    assert run.learner is not None


def test_a_signal_stops_a_run(tmp_path: Path) -> None:
    run = set_up_run(make_plans(), "full", make_fold(tmp_path), OPTIONS, ALONE)
    run.stop(0)
    run.state = run.state.model_copy(update={"epoch": 1, "step": 2})
    with pytest.raises(TrainingInterrupted) as interruption:
        run.stop(15)
    assert (interruption.value.exit_code, interruption.value.done, interruption.value.total) == (143, 5, 6)


@pytest.mark.parametrize(("minutes", "expected"), [(0.7, 4), (0.69, 3), (0.01, 1)])
def test_epochs_that_fit_are_measured_without_a_trace(tmp_path: Path, minutes: float, expected: int) -> None:
    run = set_up_run(make_plans(), "full", make_fold(tmp_path), OPTIONS, ALONE)
    optimizer = torch.optim.Adam(run.network.parameters(), lr=0.1)
    weights = [parameter.detach().clone() for parameter in run.network.parameters()]
    random_state = torch.get_rng_state()
    # The first step, of 50 seconds, does not count; the others take 2, 3, 4 and 9: an epoch of three takes 10.5.
    clock = iter((0.0, 50.0, 100.0, 102.0, 200.0, 203.0, 300.0, 304.0, 400.0, 409.0))
    state = fit_epochs_to_minutes(run, optimizer, minutes, 0, lambda: next(clock))
    assert state == run.state.model_copy(update={"epochs": expected})
    assert all(map(torch.equal, run.network.parameters(), weights))
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), random_state)
