"""The demo's own parts: what it deletes and what it claims (the demo as a whole is `make demo`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llmreg.commands.demo import clear_folder, draw_first_pair, format_scores
from llmreg.data.synthetic import DEMO_FOLDER, write_demo_dataset
from llmreg.errors import UserError
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.images.fields import write_field
from llmreg.images.image_files import read_image
from llmreg.predictions import PredictedPair, Predictions, write_predictions


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


def test_the_picture_shows_both_images_and_the_outlines_of_organs(tmp_path: Path) -> None:
    write_demo_dataset(tmp_path / "raw", subjects=4, seed=7, held_out=2)
    raw = tmp_path / "raw" / DEMO_FOLDER
    fixed, *_, moving = sorted((raw / "imagesTs").glob("*.nii.gz"))
    grid = Grid.from_image(read_image(fixed))
    write_field(DisplacementField(np.full((*grid.shape, 3), 4.0, np.float32), grid), tmp_path / "field.nii.gz")
    names = {"fixed": fixed.name.removesuffix(".nii.gz"), "moving": moving.name.removesuffix(".nii.gz")}
    write_predictions(tmp_path, Predictions(pairs=[PredictedPair(pair_id="a", field="field.nii.gz", **names)]))
    draw_first_pair(tmp_path, raw, tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()
    for colour in ([0, 255, 0], [255, 0, 0], [0, 0, 0], [255, 255, 255]):
        assert colour in colours
