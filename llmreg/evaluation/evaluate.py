"""Scores a folder of predictions: label maps, landmarks and fields, before and after registration.

Column names of the table are listed in ``documentation/evaluation.md``. Dice is a fraction, distances are in mm.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from llmreg.errors import UserError
from llmreg.evaluation import learn2reg
from llmreg.evaluation.inputs import PairFiles, find_pairs
from llmreg.evaluation.keypoints import keypoint_errors, read_keypoints
from llmreg.evaluation.pair_scores import STAGED_METRICS, Row, evaluate_pair, unlabelled
from llmreg.evaluation.summary import METRICS_FILE, SUMMARY_FILE, table_of, write_results
from llmreg.files import check_writable, file_digest, read_json, write_text
from llmreg.geometry.formats import read_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import read_image, read_transform
from llmreg.geometry.labels import LabelInterpolation
from llmreg.geometry.points import Convention
from llmreg.inference.pair_inputs import PREDICT_FILE
from llmreg.workers import in_parallel

log = logging.getLogger(__name__)

LEARN2REG_FILE = "learn2reg.json"


def evaluate_folder(
    predictions: Path,
    labels: Path | None = None,
    output: Path | None = None,
    num_processes: int = 2,
    label_interpolation: LabelInterpolation = "nearest",
    keypoints: Path | None = None,
    convention: Convention = "lps",
) -> dict[str, Any]:
    """Score every pair of a predictions folder that ``predict.json`` lists, and write the results.

    Args:
        predictions: folder with ``predict.json`` and the fields that it names.
        labels: folder with a label map ``<case name>.nii.gz`` for each case, or a dataset's folder; for cases that it
            has none of, and when None, the label maps are those that ``predict.json`` names.
        output: where ``metrics.csv``, ``summary.json`` and ``learn2reg.json`` go; the predictions folder by default.
        num_processes: pairs scored at the same time; labels, where there are fewer pairs.
        label_interpolation: how moving label maps are warped.
        keypoints: folder with landmarks ``<case name>.csv``; else they are those that ``predict.json`` names, else
            the dataset's in ``labels``.
        convention: of the coordinates of landmarks in tables; a dataset's own are in voxels.

    Returns:
        What :func:`llmreg.evaluation.summary.summarise` returns, and how the scores were found.

    Raises:
        UserError: for missing or unreadable files, grids that do not agree, or nothing to score.
    """
    found = find_pairs(predictions, labels, keypoints)
    output = output or predictions
    check_writable(output)
    threads = max(1, num_processes // len(found.pairs))
    score = partial(_score, interpolation=label_interpolation, convention=convention, threads=threads)
    rows: list[Row] = []
    errors: dict[str, list[float]] = {}
    for pair, (scored, of_points) in zip(
        found.pairs, in_parallel(score, found.pairs, num_processes, "Evaluate", "pair"), strict=True
    ):
        if not scored:
            log.warning("%s: left out, without landmarks or a label that was annotated in both images.", pair.pair_id)
        rows += scored
        if of_points is not None:
            errors[pair.pair_id] = of_points
    if not rows:
        raise UserError(f"{predictions}: no pair has a label to score, or landmarks: check both, and the label table.")
    if any(metric.startswith("prealigned_") for row in rows for metric in row):
        # A pair without pre-alignment started where it lay; otherwise the columns would speak of different pairs.
        rows = [_started(row) | row for row in rows]
    write_text(
        output / LEARN2REG_FILE, json.dumps(learn2reg.results(table_of(rows), found.name, errors), indent=4) + "\n"
    )
    about = {
        "label_interpolation": label_interpolation,
        "failed": list(found.failed),
        "predictions_sha256": found.sha256,
        **found.peak_memory,
    }
    return write_results(rows, output, about)


def is_scored(predictions: Path) -> bool:
    """Whether there are scores in a predictions folder, of the predictions as they are now."""
    table, summary, made = (predictions / name for name in (METRICS_FILE, SUMMARY_FILE, PREDICT_FILE))
    if not all(file.is_file() for file in (table, summary, made)):
        return False
    return bool(read_json(summary).get("predictions_sha256") == file_digest(made))


def _score(
    pair: PairFiles, interpolation: LabelInterpolation, convention: Convention, threads: int
) -> tuple[list[Row], list[float] | None]:
    """The pair's rows, and Learn2Reg's error of each landmark."""
    fixed, moving = (read_image(path) for path in pair.frames)
    fixed_grid, moving_grid = Grid.from_image(fixed), Grid.from_image(moving)
    field = read_as(pair.field, pair.format, fixed_grid, moving_grid)
    if not fixed_grid.same_as(field.grid):
        raise UserError(
            f"{pair.field} is not on the grid of {pair.frames[0]}: give the label map on the fixed image's grid."
        )
    initial = None if pair.prealignment is None else read_transform(pair.prealignment)
    of_pair: Row = {} if pair.seconds is None else {"seconds": pair.seconds}
    of_points = None
    if pair.keypoints is not None:
        known = read_keypoints(*pair.keypoints, pair.convention or convention, fixed_grid, moving_grid)
        errors = keypoint_errors(known, field, moving_grid, initial)
        of_pair |= {metric: float(values.mean()) for metric, values in errors.items()}
        of_points = errors["tre_l2r"].tolist()
    named = {"pair_id": pair.pair_id, "fixed": pair.fixed, "moving": pair.moving}
    rows = []
    if pair.labelled:
        rows = evaluate_pair(fixed, moving, field, pair.labels, pair.annotated, initial, interpolation, threads)
    if not rows and of_points is not None:
        rows = [unlabelled(field)]
    return [named | row | of_pair for row in rows], of_points


def _started(row: Row) -> Row:
    """The scores after pre-alignment of a pair without one."""
    return {
        f"prealigned_{metric}": row[f"initial_{metric}"]
        for metric in (*STAGED_METRICS, "tre_mm")
        if f"initial_{metric}" in row
    }
