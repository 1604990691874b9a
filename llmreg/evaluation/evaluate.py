"""Scores of registered pairs before and after: one table row per pair and label, and their summary.

Column names of the table are listed in ``documentation/evaluation.md``. Dice is a fraction, HD95 is in mm.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from llmreg.errors import UserError
from llmreg.evaluation.inputs import PairFiles, find_pairs
from llmreg.evaluation.metrics import (
    Array,
    dice_per_label,
    folding,
    hd95_per_label,
    sd_log_jacobian,
    sd_log_jacobian_learn2reg,
)
from llmreg.files import check_writable, write_json, written_whole
from llmreg.geometry.field import DisplacementField, jacobian_determinant, warp_image
from llmreg.geometry.formats import read_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import read_image
from llmreg.workers import in_parallel

log = logging.getLogger(__name__)

Row = dict[str, Any]
LABEL_METRICS = ("initial_dice", "prealigned_dice", "dice", "initial_hd95_mm", "prealigned_hd95_mm", "hd95_mm")
FIELD_METRICS = ("folding_percent", "sdlogj", "sdlogj_learn2reg")


def evaluate_pair(
    fixed_label: sitk.Image,
    moving_label: sitk.Image,
    field: DisplacementField,
    labels: Mapping[int, str] | None = None,
    annotated: Collection[int] | None = None,
    initial: sitk.Transform | None = None,
) -> list[Row]:
    """Score one pair on the fixed image's grid; labels are warped with nearest neighbours.

    Args:
        fixed_label: label map of the fixed image.
        moving_label: label map of the moving image, on any grid.
        field: the whole displacement from fixed to moving, on the fixed label map's grid.
        labels: id -> name without background; the ids found in the two maps when None or empty.
        annotated: ids that were annotated in both images; all of them when None.
        initial: pre-alignment that is part of ``field``, fixed points -> moving points; it adds the columns
            ``prealigned_dice`` and ``prealigned_hd95_mm``.

    Returns:
        A row per label. What belongs to the field (:data:`FIELD_METRICS`) is the same in every row.

    Raises:
        ValueError: when the field lies on another grid than the fixed label map.
    """
    if not Grid.from_image(fixed_label).same_as(field.grid):
        raise ValueError("the field does not lie on the grid of the fixed label map")
    fixed, moving = _array(fixed_label), _array(moving_label)
    table = dict(labels or {i: str(i) for i in np.union1d(fixed, moving).tolist() if i > 0})
    ids = [i for i in table if annotated is None or i in annotated]
    stages = {"initial_": _array(_resampled(moving_label, fixed_label, sitk.Transform(3, sitk.sitkIdentity)))}
    if initial is not None:
        stages["prealigned_"] = _array(_resampled(moving_label, fixed_label, initial))
    stages[""] = _array(warp_image(moving_label, field, interpolator="nearest"))

    columns: dict[str, dict[int, float]] = {}
    for stage, warped in stages.items():
        columns[stage + "dice"] = dice_per_label(warped, fixed, ids, unwarped=moving)
        columns[stage + "hd95_mm"] = hd95_per_label(warped, fixed, ids, fixed_label.GetSpacing())
    determinant = jacobian_determinant(field)
    of_field = {
        "folding_percent": folding(determinant),
        "sdlogj": sd_log_jacobian(determinant),
        "sdlogj_learn2reg": sd_log_jacobian_learn2reg(determinant),
    }
    return [
        {"label": i, "name": table[i]}
        | {metric: columns[metric][i] for metric in LABEL_METRICS if metric in columns}
        | of_field
        for i in ids
    ]


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Sum up a table with a row per pair and label.

    The score of a pair is the mean over its labels, without those that do not count (NaN); ``mean`` and ``sd`` are
    over pairs, the latter with n - 1. ``num_lost`` counts the label maps' structures that ended outside the image or
    vanished: their Dice is 0, and their HD95, having no value, is left out of the means.

    Args:
        table: columns ``pair_id``, ``label``, ``name`` and any of :data:`LABEL_METRICS` and :data:`FIELD_METRICS`.

    Returns:
        JSON-able: ``num_pairs``, ``metrics`` (metric -> mean, sd, num_pairs), ``labels`` (id -> name, metric means) and
        ``num_lost``; what has no value is None.
    """
    label_metrics = [metric for metric in LABEL_METRICS if metric in table]
    field_metrics = [metric for metric in FIELD_METRICS if metric in table]
    pairs = table.groupby("pair_id", sort=False)
    of_pairs = pd.concat([pairs[label_metrics].mean(), pairs[field_metrics].first()], axis=1)
    of_labels = table.groupby("label")
    means, counts = of_labels[label_metrics].mean(), of_labels["dice"].count()
    return {
        "num_pairs": len(of_pairs),
        "metrics": {
            metric: {
                "mean": _number(of_pairs[metric].mean()),
                "sd": _number(of_pairs[metric].std(ddof=1)),
                "num_pairs": int(of_pairs[metric].count()),
            }
            for metric in of_pairs
        },
        "labels": {
            str(label): {"name": str(of_labels["name"].first().loc[label]), "num_pairs": int(counts.loc[label])}
            | {metric: _number(means.loc[label, metric]) for metric in label_metrics}
            for label in means.index
        },
        "num_lost": int(((table["dice"] == 0) & table["hd95_mm"].isna()).sum()),
    }


