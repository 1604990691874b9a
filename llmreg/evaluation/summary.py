"""The table of the scores of all pairs, and their summary in a file and on the terminal."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmreg.evaluation.pair_scores import FIELD_METRICS, LABEL_METRICS, LANDMARK_METRICS, Row
from llmreg.files import atomic_write, write_json
from llmreg.text_tables import format_table

METRICS_FILE = "metrics.csv"
SUMMARY_FILE = "summary.json"
PAIR_METRICS = (*LANDMARK_METRICS, *FIELD_METRICS, "seconds")
COLUMNS = ("pair_id", "fixed", "moving", "label", "name", *LABEL_METRICS, *PAIR_METRICS)
_STAGES = (("initial", "initial_"), ("prealigned", "prealigned_"), ("registered", ""))
_OTHERS = (
    ("ASSD (mm)", "assd_mm", 2),
    ("TRE (mm)", "tre_mm", 2),
    ("HD95 (Learn2Reg, voxels)", "hd95_l2r", 2),
    ("|J| <= 0 (%)", "folding_percent", 3),
    ("|J| <= 0, interior (%)", "folding_interior_percent", 3),
    ("SDlogJ", "sdlogj", 3),
    ("SDlogJ (Learn2Reg)", "sdlogj_learn2reg", 3),
)
_INTERPOLATIONS = {"nearest": "nearest neighbours", "linear": "the linearly interpolated label that weighs most"}


def make_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Make a table with a row per pair and label, columns in the order of :data:`COLUMNS`.

    Raises:
        ValueError: there are no rows.
    """
    table = pd.DataFrame(list(rows))
    if table.empty:
        raise ValueError("there are no rows to write")
    # Rows of pairs with landmarks alone have no label; this type keeps the others whole numbers.
    table["label"] = table["label"].astype("Int64")
    return table[[column for column in dict.fromkeys((*COLUMNS, *table)) if column in table]]


def is_lost(table: pd.DataFrame, stage: str = "") -> "pd.Series[bool]":
    """Tell by row whether the structure left the image or vanished in warping: Dice is 0, and no distance is known.

    Args:
        table: a row a pair and label.
        stage: prefix of the columns: ``initial_``, ``prealigned_``, or none after registration.
    """
    return (table[f"{stage}dice"] == 0) & table[f"{stage}hd95_mm"].isna()


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Sum up a table with a row per pair and label.

    The score of a pair is the mean over its labels, without those that do not count (NaN); ``mean`` and ``sd`` are
    over pairs, the latter with n - 1. ``num_lost`` counts the structures of :func:`is_lost`, which the means of HD95
    and ASSD leave out.

    Args:
        table: columns ``pair_id``, ``label``, ``name`` and any of :data:`LABEL_METRICS` and :data:`PAIR_METRICS`.

    Returns:
        JSON-able: ``num_pairs``, ``metrics`` (metric -> mean, sd, num_pairs), ``labels`` (id -> name, metric means) and
        ``num_lost``; a figure that has no finite value is None.
    """
    label_metrics = [metric for metric in LABEL_METRICS if metric in table]
    pair_metrics = [metric for metric in PAIR_METRICS if metric in table]
    pairs = table.groupby("pair_id", sort=False)
    by_pair = pd.concat([pairs[label_metrics].mean(), pairs[pair_metrics].first()], axis=1)
    by_label = table.groupby("label")
    means, counts = by_label[label_metrics].mean(), by_label["dice"].count()
    return {
        "num_pairs": len(by_pair),
        "metrics": {metric: _describe(by_pair[metric]) for metric in by_pair},
        "labels": {
            str(label): {"name": str(by_label["name"].first().loc[label]), "num_pairs": int(counts.loc[label])}
            | {metric: _finite_or_none(means.loc[label, metric]) for metric in label_metrics}
            for label in means.index
        },
        "num_lost": int(is_lost(table).sum()),
    }


def write_results(rows: Iterable[Row], folder: Path, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``metrics.csv`` (a row per pair and label) and ``summary.json`` into ``folder``; return the summary.

    Args:
        rows: of the pairs, each with its ``pair_id``.
        folder: the folder to write to.
        details: further keys of ``summary.json``: how the scores were computed.

    Raises:
        UserError: when the folder cannot be written.
        ValueError: when there are no rows.
    """
    table = make_table(rows)
    summary = summarise(table) | dict(details or {})
    with atomic_write(folder / METRICS_FILE) as temporary:
        table.to_csv(temporary, index=False)
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _describe(scores: pd.Series) -> dict[str, float | int | None]:
    # Infinite distances have no standard deviation.
    with np.errstate(invalid="ignore"):
        mean, sd = scores.mean(), scores.std(ddof=1)
    return {"mean": _finite_or_none(mean), "sd": _finite_or_none(sd), "num_pairs": int(scores.count())}


