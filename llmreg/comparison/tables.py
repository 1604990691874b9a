"""Tables of compared methods: mean and SD over pairs, the best in bold, and whether others are significantly worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from llmreg.errors import UserError

TITLES = {
    "table1": "Comparison of methods (the paper's table 1)",
    "table2": "Ablations (the paper's table 2)",
    "table3": "Language models (the paper's table 3)",
    "figure4": "Layers of the language model (the paper's figure 4)",
    "comparison": "Comparison of methods",
}
# What was scored before anything was registered: shown, but not among those that are ranked.
INITIAL_TITLE, PREALIGNED_TITLE = UNRANKED = ("Initial", "Pre-aligned")
# Below, a difference is called significant.
SIGNIFICANT = 0.05
PARTIAL = "\N{DAGGER}"


@dataclass(frozen=True)
class Column:
    """A figure of a pair.

    Attributes:
        title: what tables call it.
        more_is_better: None where neither is.
        scale: what it is multiplied by.
        digits: after the point.
        tested: whether methods are tested against the best in it.
        spread: whether each pair has its own, so that there is an SD.
        of_kept: whether it is a mean over the structures that were not lost in warping, which flatters who lost some.
    """

    title: str
    more_is_better: bool | None
    scale: float = 1.0
    digits: int = 2
    tested: bool = False
    spread: bool = True
    of_kept: bool = False


COLUMNS = {
    "dice": Column("Dice (%)", True, 100, tested=True),
    "folding_percent": Column("|J| <= 0 (%)", False, digits=3),
    "hd95_mm": Column("HD95 (mm)", False, tested=True, of_kept=True),
    "assd_mm": Column("ASSD (mm)", False, of_kept=True),
    "lost": Column("lost a pair", False, spread=False),
    "tre_mm": Column("TRE (mm)", False),
    "sdlogj": Column("SDlogJ", None, digits=3),
    "seconds": Column("s a pair", None, digits=1, spread=False),
    "peak_memory_gb": Column("peak GiB", None, spread=False),
    "peak_gpu_memory_gb": Column("peak GPU GiB", None, spread=False),
}
# What cannot be better or worse than others before anything was registered.
_OF_FIELDS = ("folding_percent", "sdlogj", "seconds", "peak_memory_gb", "peak_gpu_memory_gb")


@dataclass(frozen=True)
class Cell:
    """Mean and SD (n - 1) over pairs.

    Attributes:
        best: whether it is the best.
        p: Holm's, against the best, where it was tested.
        partial: whether structures that were lost in warping are missing from it, so that it is not ranked.
    """

    mean: float
    sd: float
    best: bool = False
    p: float | None = None
    partial: bool = False


@dataclass(frozen=True)
class Table:
    """Attributes:
    title: what it shows.
    pairs: how many all methods were scored on.
    rows: by the methods' titles, cells by keys of :data:`COLUMNS`.
    failed: by title, why a method is missing.
    """

    title: str
    pairs: int
    rows: Mapping[str, Mapping[str, Cell]]
    failed: Mapping[str, str]


def compared(title: str, scores: Mapping[str, pd.DataFrame], failed: Mapping[str, str] | None = None) -> Table:
    """A table from scores by method, a row a pair (index), columns among :data:`COLUMNS`.

    Methods are compared on the pairs that all of them have. Each is tested against the best of a column by Wilcoxon's
    signed-rank test over pairs, and the p values are Holm's for that many tests; "initial" is not among them, nor, for
    distances between surfaces, a method that has lost structures: it has none of those.

    Raises:
        UserError: there is no such pair.
    """
    shared = sorted(set.intersection(*(set(table.index) for table in scores.values()))) if scores else []
    if scores and not shared:
        raise UserError(f"No pair was scored for all of {', '.join(scores)}: name those that belong together.")
    on_shared = {method: table.loc[shared] for method, table in scores.items()}
    losing = {method for method, table in on_shared.items() if "lost" in table and table["lost"].any()}
    rows: dict[str, dict[str, Cell]] = {method: {} for method in scores}
    for key, column in COLUMNS.items():
        if key == "lost" and not losing:
            continue
        known = {
            method: table[key]
            for method, table in on_shared.items()
            if key in table and table[key].notna().any() and not (method in UNRANKED and key in _OF_FIELDS)
        }
        partial = losing if column.of_kept else set()
        ranked = {method: values for method, values in known.items() if method not in partial.union(UNRANKED)}
        best = _best(ranked, column)
        others = [method for method in ranked if method != best]
        p = _holm({method: _p(known[method], known[best]) for method in others}) if best and column.tested else {}
        for method, values in known.items():
            mean, sd = float(values.mean()), float(values.std(ddof=1)) if column.spread else np.nan
            equal = best is not None and method in ranked and mean == float(known[best].mean())
            rows[method][key] = Cell(mean, sd, equal, p.get(method), method in partial)
    return Table(title, len(shared), rows, dict(failed or {}))


def _best(ranked: Mapping[str, pd.Series[float]], column: Column) -> str | None:
    means = {method: float(values.mean()) for method, values in ranked.items()}
    if column.more_is_better is None or not means:
        return None
    return (max if column.more_is_better else min)(means, key=lambda method: means[method])


def _p(one: pd.Series[float], other: pd.Series[float]) -> float:
    apart = (one - other).dropna()
    return float(wilcoxon(apart).pvalue) if apart.any() else 1.0


def _holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: A simple sequentially rejective multiple test procedure, Scand J Stat 1979."""
    found: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        found[name] = largest
    return found


