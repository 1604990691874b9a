"""Tables of compared methods: mean and SD over pairs, the best in bold, and which others differ significantly."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from llmreg.errors import BadArgument

TITLES = {
    "table1": "Comparison of methods (the paper's table 1)",
    "table2": "Ablations (the paper's table 2)",
    "table3": "Language models (the paper's table 3)",
    "figure4": "Layers of the language model (the paper's figure 4)",
    "comparison": "Comparison of methods",
}
# Rows of the scores before registration, which are shown but not ranked.
INITIAL_TITLE, PREALIGNED_TITLE = UNRANKED = ("Initial", "Pre-aligned")
# A difference with a smaller p value is called significant.
SIGNIFICANT = 0.05
PARTIAL = "\N{DAGGER}"


@dataclass(frozen=True)
class Column:
    """A score of a pair, as a column of tables.

    Attributes:
        title: heads the column.
        more_is_better: None where neither more nor less is.
        scale: factor from the scored to the shown number.
        digits: shown after the point.
        tested: whether methods are tested against the best one.
        spread: whether each pair has a value of its own, so that there is an SD.
        of_kept: whether it is a mean over the structures that were not lost in warping. Such a mean favours a method
            that lost the difficult ones.
    """

    title: str
    more_is_better: bool | None = None
    scale: float = 1.0
    digits: int = 2
    tested: bool = False
    spread: bool = True
    of_kept: bool = False


COLUMNS = {
    "dice": Column("Dice (%)", more_is_better=True, scale=100, tested=True),
    "folding_percent": Column("|J| <= 0 (%)", more_is_better=False, digits=3),
    "hd95_mm": Column("HD95 (mm)", more_is_better=False, tested=True, of_kept=True),
    "assd_mm": Column("ASSD (mm)", more_is_better=False, of_kept=True),
    "lost": Column("lost a pair", more_is_better=False, spread=False),
    "tre_mm": Column("TRE (mm)", more_is_better=False),
    "sdlogj": Column("SDlogJ", digits=3),
    "seconds": Column("s a pair", digits=1, spread=False),
    "peak_memory_gb": Column("peak GiB", spread=False),
    "peak_gpu_memory_gb": Column("peak GPU GiB", spread=False),
}
# Columns that say nothing before registration.
_OF_FIELDS = ("folding_percent", "sdlogj", "seconds", "peak_memory_gb", "peak_gpu_memory_gb")


@dataclass(frozen=True)
class Cell:
    """Mean and SD (n - 1) over pairs.

    Attributes:
        best: whether it is the best of its column.
        p: corrected by Holm's method, against the best, where it was tested.
        partial: whether structures that were lost in warping are left out of it, so that it is not ranked.
    """

    mean: float
    sd: float
    best: bool = False
    p: float | None = None
    partial: bool = False


@dataclass(frozen=True)
class Table:
    """Compared methods.

    Attributes:
        title: heads the table.
        pairs: number of pairs that all methods were scored on.
        rows: by the methods' titles, cells by keys of :data:`COLUMNS`.
        failed: by their titles, reasons why methods are missing.
    """

    title: str
    pairs: int
    rows: Mapping[str, Mapping[str, Cell]]
    failed: Mapping[str, str]


def build_table(title: str, scores: Mapping[str, pd.DataFrame], failed: Mapping[str, str] | None = None) -> Table:
    """Build a table from scores by method, a row a pair (index), columns among :data:`COLUMNS`.

    Methods are compared on the pairs that all of them have. Each is tested against the best of a column by Wilcoxon's
    signed-rank test over pairs, and the p values are corrected by Holm's method for the number of tests. The rows
    before registration are not tested; nor, in distances between surfaces, is a method that lost structures, because
    those have no distance.

    Raises:
        BadArgument: no pair was scored for all methods.
    """
    shared = sorted(set.intersection(*(set(table.index) for table in scores.values())))
    if not shared:
        raise BadArgument(
            "methods", f"No pair was scored for all of {', '.join(scores)}: name methods that belong together."
        )
    on_shared = {method: table.loc[shared] for method, table in scores.items()}
    losing = {method for method, table in on_shared.items() if "lost" in table and table["lost"].any()}
    rows: dict[str, dict[str, Cell]] = {method: {} for method in scores}
    for key, column in COLUMNS.items():
        if key == "lost" and not losing:
            continue
        columns = {
            method: table[key]
            for method, table in on_shared.items()
            if key in table and table[key].notna().any() and not (method in UNRANKED and key in _OF_FIELDS)
        }
        partial = losing if column.of_kept else set()
        means = {method: float(values.mean()) for method, values in columns.items()}
        ranked = {method: mean for method, mean in means.items() if method not in partial.union(UNRANKED)}
        best = _choose_best(ranked, column)
        p: dict[str, float] = {}
        if best is not None and column.tested:
            p = _holm({method: _wilcoxon_p(columns[method], columns[best]) for method in ranked if method != best})
        for method, mean in means.items():
            sd = float(columns[method].std(ddof=1)) if column.spread else np.nan
            equal = best is not None and method in ranked and mean == means[best]
            rows[method][key] = Cell(mean, sd, equal, p.get(method), method in partial)
    return Table(title, len(shared), rows, failed or {})


def _choose_best(means: Mapping[str, float], column: Column) -> str | None:
    if column.more_is_better is None or not means:
        return None
    return (max if column.more_is_better else min)(means, key=lambda method: means[method])


def _wilcoxon_p(first: "pd.Series[float]", second: "pd.Series[float]") -> float:
    differences = (first - second).dropna()
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: A simple sequentially rejective multiple test procedure, Scand J Stat 1979."""
    names = sorted(p, key=lambda name: p[name])
    corrected = (min(1.0, (len(p) - rank) * p[name]) for rank, name in enumerate(names))
    return dict(zip(names, accumulate(corrected, max), strict=True))


