"""The content of a report: the kind of a folder, and its numbers."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from llmreg.comparison.benchmark_record import BENCHMARK_FILE, BenchmarkRecord
from llmreg.comparison.score_tables import is_prealigned, read_pair_scores, scores_before_registration
from llmreg.comparison.tables import INITIAL_TITLE, PREALIGNED_TITLE, TITLES, Table, build_table
from llmreg.errors import BadArgument, MissingFile, UnreadableFile
from llmreg.evaluation.evaluate import is_scored
from llmreg.evaluation.summary import METRICS_FILE
from llmreg.networks.network_registry import plugin_of
from llmreg.paths import ModelName, find_fold_folders, fold_folder
from llmreg.plans.plans import PLANS_FILE, Plans, read_plans
from llmreg.predictions import PREDICT_FILE
from llmreg.report.shown_predictions import MethodResults, read_results, read_scores
from llmreg.training.loggers import LOG_FILE, read_log

REGISTERED_TITLE = "Registered"


@dataclass(frozen=True, eq=False)
class Source:
    """What a report shows.

    Attributes:
        kind: of the folder.
        name: heads the report.
        about: (property, value) of the model, the predictions or the comparison; those without a value are not shown.
        tables: of compared methods, or of the stages of one.
        by_pair: by their titles, a row a pair with the keys of :data:`llmreg.comparison.tables.COLUMNS`.
        by_label: by their titles, a row a pair and label, columns ``pair_id``, ``label``, ``name`` and ``dice``.
        shown: the methods whose images are shown.
        training: by fold, a row an epoch (``training_log.jsonl``).
        failed: (subject, reason).
    """

    kind: Literal["predictions", "model", "benchmark"]
    name: str
    about: Sequence[tuple[str, str]]
    tables: tuple[Table, ...] = ()
    by_pair: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    by_label: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    shown: tuple[MethodResults, ...] = ()
    training: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    failed: tuple[tuple[str, str], ...] = ()


def read_source(path: Path, predictions: Path | None = None) -> Source:
    """Read a folder of predictions, of a model or of a benchmark.

    Args:
        path: the folder.
        predictions: folder of a model's predictions, whose images are shown; the other kinds hold their own.

    Raises:
        MissingFile: the folder does not exist.
        UnreadableFile: the folder is none of these, or a file in it is not as this package writes it.
        BadArgument: ``predictions`` are given and the folder is not a model's.
    """
    if not path.is_dir():
        raise MissingFile(path, "give a folder of predictions, of a model or of a benchmark")
    if (path / PLANS_FILE).is_file():
        return _read_model(path, predictions)
    if predictions is not None:
        raise BadArgument(
            "predictions", f"{path} is not a model folder: its report shows the pairs that it holds itself."
        )
    # Predictions of a benchmark also hold a file with the name of the benchmark's record, so they are tried first.
    if (path / PREDICT_FILE).is_file():
        return _read_predictions_folder(path)
    record = BenchmarkRecord.read(path)
    if record is not None:
        return _read_benchmark_folder(path, record)
    raise UnreadableFile(
        path,
        f"holds neither predictions ({PREDICT_FILE}) nor a model ({PLANS_FILE}) nor a benchmark ({BENCHMARK_FILE})",
    )


def _read_predictions_folder(path: Path) -> Source:
    results = read_results(REGISTERED_TITLE, [path])
    provenance = results.provenance
    options = [str(key) if value is True else f"{key} {value}" for key, value in provenance.options.items() if value]
    stages = {} if results.scores.empty else _read_stages([path])
    return Source(
        kind="predictions",
        name=path.resolve().name,
        about=[
            ("Model", provenance.model or "unknown"),
            ("Folds", ", ".join(provenance.folds)),
            ("Options", ", ".join(options)),
            ("Pairs", str(len(results.pairs))),
        ],
        tables=(build_table("Before and after registration", stages),) if stages else (),
        by_pair=stages,
        by_label=_label_stages(results.label_scores),
        shown=(results,),
        failed=results.failed,
    )


def _read_model(path: Path, predictions: Path | None) -> Source:
    plans = read_plans(path / PLANS_FILE)
    configuration = plans.default_configuration
    # The folder may have been renamed.
    with suppress(ValueError):
        configuration = ModelName.of(path.resolve()).configuration
    folds = find_fold_folders(path)
    validated = [fold / "validation" for fold in folds.values() if (fold / "validation" / METRICS_FILE).is_file()]
    shown = () if predictions is None else (read_results(REGISTERED_TITLE, [predictions]),)
    scores = read_scores(validated)
    stages = {} if scores.empty else _read_stages(validated)
    return Source(
        kind="model",
        name=f"{path.resolve().parent.name}/{path.resolve().name}",
        about=[*_describe_plans(plans, configuration), ("Folds", ", ".join(folds))],
        tables=(build_table("Validation pairs before and after registration", stages),) if stages else (),
        by_pair=stages,
        by_label=_label_stages(scores),
        shown=shown,
        training={f"fold {name}": read_log(fold) for name, fold in folds.items() if (fold / LOG_FILE).is_file()},
        failed=tuple(failure for results in shown for failure in results.failed),
    )


def _read_benchmark_folder(path: Path, record: BenchmarkRecord) -> Source:
    failed = list(record.failed.items())
    shown = []
    scores: dict[str, pd.DataFrame] = {}
    for name, title in record.methods.items():
        folders = [fold_folder(path / name, fold) for fold in record.folds]
        if not all(map(is_scored, folders)):
            failed.append((title, "a part of it is not scored: run the benchmark again"))
            continue
        results = read_results(title, folders)
        shown.append(results)
        scores[title] = _read_folds(folders)
        failed += [(f"{title}: {pair_id}", reason) for pair_id, reason in results.failed]
    by_label = {results.title: results.label_scores for results in shown if not results.label_scores.empty}
    if scores:
        scores = scores_before_registration(list(scores.values())) | scores
    if by_label:
        first_scores = pd.concat(by_label.values()).drop_duplicates(["pair_id", "label"])
        by_label = {INITIAL_TITLE: _select_dice(first_scores, "initial_dice")} | by_label
    return Source(
        kind="benchmark",
        name=f"{path.resolve().parent.name}, {path.resolve().name}",
        about=[
            ("Dataset", record.dataset),
            ("Folds", ", ".join(record.folds)),
            ("Methods", ", ".join(record.methods.values())),
        ],
        tables=tuple(_build_benchmark_tables(path, scores)),
        by_pair=scores,
        by_label=by_label,
        shown=tuple(shown),
        failed=tuple(failed),
    )


def _build_benchmark_tables(path: Path, scores: Mapping[str, pd.DataFrame]) -> list[Table]:
    """The tables that were written, of the methods that are scored; one of all methods when there are none."""
    tables = []
    for name, title in TITLES.items():
        if (path / f"{name}.csv").is_file():
            listed = set(pd.read_csv(path / f"{name}.csv")["method"])
            # Single methods may have been compared one after the other: their table shows all of them.
            of_table = {method: rows for method, rows in scores.items() if name == "comparison" or method in listed}
            tables += [build_table(title, of_table)] if of_table else []
    return tables or ([build_table(TITLES["comparison"], scores)] if scores else [])


def _read_folds(folders: Sequence[Path]) -> pd.DataFrame:
    """Scores by pair of scored folders; the mean of a pair that several folds of few subjects share."""
    scores = pd.concat([read_pair_scores(folder) for folder in folders])
    return scores.astype(float).groupby(level="pair_id", sort=False).mean()


def _read_stages(folders: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """One method's scores by pair: initial, pre-aligned where that is known, and registered."""
    registered = _read_folds(folders)
    return scores_before_registration([registered]) | {REGISTERED_TITLE: registered}


