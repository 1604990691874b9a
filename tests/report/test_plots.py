from __future__ import annotations

import base64
import io

import numpy as np
import pandas as pd
from PIL import Image

from llmreg.report.plots import Plot, plot_structures, plot_training

EPOCHS = [
    {"epoch": epoch, "loss": 1 / epoch, "validation_dice": 0.6, "initial_dice": 0.4, "learning_rate": 1e-3}
    for epoch in (1, 2)
]


def brightness(picture: str) -> float:
    kind, _, content = picture.partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return float(np.median(np.asarray(image.convert("L"))))


def check(plot: Plot) -> None:
    assert brightness(plot.dark) < 60 < 200 < brightness(plot.light)
    assert min(plot.width, plot.height) > 100


def test_box_plots_are_drawn_for_light_and_dark_pages() -> None:
    rows = pd.DataFrame({"name": ["liver", "liver", "spleen"], "dice": [0.5, 0.7, 0.9]})
    plot = plot_structures({"Initial": rows, "Registered": rows})
    check(plot)
    assert "2 structures" in plot.alt
    assert "Initial, Registered" in plot.alt


def test_training_curves_say_where_the_folds_ended() -> None:
    plot = plot_training({"fold 0": EPOCHS, "fold 1": EPOCHS[:1], "fold 2": []})
    check(plot)
    assert "fold 0: 2 epochs, loss 0.500, Dice 60.0 %" in plot.alt
    assert "fold 1: 1 epochs" in plot.alt
    assert "fold 2" not in plot.alt


def test_without_labels_the_curves_show_the_image_term() -> None:
    rows = [{"epoch": 1, "loss": 0.5, "validation_similarity": 0.3, "initial_similarity": 0.4, "learning_rate": 1e-3}]
    plot = plot_training({"fold 0": rows})
    check(plot)
    assert "Dice" not in plot.alt
