"""Scores of one registered pair, before and after: of its label maps, its landmarks and its field."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import BadTable
from llmreg.evaluation import learn2reg_scores
from llmreg.evaluation.metrics import Array, dice_per_label, folding, sd_log_jacobian, sd_log_jacobian_learn2reg
from llmreg.evaluation.surfaces import hd95_learn2reg_per_label, surface_distances_per_label
from llmreg.geometry.field import DisplacementField, jacobian_determinant
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.points import Points, transform_points
from llmreg.geometry.resampling import LabelInterpolation, resample_labels
from llmreg.images.landmarks import Convention, read_landmarks

Row = dict[str, Any]
# Metrics of labels that are computed before registration, after pre-alignment alone, and after registration.
STAGED_METRICS = ("dice", "hd95_mm", "assd_mm", "hd95_l2r")
LABEL_METRICS = (
    *(stage + metric for metric in STAGED_METRICS for stage in ("initial_", "prealigned_", "")),
    "dice_l2r",
)
LANDMARK_METRICS = ("initial_tre_mm", "prealigned_tre_mm", "tre_mm", "tre_l2r")
FIELD_METRICS = ("folding_percent", "folding_interior_percent", "sdlogj", "sdlogj_learn2reg")


def evaluate_pair(
    fixed_label: sitk.Image,
    moving_label: sitk.Image,
    field: DisplacementField,
    labels: Mapping[int, str] | None = None,
    annotated: Collection[int] | None = None,
    initial: sitk.Transform | None = None,
    interpolation: LabelInterpolation = "nearest",
    threads: int = 1,
) -> list[Row]:
    """Score one pair on the fixed image's grid.

    Args:
        fixed_label: label map of the fixed image.
        moving_label: label map of the moving image, on any grid.
        field: the whole displacement from fixed to moving, on the fixed label map's grid.
        labels: id -> name without background; the ids in the two maps when None or empty.
        annotated: ids that were annotated in both images; all of them when None.
        initial: pre-alignment that is part of ``field``, fixed points -> moving points; it adds the columns
            ``prealigned_...``.
        interpolation: how the moving label map is warped, see :func:`llmreg.geometry.resampling.resample_labels`;
            ``dice_l2r`` and ``hd95_l2r`` are always of nearest neighbours, as in Learn2Reg.
        threads: labels scored at the same time.

    Returns:
        A row per label. Metrics of the field (:data:`FIELD_METRICS`) are the same in every row.

    Raises:
        ValueError: when the field lies on another grid than the fixed label map.
    """
    grid, moving_grid = Grid.from_image(fixed_label), Grid.from_image(moving_label)
    if not grid.same_as(field.grid):
        raise ValueError("the field does not lie on the grid of the fixed label map")
    # The two headers may differ by rounding; from here on they are the same.
    field = DisplacementField(field.vectors, grid)
    fixed, moving = _to_whole_numbers(fixed_label), _to_whole_numbers(moving_label)
    names = dict(labels or {i: str(i) for i in np.union1d(fixed, moving).tolist() if i > 0})
    ids = [i for i in names if annotated is None or i in annotated]
    image = array_to_image(moving, moving_grid)
    columns: dict[str, dict[int, float]] = {}
    transforms = {"initial_": None} | ({} if initial is None else {"prealigned_": initial}) | {"": field}
    for stage, transform in transforms.items():
        warped = image_to_array(resample_labels(image, grid, transform, interpolation))
        columns[stage + "dice"] = dice_per_label(warped, fixed, ids, unwarped=moving)
        distances = surface_distances_per_label(warped, fixed, ids, grid.spacing, threads)
        columns[stage + "hd95_mm"] = {i: distance.hd95 for i, distance in distances.items()}
        columns[stage + "assd_mm"] = {i: distance.assd for i, distance in distances.items()}
        if stage == "":
            warped = learn2reg_scores.warp_labels(moving, field, moving_grid)
            columns["dice_l2r"] = dice_per_label(warped, fixed, ids, unwarped=moving)
        elif interpolation != "nearest":
            warped = image_to_array(resample_labels(image, grid, transform, "nearest"))
        columns[stage + "hd95_l2r"] = hd95_learn2reg_per_label(warped, fixed, ids, moving, threads)
    field_scores = field_metrics(field)
    return [
        {"label": i, "name": names[i]} | {metric: values[i] for metric, values in columns.items()} | field_scores
        for i in ids
    ]


def read_landmark_pair(
    fixed: Path, moving: Path, convention: Convention, fixed_grid: Grid, moving_grid: Grid
) -> tuple[Points, Points]:
    """Read the landmarks of two images, which list the same places in one order.

    Args:
        fixed: file of the fixed image's landmarks, of a kind that :func:`llmreg.images.landmarks.read_landmarks` reads.
        moving: the same of the moving image.
        convention: of coordinates in tables.
        fixed_grid: of the fixed image, for landmarks in voxels.
        moving_grid: the same of the moving image.

    Returns:
        Fixed and moving landmarks (n, 3), mm LPS.

    Raises:
        UserError: a file cannot be read.
        BadTable: they do not list equally many landmarks.
    """
    fixed_points = read_landmarks(fixed, convention, fixed_grid)[1]
    moving_points = read_landmarks(moving, convention, moving_grid)[1]
    if len(fixed_points) != len(moving_points):
        raise BadTable(
            fixed,
            f"lists {len(fixed_points)} points and {moving} {len(moving_points)}",
            "list the same places in both, in the same order",
        )
    return fixed_points, moving_points


def landmark_errors(
    fixed: Points,
    moving: Points,
    field: DisplacementField,
    moving_grid: Grid,
    initial: sitk.Transform | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Target registration error of each landmark: the distance of the mapped fixed landmark from the moving one.

    Args:
        fixed: (n, 3) landmarks of the fixed image, mm LPS.
        moving: (n, 3) the same places in the moving image.
        field: the whole displacement from fixed to moving, on the fixed image's grid.
        moving_grid: of the moving image.
        initial: pre-alignment that is part of ``field``, fixed points -> moving points.

    Returns:
        (n,) in mm for each of :data:`LANDMARK_METRICS`: as the points lie; after ``initial``, if there is one; after
        the field, linearly interpolated as ITK has it; the same as Learn2Reg computes it, by splines.
    """
    prealigned = {} if initial is None else {"prealigned_tre_mm": transform_points(fixed, initial)}
    mapped = {"initial_tre_mm": fixed} | prealigned | {"tre_mm": transform_points(fixed, field)}
    errors = {name: np.linalg.norm(points - moving, axis=1) for name, points in mapped.items()}
    return errors | {"tre_l2r": learn2reg_scores.point_errors(fixed, moving, field, moving_grid)}


def score_unlabelled(field: DisplacementField) -> Row:
    """Score the field of a pair without a label to score; metrics of labels are NaN."""
    scores = {metric: np.nan for metric in LABEL_METRICS if not metric.startswith("prealigned_")}
    return {"label": None, "name": None} | scores | field_metrics(field)


def field_metrics(field: DisplacementField) -> dict[str, float]:
    """Compute :data:`FIELD_METRICS` of the whole displacement from fixed to moving."""
    determinant = jacobian_determinant(field)
    return {
        "folding_percent": folding(determinant),
        # The interior is that of Learn2Reg's SDlogJ.
        "folding_interior_percent": folding(determinant, margin=2),
        "sdlogj": sd_log_jacobian(determinant),
        "sdlogj_learn2reg": sd_log_jacobian_learn2reg(determinant),
    }


def _to_whole_numbers(image: sitk.Image) -> Array:
    array = image_to_array(image)
    return np.rint(array).astype(np.int32) if array.dtype.kind == "f" else array
