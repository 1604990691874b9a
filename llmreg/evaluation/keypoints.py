"""Landmarks that mark the same places in both images, and how far from each other registration leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import UserError
from llmreg.evaluation import learn2reg
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.geometry.points import Convention, Points, read_points, transform_points

SUFFIXES = (".csv", ".fcsv", ".mrk.json")
POINT_METRICS = ("initial_tre_mm", "prealigned_tre_mm", "tre_mm", "tre_l2r")


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Places (n, 3) in mm LPS: a row of ``fixed`` and the same row of ``moving`` belong together."""

    fixed: Points
    moving: Points


def read_keypoints(fixed: Path, moving: Path, convention: Convention, fixed_grid: Grid, moving_grid: Grid) -> Keypoints:
    """The landmarks of two images, in one order.

    Args:
        fixed: file of the fixed image's landmarks, of a kind that :func:`llmreg.geometry.points.read_points` reads.
        moving: the same of the moving image.
        convention: of coordinates in tables.
        fixed_grid: of the fixed image, for landmarks in voxels.
        moving_grid: the same of the moving image.

    Raises:
        UserError: a file cannot be read, or they do not list equally many landmarks.
    """
    _, fixed_points = read_points(fixed, convention, fixed_grid)
    _, moving_points = read_points(moving, convention, moving_grid)
    if len(fixed_points) != len(moving_points):
        raise UserError(
            f"{fixed} lists {len(fixed_points)} points and {moving} {len(moving_points)}: list the same places in "
            "both, in the same order."
        )
    return Keypoints(fixed_points, moving_points)


def keypoint_errors(
    keypoints: Keypoints, field: DisplacementField, moving_grid: Grid, initial: sitk.Transform | None = None
) -> dict[str, NDArray[np.float64]]:
    """Target registration error of each landmark: where its fixed point ends, and how far that is from the moving one.

    Args:
        keypoints: n places.
        field: the whole displacement from fixed to moving, on the fixed image's grid.
        moving_grid: of the moving image.
        initial: pre-alignment that is part of ``field``, fixed points -> moving points.

    Returns:
        (n,) in mm for each of :data:`POINT_METRICS`: as the points lie; after ``initial``, if there is one; after the
        field, linearly interpolated as ITK has it; the same as Learn2Reg computes it, by splines.
    """
    ends = {"initial_tre_mm": keypoints.fixed}
    if initial is not None:
        ends["prealigned_tre_mm"] = transform_points(keypoints.fixed, initial)
    ends["tre_mm"] = transform_points(keypoints.fixed, field)
    errors = {name: np.linalg.norm(end - keypoints.moving, axis=1) for name, end in ends.items()}
    return errors | {"tre_l2r": learn2reg.point_errors(keypoints.fixed, keypoints.moving, field, moving_grid)}
