"""The demo's own parts: what it deletes and what it claims (the demo as a whole is `make demo`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmreg.commands.demo import clear_folder, format_scores
from llmreg.errors import UserError


def metrics(**dice: float) -> dict[str, dict[str, float]]:
    values = {name: {"mean": value} for name, value in dice.items()}
    values |= {name.replace("dice", "hd95_mm"): {"mean": 5.0} for name in dice}
    return values | {"folding_percent": {"mean": 0.5}}


def test_the_gain_is_counted_from_the_better_start() -> None:
    spoilt = format_scores({"num_pairs": 6, "metrics": metrics(initial_dice=0.5, prealigned_dice=0.4, dice=0.7)})
    assert "Dice gained over the better of the two starts: +20.0 points" in spoilt
    helped = format_scores({"num_pairs": 6, "metrics": metrics(initial_dice=0.5, prealigned_dice=0.6, dice=0.7)})
    assert "+10.0 points" in helped
    assert "6 pairs" in helped


def test_only_an_earlier_demo_is_deleted(tmp_path: Path) -> None:
    notes, raw = tmp_path / "notes.txt", tmp_path / "raw" / "Dataset999_Demo"
    notes.touch()
    with pytest.raises(UserError, match="something else"):
        clear_folder(tmp_path, "Dataset999_Demo")
    for folder in (raw, tmp_path / "demo_predictions", tmp_path / "predictions", tmp_path / "raw" / "Dataset001_Own"):
        folder.mkdir(parents=True)
    clear_folder(tmp_path, "Dataset999_Demo")
    assert notes.exists()
    assert not raw.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["predictions", "raw"]
    assert (tmp_path / "raw" / "Dataset001_Own").exists()
