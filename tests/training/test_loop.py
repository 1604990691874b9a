from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_fold import ALONE, make_fold, make_plans
from torch import Tensor
from tqdm import tqdm

from llmreg.errors import MissingPackage, OtherPlans
from llmreg.plans.plan_settings import Training
from llmreg.training import loggers
from llmreg.training.checkpoints import CheckpointWriter, TrainingState, checkpoint_path, read_state
from llmreg.training.loop import (
    StopRequest,
    complete_epoch,
    is_best,
    learning_rate,
    note_stop_signals,
    train,
    train_epoch,
)
from llmreg.training.options import TrainingOptions
from llmreg.training.run import Run, set_up_run
from llmreg.training.samples import load_batches, number_samples
from llmreg.training.step import mean_values
from llmreg.training.training_errors import HoldsTraining, NonFiniteLoss, TrainingInterrupted
from llmreg.training.validation import Validation

OPTIONS = TrainingOptions(workers=0)
PLANS = make_plans()
# All that is drawn at random is in use: Dice and the image term, mirrored and turned pairs, several pairs at once.
RICH = make_plans(
    {"bidirectional": True, "accumulate": 2, "batch_size": 2},
    loss={"similarity": 0.5, "folding": 1.0},
    augmentation={"mirror_axes": ("x",), "spatial_probability": 1.0},
)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log without what differs from run to run."""
    rows = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


class RecordingLogger:
    """A logger that records its rows and, where it has the number of a signal, sends that after an epoch."""

    def __init__(self, folder: Path, epochs: int, config: Mapping[str, Any]) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.config, self.closed, self.number = config, False, 0

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)
        if self.number:
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> RecordingLogger:
    recording_logger = RecordingLogger(Path(), 0, {})

    def open_logger(folder: Path, epochs: int, config: Mapping[str, Any]) -> RecordingLogger:
        recording_logger.config = config
        return recording_logger

    monkeypatch.setitem(loggers.OPTIONAL_LOGGERS, "telling", open_logger)
    return recording_logger


def test_a_training_learns_and_leaves_everything_in_its_folder(tmp_path: Path, logger: RecordingLogger) -> None:
    fold = make_fold(tmp_path)
    plans = make_plans({"epochs": 3, "steps_per_epoch": 10})
    path = train(plans, "full", fold, replace(OPTIONS, loggers=("telling",)), ALONE)
    assert path == checkpoint_path(fold.folder, "final")
    assert read_state(path).epoch == 3
    rows = read_log(fold.folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert logger.closed
    assert [row["epoch"] for row in logger.rows] == [row["epoch"] for row in rows]
    assert logger.config["plans_name"] == "default"
    debug = json.loads((fold.folder / "debug.json").read_text())
    assert (debug["processes"], len(debug["runs"])) == (1, 1)
    assert (fold.folder / "progress.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in fold.folder.glob("checkpoint_*.safetensors")} == {
        f"checkpoint_{name}.safetensors" for name in ("best", "latest", "final")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_training_ends_like_an_undisturbed_one(
    tmp_path: Path, logger: RecordingLogger, number: signal.Signals
) -> None:
    undisturbed = train(RICH, "full", make_fold(tmp_path), OPTIONS, ALONE)
    fold = replace(make_fold(tmp_path), folder=tmp_path / "disturbed")
    logger.number = number
    with pytest.raises(TrainingInterrupted) as interruption:
        train(RICH, "full", fold, replace(OPTIONS, loggers=("telling",)), ALONE)
    assert interruption.value.exit_code == 128 + number
    assert (interruption.value.done, interruption.value.total) == (3, 6)
    assert logger.closed
    assert not checkpoint_path(fold.folder, "final").exists()
    resumed = train(RICH, "full", fold, replace(OPTIONS, resume=True), ALONE)
    assert resumed.read_bytes() == undisturbed.read_bytes()
    assert read_log(fold.folder) == read_log(undisturbed.parent)
    assert len(json.loads((fold.folder / "debug.json").read_text())["runs"]) == 2


def test_a_training_is_continued_only_when_that_is_asked_for(tmp_path: Path) -> None:
    fold = make_fold(tmp_path)
    final = train(PLANS, "full", fold, replace(OPTIONS, epochs=1), ALONE)
    before = final.read_bytes()
    with pytest.raises(HoldsTraining):
        train(PLANS, "full", fold, OPTIONS, ALONE)
    with pytest.raises(OtherPlans):
        train(make_plans({"seed": 5}), "full", fold, replace(OPTIONS, resume=True), ALONE)
    assert final.read_bytes() == before
    # A finished training is saved again; a longer one gets a new final checkpoint.
    train(PLANS, "full", fold, replace(OPTIONS, resume=True), ALONE)
    assert final.read_bytes() == before
    train(PLANS, "full", fold, replace(OPTIONS, resume=True, epochs=2), ALONE)
    assert read_state(final).epoch == 2
    assert [row["epoch"] for row in read_log(fold.folder)] == [1, 2]


def test_without_labels_the_image_term_decides_which_epoch_is_best(tmp_path: Path) -> None:
    fold = make_fold(tmp_path, unlabelled="abcd")
    plans = make_plans(loss={"dice": 0, "similarity": 1})
    train(plans, "full", fold, OPTIONS, ALONE)
    rows = read_log(fold.folder)
    assert all(row["validation_dice"] is None for row in rows)
    scores = [-row["validation_similarity"] for row in rows]
    assert read_state(checkpoint_path(fold.folder, "best")).best_score == max(scores)


def test_a_logger_that_is_not_installed_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage) as refusal:
        train(PLANS, "full", make_fold(tmp_path), replace(OPTIONS, loggers=("wandb",)), ALONE)
    assert (refusal.value.package, refusal.value.install) == ("wandb", "llmreg[wandb]")


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_first_signal_is_noted_and_a_second_ctrl_c_is_as_usual(number: signal.Signals, ends: bool) -> None:
    original = signal.getsignal(number)
    received = []
    signal.signal(number, lambda *_: received.append(number))
    try:
        usual = signal.getsignal(number)
        with note_stop_signals() as request:
            assert request.signal == 0
            os.kill(os.getpid(), number)
            assert (request.signal, received) == (number, [])
            os.kill(os.getpid(), number)
            assert received == ([number] if ends else [])
        assert signal.getsignal(number) is usual
    finally:
        signal.signal(number, original)


def test_in_another_thread_nothing_is_noted() -> None:
    signals = []

    def look() -> None:
        with note_stop_signals() as request:
            signals.append(request.signal)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert signals == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_is_that_of_shells(number: signal.Signals, code: int) -> None:
    error = TrainingInterrupted(number, 3, 8)
    assert (error.exit_code, error.done, error.total) == (code, 3, 8)
    assert str(error).startswith(number.name)


def set_up(folder: Path, training: dict[str, object] | None = None, **options: object) -> Run:
    training_options = TrainingOptions(workers=0, **options)  # type: ignore[arg-type]
    return set_up_run(make_plans(training), "full", make_fold(folder), training_options, ALONE)


def batches_of(run: Run) -> Iterator[dict[str, Tensor]]:
    return load_batches(run.pairs, number_samples(range(run.steps_done, run.steps_in_total), run.settings, ALONE), 0)


class RecordingWriter(CheckpointWriter):
    """Records which checkpoints would be written, and writes none."""

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
    run, reference_run = set_up(tmp_path), set_up(tmp_path)
    with tqdm(total=6, disable=None) as bar:
        sums = train_epoch(run, batches_of(run), bar, StopRequest())
        batches = batches_of(reference_run)
        expected = []
        for step in range(1, 4):
            torch.manual_seed(run.settings.seed + step)
            expected.append(mean_values(reference_run.learner.step(batches, run.settings.learning_rate))["loss"])
    assert sums["loss"] == (pytest.approx(sum(expected)), 3)
    assert all(map(torch.equal, run.network.parameters(), reference_run.network.parameters()))


def test_a_checkpoint_is_written_within_a_long_epoch_when_one_is_due(tmp_path: Path) -> None:
    run = set_up(tmp_path)
    run.checkpoints = RecordingWriter(due=True)
    with tqdm(disable=True) as bar:
        sums = train_epoch(run, batches_of(run), bar, StopRequest())
    assert run.checkpoints.written == [(("latest",), 0, step) for step in (1, 2, 3)]
    assert sums["loss"][1] == 3


def test_a_run_that_is_stopped_saves_the_step_and_can_be_resumed(tmp_path: Path) -> None:
    undisturbed, interrupted = set_up(tmp_path / "whole"), set_up(tmp_path / "part")
    with tqdm(disable=True) as bar:
        expected = train_epoch(undisturbed, batches_of(undisturbed), bar, StopRequest())
        with pytest.raises(TrainingInterrupted) as interruption:
            train_epoch(interrupted, batches_of(interrupted), bar, StopRequest(signal=2))
        assert (interruption.value.done, interruption.value.total) == (1, 6)
        state = read_state(checkpoint_path(interrupted.fold.folder, "latest"))
        assert (state.epoch, state.step, state.sums["loss"][1]) == (0, 1, 1)
        resumed = set_up(tmp_path / "part", resume=True)
        assert train_epoch(resumed, batches_of(resumed), bar, StopRequest()) == expected
    assert all(map(torch.equal, undisturbed.network.parameters(), resumed.network.parameters()))


def test_an_epoch_is_best_when_its_score_is_not_lower(tmp_path: Path) -> None:
    run = set_up(tmp_path)
    run.checkpoints = RecordingWriter(due=False)
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
    with tqdm(disable=True) as bar, pytest.raises(NonFiniteLoss) as failure:
        train_epoch(run, batches_of(run), bar, StopRequest())
    error = failure.value
    assert error.batch == run.fold.folder / f"not_finite_step_{error.step}.safetensors"
    batch = load_file(error.batch)
    numbers = batch["sample"].tolist()
    assert [f"{pair.moving} onto {pair.fixed}" for pair in map(run.pairs.pair, numbers)] == list(error.pairs)
    # The moving case of all training pairs is b.
    assert set(error.pairs) <= {"b onto a", "b onto c"}
    assert {"fixed", "moving", "fixed_labels"} <= batch.keys()