def _label_stages(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The Dice of :func:`_read_stages` by pair and label."""
    prealigned = {PREALIGNED_TITLE: "prealigned_dice"} if is_prealigned(scores, ["dice"]) else {}
    columns = {INITIAL_TITLE: "initial_dice"} | prealigned | {REGISTERED_TITLE: "dice"}
    return {} if scores.empty else {title: _select_dice(scores, column) for title, column in columns.items()}


def _select_dice(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    return scores[["pair_id", "label", "name"]].assign(dice=scores[column])


def _describe_plans(plans: Plans, configuration: str) -> list[tuple[str, str]]:
    """List the plans' most important settings."""
    planned = plans.configurations.get(configuration)
    network, plugin = plans.network, plugin_of(plans.network)
    llm, size = plugin.language_model(network), plugin.size_setting
    shape = planned.network_shape if planned else ()
    tokens = f", {planned.token_length} tokens" if planned and plugin.token_grid(network, shape) else ""
    training = plans.training
    return [
        ("Dataset", plans.dataset_name),
        ("Plans", f"{plans.plans_name}, configuration {configuration}"),
        ("Network", network.name + (f", {size} {getattr(network, size)}" if size else "")),
        ("Language model", f"{llm.source}, layers {' and '.join(map(str, llm.layers))}" if llm else ""),
        ("Frame", f"{_times(plans.size)} voxels of {_times(plans.spacing)} mm"),
        ("Network's grid", _times(shape) + tokens if planned else ""),
        ("Pre-alignment", plans.prealignment.method),
        ("Loss", str(plans.loss)),
        (
            "Training",
            f"{training.epochs} epochs of {training.steps_per_epoch} steps, learning rate {training.learning_rate:g} "
            f"({training.schedule})",
        ),
    ]


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
