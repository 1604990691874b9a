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

REPORT_FILE = "report.html"
DEFAULT_PAIRS = 10
# Rows of the table of pairs. Of more pairs, it has the worst and the best, half of the rows each.
_ROWS = 200
_STOPS = 9
# The cells of a table: their text, and whether it is the best of its row or column.
Cells = list[tuple[str, bool]]


def write_report(
    path: Path,
    output: Path | None = None,
    pairs: int = DEFAULT_PAIRS,
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
    target = output or path / REPORT_FILE
    source = read_source(path, predictions)
    if not source.tables and not source.shown and not source.training:
        raise UserError(f"{path} holds nothing to report yet: train, predict or run the benchmark first.")
    check_writable(target.parent)
    viewer = draw_pairs(source.shown, select_pairs(source.shown, pairs), processes) if source.shown else None
    write_text(target, render(source, viewer))
    return target


def render(source: Source, viewer: Viewer | None) -> str:
    """Render the page as text."""
    shown = None if viewer is None or not viewer.pictures else viewer
    return (
        pages.create_environment("llmreg.report")
        .get_template("report.html")
        .render(
            source=source,
            version=__version__,
            style=Markup(pages.style_sheet() + _read_template("report.css")),
            script=Markup(_read_template("viewer.js")),
            tables=[_describe_table(table) for table in source.tables],
            failed=source.failed + (() if viewer is None else viewer.failed),
            viewer=shown,
            scales={name: _gradient(name) for name in ("RdBu_r", "magma")},
            jacobian_ends=(f"{2**-JACOBIAN_SPAN:g}", f"{2**JACOBIAN_SPAN:g}"),
            boxes=plots.plot_structures(source.by_label) if source.by_label else None,
            structures=_list_structures(source.by_label),
            pairs=_list_pairs(source.by_pair, shown),
            curves=plots.plot_training(source.training) if source.training else None,
        )
    )


def _read_template(name: str) -> str:
    return files("llmreg.report").joinpath("templates", name).read_text(encoding="utf-8")


def _describe_table(table: Table) -> dict[str, Any]:
    keys = keys_of(table)
    rows: list[tuple[str, Cells]] = []
    for title, cells in table.rows.items():
        texts = [(cell_text(cells.get(key), COLUMNS[key]), key in cells and cells[key].best) for key in keys]
        rows.append((title, texts))
    head = [COLUMNS[key].title.replace("<=", "\u2264") for key in keys]
    return {"caption": caption(table), "head": head, "rows": rows}


def _list_structures(by_label: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Mean Dice (%) by structure, a column a method or stage."""
    means = {title: table.groupby("name", sort=False)["dice"].mean() for title, table in by_label.items()}
    counts = {title: table.groupby("name")["dice"].count() for title, table in by_label.items()}
    names = list(dict.fromkeys(str(name) for dice in means.values() for name in dice.index))
    rows = []
    for name in names:
        count = max(int(pairs.get(name, 0)) for pairs in counts.values())
        dice = _dice_cells({title: column.get(name) for title, column in means.items()})
        rows.append((name, [(str(count), False), *dice]))
    return {"head": ["pairs", *means], "rows": rows}


def _list_pairs(by_pair: Mapping[str, pd.DataFrame], viewer: Viewer | None) -> dict[str, Any]:
    """Mean Dice (%) by pair, the worst on average first, a column a method or stage."""
    dice = pd.DataFrame({title: table["dice"] for title, table in by_pair.items() if "dice" in table})
    registered = dice.drop(columns=list(UNRANKED), errors="ignore")
    dice = dice.loc[registered.mean(axis=1).sort_values().index]
    shown = {} if viewer is None else {pair["id"]: number for number, pair in enumerate(viewer.about["pairs"])}
    left_out = max(0, len(dice) - _ROWS)
    if left_out:
        dice = pd.concat([dice.iloc[: _ROWS // 2], dice.iloc[-_ROWS // 2 :]])
    rows = [(str(name), _dice_cells(dict(row)), shown.get(str(name))) for name, row in dice.iterrows()]
    return {"head": list(dice), "rows": rows, "left_out": left_out}


def _dice_cells(dice: Mapping[str, Any]) -> Cells:
    values = {title: float(value) for title, value in dice.items() if value is not None and not pd.isna(value)}
    # The initial value counts: a method that made it worse is not the best.
    best = max(values.values(), default=None)
    return [
        (f"{100 * values[title]:.1f}", title not in UNRANKED and values[title] == best)
        if title in values
        else ("-", False)
        for title in dice
    ]


def _gradient(name: str) -> str:
    """A colour map as the stops of a CSS gradient."""
    colours = palette(name)[:: 255 // (_STOPS - 1)]
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist())
