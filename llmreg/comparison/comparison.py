"""All methods of all tables of a study, scored and written out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from llmreg.comparison.figures import boxes, layers
from llmreg.comparison.methods import Method
from llmreg.comparison.scored import BENCHMARK_FILE, earlier
from llmreg.comparison.scoring import of_labels, scores
from llmreg.comparison.study import Study, all_judged_pairs, dataset_of, identity, judged_by
from llmreg.comparison.tables import TITLES, Table, as_frame, as_latex, as_markdown, compared
from llmreg.errors import UserError
from llmreg.files import atomic_write, read_json, write_json, write_text

log = logging.getLogger(__name__)


def compare(study: Study, wanted: Mapping[str, Sequence[Method]], output: Path) -> list[Table]:
    """Score every method and write each table as CSV, Markdown and LaTeX, and box plots.

    Args:
        study: what is compared on.
        wanted: methods by table (:func:`llmreg.comparison.methods.chosen`).
        output: where everything goes.

    Returns:
        The tables, in the order of ``wanted``.

    Raises:
        UserError: no method could be scored.
    """
    dataset = dataset_of(study)
    pairs = all_judged_pairs(study, dataset)
    about = {
        "dataset": study.dataset,
        "folds": list(study.folds),
        "study": identity(study),
        "judged_by": judged_by(pairs, dataset),
    }
    known = _known(about, output)
    found: dict[str, pd.DataFrame] = {}
    failed: dict[str, str] = {}
    methods = {method.name: method for several in wanted.values() for method in several if method.kind != "initial"}
    for number, method in enumerate(methods.values(), start=1):
        log.info("%d of %d: %s", number, len(methods), method.title)
        try:
            found[method.name] = scores(study, method, dataset, output)
        except UserError as error:
            failed[method.name] = str(error)
            log.error("%s is left out: %s", method.title, error)
        titles = {name: title for name, title in known["methods"].items() if name not in failed}
        titles |= {name: methods[name].title for name in found}
        lost = {name: why for name, why in (known["failed"] | failed).items() if name not in found}
        write_json(output / BENCHMARK_FILE, about | {"methods": titles, "failed": lost})
    if not found:
        raise UserError(f"No method could be scored: {'; '.join(failed.values()) or 'name some with --methods'}")
    return [
        _written(name, several, study, found, failed, output)
        for name, several in wanted.items()
        if any(method.name in found for method in several)
    ]


def _known(about: Mapping[str, Any], output: Path) -> dict[str, dict[str, str]]:
    """Methods and failures of the same study that the folder holds already. Raises UserError when it holds another."""
    file = output / BENCHMARK_FILE
    if not file.exists():
        return {"methods": {}, "failed": {}}
    content: dict[str, Any] = read_json(file)
    if content.get("study") != about["study"]:
        raise UserError(
            f"{output} holds a comparison with other plans, another configuration or other minutes: choose another "
            "folder with --output, or remove it."
        )
    if (content.get("judged_by"), content.get("folds")) != (about["judged_by"], about["folds"]):
        log.warning(
            "%s was made for other folds, or before images or annotations changed: until they are named again, its "
            "methods are left out (%s).",
            file,
            ", ".join(content["methods"]),
        )
        return {"methods": {}, "failed": {}}
    return {key: content[key] for key in ("methods", "failed")}


def _written(
    name: str,
    methods: Sequence[Method],
    study: Study,
    found: Mapping[str, pd.DataFrame],
    failed: Mapping[str, str],
    output: Path,
) -> Table:
    """A table of those of its methods that could be scored."""
    own = [method for method in methods if method.name in found]
    figures = {method.title: found[method.name] for method in own}
    if any(method.kind == "initial" for method in methods) and figures:
        figures = earlier(list(figures.values())) | figures
    why = {method.title: failed[method.name] for method in methods if method.name in failed}
    table = compared(TITLES[name], figures, why)
    with atomic_write(output / f"{name}.csv") as temporary:
        as_frame(table).to_csv(temporary, index=False)
    write_text(output / f"{name}.md", as_markdown(table))
    write_text(output / f"{name}.tex", as_latex(table))
    by_label = {method.title: of_labels(study, method, output) for method in own}
    if not all(rows.empty for rows in by_label.values()):
        boxes(by_label, output / f"{name}_structures.png")
    if name == "figure4" and len(own) > 1:
        layers({method.title: found[method.name]["dice"] for method in own}, output / "figure4.png")
    return table
