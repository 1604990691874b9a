"""Score all methods of all tables, and write the tables."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from llmreg.comparison.benchmark_record import BENCHMARK_FILE, BenchmarkRecord
from llmreg.comparison.benchmark_settings import BenchmarkSettings, identity
from llmreg.comparison.judged_pairs import all_judged_pairs, digest_scoring_inputs
from llmreg.comparison.method_plots import draw_layers, draw_structures, save_figure
from llmreg.comparison.method_scores import read_label_scores, score_method
from llmreg.comparison.methods import Method
from llmreg.comparison.score_tables import scores_before_registration
from llmreg.comparison.tables import TITLES, Table, as_frame, as_latex, as_markdown, build_table
from llmreg.errors import BadArgument, UserError
from llmreg.files import write_text
from llmreg.preprocessing.preparation import load_raw_dataset

log = logging.getLogger(__name__)


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
    dataset = load_raw_dataset(settings.dataset)
    record = BenchmarkRecord(
        dataset=settings.dataset,
        folds=list(settings.folds),
        study=identity(settings),
        judged_by=digest_scoring_inputs(all_judged_pairs(settings, dataset), dataset),
        methods={},
    )
    earlier = _read_earlier(record, output)
    scores: dict[str, pd.DataFrame] = {}
    reasons: dict[str, str] = {}
    methods = {method.name: method for row in tables.values() for method in row if method.kind != "initial"}
    for number, method in enumerate(methods.values(), start=1):
        log.info("%d of %d: %s", number, len(methods), method.title)
        try:
            scores[method.name] = score_method(settings, method, dataset, output)
        except UserError as error:
            reasons[method.name] = str(error)
            log.error("%s is left out: %s", method.title, error)
        titles = {name: title for name, title in earlier.methods.items() if name not in reasons}
        titles |= {name: methods[name].title for name in scores}
        failed = {name: reason for name, reason in (earlier.failed | reasons).items() if name not in scores}
        record.model_copy(update={"methods": titles, "failed": failed}).write(output)
    if not scores:
        raise BadArgument("methods", f"No method could be scored: {'; '.join(reasons.values()) or 'none was named'}")
    return [
        _write_table(name, row, settings, scores, reasons, output)
        for name, row in tables.items()
        if any(method.name in scores for method in row)
    ]


def _read_earlier(record: BenchmarkRecord, output: Path) -> BenchmarkRecord:
    """Read which methods the folder holds already; none where it was made for other folds or annotations."""
    earlier = BenchmarkRecord.read(output)
    if earlier is None:
        return record
    if earlier.study != record.study:
        raise BadArgument(
            "output",
            f"{output} holds a comparison with other plans, another configuration or other minutes: choose another "
            "folder, or remove it.",
        )
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
    name: str,
    methods: Sequence[Method],
    settings: BenchmarkSettings,
    scores: Mapping[str, pd.DataFrame],
    reasons: Mapping[str, str],
    output: Path,
) -> Table:
    """Write a table of those of its methods that have scores, and the reasons of the others."""
    scored = [method for method in methods if method.name in scores]
    rows = {method.title: scores[method.name] for method in scored}
    if any(method.kind == "initial" for method in methods):
        rows = scores_before_registration(list(rows.values())) | rows
    failed = {method.title: reasons[method.name] for method in methods if method.name in reasons}
    table = build_table(TITLES[name], rows, failed)
    write_text(output / f"{name}.csv", as_frame(table).to_csv(index=False, lineterminator="\n"))
    write_text(output / f"{name}.md", as_markdown(table))
    write_text(output / f"{name}.tex", as_latex(table))
    by_label = {method.title: read_label_scores(settings, method, output) for method in scored}
    if not all(label_scores.empty for label_scores in by_label.values()):
        save_figure(draw_structures(by_label), output / f"{name}_structures.png")
    if name == "figure4" and len(scored) > 1:
        dice = {method.title: scores[method.name]["dice"] for method in scored}
        save_figure(draw_layers(dice), output / "figure4.png")
    return table
