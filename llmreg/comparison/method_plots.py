"""Plots of compared methods: box plots by structure, and bars by layers of the language model."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from llmreg.files import atomic_write

# Structures in a row of box plots; more cannot be told apart.
_PER_ROW = 12


def draw_structures(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the Dice of each structure over pairs, a box a method (the paper's figure 2).

    Args:
        tables: by the methods' titles, columns ``name`` and ``dice`` (a fraction), a row a pair and structure.
    """
    structures = list(dict.fromkeys(name for table in tables.values() for name in table["name"]))
    length = math.ceil(len(structures) / math.ceil(len(structures) / _PER_ROW))
    rows = [structures[start : start + length] for start in range(0, len(structures), length)]
    figure = Figure(figsize=(13, 0.8 + 3.0 * len(rows)), layout="constrained")
    colours = colormaps["tab20"](np.arange(len(tables)) % 20)
    width = 0.8 / len(tables)
    for axis, names in zip(np.atleast_1d(figure.subplots(len(rows), 1)), rows, strict=True):
        for index, (table, colour) in enumerate(zip(tables.values(), colours, strict=True)):
            axis.boxplot(
                [100 * table.loc[table["name"] == name, "dice"].dropna() for name in names],
                positions=np.arange(len(names)) + (index - (len(tables) - 1) / 2) * width,
                widths=0.9 * width,
                patch_artist=True,
                boxprops={"facecolor": colour},
                flierprops={"markersize": 2},
                medianprops={"color": "black"},
            )
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axis.set(xlim=(-0.5, length - 0.5), ylabel="Dice (%)")
        axis.grid(axis="y", alpha=0.3)
    handles = [Patch(facecolor=colour, label=title) for title, colour in zip(tables, colours, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(tables)), fontsize=8)
    return figure


def draw_layers(dice: Mapping[str, "pd.Series[float]"]) -> Figure:
    """Draw mean Dice with SD over pairs, a bar for each pair of layers (the paper's figure 4).

    Args:
        dice: fractions by pair, by the methods' titles; pairs that are missing in one of them are left out.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    shared = pd.DataFrame(dict(dice)).dropna()
    means, sds = 100 * shared.mean(), 100 * shared.std(ddof=1).fillna(0)
    bars = axis.bar(list(shared), means, yerr=sds, capsize=4, color="tab:blue", width=0.6)
    axis.bar_label(bars, fmt="%.2f", label_type="center", color="white")
    axis.set(ylim=(max(0.0, min(means) - 4 * max(sds)), None), ylabel="Dice (%)")
    axis.tick_params(axis="x", labelsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
