"""The table of the scores of all pairs, and their summary."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmreg.evaluation.keypoints import POINT_METRICS
from llmreg.evaluation.pair_scores import FIELD_METRICS, LABEL_METRICS, Row
from llmreg.files import atomic_write, write_json

METRICS_FILE = "metrics.csv"
SUMMARY_FILE = "summary.json"
PAIR_METRICS = (*POINT_METRICS, *FIELD_METRICS, "seconds")
COLUMNS = ("pair_id", "fixed", "moving", "label", "name", *LABEL_METRICS, *PAIR_METRICS)


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
    first = [column for column in COLUMNS if column in table]
    return table[first + [column for column in table if column not in first]]


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
    with np.errstate(invalid="ignore"):
        mean, sd = scores.mean(), scores.std(ddof=1)
    return {"mean": _finite_or_none(mean), "sd": _finite_or_none(sd), "num_pairs": int(scores.count())}


def _finite_or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
