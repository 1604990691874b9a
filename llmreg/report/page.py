"""Write the page."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from llmreg import pages
from llmreg.comparison.tables import COLUMNS, UNRANKED, Table, caption, cell_text, keys_of
from llmreg.errors import UserError
from llmreg.files import check_writable, write_text
from llmreg.report import plots
from llmreg.report.content import Source, read_source
from llmreg.report.rendering import JACOBIAN_SPAN, palette
from llmreg.report.shown_predictions import select_pairs
from llmreg.report.viewer import Viewer, draw_pairs
from llmreg.version import __version__

# The table of pairs has at most this number of rows. With more pairs, half are the worst and half the best ones.
_ROWS = 200
# The cells of a table: their text, and whether it is the best of its row or column.
Cells = list[tuple[str, bool]]


def write_report(
    path: Path,
    output: Path | None = None,
    pairs: int = 10,
    predictions: Path | None = None,
    processes: int = 1,
) -> Path:
    """Write a self-contained HTML page about a folder of predictions, a model or a benchmark.

    Args:
        path: the folder.
        output: the page; ``report.html`` in the folder when None.
        pairs: number of pairs that are shown in slices, the worst and the best ones.
        predictions: folder of predictions whose slices the report of a model shows.
        processes: number of pairs that are drawn at the same time.

    Returns:
        The path of the page.

    Raises:
        UserError: the folder is none of these, or there is nothing to report.
    """
    target = output or path / "report.html"
    source = read_source(path, predictions)
    if not source.tables and not source.shown and not source.training:
        raise UserError(f"{path} holds nothing to report yet: train, predict or run the benchmark first.")
    check_writable(target.parent)
    viewer = draw_pairs(source.shown, select_pairs(source.shown, pairs), processes) if source.shown else None
    write_text(target, render(source, viewer))
    return target


def render(source: Source, viewer: Viewer | None) -> str:
    """Render the page as text."""
    templates = files("llmreg.report") / "templates"
    shown = None if viewer is None or not viewer.pictures else viewer
    return (
        pages.create_environment("llmreg.report")
        .get_template("report.html")
        .render(
            source=source,
            version=__version__,
            style=Markup(pages.style_sheet() + (templates / "report.css").read_text(encoding="utf-8")),
            script=Markup((templates / "viewer.js").read_text(encoding="utf-8")),
            tables=[_describe_table(table) for table in source.tables],
            failed=source.failed + (() if viewer is None else viewer.failed),
            viewer=shown,
            scales={name: _gradient(name) for name in ("RdBu_r", "magma")},
            jacobian_ends=(f"{2**-JACOBIAN_SPAN:g}", f"{2**JACOBIAN_SPAN:g}"),
            boxes=plots.plot_structures(source.by_label) if source.by_label else None,
            structures=_list_structures(source.by_label) if source.by_label else None,
            pairs=_list_pairs(source.by_pair, shown),
            curves=plots.plot_training(source.training) if source.training else None,
        )
    )


def _describe_table(table: Table) -> dict[str, Any]:
    keys = keys_of(table)
    rows: list[tuple[str, Cells]] = []
    for title, cells in table.rows.items():
        texts = [(cell_text(cells.get(key), COLUMNS[key]), key in cells and cells[key].best) for key in keys]
        rows.append((title, texts))
    return {
        "caption": caption(table),
        "head": [COLUMNS[key].title.replace("<=", "\u2264") for key in keys],
        "rows": rows,
    }


def _list_structures(by_label: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean Dice (%) by structure, a column a method or stage."""
    rows = []
    for name, dice in pd.concat(by_label, names=["title"]).groupby("name", sort=False)["dice"]:
        by_title = dice.groupby("title")
        cells = _dice_cells(by_title.mean().reindex(list(by_label)))
        rows.append((name, [(str(by_title.count().max()), False), *cells]))
    return {"head": ["pairs", *by_label], "rows": rows}


def _list_pairs(by_pair: Mapping[str, pd.DataFrame], viewer: Viewer | None) -> dict[str, Any]:
    """Mean Dice (%) by pair, the worst on average first, a column a method or stage."""
    dice = pd.DataFrame({title: table["dice"] for title, table in by_pair.items() if "dice" in table})
    registered = dice.drop(columns=list(UNRANKED), errors="ignore")
    dice = dice.loc[registered.mean(axis=1).sort_values().index]
    shown = {} if viewer is None else {pair["id"]: number for number, pair in enumerate(viewer.about["pairs"])}
    left_out = max(0, len(dice) - _ROWS)
    if left_out:
        dice = pd.concat([dice.iloc[: _ROWS // 2], dice.iloc[-_ROWS // 2 :]])
    rows = [(str(name), _dice_cells(row), shown.get(str(name))) for name, row in dice.iterrows()]
    return {"head": list(dice), "rows": rows, "left_out": left_out}


def _dice_cells(dice: "pd.Series[float]") -> Cells:
    # The initial value counts: a method that made it worse is not the best.
    best = dice.max()
    return [
        ("-", False) if pd.isna(value) else (f"{100 * value:.1f}", title not in UNRANKED and value == best)
        for title, value in dice.items()
    ]


def _gradient(name: str) -> str:
    """A colour map as the stops of a CSS gradient."""
    # Nine of the 256 colours are enough.
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in palette(name)[::31].tolist())
