"""Images and label maps on other grids, looked up through transforms."""

from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image, image_to_array, place_image

Interpolator = Literal["linear", "nearest", "bspline"]
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}
LabelInterpolation = Literal["nearest", "linear"]


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
        transform: maps points of the grid to points of the image; the identity when None. A field on
            another grid is zero outside that grid.
        interpolator: how values between voxels are computed.
        default: the value where the transform leads outside the image.
    """
    values = sitk.GetArrayViewFromImage(image)
    is_integer = values.dtype.kind in "iu"
    computes_new_values = interpolator == "bspline" or (interpolator == "linear" and is_integer)
    if isinstance(transform, DisplacementField) and transform.grid != grid:
        transform = transform.to_transform()
    if not computes_new_values and not isinstance(transform, DisplacementField):
        return _resample_with_itk(image, grid, transform, _INTERPOLATORS[interpolator], default, image.GetPixelID())
    lowest, highest = values.min(), values.max()
    source, method = image, _INTERPOLATORS[interpolator]
    if interpolator == "bspline":
        # The coefficients are computed once for all slabs.
        source, method = sitk.BSplineDecomposition(sitk.Cast(image, sitk.sitkFloat64), 3), sitk.sitkBSplineResampler
    pixel_type, outside = (sitk.sitkFloat64, np.nan) if computes_new_values else (image.GetPixelID(), default)
    result = np.empty(grid.shape, values.dtype)
    for part, slab in grid.slabs():
        slab_transform = (
            DisplacementField(transform.vectors[part], slab).to_transform()
            if isinstance(transform, DisplacementField)
            else transform
        )
        array = image_to_array(_resample_with_itk(source, slab, slab_transform, method, outside, pixel_type))
        if computes_new_values:
            array = np.where(np.isnan(array), default, np.clip(array, lowest, highest))
            if is_integer:
                array = np.rint(array)
        result[part] = array
    return array_to_image(result, grid)


def resample_with_edge(image: sitk.Image, grid: Grid, transform: sitk.Transform) -> sitk.Image:
    """Resample linearly as :func:`resample_image` does, but continue the outermost voxels outside the image."""
    return sitk.Resample(
        image,
        grid.size,
        transform,
        sitk.sitkLinear,
        grid.origin,
        grid.spacing,
        grid.direction,
        useNearestNeighborExtrapolator=True,
    )


def ones_on(grid: Grid) -> sitk.Image:
    """A single voxel of 1 that fills the grid's volume: resampled with ``nearest`` it is 1 inside and 0 outside."""
    voxel = Grid((1, 1, 1), tuple(grid.extent.tolist()), tuple(grid.centre.tolist()), grid.direction)
    return place_image(sitk.GetImageFromArray(np.ones((1, 1, 1), np.uint8)), voxel)


def _resample_with_itk(
    image: sitk.Image, grid: Grid, transform: sitk.Transform | None, method: int, default: float, pixel_type: int
) -> sitk.Image:
    return sitk.Resample(
        image,
        grid.size,
        transform or sitk.Transform(3, sitk.sitkIdentity),
        method,
        grid.origin,
        grid.spacing,
        grid.direction,
        default,
        pixel_type,
    )


def resample_labels(
    labels: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | DisplacementField | None = None,
    interpolation: LabelInterpolation = "nearest",
) -> sitk.Image:
    """A label map at the voxels of a grid; 0 outside.

    Args:
        labels: the label map; its pixel type is kept.
        grid: the grid of the result.
        transform: maps points of the grid to points of the label map; the identity when None.
        interpolation: ``nearest``, or ``linear``: the label with the largest linearly interpolated one-hot map, whose
            surfaces are less jagged. The label of a point depends on the eight voxels around it alone, so that no
            one-hot map is made and the time does not depend on the number of labels.
    """
    if interpolation == "nearest":
        return resample_image(labels, grid, transform, "nearest")
    if isinstance(transform, DisplacementField) and transform.grid != grid:
        transform = transform.to_transform()
    values, source = image_to_array(labels), Grid.from_image(labels)
    # Whether the eight voxels from a voxel to its next ones along the axes hold several labels.
    neighbours = sliding_window_view(np.pad(values, ((0, 1),) * 3, mode="edge"), values.shape)
    is_border = np.zeros(values.shape, bool)
    for corner in np.ndindex(2, 2, 2):
        is_border |= neighbours[corner] != values
    result = np.empty(grid.shape, values.dtype)
    for part, slab in grid.slabs():
        points = slab.physical_points()
        if isinstance(transform, DisplacementField):
            points += transform.vectors[part]
        elif transform is not None:
            points += DisplacementField.from_transform(transform, slab).vectors
        index = source.physical_to_index(points).reshape(-1, 3)
        result[part] = _interpolate_labels(values, is_border, index).reshape(slab.shape)
    return array_to_image(result, grid)


def _interpolate_labels(labels: NDArray[Any], is_border: NDArray[np.bool_], index: NDArray[np.float64]) -> NDArray[Any]:
    """The label (n,) of the largest summed weight among the eight voxels around each index (n, 3), (x, y, z)."""
    size = np.array(labels.shape[::-1])
    result = np.zeros(len(index), labels.dtype)
    inside = np.flatnonzero(((index >= -0.5) & (index < size - 0.5)).all(axis=1))
    x, y, z = np.clip(index[inside], 0, None).astype(np.int64).T
    result[inside] = labels[z, y, x]
    inside = inside[is_border[z, y, x]]
    low = np.floor(index[inside]).astype(np.int64)
    share = index[inside] - low
    corners = np.array(list(np.ndindex(2, 2, 2)))
    # Beyond the centres of the outermost voxels those voxels continue.
    corner_labels = np.stack([labels[tuple(np.clip(low + corner, 0, size - 1).T[::-1])] for corner in corners])
    weights = np.stack([np.prod(np.where(corner, share, 1 - share), axis=1) for corner in corners])
    totals = np.stack([np.where(corner_labels == label, weights, 0).sum(axis=0) for label in corner_labels])
    # Labels whose weights differ by no more than this are level; the lowest label wins, as with arg max.
    is_level = totals >= totals.max(axis=0) - 1e-6
    result[inside] = np.where(is_level, corner_labels, labels.max()).min(axis=0)
    return result
