"""Scores a folder of predictions: label maps, landmarks and fields, before and after registration.

Column names of the table are listed in ``documentation/evaluation.md``. Dice is a fraction, distances are in mm.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from llmreg.errors import BadImage, UserError
from llmreg.evaluation import learn2reg_scores
from llmreg.evaluation.inputs import PairFiles, find_inputs
from llmreg.evaluation.pair_scores import (
    STAGED_METRICS,
    Row,
    evaluate_pair,
    landmark_errors,
    read_landmark_pair,
    score_unlabelled,
)
from llmreg.evaluation.summary import METRICS_FILE, SUMMARY_FILE, make_table, write_results
from llmreg.files import check_writable, file_digest, read_json, write_text
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import LabelInterpolation
from llmreg.images.fields import read_field, read_transform
from llmreg.images.image_files import read_image
from llmreg.images.landmarks import Convention
from llmreg.predictions import PREDICT_FILE
from llmreg.workers import map_in_processes

log = logging.getLogger(__name__)


def evaluate_folder(
    predictions: Path,
    labels: Path | None = None,
    output: Path | None = None,
    num_processes: int = 2,
    label_interpolation: LabelInterpolation = "nearest",
    landmarks: Path | None = None,
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
        landmarks: folder with landmarks ``<case name>.csv``; else they are those that ``predict.json`` names, else
            the dataset's in ``labels``.
        convention: of the coordinates of landmarks in tables; a dataset's own are in voxels.

    Returns:
        The summary of :func:`llmreg.evaluation.summary.summarise`, with how labels were warped, which pairs failed, and
        the memory of the prediction.

    Raises:
        UserError: for missing or unreadable files, grids that do not agree, or nothing to score.
    """
    inputs = find_inputs(predictions, labels, landmarks)
    output = output or predictions
    check_writable(output)
    score = partial(
        _score_pair,
        interpolation=label_interpolation,
        convention=convention,
        threads=max(1, num_processes // len(inputs.pairs)),
    )
    results = map_in_processes(score, inputs.pairs, num_processes, "Evaluate", "pair")
    rows: list[Row] = []
    distances: dict[str, list[float]] = {}
    for pair, (pair_rows, pair_distances) in zip(inputs.predictions.pairs, results, strict=True):
        if not pair_rows:
            log.warning("%s is left out: no landmarks, and no label was annotated in both images.", pair.pair_id)
        rows += pair_rows
        distances |= {pair.pair_id: pair_distances} if pair_distances else {}
    if not rows:
        raise UserError(f"{predictions}: no pair has a label to score, or landmarks: check both, and the label table.")
    if any(metric.startswith("prealigned_") for row in rows for metric in row):
        # The mean after pre-alignment is over all pairs, so that it compares with the other means: a pair that has no
        # pre-alignment counts as it lay.
        metrics = (*STAGED_METRICS, "tre_mm")
        rows = [
            {f"prealigned_{name}": row[f"initial_{name}"] for name in metrics if f"initial_{name}" in row} | row
            for row in rows
        ]
    challenge_results = learn2reg_scores.make_results(make_table(rows), inputs.name, distances)
    write_text(output / "learn2reg.json", json.dumps(challenge_results, indent=4) + "\n")
    details = {
        "label_interpolation": label_interpolation,
        "failed": [pair.pair_id for pair in inputs.predictions.failed],
        "predictions_sha256": inputs.sha256,
        **inputs.predictions.model_dump(include={"peak_memory_gb", "peak_gpu_memory_gb"}, exclude_none=True),
    }
    return write_results(rows, output, details)


def is_scored(predictions: Path) -> bool:
    """Whether a predictions folder holds scores, and its predictions have not changed since."""
    files = [predictions / name for name in (METRICS_FILE, SUMMARY_FILE, PREDICT_FILE)]
    return all(file.is_file() for file in files) and (
        read_json(predictions / SUMMARY_FILE).get("predictions_sha256") == file_digest(predictions / PREDICT_FILE)
    )


def _score_pair(
    pair: PairFiles, interpolation: LabelInterpolation, convention: Convention, threads: int
) -> tuple[list[Row], list[float]]:
    """The pair's rows, and Learn2Reg's error at each landmark, which is empty without landmarks."""
    fixed, moving = (read_image(path) for path in pair.frames)
    fixed_grid, moving_grid = Grid.from_image(fixed), Grid.from_image(moving)
    field = read_field(pair.field, pair.prediction.format, fixed_grid, moving_grid)
    if not fixed_grid.same_as(field.grid):
        raise BadImage(
            pair.frames[0],
            f"does not lie on the grid of the field {pair.field}",
            "give the label map on the fixed image's grid",
        )
    initial = None if pair.prealignment is None else read_transform(pair.prealignment)
    # All rows of the pair have these columns.
    shared: Row = pair.prediction.model_dump(include={"pair_id", "fixed", "moving", "seconds"}, exclude_none=True)
    distances: list[float] = []
    if pair.landmarks is not None:
        landmarks = read_landmark_pair(*pair.landmarks, pair.convention or convention, fixed_grid, moving_grid)
        errors = landmark_errors(*landmarks, field, moving_grid, initial)
        shared |= {metric: float(values.mean()) for metric, values in errors.items()}
        distances = errors["tre_l2r"].tolist()
    rows: list[Row] = []
    if pair.labelled:
        rows = evaluate_pair(fixed, moving, field, pair.labels, pair.annotated, initial, interpolation, threads)
    if not rows and distances:
        rows = [score_unlabelled(field)]
    return [shared | row for row in rows], distances
