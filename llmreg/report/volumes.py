"""What is shown of a pair, as volumes on one upright grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import UserError
from llmreg.geometry.field import DisplacementField, jacobian_determinant, resample, resample_image
from llmreg.geometry.formats import read_as
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array, oriented_lps, read_image, read_transform
from llmreg.report.shown_predictions import Prediction, ShownPair

# Pixels of a picture's longest side.
LONGEST = 256
# HU between which soft tissue lies, the fewest that are told apart, and a value that only CT falls below.
SOFT_TISSUE, NARROWEST, BELOW_MR = (-160.0, 240.0), 60.0, -500.0
# Of the foreground, or of soft tissue.
PERCENTILES, CT_PERCENTILES = (1.0, 99.5), (5.0, 99.5)

Grey = NDArray[np.uint8]
Labels = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Stage:
    """The moving image at some stage, on the shown grid.

    Attributes:
        image: grey values (z, y, x).
        labels: (z, y, x); None without a label map.
    """

    image: Grey
    labels: Labels | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What all methods share.

    Attributes:
        grid: the shown grid: the fixed image's volume in cubic voxels, its axes nearest to left, posterior, superior.
        fixed: the fixed image and its label map on it.
        before: the moving image as it lies.
        prealigned: the moving image after pre-alignment; None without one, or where it moves nothing.
        moving: the moving image, its label map (or None) and its window, for what methods make of it.
        fixed_grid: the fixed image's own grid.
    """

    grid: Grid
    fixed: Stage
    before: Stage
    prealigned: Stage | None
    moving: tuple[sitk.Image, sitk.Image | None, tuple[float, float]]
    fixed_grid: Grid


@dataclass(frozen=True, eq=False)
class Result:
    """What a method's field makes of a pair, on the shown grid.

    Attributes:
        warped: the moving image and its label map.
        flow: (3, z, y, x), components (x, y, z): the displacement in shown voxels.
        jacobian: determinant of the field in its own grid, (z, y, x).
        uncertainty: mm, (z, y, x); None where it was not written.
    """

    warped: Stage
    flow: NDArray[np.float32]
    jacobian: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None


def shown_grid(fixed: sitk.Image) -> Grid:
    """Cubic voxels that fill the image's volume along its axes in LPS order, no more than :data:`LONGEST` in a row.

    An image with cubic voxels that is small enough keeps its voxels.
    """
    grid = Grid.from_image(oriented_lps(fixed))
    voxel = max(min(grid.spacing), float(grid.extent.max()) / LONGEST)
    size = tuple(max(1, round(length / voxel)) for length in grid.extent.tolist())
    # The corner of the volume stays where it is, not the middle of its first voxel.
    first = (voxel / np.asarray(grid.spacing) - 1) / 2
    return Grid(size, (voxel,) * 3, tuple(grid.index_to_physical(first).tolist()), grid.direction)


def read_scene(pair: ShownPair) -> Scene:
    """Raises UserError when an image or label map of the pair is missing or unreadable."""
    images = pair.images
    fixed, moving = (_image(images, role) for role in ("fixed", "moving"))
    labels = {role: _label(pair, role) for role in ("fixed", "moving")}
    grid = shown_grid(fixed)
    span = window(image_to_array(moving))
    fixed_stage = _stage(fixed, labels["fixed"], window(image_to_array(fixed)), grid)
    before = _stage(moving, labels["moving"], span, grid)
    start = next((made.path("prealignment") for made in pair.made if made and made.prealignment), None)
    prealigned = None
    if start is not None:
        transform = read_transform(start)
        if _moves(transform, grid):
            prealigned = _stage(moving, labels["moving"], span, grid, transform)
    return Scene(grid, fixed_stage, before, prealigned, (moving, labels["moving"], span), Grid.from_image(fixed))


def read_result(scene: Scene, made: Prediction) -> Result:
    """Raises UserError when the field is missing or unreadable."""
    path = made.path("field")
    if path is None:
        raise UserError(f"{made.folder} holds no field of {made.pair_id}: predict again, with field among --save.")
    image, label, span = scene.moving
    field = read_as(path, made.format, scene.fixed_grid, Grid.from_image(image))
    # Folded voxels must not be blurred away.
    jacobian = resample_image(array_to_image(jacobian_determinant(field), field.grid), scene.grid, None, "nearest", 1.0)
    here = resample(field, scene.grid)
    uncertainty = made.path("uncertainty")
    return Result(
        _stage(image, label, span, scene.grid, here),
        here.to_flow(),
        image_to_array(jacobian),
        None if uncertainty is None else image_to_array(resample_image(_float(read_image(uncertainty)), scene.grid)),
    )


def window(values: NDArray[Any]) -> tuple[float, float]:
    """Which values of an image are black and white: percentiles of the foreground, in CT those of soft tissue."""
    lowest = float(values.min())
    if lowest < BELOW_MR:
        below, above = SOFT_TISSUE
        foreground, percentiles, narrowest = values[(values > below) & (values < above)], CT_PERCENTILES, NARROWEST
    else:
        foreground, percentiles, narrowest = values[values > lowest], PERCENTILES, 1e-6
    if not foreground.size:
        return lowest, lowest + 1
    low, high = np.percentile(foreground.astype(np.float64), percentiles).tolist()
    wider = max(0.0, narrowest - (high - low)) / 2
    return low - wider, high + wider


def _stage(
    image: sitk.Image,
    label: sitk.Image | None,
    span: tuple[float, float],
    grid: Grid,
    transform: sitk.Transform | DisplacementField | None = None,
) -> Stage:
    low, high = span
    seen = image_to_array(resample_image(_float(image), grid, transform, default=low))
    grey = np.clip(255 * (seen - low) / (high - low), 0, 255).astype(np.uint8)
    if label is None:
        return Stage(grey, None)
    labels = image_to_array(resample_image(label, grid, transform, "nearest"))
    return Stage(grey, np.rint(labels).astype(np.int32))


def _float(image: sitk.Image) -> sitk.Image:
    return sitk.Cast(image, sitk.sitkFloat32)


def _moves(transform: sitk.Transform, grid: Grid) -> bool:
    """Whether some corner moves by a voxel or more."""
    corners = grid.corners()
    moved = np.array([transform.TransformPoint(corner.tolist()) for corner in corners])
    return bool(np.abs(moved - corners).max() >= min(grid.spacing))


def _image(images: Prediction, role: str) -> sitk.Image:
    path = images.path(f"{role}_path")
    if path is None:
        raise UserError(f"{images.pair_id}: its {role} image is not named, so it is not shown: register it again.")
    return read_image(path)


def _label(pair: ShownPair, role: str) -> sitk.Image | None:
    known: list[Path | None] = [made.path(f"{role}_label") for made in pair.made if made is not None]
    path = next((path for path in known if path is not None), None)
    return None if path is None else read_image(path)
