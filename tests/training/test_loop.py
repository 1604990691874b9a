from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_fold import ALONE, make_fold, make_plans

from llmreg.errors import HoldsTraining, MissingPackage, OtherPlans, TrainingInterrupted
from llmreg.training import loggers
from llmreg.training.checkpoints import checkpoint_path, read_state
from llmreg.training.loop import train
from llmreg.training.options import TrainingOptions

OPTIONS = TrainingOptions(workers=0)
PLANS = make_plans()
# Dice and the image term, mirrored and turned pairs, several pairs at once: all that is drawn at random.
RICH = make_plans(
    {"bidirectional": True, "accumulate": 2, "batch_size": 2},
    loss={"similarity": 0.5, "folding": 1.0},
    augmentation={"mirror_axes": ("x",), "spatial_probability": 1.0},
)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log without what differs from run to run."""
    rows = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


class Telling:
    """A logger that notes its rows, and ends the process after the first epoch where it is told to."""

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
def logger(monkeypatch: pytest.MonkeyPatch) -> Telling:
    telling = Telling(Path(), 0, {})

    def open_logger(folder: Path, epochs: int, config: Mapping[str, Any]) -> Telling:
        telling.config = config
        return telling

    monkeypatch.setitem(loggers.OPTIONAL_LOGGERS, "telling", open_logger)
    return telling


def test_a_training_learns_and_leaves_everything_in_its_folder(tmp_path: Path, logger: Telling) -> None:
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
    tmp_path: Path, logger: Telling, number: signal.Signals
) -> None:
    undisturbed = train(RICH, "full", make_fold(tmp_path), OPTIONS, ALONE)
    fold = replace(make_fold(tmp_path), folder=tmp_path / "disturbed")
    logger.number = number
    with pytest.raises(TrainingInterrupted) as caught:
        train(RICH, "full", fold, replace(OPTIONS, loggers=("telling",)), ALONE)
    assert caught.value.exit_code == 128 + number
    assert (caught.value.done, caught.value.total) == (3, 6)
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
    # A training that is done is saved again; a longer one has a new end.
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
    with pytest.raises(MissingPackage) as caught:
        train(PLANS, "full", make_fold(tmp_path), replace(OPTIONS, loggers=("wandb",)), ALONE)
    assert (caught.value.package, caught.value.install) == ("wandb", "llmreg[wandb]")
