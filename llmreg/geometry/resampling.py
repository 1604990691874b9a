"""Images on other grids, looked up through transforms."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk

from llmreg.geometry.arrays import array_to_image, image_to_array, place_image
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid

Interpolator = Literal["linear", "nearest", "bspline"]
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}


def resample_image(
    image: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | DisplacementField | None = None,
    interpolator: Interpolator = "linear",
    default: float = 0.0,
) -> sitk.Image:
    """The image at the voxels of a grid.

    The pixel type is kept: values of integer types are rounded, where ITK truncates them. Splines overshoot at edges,
    so their values are clipped to the image's own range.

    Args:
        image: a scalar image.
        grid: the grid of the result.
        transform: maps points of the grid to points of the image; the identity when None. A field whose grid is
            another is zero outside its own.
        interpolator: how values between voxels are computed.
        default: the value where the transform leads outside the image.
    """
    is_integer = np.dtype(sitk.GetArrayViewFromImage(image).dtype).kind in "iu"
    computes_new_values = interpolator == "bspline" or (interpolator == "linear" and is_integer)
    if isinstance(transform, DisplacementField) and transform.grid != grid:
        transform = transform.to_transform()
    if not computes_new_values and not isinstance(transform, DisplacementField):
        return _resample_with_itk(image, grid, transform, _INTERPOLATORS[interpolator], default, image.GetPixelID())
    values = sitk.GetArrayViewFromImage(image)
    lowest, highest = (values.min(), values.max()) if computes_new_values else (0, 0)
    source, method = image, _INTERPOLATORS[interpolator]
    if interpolator == "bspline":
        # The coefficients are computed once for all slabs.
        source, method = sitk.BSplineDecomposition(sitk.Cast(image, sitk.sitkFloat64), 3), sitk.sitkBSplineResampler
    pixel_type, outside = (sitk.sitkFloat64, np.nan) if computes_new_values else (image.GetPixelID(), default)
    result = np.empty(grid.shape, values.dtype)
    for part, slab in grid.slabs():
        if isinstance(transform, DisplacementField):
            slab_transform: sitk.Transform | None = DisplacementField(transform.vectors[part], slab).to_transform()
        else:
            slab_transform = transform
        array = image_to_array(_resample_with_itk(source, slab, slab_transform, method, outside, pixel_type))
        if computes_new_values:
            array = np.where(np.isnan(array), default, np.clip(array, lowest, highest))
            if is_integer:
                array = np.rint(array)
        result[part] = array
    return array_to_image(result, grid)


def resample_with_edge(image: sitk.Image, grid: Grid, transform: sitk.Transform) -> sitk.Image:
    """Resample linearly as :func:`resample_image` does, but continue the outermost voxels outside the image."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetTransform(transform)
    resampler.UseNearestNeighborExtrapolatorOn()
    result: sitk.Image = resampler.Execute(image)
    return result


def ones_on(grid: Grid) -> sitk.Image:
    """A single voxel of 1 that fills the grid's volume: resampled with ``nearest`` it is 1 inside and 0 outside."""
    voxel = Grid((1, 1, 1), tuple(grid.extent.tolist()), tuple(grid.centre.tolist()), grid.direction)
    return place_image(sitk.GetImageFromArray(np.ones((1, 1, 1), np.uint8)), voxel)


def _resample_with_itk(
    image: sitk.Image, grid: Grid, transform: sitk.Transform | None, method: int, default: float, pixel_type: int
) -> sitk.Image:
    transform = transform or sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(
        image, grid.size, transform, method, grid.origin, grid.spacing, grid.direction, default, pixel_type
    )
