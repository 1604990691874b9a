from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_fold import ALONE, make_fold, make_plans
from torch import Tensor
from tqdm import tqdm

from llmreg.errors import NonFiniteLoss, TrainingInterrupted
from llmreg.plans.plan_settings import Training
from llmreg.training.checkpoints import CheckpointWriter, TrainingState, checkpoint_path, read_state
from llmreg.training.epoch import complete_epoch, is_best, learning_rate, train_epoch
from llmreg.training.interruption import StopRequest
from llmreg.training.options import TrainingOptions
from llmreg.training.run import Run, set_up_run
from llmreg.training.samples import load_batches, number_samples
from llmreg.training.step import mean_values
from llmreg.training.validation import Validation


def set_up(folder: Path, training: dict[str, object] | None = None, **options: object) -> Run:
    chosen = TrainingOptions(workers=0, **options)  # type: ignore[arg-type]
    return set_up_run(make_plans(training), "full", make_fold(folder), chosen, ALONE)


def batches_of(run: Run) -> Iterator[dict[str, Tensor]]:
    return load_batches(run.pairs, number_samples(range(run.steps_done, run.steps_in_total), run.settings, ALONE), 0)


class NotedStates(CheckpointWriter):
    """Notes which checkpoints are written, and writes none."""

    def __init__(self, due: bool) -> None:
        self.always_due, self.written = due, list[tuple[tuple[str, ...], int, int]]()

    @property
    def due(self) -> bool:
        return self.always_due

    def write(self, state: TrainingState, *names: str) -> None:
        self.written.append((names, state.epoch, state.step))


def test_the_learning_rate_is_constant_or_falls_to_zero() -> None:
    assert learning_rate(Training(learning_rate=3.0, schedule="constant"), 7, 8) == 3.0
    rates = [learning_rate(Training(learning_rate=3.0, schedule="polynomial"), epoch, 4) for epoch in range(5)]
    assert rates == pytest.approx([3.0 * share**0.9 for share in (1, 0.75, 0.5, 0.25, 0)])


def test_an_epoch_takes_its_steps_and_sums_their_values(tmp_path: Path) -> None:
    run, again = set_up(tmp_path), set_up(tmp_path)
    with tqdm(total=6, disable=None) as bar:
        sums = train_epoch(run, batches_of(run), bar, StopRequest())
        batches = batches_of(again)
        expected = []
        for step in range(1, 4):
            torch.manual_seed(run.settings.seed + step)
            expected.append(mean_values(again.learner.step(batches, run.settings.learning_rate))["loss"])
    assert sums["loss"] == (pytest.approx(sum(expected)), 3)
    assert all(map(torch.equal, run.network.parameters(), again.network.parameters()))


def test_a_checkpoint_is_written_within_a_long_epoch_when_one_is_due(tmp_path: Path) -> None:
    run = set_up(tmp_path)
    run.checkpoints = NotedStates(due=True)
    with tqdm(disable=True) as bar:
        sums = train_epoch(run, batches_of(run), bar, StopRequest())
    assert run.checkpoints.written == [(("latest",), 0, step) for step in (1, 2, 3)]
    assert sums["loss"][1] == 3


def test_a_run_that_is_stopped_saves_the_step_and_can_be_resumed(tmp_path: Path) -> None:
    whole, part = set_up(tmp_path / "whole"), set_up(tmp_path / "part")
    with tqdm(disable=True) as bar:
        expected = train_epoch(whole, batches_of(whole), bar, StopRequest())
        with pytest.raises(TrainingInterrupted) as caught:
            train_epoch(part, batches_of(part), bar, StopRequest(signal=2))
        assert (caught.value.done, caught.value.total) == (1, 6)
        state = read_state(checkpoint_path(part.fold.folder, "latest"))
        assert (state.epoch, state.step, state.sums["loss"][1]) == (0, 1, 1)
        rest = set_up(tmp_path / "part", resume=True)
        assert train_epoch(rest, batches_of(rest), bar, StopRequest()) == expected
    assert all(map(torch.equal, whole.network.parameters(), rest.network.parameters()))


def test_an_epoch_is_best_when_its_score_is_not_lower(tmp_path: Path) -> None:
    run = set_up(tmp_path)
    run.checkpoints = NotedStates(due=False)
    for dice, best in ((0.5, True), (0.4, False), (0.5, True), (None, True)):
        validation = Validation(dice, None, 0.0)
        assert is_best(run, validation) == best
        complete_epoch(run, validation)
    assert run.checkpoints.written == [
        (("best", "latest"), 1, 0),
        (("latest",), 2, 0),
        (("best", "latest"), 3, 0),
        (("best", "latest"), 4, 0),
    ]
    assert run.state.sums == {}


def test_a_loss_that_is_not_finite_names_the_pairs_and_keeps_the_batch(tmp_path: Path) -> None:
    run = set_up(tmp_path, {"learning_rate": 1e30, "clip_gradient": None, "steps_per_epoch": 9, "batch_size": 2})
    with tqdm(disable=True) as bar, pytest.raises(NonFiniteLoss) as caught:
        train_epoch(run, batches_of(run), bar, StopRequest())
    error = caught.value
    assert error.batch == run.fold.folder / f"not_finite_step_{error.step}.safetensors"
    batch = load_file(error.batch)
    numbers = batch["sample"].tolist()
    assert [f"{pair.moving} onto {pair.fixed}" for pair in map(run.pairs.pair, numbers)] == list(error.pairs)
    # The moving case of all training pairs is b.
    assert set(error.pairs) <= {"b onto a", "b onto c"}
    assert {"fixed", "moving", "fixed_labels"} <= batch.keys()
