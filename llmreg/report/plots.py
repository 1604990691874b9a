"""Plots of a report, drawn for a light and for a dark page."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from llmreg.comparison.method_plots import draw_structures
from llmreg.pages import data_url

_LIGHT, _DARK = ("#ffffff", "#1d2024", "#d5d8dc"), ("#1b1e23", "#e4e6e9", "#3d434b")
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A plot as data URIs for light and dark pages, its description, and its size in CSS pixels."""

    light: str
    dark: str
    alt: str
    width: int
    height: int


def plot_structures(tables: Mapping[str, pd.DataFrame]) -> Plot:
    """Plot the Dice of each structure over pairs, a box a method or stage."""
    names = dict.fromkeys(name for table in tables.values() for name in table["name"])
    return _plot(
        lambda: draw_structures(tables),
        f"Box plots of Dice over pairs for {len(names)} structures, with a box for each of: {', '.join(tables)}.",
    )


def plot_training(folds: Mapping[str, Rows]) -> Plot:
    """Plot loss, validation Dice (without labels the image term), folding and learning rate by epoch, a line a fold."""
    last = {fold: rows[-1] for fold, rows in folds.items() if rows}
    ends = "; ".join(
        f"{fold}: {row['epoch']} epochs, loss {row['loss']:.3f}"
        + (f", Dice {100 * row['validation_dice']:.1f} %" if row.get("validation_dice") is not None else "")
        for fold, row in last.items()
    )
    return _plot(lambda: _draw_curves(folds), f"Training curves by epoch. At the end of {ends}.")


def _draw_curves(folds: Mapping[str, Rows]) -> Figure:
    has_dice = any(row.get("validation_dice") is not None for rows in folds.values() for row in rows)
    panels = [
        ("Training loss", "loss", None, 1.0),
        ("Validation Dice (%)", "validation_dice", "initial_dice", 100.0)
        if has_dice
        else ("Validation image term", "validation_similarity", "initial_similarity", 1.0),
        ("Folded voxels in validation (%)", "validation_folding", None, 1.0),
        ("Learning rate", "learning_rate", None, 1.0),
    ]
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    for axis, (title, key, start, scale) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
        for number, (fold, rows) in enumerate(folds.items()):
            epochs = [row["epoch"] for row in rows]
            style = {"color": f"C{number}", "marker": "o" if len(rows) < 3 else ""}
            axis.plot(epochs, _values(rows, key, scale), label=fold, **style)
            if start is not None:
                before = "before registration" if number == len(folds) - 1 else None
                axis.plot(epochs, _values(rows, start, scale), color=f"C{number}", linestyle="--", label=before)
        axis.set_title(title, fontsize=10)
        axis.grid()
        if start is not None or len(folds) > 1:
            axis.legend(fontsize=8)
    for axis in figure.axes[2:]:
        axis.set_xlabel("epoch")
    return figure


def _values(rows: Rows, key: str, scale: float) -> list[float]:
    values = (row.get(key) for row in rows)
    return [float("nan") if value is None else scale * float(value) for value in values]


def _plot(draw: Callable[[], Figure], alt: str) -> Plot:
    pictures = []
    for background, text, lines in (_LIGHT, _DARK):
        colours: dict[Any, Any] = {
            **{f"boxplot.{part}.color": text for part in ("boxprops", "whiskerprops", "capprops")},
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), text),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), background),
            **dict.fromkeys(("axes.edgecolor", "grid.color", "legend.edgecolor"), lines),
            "boxplot.flierprops.markeredgecolor": text,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        stream = io.BytesIO()
        with matplotlib.rc_context(colours):
            figure = draw()
            # This format is lossless as well, and a third smaller than PNG.
            figure.savefig(stream, format="webp", dpi=120, pil_kwargs={"lossless": True})
        pictures.append(data_url(stream.getvalue(), "webp"))
    width, height = (round(100 * length) for length in figure.get_size_inches())
    return Plot(pictures[0], pictures[1], alt, width, height)
