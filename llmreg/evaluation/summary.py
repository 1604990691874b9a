"""The table of scores of all pairs, their summary, and the files of both."""

from __future__ import annotations

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


def table_of(rows: Iterable[Row]) -> pd.DataFrame:
    """A row per pair and label, in the order of :data:`COLUMNS`. Raises ValueError when there are no rows."""
    table = pd.DataFrame(list(rows))
    if table.empty:
        raise ValueError("there are no rows to write")
    # Pairs with landmarks alone have none, which must not make floats of the others'.
    table["label"] = table["label"].astype("Int64")
    known = [column for column in COLUMNS if column in table]
    return table[known + [column for column in table if column not in known]]


def lost(table: pd.DataFrame, stage: str = "") -> pd.Series[bool]:
    """By row, whether the structure ended outside the image or vanished: its Dice is 0, and it has no distances.

    Args:
        table: a row a pair and label.
        stage: what the columns begin with: ``initial_``, ``prealigned_`` or, registered, nothing.
    """
    return (table[f"{stage}dice"] == 0) & table[f"{stage}hd95_mm"].isna()


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Sum up a table with a row per pair and label.

    The score of a pair is the mean over its labels, without those that do not count (NaN); ``mean`` and ``sd`` are
    over pairs, the latter with n - 1. ``num_lost`` counts the structures that :func:`lost` tells of, which the means
    of HD95 and ASSD leave out.

    Args:
        table: columns ``pair_id``, ``label``, ``name`` and any of :data:`LABEL_METRICS` and :data:`PAIR_METRICS`.

    Returns:
        JSON-able: ``num_pairs``, ``metrics`` (metric -> mean, sd, num_pairs), ``labels`` (id -> name, metric means) and
        ``num_lost``; what has no value, or an infinite one, is None.
    """
    label_metrics = [metric for metric in LABEL_METRICS if metric in table]
    pair_metrics = [metric for metric in PAIR_METRICS if metric in table]
    pairs = table.groupby("pair_id", sort=False)
    of_pairs = pd.concat([pairs[label_metrics].mean(), pairs[pair_metrics].first()], axis=1)
    of_labels = table.groupby("label")
    means, counts = of_labels[label_metrics].mean(), of_labels["dice"].count()
    return {
        "num_pairs": len(of_pairs),
        "metrics": {metric: _over_pairs(of_pairs[metric]) for metric in of_pairs},
        "labels": {
            str(label): {"name": str(of_labels["name"].first().loc[label]), "num_pairs": int(counts.loc[label])}
            | {metric: _number(means.loc[label, metric]) for metric in label_metrics}
            for label in means.index
        },
        "num_lost": int(lost(table).sum()),
    }


def write_results(rows: Iterable[Row], folder: Path, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write ``metrics.csv`` (a row per pair and label) and ``summary.json`` into ``folder``; return the summary.

    Args:
        rows: of the pairs, each with its ``pair_id``.
        folder: where to.
        about: what else ``summary.json`` says, of how the scores were found.

    Raises:
        UserError: when the folder cannot be written.
        ValueError: when there are no rows.
    """
    table = table_of(rows)
    summary = summarise(table) | dict(about or {})
    with atomic_write(folder / METRICS_FILE) as temporary:
        table.to_csv(temporary, index=False)
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _over_pairs(scores: pd.Series) -> dict[str, float | int | None]:
    with np.errstate(invalid="ignore"):
        mean, sd = scores.mean(), scores.std(ddof=1)
    return {"mean": _number(mean), "sd": _number(sd), "num_pairs": int(scores.count())}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