def as_frame(table: Table) -> pd.DataFrame:
    """A row a method, columns ``<key>_mean``, ``_sd`` and, where tested, ``_p``; numbers as they are scored."""
    lines = []
    for method, cells in table.rows.items():
        line: dict[str, float | str] = {"method": method}
        for key, cell in cells.items():
            line |= {f"{key}_mean": cell.mean, f"{key}_sd": cell.sd}
            if COLUMNS[key].tested:
                line[f"{key}_p"] = np.nan if cell.p is None else cell.p
        lines.append(line)
    lines += [{"method": method, "failed": why} for method, why in table.failed.items()]
    return pd.DataFrame(lines)


def as_markdown(table: Table) -> str:
    head, body = _texts(table, bold="**{}**")
    # A bar would end the cell.
    head = [cell.replace("|J| <= 0", "det J <= 0") for cell in head]
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *body)]
    lines += [f"| {method} | {_plain(why)} |" + " |" * (len(head) - 2) for method, why in table.failed.items()]
    return f"{caption(table)}\n\n" + "\n".join(lines) + "\n"


def as_latex(table: Table) -> str:
    """For the packages booktabs and nothing else."""
    head, body = _texts(table, bold=r"\textbf{{{}}}")
    rows = [[_escaped(cell) for cell in line] for line in body]
    rows += [
        [_escaped(method), rf"\multicolumn{{{len(head) - 1}}}{{l}}{{{_escaped(_plain(why))}}}"]
        for method, why in table.failed.items()
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escaped(caption(table))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, head)) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def caption(table: Table) -> str:
    """What the table shows, and how to read it."""
    partial = any(cell.partial for cells in table.rows.values() for cell in cells.values())
    text = (
        f"{table.title}: mean (SD) over {table.pairs} pairs, the best in bold. * differs significantly from it "
        f"(Wilcoxon's signed-rank test, Holm's correction, p < {SIGNIFICANT:g})."
    )
    return text + (f" {PARTIAL} not ranked: without structures that are outside or were lost." if partial else "")


def _texts(table: Table, bold: str) -> tuple[list[str], list[list[str]]]:
    """The head and the rows; columns that nobody has are left out."""
    keys = keys_of(table)
    body = [
        [method, *(cell_text(cells.get(key), COLUMNS[key], bold) for key in keys)]
        for method, cells in table.rows.items()
    ]
    return ["", *(COLUMNS[key].title for key in keys)], body


def keys_of(table: Table) -> list[str]:
    """The keys of :data:`COLUMNS` that some row has, in order."""
    return [key for key in COLUMNS if any(key in cells for cells in table.rows.values())]


def cell_text(cell: Cell | None, column: Column, bold: str = "{}") -> str:
    """Mean (SD), put into ``bold`` where it is the best, with a star where it differs significantly from that."""
    if cell is None:
        return "-"
    mean, sd = (f"{column.scale * value:.{column.digits}f}" for value in (cell.mean, cell.sd))
    text = mean if np.isnan(cell.sd) else f"{mean} ({sd})"
    star = "*" if cell.p is not None and cell.p < SIGNIFICANT else ""
    return (bold.format(text) if cell.best else text) + star + PARTIAL * cell.partial


def _escaped(text: str) -> str:
    """Text for LaTeX; ``\\textbf`` of the best stays."""
    signs = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "|": "$|$", "<=": r"$\leq$", "<": "$<$", ">": "$>$"}
    signs |= {PARTIAL: r"$\dagger$"}
    for raw, safe in signs.items():
        text = text.replace(raw, safe)
    return text


def _plain(text: str) -> str:
    """What a program said, without what means something to LaTeX or Markdown."""
    return "".join(character for character in text if character not in "\\{}$^~|<>*`")
