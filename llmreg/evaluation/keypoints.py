"""Landmarks of both images of a pair, and their target registration error."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import BadTable
from llmreg.evaluation import learn2reg_scores
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.points import Points, transform_points
from llmreg.images.landmarks import Convention, read_landmarks

SUFFIXES = (".csv", ".fcsv", ".mrk.json")
POINT_METRICS = ("initial_tre_mm", "prealigned_tre_mm", "tre_mm", "tre_l2r")


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Landmarks (n, 3) in mm LPS: a row of ``fixed`` and the same row of ``moving`` mark the same place."""

    fixed: Points
    moving: Points


def read_keypoints(fixed: Path, moving: Path, convention: Convention, fixed_grid: Grid, moving_grid: Grid) -> Keypoints:
    """Read the landmarks of two images, which list the same places in one order.

    Args:
        fixed: file of the fixed image's landmarks, of a kind that :func:`llmreg.images.landmarks.read_landmarks` reads.
        moving: the same of the moving image.
        convention: of coordinates in tables.
        fixed_grid: of the fixed image, for landmarks in voxels.
        moving_grid: the same of the moving image.

    Raises:
        UserError: a file cannot be read.
        BadTable: they do not list equally many landmarks.
    """
    _, fixed_points = read_landmarks(fixed, convention, fixed_grid)
    _, moving_points = read_landmarks(moving, convention, moving_grid)
    if len(fixed_points) != len(moving_points):
        problem = f"lists {len(fixed_points)} points and {moving} {len(moving_points)}"
        raise BadTable(fixed, problem, "list the same places in both, in the same order")
    return Keypoints(fixed_points, moving_points)


def keypoint_errors(
    keypoints: Keypoints, field: DisplacementField, moving_grid: Grid, initial: sitk.Transform | None = None
) -> dict[str, NDArray[np.float64]]:
    """Target registration error of each landmark: the distance of the mapped fixed landmark from the moving one.

    Args:
        keypoints: n landmarks.
        field: the whole displacement from fixed to moving, on the fixed image's grid.
        moving_grid: of the moving image.
        initial: pre-alignment that is part of ``field``, fixed points -> moving points.

    Returns:
        (n,) in mm for each of :data:`POINT_METRICS`: as the points lie; after ``initial``, if there is one; after the
        field, linearly interpolated as ITK has it; the same as Learn2Reg computes it, by splines.
    """
    mapped = {"initial_tre_mm": keypoints.fixed}
    if initial is not None:
        mapped["prealigned_tre_mm"] = transform_points(keypoints.fixed, initial)
    mapped["tre_mm"] = transform_points(keypoints.fixed, field)
    errors = {name: np.linalg.norm(points - keypoints.moving, axis=1) for name, points in mapped.items()}
    return errors | {"tre_l2r": learn2reg_scores.point_errors(keypoints.fixed, keypoints.moving, field, moving_grid)}
