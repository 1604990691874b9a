from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from llmreg.comparison.method_plots import draw_layers, draw_structures, save_figure


def rows(dice: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame([{"name": name, "dice": value} for name, values in dice.items() for value in values])


def test_each_method_has_a_box_for_each_structure() -> None:
    tables = {"A": rows({"liver": [0.5, 0.7], "spleen": [0.9]}), "B": rows({"liver": [0.6]})}
    figure = draw_structures(tables)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["liver", "spleen"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]
    # Two methods with two structures each, of which one has no pair.
    assert len(axis.patches) == 4
    tops = [path.get_path().vertices[:, 1].max() for path in axis.patches if len(path.get_path().vertices)]
    np.testing.assert_allclose(np.nanmax(tops), 90.0)
    assert len({patch.get_facecolor() for patch in axis.patches}) == 2


def test_many_structures_take_several_rows() -> None:
    figure = draw_structures({"A": rows({f"structure {k}": [0.5] for k in range(30)})})
    assert [len(axis.get_xticks()) for axis in figure.axes] == [10, 10, 10]


def test_layers_are_compared_on_the_pairs_that_all_have(tmp_path: Path) -> None:
    index = pd.Index(["a", "b", "c"])
    dice = {"0/1": pd.Series([0.5, 0.6, 0.1], index), "1/2": pd.Series([0.7, 0.8, np.nan], index)}
    figure = draw_layers(dice)
    assert [text.get_text() for text in figure.axes[0].texts] == ["55.00", "75.00"]
    save_figure(figure, tmp_path / "layers.png")
    save_figure(draw_structures({"A": rows({"liver": [0.5, 0.7]})}), tmp_path / "structures.png")
    for name in ("layers", "structures"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 1