def _finite_or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def format_summary(summary: Mapping[str, Any]) -> str:
    """Tables of Dice (percent) and HD95 (mm) by label, and of the other metrics, before and after registration.

    Args:
        summary: of :func:`write_results` or :func:`summarise`.
    """
    metrics, labels = summary["metrics"], summary["labels"].values()
    stages = [(title, prefix) for title, prefix in _STAGES if prefix + "dice" in metrics]
    paragraphs = []
    # Pairs may have landmarks alone.
    if labels:
        head = [f"{metric} {title}" for metric in ("Dice", "HD95") for title, _ in stages]
        rows = [
            [str(label["name"]), str(label["num_pairs"])]
            + [_format(label[prefix + "dice"], 100) for _, prefix in stages]
            + [_format(label[prefix + "hd95_mm"]) for _, prefix in stages]
            for label in labels
        ]
        rows.append(
            ["mean +- SD over pairs", str(metrics["dice"]["num_pairs"])]
            + [_format_with_sd(metrics[prefix + "dice"], 100) for _, prefix in stages]
            + [_format_with_sd(metrics[prefix + "hd95_mm"]) for _, prefix in stages]
        )
        paragraphs.append(format_table(["label", "pairs", *head], rows, footer_rows=1))
    rows = [
        [title] + [_format_with_sd(metrics.get(prefix + name), digits=digits) for _, prefix in stages]
        for title, name, digits in _OTHERS
        if name in metrics and metrics[name]["num_pairs"]
    ]
    paragraphs.append(format_table(["", *(title for title, _ in stages)], rows))
    sentences = []
    if summary["num_lost"]:
        sentences.append(f"{summary['num_lost']} structures vanished in warping: Dice 0, left out of HD95 and ASSD.")
    if summary.get("failed"):
        sentences.append(f"Pairs that could not be registered, and have no scores: {', '.join(summary['failed'])}.")
    if labels and "label_interpolation" in summary:
        sentences.append(f"Labels were warped by {_INTERPOLATIONS[summary['label_interpolation']]}.")
    costs = [f"{_format_with_sd(metrics['seconds'], digits=1)} s a pair"] if "seconds" in metrics else []
    costs += [
        f"{summary[key]:.1f} GiB of {name} at its peak"
        for key, name in (("peak_memory_gb", "memory"), ("peak_gpu_memory_gb", "GPU memory"))
        if key in summary
    ]
    if costs:
        sentences.append(f"The prediction took {', '.join(costs)}.")
    return "\n\n".join([*paragraphs, "\n".join(sentences)]) + "\n"


def _format(value: float | None, scale: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _format_with_sd(metric: Mapping[str, float | None] | None, scale: float = 1, digits: int = 2) -> str:
    """Mean and standard deviation; empty for a metric that is missing."""
    values = [] if metric is None else [metric["mean"]] + ([] if metric["sd"] is None else [metric["sd"]])
    return " +- ".join(_format(value, scale, digits) for value in values)
