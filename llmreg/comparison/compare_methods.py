"""Score all methods of all tables, and write the tables."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from llmreg.comparison.benchmark_record import BENCHMARK_FILE, BenchmarkRecord, read_benchmark, write_benchmark
from llmreg.comparison.benchmark_settings import BenchmarkSettings, identity, load_raw_dataset
from llmreg.comparison.judged_pairs import all_judged_pairs, scored_from
from llmreg.comparison.method_plots import plot_layers, plot_structures
from llmreg.comparison.method_scores import read_label_scores, score_method
from llmreg.comparison.methods import Method
from llmreg.comparison.score_tables import scores_before_registration
from llmreg.comparison.tables import TITLES, Table, as_frame, as_latex, as_markdown, build_table
from llmreg.errors import BadArgument, UserError
from llmreg.files import atomic_write, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcomes:
    """What became of the methods, by their names.

    Attributes:
        scores: of those that could be scored, a row a pair.
        failed: reasons of the others.
    """

    scores: dict[str, pd.DataFrame]
    failed: dict[str, str]


def compare_methods(settings: BenchmarkSettings, tables: Mapping[str, Sequence[Method]], output: Path) -> list[Table]:
    """Score every method and write each table as CSV, Markdown and LaTeX, and box plots.

    Args:
        settings: of the comparison.
        tables: methods by table (:func:`llmreg.comparison.methods.select_methods`).
        output: the folder of everything that is written.

    Returns:
        The tables, in the order of ``tables``.

    Raises:
        BadArgument: no method could be scored, or the folder holds a comparison with other settings.
    """
    dataset = load_raw_dataset(settings)
    record = BenchmarkRecord(
        dataset=settings.dataset,
        folds=list(settings.folds),
        study=identity(settings),
        judged_by=scored_from(all_judged_pairs(settings, dataset), dataset),
        methods={},
    )
    earlier = _read_earlier(record, output)
    outcomes = Outcomes({}, {})
    methods = {method.name: method for row in tables.values() for method in row if method.kind != "initial"}
    for number, method in enumerate(methods.values(), start=1):
        log.info("%d of %d: %s", number, len(methods), method.title)
        try:
            outcomes.scores[method.name] = score_method(settings, method, dataset, output)
        except UserError as error:
            outcomes.failed[method.name] = str(error)
            log.error("%s is left out: %s", method.title, error)
        titles = {name: title for name, title in earlier.methods.items() if name not in outcomes.failed}
        titles |= {name: methods[name].title for name in outcomes.scores}
        failed = {n: reason for n, reason in (earlier.failed | outcomes.failed).items() if n not in outcomes.scores}
        write_benchmark(output, record.model_copy(update={"methods": titles, "failed": failed}))
    if not outcomes.scores:
        reasons = "; ".join(outcomes.failed.values()) or "none was named"
        raise BadArgument("methods", f"No method could be scored: {reasons}")
    return [
        _write_table(name, row, settings, outcomes, output)
        for name, row in tables.items()
        if any(method.name in outcomes.scores for method in row)
    ]


def _read_earlier(record: BenchmarkRecord, output: Path) -> BenchmarkRecord:
    """Read which methods the folder holds already; none where it was made for other folds or annotations."""
    earlier = read_benchmark(output)
    if earlier is None:
        return record
    if earlier.study != record.study:
        problem = f"{output} holds a comparison with other plans, another configuration or other minutes"
        raise BadArgument("output", f"{problem}: choose another folder, or remove it.")
    if (earlier.judged_by, earlier.folds) != (record.judged_by, record.folds):
        log.warning(
            "%s was made for other folds, or before images or annotations changed: its methods (%s) are left out "
            "until they are named again.",
            output / BENCHMARK_FILE,
            ", ".join(earlier.methods),
        )
        return record
    return earlier


def _write_table(
    name: str, methods: Sequence[Method], settings: BenchmarkSettings, outcomes: Outcomes, output: Path
) -> Table:
    """Write a table of those of its methods that could be scored."""
    scored = [method for method in methods if method.name in outcomes.scores]
    scores = {method.title: outcomes.scores[method.name] for method in scored}
    if any(method.kind == "initial" for method in methods):
        scores = scores_before_registration(list(scores.values())) | scores
    failed = {method.title: outcomes.failed[method.name] for method in methods if method.name in outcomes.failed}
    table = build_table(TITLES[name], scores, failed)
    with atomic_write(output / f"{name}.csv") as temporary:
        as_frame(table).to_csv(temporary, index=False)
    write_text(output / f"{name}.md", as_markdown(table))
    write_text(output / f"{name}.tex", as_latex(table))
    by_label = {method.title: read_label_scores(settings, method, output) for method in scored}
    if not all(rows.empty for rows in by_label.values()):
        plot_structures(by_label, output / f"{name}_structures.png")
    if name == "figure4" and len(scored) > 1:
        plot_layers({method.title: outcomes.scores[method.name]["dice"] for method in scored}, output / "figure4.png")
    return table
