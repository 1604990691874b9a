from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llmreg.errors import MissingPackage
from llmreg.training import loggers
from llmreg.training.loggers import (
    PLOT_SECONDS,
    FolderLogger,
    TensorBoardLogger,
    TerminalLogger,
    WandbLogger,
    open_loggers,
)

ROW = {
    "epoch": 3,
    "loss": 0.25,
    "validation_dice": 0.75,
    "initial_dice": 0.5,
    "validation_similarity": None,
    "initial_similarity": None,
    "validation_folding": 0.125,
    "best": True,
    "learning_rate": 1e-3,
    "seconds": 9.4,
    "training_seconds": 8.0,
}


def test_the_folders_picture_is_drawn_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_counts: list[int] = []
    monkeypatch.setattr(loggers, "plot", lambda folder, rows: row_counts.append(len(rows)))
    now = 0.0
    earlier_logger = FolderLogger(tmp_path, 0, clock=lambda: now)
    for epoch in (1, 2, 3):
        earlier_logger.log_epoch(ROW | {"epoch": epoch})
    logger = FolderLogger(tmp_path, 2, clock=lambda: now)
    for epoch, time in ((3, 1.0), (4, PLOT_SECONDS + 1), (5, PLOT_SECONDS + 2)):
        now = time
        logger.log_epoch(ROW | {"epoch": epoch})
    assert row_counts == [4]
    # The third epoch was trained again.
    assert [row["epoch"] for row in loggers.read_log(tmp_path)] == [1, 2, 3, 4, 5]
    logger.close()
    assert row_counts == [4, 5]


def test_no_picture_is_drawn_before_the_first_epoch(tmp_path: Path) -> None:
    FolderLogger(tmp_path, 0).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, ["3/8", "0.2500", "0.7500", "0.5000", "0.12", "9 s", "best"]),
        ({"validation_dice": None, "validation_similarity": 0.3, "best": False}, ["0.3000"]),
        ({"validation_dice": None, "validation_folding": None}, ["3/8"]),
    ],
)
def test_the_terminal_gets_a_line_per_epoch(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], numbers: list[str]
) -> None:
    TerminalLogger(8).log_epoch(ROW | changes)
    (line,) = capsys.readouterr().out.splitlines()
    assert all(number in line for number in numbers)
    assert ("best" in line) == (ROW | changes)["best"]


class RecordedCalls:
    """Stands for the writer of TensorBoard or the run of Weights & Biases."""

    def __init__(self) -> None:
        self.scalars: list[Any] = []
        self.settings: dict[str, Any] = {}
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def log(self, values: dict[str, float], step: int) -> None:
        self.scalars.append((values, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    finish = close


def test_tensorboard_gets_the_numbers_and_forgets_epochs_that_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = RecordedCalls()

    def open_writer(folder: str, purge_step: int) -> RecordedCalls:
        calls.settings = {"folder": folder, "purge_step": purge_step}
        return calls

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=open_writer))
    logger = TensorBoardLogger(tmp_path, 2, {})
    logger.log_epoch(ROW)
    logger.close()
    assert calls.settings == {"folder": str(tmp_path / "tensorboard"), "purge_step": 3}
    assert ("validation_dice", 0.75, 3) in calls.scalars
    assert "validation_similarity" not in [name for name, _, _ in calls.scalars]
    assert calls.closed


def test_a_run_of_weights_and_biases_is_resumed_with_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, settings = RecordedCalls(), list[dict[str, Any]]()

    def init(**changes: Any) -> RecordedCalls:
        settings.append(changes)
        return calls

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for epochs in (0, 2, 0):
        logger = WandbLogger(tmp_path, epochs, {"plans_name": "default"})
        logger.log_epoch(ROW)
        logger.close()
    first_id, resumed_id, new_id = (run["id"] for run in settings)
    assert first_id == resumed_id != new_id
    assert settings[0]["project"] == "llmreg"
    assert settings[0]["config"] == {"plans_name": "default"}
    assert calls.scalars[0][1] == 3
    assert calls.closed


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_logger_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage) as refusal:
        open_loggers(tmp_path, [name], {}, done=0, planned=1)
    assert (refusal.value.package, refusal.value.install) == (name, f"llmreg[{name}]")


def test_folder_and_terminal_are_always_told(tmp_path: Path) -> None:
    opened_loggers = open_loggers(tmp_path, [], {}, done=0, planned=1)
    assert [type(logger) for logger in opened_loggers] == [FolderLogger, TerminalLogger]


def make_row(epoch: int, **changes: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": 1.0 / epoch,
        "loss_dice": 0.5 / epoch,
        "validation_dice": 0.6,
        "initial_dice": 0.5,
        "validation_similarity": None,
        "initial_similarity": None,
        "validation_folding": 0.1,
        "learning_rate": 1e-3,
        "seconds": 3.0,
        "training_seconds": 2.0,
    } | changes


def test_a_log_is_read_as_it_was_written_up_to_an_epoch(tmp_path: Path) -> None:
    assert loggers.read_log(tmp_path) == []
    rows = [make_row(epoch) for epoch in (1, 2, 3)]
    logger = FolderLogger(tmp_path, 0)
    for row in rows:
        logger.log_epoch(row)
    assert loggers.read_log(tmp_path) == rows
    assert loggers.read_log(tmp_path, 2) == rows[:2]
    assert loggers.read_log(tmp_path, 0) == []
    assert len((tmp_path / loggers.LOG_FILE).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [make_row(1), make_row(2, loss_similarity=0.4)],
        [make_row(1, validation_dice=None, validation_similarity=0.2)],
        [make_row(1, validation_dice=None, validation_folding=None)],
    ],
)
def test_a_picture_is_drawn_of_whatever_is_known(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    loggers.plot(tmp_path, rows)
    assert Image.open(tmp_path / "progress.png").size == (1500, 700)
