"""What a report is made from: finds out what a folder holds, and reads its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from llmreg.comparison.scored import BENCHMARK_FILE, earlier, is_prealigned, per_pair
from llmreg.comparison.tables import INITIAL_TITLE, PREALIGNED_TITLE, TITLES, Table, compared
from llmreg.errors import UserError
from llmreg.evaluation.evaluate import is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.files import read_json
from llmreg.inference.pair_inputs import PREDICT_FILE
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.report.shown_predictions import Predictions, read_predictions, read_scores
from llmreg.training.progress import LOG_FILE, read_log

Kind = Literal["predictions", "model", "benchmark"]
REGISTERED_TITLE = "Registered"


@dataclass(frozen=True, eq=False)
class Source:
    """What a report shows.

    Attributes:
        kind: of the folder.
        name: what the report is called after.
        about: (what, value) of the model, the predictions or the comparison.
        tables: compared methods, or stages of one.
        by_pair: by their titles, a row a pair with the keys of :data:`llmreg.comparison.tables.COLUMNS`.
        by_label: by their titles, a row a pair and label, columns ``pair_id``, ``label``, ``name`` and ``dice``.
        shown: the methods whose images are shown.
        training: by fold, a row an epoch (``training_log.jsonl``).
        failed: (what, why).
    """

    kind: Kind
    name: str
    about: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...] = ()
    by_pair: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    by_label: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    shown: tuple[Predictions, ...] = ()
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()


def read_source(path: Path, predictions: Path | None = None) -> Source:
    """What is in a folder of predictions, of a model or of a benchmark.

    Args:
        path: the folder.
        predictions: a model's, whose images are shown; predictions and benchmarks hold their own.

    Raises:
        UserError: the folder is none of these, or a file in it is not as this package writes it.
    """
    if not path.is_dir():
        raise UserError(f"The folder {path} does not exist: give one of predictions, of a model or of a benchmark.")
    if (path / PLANS_FILE).is_file():
        return _of_model(path, predictions)
    if predictions is not None:
        raise UserError(f"{path} is not a model folder: leave out --predictions, which shows a model's pairs.")
    # Predictions that belong to a benchmark hold a file of its name, too.
    if (path / PREDICT_FILE).is_file():
        return _of_predictions(path)
    if (path / BENCHMARK_FILE).is_file():
        return _of_benchmark(path)
    raise UserError(
        f"{path} holds neither predictions ({PREDICT_FILE}) nor a model ({PLANS_FILE}) nor a benchmark "
        f"({BENCHMARK_FILE}): give a folder that llmreg_predict, llmreg_train or llmreg_benchmark wrote."
    )


def _of_predictions(path: Path) -> Source:
    made = read_predictions(REGISTERED_TITLE, [path])
    options, folds = made.about.get("options"), made.about.get("folds")
    listed = options.items() if isinstance(options, dict) else ()
    used = [str(key) if value is True else f"{key} {value}" for key, value in listed if value]
    about = [
        ("Model", str(made.about.get("model", "unknown"))),
        ("Folds", ", ".join(map(str, folds)) if isinstance(folds, list) else ""),
        ("Options", ", ".join(used)),
        ("Pairs", str(len(made.pairs))),
    ]
    stages = {} if made.scores.empty else _stages([path])
    return Source(
        "predictions",
        path.resolve().name,
        tuple((what, value) for what, value in about if value),
        _stage_table("Before and after registration", stages),
        stages,
        _stages_of_labels(made.labelled),
        (made,),
        failed=made.failed,
    )


def _of_model(path: Path, predictions: Path | None) -> Source:
    plans = read_plans(path / PLANS_FILE)
    folds = sorted(fold for fold in path.glob("fold_*") if fold.is_dir())
    validated = [fold / "validation" for fold in folds if (fold / "validation" / METRICS_FILE).is_file()]
    training = {fold.name.replace("_", " "): read_log(fold) for fold in folds if (fold / LOG_FILE).is_file()}
    shown = () if predictions is None else (read_predictions(REGISTERED_TITLE, [predictions]),)
    scores = read_scores(validated)
    stages = {} if scores.empty else _stages(validated)
    return Source(
        "model",
        f"{path.resolve().parent.name}/{path.resolve().name}",
        (*_about_plans(plans, path.name.split("__")[-1]), ("Folds", ", ".join(fold.name[5:] for fold in folds))),
        _stage_table("Validation pairs before and after registration", stages),
        stages,
        _stages_of_labels(scores),
        shown,
        training,
        tuple(failure for made in shown for failure in made.failed),
    )


def _of_benchmark(path: Path) -> Source:
    content = read_json(path / BENCHMARK_FILE)
    try:
        titles = {str(name): str(title) for name, title in content["methods"].items()}
        folds = [str(fold) for fold in content["folds"]]
        failed = [(str(name), str(why)) for name, why in content.get("failed", {}).items()]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{path / BENCHMARK_FILE} is not as llmreg_benchmark writes it: run the benchmark again."
        ) from None
    shown = []
    figures: dict[str, pd.DataFrame] = {}
    for name, title in titles.items():
        folders = [path / name / f"fold_{fold}" for fold in folds]
        if not all(map(is_scored, folders)):
            failed.append((title, "not all of it is scored: run the benchmark again"))
            continue
        made = read_predictions(title, folders)
        shown.append(made)
        if not made.scores.empty:
            figures[title] = _registered(folders)
        failed += [(f"{title}: {pair_id}", why) for pair_id, why in made.failed]
    by_label = {made.title: made.labelled for made in shown if not made.labelled.empty}
    if figures:
        figures = earlier(list(figures.values())) | figures
    if by_label:
        by_label = {INITIAL_TITLE: _initial_of_labels(list(by_label.values()))} | by_label
    about = [
        ("Dataset", str(content.get("dataset", ""))),
        ("Folds", ", ".join(folds)),
        ("Methods", ", ".join(titles.values())),
    ]
    return Source(
        "benchmark",
        f"{path.resolve().parent.name}, {path.resolve().name}",
        tuple(about),
        tuple(_benchmark_tables(path, figures)),
        figures,
        by_label,
        tuple(shown),
        failed=tuple(failed),
    )


def _benchmark_tables(path: Path, figures: Mapping[str, pd.DataFrame]) -> list[Table]:
    """The tables that were written, of the methods that are scored; one of all methods when there are none."""
    tables = []
    for name, title in TITLES.items():
        if (path / f"{name}.csv").is_file():
            listed = set(pd.read_csv(path / f"{name}.csv")["method"])
            # Single methods may have been compared one after the other.
            own = {method: scores for method, scores in figures.items() if name == "comparison" or method in listed}
            tables += [compared(title, own)] if own else []
    return tables or ([compared(TITLES["comparison"], figures)] if figures else [])


def _registered(folders: Sequence[Path]) -> pd.DataFrame:
    """Figures by pair of the folders that are scored."""
    return pd.concat([per_pair(folder) for folder in folders if (folder / METRICS_FILE).is_file()])


def _stages(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """One method's figures by pair: before, pre-aligned where that is known, and registered."""
    registered = _registered(folders)
    return earlier([registered]) | {REGISTERED_TITLE: registered}


