from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llmreg.training import progress


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
    assert progress.read_log(tmp_path) == []
    rows = [make_row(epoch) for epoch in (1, 2, 3)]
    progress.write_log(tmp_path, rows)
    assert progress.read_log(tmp_path) == rows
    assert progress.read_log(tmp_path, 2) == rows[:2]
    assert progress.read_log(tmp_path, 0) == []
    assert len((tmp_path / progress.LOG_FILE).read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [make_row(1), make_row(2, loss_similarity=0.4)],
        [make_row(1, validation_dice=None, validation_similarity=0.2)],
        [make_row(1, validation_dice=None, validation_folding=None)],
    ],
)
def test_a_picture_is_drawn_of_whatever_is_known(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    progress.plot(tmp_path, rows)
    assert Image.open(tmp_path / "progress.png").size == (1500, 700)
