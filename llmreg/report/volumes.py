"""The images of a shown pair as volumes on one upright grid."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.errors import MissingOutput, UnreadableFile
from llmreg.geometry.field import DisplacementField, jacobian_determinant, resample_field
from llmreg.geometry.grid import Grid, array_to_image, image_to_array, orient_to_lps
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import read_field, read_transform
from llmreg.images.image_files import read_image
from llmreg.predictions import PREDICT_FILE, PredictedPair
from llmreg.report.shown_predictions import ShownPair

# Length of the longest side of a picture, in pixels.
LONGEST = 256
# The range of soft tissue in HU, the narrowest window, and a value that only CT falls below.
SOFT_TISSUE, NARROWEST, BELOW_MR = (-160.0, 240.0), 60.0, -500.0
# Percentiles of the foreground of MR, and of soft tissue in CT, that become black and white.
PERCENTILES, CT_PERCENTILES = (1.0, 99.5), (5.0, 99.5)

# An image, its label map (or None), and the values that become black and white.
WindowedCase = tuple[sitk.Image, sitk.Image | None, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Stage:
    """The moving image at some stage, on the shown grid.

    Attributes:
        image: grey values (z, y, x).
        labels: (z, y, x); None without a label map.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int32] | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What all methods of a pair share.

    Attributes:
        grid: the shown grid: the fixed image's volume in cubic voxels, its axes nearest to left, posterior, superior.
        fixed: the fixed image and its label map on it.
        before: the moving image without any transform.
        prealigned: the moving image after pre-alignment; None without one, or where it moves nothing.
        moving: what methods warp.
        fixed_grid: the fixed image's own grid.
    """

    grid: Grid
    fixed: Stage
    before: Stage
    prealigned: Stage | None
    moving: WindowedCase
    fixed_grid: Grid


@dataclass(frozen=True, eq=False)
class Result:
    """A pair after registration by one method, on the shown grid.

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

    @cached_property
    def uncertainty_top(self) -> float | None:
        """The value (mm) of the brightest colour, which the highest hundredth shares; None without uncertainty."""
        return None if self.uncertainty is None else round(max(float(np.percentile(self.uncertainty, 99)), 0.01), 2)


def shown_grid(fixed: sitk.Image) -> Grid:
    """Choose cubic voxels that fill the image's volume along its axes in LPS order, at most :data:`LONGEST` a side.

    An image with cubic voxels that is small enough keeps its voxels.
    """
    grid = Grid.from_image(orient_to_lps(fixed))
    voxel = max(min(grid.spacing), float(grid.extent.max()) / LONGEST)
    size = tuple(max(1, round(length / voxel)) for length in grid.extent.tolist())
    # The corner of the volume stays where it is, not the middle of its first voxel.
    first = (voxel / np.asarray(grid.spacing) - 1) / 2
    return Grid(size, (voxel,) * 3, tuple(grid.index_to_physical(first).tolist()), grid.direction)


def read_scene(pair: ShownPair) -> Scene:
    """Read the images of a pair. Raises UserError when an image or label map of the pair is missing or unreadable."""
    fixed, moving = (_read_case(pair, role) for role in ("fixed", "moving"))
    grid = shown_grid(fixed[0])
    prealigned = None
    start = next((p.path("prealignment") for p in pair.predictions if p and p.prealignment), None)
    if start is not None:
        transform = read_transform(start)
        if _moves(transform, grid):
            prealigned = _stage(moving, grid, transform)
    return Scene(grid, _stage(fixed, grid), _stage(moving, grid), prealigned, moving, Grid.from_image(fixed[0]))


def read_result(scene: Scene, prediction: PredictedPair) -> Result:
    """Read a method's field and warp the moving image. Raises UserError when the field is missing or unreadable."""
    path = prediction.path("field")
    if path is None:
        raise MissingOutput(prediction.folder or Path(), prediction.pair_id, "field")
    field = read_field(path, prediction.format, scene.fixed_grid, Grid.from_image(scene.moving[0]))
    # Nearest neighbours, because interpolation would hide folded voxels.
    jacobian = resample_image(array_to_image(jacobian_determinant(field), field.grid), scene.grid, None, "nearest", 1.0)
    shown_field = resample_field(field, scene.grid)
    uncertainty = prediction.path("uncertainty")
    return Result(
        _stage(scene.moving, scene.grid, shown_field),
        shown_field.to_flow(),
        image_to_array(jacobian),
        None if uncertainty is None else image_to_array(resample_image(read_image(uncertainty), scene.grid)),
    )


def window(values: NDArray[Any]) -> tuple[float, float]:
    """Choose the values that become black and white: percentiles of the foreground, in CT of soft tissue."""
    lowest = float(values.min())
    if lowest < BELOW_MR:
        below, above = SOFT_TISSUE
        foreground, percentiles, narrowest = values[(values > below) & (values < above)], CT_PERCENTILES, NARROWEST
    else:
        foreground, percentiles, narrowest = values[values > lowest], PERCENTILES, 1e-6
    if not foreground.size:
        return lowest, lowest + 1
    low, high = np.percentile(foreground.astype(np.float64), percentiles).tolist()
    margin = max(0.0, narrowest - (high - low)) / 2
    return low - margin, high + margin


def _stage(case: WindowedCase, grid: Grid, transform: sitk.Transform | DisplacementField | None = None) -> Stage:
    image, label, (low, high) = case
    values = image_to_array(resample_image(sitk.Cast(image, sitk.sitkFloat32), grid, transform, default=low))
    grey = np.clip(255 * (values - low) / (high - low), 0, 255).astype(np.uint8)
    if label is None:
        return Stage(grey, None)
    labels = image_to_array(resample_image(label, grid, transform, "nearest"))
    return Stage(grey, np.rint(labels).astype(np.int32))


def _moves(transform: sitk.Transform, grid: Grid) -> bool:
    """Whether some corner moves by a voxel or more."""
    corners = grid.corners()
    moved = np.array([transform.TransformPoint(corner.tolist()) for corner in corners])
    return bool(np.abs(moved - corners).max() >= min(grid.spacing))


def _read_case(pair: ShownPair, role: str) -> WindowedCase:
    path = pair.images.path(f"{role}_path")
    if path is None:
        raise UnreadableFile(
            (pair.images.folder or Path()) / PREDICT_FILE,
            f"does not name the {role} image of {pair.pair_id}",
            "register the pair again",
        )
    image = read_image(path)
    paths = (prediction.path(f"{role}_label") for prediction in pair.predictions if prediction is not None)
    label = next(filter(None, paths), None)
    return image, None if label is None else read_image(label), window(image_to_array(image))