def write_results(rows: Iterable[Row], folder: Path) -> dict[str, Any]:
    """Write ``metrics.csv`` (a row per pair and label) and ``summary.json`` into ``folder``; return the summary.

    Raises:
        UserError: when the folder cannot be written.
        ValueError: when there are no rows.
    """
    table = pd.DataFrame(list(rows))
    if table.empty:
        raise ValueError("there are no rows to write")
    order = ["pair_id", "fixed", "moving", "label", "name", *LABEL_METRICS, *FIELD_METRICS]
    known = [column for column in order if column in table]
    table = table[known + [column for column in table if column not in known]]
    summary = summarise(table)
    with written_whole(folder / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(folder / "summary.json", summary)
    return summary


def evaluate_folder(
    predictions: Path, labels: Path | None = None, output: Path | None = None, num_processes: int = 2
) -> dict[str, Any]:
    """Score every pair of a predictions folder that ``predict.json`` lists, and write the results.

    Args:
        predictions: folder with ``predict.json`` and the fields that it names.
        labels: folder with a label map ``<case name>.nii.gz`` for each case, or a dataset's folder; used for cases
            whose label map ``predict.json`` does not give.
        output: where ``metrics.csv`` and ``summary.json`` go; the predictions folder by default.
        num_processes: pairs scored at the same time.

    Returns:
        What :func:`summarise` returns.

    Raises:
        UserError: for missing or unreadable files, grids that do not agree, or nothing to score.
    """
    pairs = find_pairs(predictions, labels)
    check_writable(output or predictions)
    rows: list[Row] = []
    for pair, found in zip(pairs, in_parallel(_score, pairs, num_processes, "Evaluate", "pair"), strict=True):
        if not found:
            log.warning("%s: left out, because no label was annotated in both images.", pair.pair_id)
        rows += found
    if not rows:
        raise UserError(f"{predictions}: no pair has a label to score: check the label maps and the label table.")
    if any("prealigned_dice" in row for row in rows):
        # A pair without pre-alignment started where it lay; otherwise the columns would speak of different pairs.
        rows = [{"prealigned_" + m: row["initial_" + m] for m in ("dice", "hd95_mm")} | row for row in rows]
    return write_results(rows, output or predictions)


def _score(pair: PairFiles) -> list[Row]:
    fixed, moving = read_image(pair.fixed_label), read_image(pair.moving_label)
    field = read_as(pair.field, pair.format, Grid.from_image(fixed), Grid.from_image(moving))
    if not Grid.from_image(fixed).same_as(field.grid):
        raise UserError(
            f"{pair.field} is not on the grid of {pair.fixed_label}: give the label map on the fixed image's grid."
        )
    initial = None if pair.prealignment is None else _read_transform(pair.prealignment)
    rows = evaluate_pair(fixed, moving, field, pair.labels, pair.annotated, initial)
    return [{"pair_id": pair.pair_id, "fixed": pair.fixed, "moving": pair.moving} | row for row in rows]


def _read_transform(path: Path) -> sitk.Transform:
    try:
        return sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as a transform: run the prediction again.") from error


def _array(image: sitk.Image) -> Array:
    array = sitk.GetArrayFromImage(image)
    return np.rint(array).astype(np.int64) if array.dtype.kind == "f" else array


def _resampled(moving: sitk.Image, fixed: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    return sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor, 0.0, moving.GetPixelID())


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