def as_frame(table: Table) -> pd.DataFrame:
    """Give a table as a row a method, columns ``<key>_mean``, ``_sd`` and, where tested, ``_p``, unscaled."""
    lines = []
    for method, cells in table.rows.items():
        line: dict[str, float | str] = {"method": method}
        for key, cell in cells.items():
            line |= {f"{key}_mean": cell.mean, f"{key}_sd": cell.sd}
            if COLUMNS[key].tested:
                line[f"{key}_p"] = np.nan if cell.p is None else cell.p
        lines.append(line)
    lines += [{"method": method, "failed": reason} for method, reason in table.failed.items()]
    return pd.DataFrame(lines)


def as_markdown(table: Table) -> str:
    """Format a table as Markdown under its caption."""
    head, body = _texts(table, bold="**{}**")
    # A bar would end the cell.
    head = [cell.replace("|J| <= 0", "det J <= 0") for cell in head]
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    lines += [
        f"| {method} | {_remove_markup(reason)} |" + " |" * (len(head) - 2) for method, reason in table.failed.items()
    ]
    return f"{caption(table)}\n\n" + "\n".join(lines) + "\n"


def as_latex(table: Table) -> str:
    """Format a table for LaTeX with the package booktabs."""
    head, body = _texts(table, bold=r"\textbf{{{}}}")
    rows = [[_escape(cell) for cell in line] for line in body]
    rows += [
        [_escape(method), rf"\multicolumn{{{len(head) - 1}}}{{l}}{{{_escape(_remove_markup(reason))}}}"]
        for method, reason in table.failed.items()
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(caption(table))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escape, head)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def caption(table: Table) -> str:
    """Say what the table shows, and how to read it."""
    partial = any(cell.partial for cells in table.rows.values() for cell in cells.values())
    text = (
        f"{table.title}: mean (SD) over {table.pairs} pairs, the best in bold. * differs significantly from it "
        f"(Wilcoxon's signed-rank test, Holm's correction, p < {SIGNIFICANT:g})."
    )
    return text + (
        f" {PARTIAL} not ranked, since structures that are outside or were lost are left out." if partial else ""
    )


def _texts(table: Table, bold: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows, without the columns that no method has."""
    keys = keys_of(table)
    body = [
        [method, *(cell_text(cells.get(key), COLUMNS[key], bold) for key in keys)]
        for method, cells in table.rows.items()
    ]
    return ["", *(COLUMNS[key].title for key in keys)], body


def keys_of(table: Table) -> list[str]:
    """List the keys of :data:`COLUMNS` that some row has, in order."""
    return [key for key in COLUMNS if any(key in cells for cells in table.rows.values())]


def cell_text(cell: Cell | None, column: Column, bold: str = "{}") -> str:
    """Format mean (SD), put into ``bold`` where it is best, with a star where it differs significantly."""
    if cell is None:
        return "-"
    mean, sd = (f"{column.scale * value:.{column.digits}f}" for value in (cell.mean, cell.sd))
    text = mean if np.isnan(cell.sd) else f"{mean} ({sd})"
    star = "*" if cell.p is not None and cell.p < SIGNIFICANT else ""
    return (bold.format(text) if cell.best else text) + star + PARTIAL * cell.partial


def _escape(text: str) -> str:
    """Escape text for LaTeX, except for the braces and backslashes that mark the best in bold."""
    signs = {
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "|": "$|$",
        "<=": r"$\leq$",
        "<": "$<$",
        ">": "$>$",
        PARTIAL: r"$\dagger$",
    }
    for raw, safe in signs.items():
        text = text.replace(raw, safe)
    return text


def _remove_markup(text: str) -> str:
    """Remove the characters that mean something to LaTeX or Markdown."""
    return "".join(character for character in text if character not in "\\{}$^~|<>*`")