def _stages_of_labels(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    columns = {INITIAL_TITLE: "initial_dice", PREALIGNED_TITLE: "prealigned_dice", REGISTERED_TITLE: "dice"}
    if scores.empty:
        return {}
    if not is_prealigned(scores, ["dice"]):
        del columns[PREALIGNED_TITLE]
    return {title: _dice_of(scores, column) for title, column in columns.items()}


def _initial_of_labels(scores: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return _dice_of(pd.concat(scores).drop_duplicates(["pair_id", "label"]), "initial_dice")


def _dice_of(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    return scores[["pair_id", "label", "name"]].assign(dice=scores[column])


def _stage_table(title: str, stages: Mapping[str, pd.DataFrame]) -> tuple[Table, ...]:
    return (compared(title, stages),) if stages else ()


def _about_plans(plans: Plans, configuration: str) -> list[tuple[str, str]]:
    """Plans in a few lines."""
    planned = plans.configurations.get(configuration)
    network = plans.network.model_dump()
    llm = network.get("llm") if network.get("blocks", "llm") == "llm" else None
    terms = [
        f"{weight:g} x {plans.loss.similarity_kind if term == 'similarity' else term}"
        for term, weight in plans.loss.model_dump(exclude={"similarity_kind"}).items()
        if weight
    ]
    training = plans.training
    about = [
        ("Dataset", plans.dataset_name),
        ("Plans", f"{plans.plans_name}, configuration {configuration}"),
        ("Network", ", ".join([str(network["name"]), *([f"width {network['width']}"] if "width" in network else [])])),
        ("Language model", f"{llm['source']}, layers {' and '.join(map(str, llm['layers']))}" if llm else ""),
        ("Frame", f"{_times(plans.size)} voxels of {_times(plans.spacing)} mm"),
        ("Network's grid", f"{_times(planned.network_shape)}, {planned.token_length} tokens" if planned else ""),
        ("Pre-alignment", plans.prealignment.method),
        ("Loss", " + ".join(terms)),
        (
            "Training",
            f"{training.epochs} epochs of {training.steps_per_epoch} steps, learning rate {training.learning_rate:g} "
            f"({training.schedule})",
        ),
    ]
    return [(what, value) for what, value in about if value]


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
