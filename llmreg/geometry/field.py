"""Displacement fields in physical space: millimetres, LPS, pull-back, as ITK has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.grid import Grid

Interpolator = Literal["linear", "nearest", "bspline"]
_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """For each point of the fixed grid, where to look in the moving image, relative to the point.

    Attributes:
        vectors: float32 (z, y, x, 3), components (x, y, z), mm, LPS.
        grid: where the vectors sit.

    Raises:
        ValueError: the array does not fit the grid.
    """

    vectors: NDArray[np.float32]
    grid: Grid

    def __post_init__(self) -> None:
        if self.vectors.shape != (*self.grid.shape, 3) or self.vectors.dtype != np.float32:
            raise ValueError(
                f"expected float32 vectors of shape {(*self.grid.shape, 3)}, "
                f"got {self.vectors.dtype} of {self.vectors.shape}"
            )

    @classmethod
    def identity(cls, grid: Grid) -> DisplacementField:
        return cls(np.zeros((*grid.shape, 3), np.float32), grid)

    @classmethod
    def from_flow(cls, flow: NDArray[Any], grid: Grid) -> DisplacementField:
        """From a network's displacement (3, z, y, x), components (x, y, z), in voxels of ``grid``."""
        return cls((np.moveaxis(flow, 0, -1) @ grid.matrix.T).astype(np.float32), grid)

    def to_flow(self) -> NDArray[np.float32]:
        """(3, z, y, x) in voxels of the grid."""
        flow = self.vectors @ np.linalg.inv(self.grid.matrix).T
        return np.ascontiguousarray(np.moveaxis(flow, -1, 0), dtype=np.float32)

    @classmethod
    def from_image(cls, image: sitk.Image) -> DisplacementField:
        return cls(sitk.GetArrayFromImage(image).astype(np.float32, copy=False), Grid.from_image(image))

    @classmethod
    def from_transform(cls, transform: sitk.Transform, grid: Grid) -> DisplacementField:
        """Any transform, sampled at the voxels of a grid."""
        return cls.from_image(sampled(transform, grid))

    def to_image(self, pixel_type: int = sitk.sitkVectorFloat32) -> sitk.Image:
        image = sitk.GetImageFromArray(self.vectors, isVector=True)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(self.grid.direction)
        return image if pixel_type == image.GetPixelID() else sitk.Cast(image, pixel_type)

    def to_transform(self) -> sitk.DisplacementFieldTransform:
        """The transform that maps fixed points to moving points; outside its grid it is the identity."""
        return sitk.DisplacementFieldTransform(self.to_image(sitk.sitkVectorFloat64))


def sampled(transform: sitk.Transform, grid: Grid) -> sitk.Image:
    """A transform's displacement (mm, LPS) at the voxels of a grid, as an ITK vector image of float32."""
    return sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.size, grid.origin, grid.spacing, grid.direction
    )


def chain_transforms(*transforms: sitk.Transform) -> sitk.Transform:
    """The transform that applies ``transforms`` in the order given (ITK's composite applies the last added first)."""
    return sitk.CompositeTransform(list(reversed(transforms)))


def compose(first: DisplacementField, second: DisplacementField) -> DisplacementField:
    """first(p) + second(p + first(p)), on the first field's grid; ``second`` is zero outside its own grid."""
    return DisplacementField.from_transform(chain_transforms(first.to_transform(), second.to_transform()), first.grid)


def resample(field: DisplacementField, grid: Grid) -> DisplacementField:
    """The same field at the voxels of another grid, linearly interpolated, zero outside. Millimetres do not scale."""
    return DisplacementField.from_transform(field.to_transform(), grid)


def upsample(field: DisplacementField, factor: int = 2) -> DisplacementField:
    """On the grid whose blocks of factor^3 voxels are this field's voxels; the edge continues outwards."""
    margin = [1, 1, 1]
    padded = DisplacementField(
        np.pad(field.vectors, ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge"), field.grid.padded(margin, margin)
    )
    return resample(padded, field.grid.upsampled(factor))


def fade_outside(field: DisplacementField, margin: int) -> DisplacementField:
    """Pad by ``margin`` voxels in which the edge's vectors continue and fade smoothly to zero."""
    vectors = np.pad(field.vectors, ((margin, margin),) * 3 + ((0, 0),), mode="edge")
    steps = np.arange(1, margin + 1) / (margin + 1)
    falling = 0.5 * (1 + np.cos(np.pi * steps))
    for axis, length in enumerate(field.grid.shape):
        weight = np.concatenate((falling[::-1], np.ones(length), falling)).astype(np.float32)
        vectors *= weight.reshape([-1 if k == axis else 1 for k in range(4)])
    return DisplacementField(vectors, field.grid.padded([margin] * 3, [margin] * 3))


def inverse(
    field: DisplacementField, start: DisplacementField | None = None, tolerance: float = 1e-3
) -> DisplacementField:
    """The field v with v(p) + u(p + v(p)) = 0 on the same grid, where u does not fold.

    The edge's displacement continues outside, so that the inverse is right up to the border.

    Args:
        field: the field u.
        start: what is near its inverse, on the same grid; its negative when None.
        tolerance: no component is off by more, in voxels.
    """
    import torch

    from llmreg.geometry import warping

    near = None if start is None else torch.from_numpy(start.to_flow())[None]
    found = warping.invert(torch.from_numpy(field.to_flow())[None], near, tolerance=tolerance)
    return DisplacementField.from_flow(found[0].numpy(), field.grid)


def warp_image(
    image: sitk.Image, field: DisplacementField, interpolator: Interpolator = "linear", default: float = 0.0
) -> sitk.Image:
    """The moving image as seen through the field, on the field's grid; ``default`` where it looks outside."""
    return resample_image(image, field.grid, field, interpolator, default)


def resample_image(
    image: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | DisplacementField | None = None,
    interpolator: Interpolator = "linear",
    default: float = 0.0,
) -> sitk.Image:
    """The image at the voxels of a grid, looked up through ``transform`` (grid point -> image point).

    The pixel type is kept: values of whole-number types are rounded, where ITK cuts their decimals off. Splines swing
    past edges; what leaves the image's own range of values is brought back to it.
    """
    whole = np.dtype(sitk.GetArrayViewFromImage(image).dtype).kind in "iu"
    between = interpolator == "bspline" or (interpolator == "linear" and whole)
    if isinstance(transform, DisplacementField) and transform.grid != grid:
        transform = transform.to_transform()
    if not between and not isinstance(transform, DisplacementField):
        return _resampled(image, grid, transform, _INTERPOLATORS[interpolator], default, image.GetPixelID())
    values = sitk.GetArrayViewFromImage(image)
    lowest, highest = (values.min(), values.max()) if between else (0, 0)
    source, method = image, _INTERPOLATORS[interpolator]
    if interpolator == "bspline":
        # The coefficients are found once for all slabs.
        source, method = sitk.BSplineDecomposition(sitk.Cast(image, sitk.sitkFloat64), 3), sitk.sitkBSplineResampler
    pixels, outside = (sitk.sitkFloat64, np.nan) if between else (image.GetPixelID(), default)
    found = np.empty(grid.shape, values.dtype)
    for part, slab in grid.slabs():
        if isinstance(transform, DisplacementField):
            through: sitk.Transform | None = DisplacementField(transform.vectors[part], slab).to_transform()
        else:
            through = transform
        seen = sitk.GetArrayFromImage(_resampled(source, slab, through, method, outside, pixels))
        if between:
            seen = np.where(np.isnan(seen), default, np.clip(seen, lowest, highest))
            if whole:
                seen = np.rint(seen)
        found[part] = seen
    made = sitk.GetImageFromArray(found)
    made.SetSpacing(grid.spacing)
    made.SetOrigin(grid.origin)
    made.SetDirection(grid.direction)
    return made


def resample_beyond(image: sitk.Image, grid: Grid, transform: sitk.Transform) -> sitk.Image:
    """As :func:`resample_image`, linearly, but outside the image its outermost voxels continue."""
    lookup = sitk.ResampleImageFilter()
    lookup.SetSize(grid.size)
    lookup.SetOutputOrigin(grid.origin)
    lookup.SetOutputSpacing(grid.spacing)
    lookup.SetOutputDirection(grid.direction)
    lookup.SetTransform(transform)
    lookup.UseNearestNeighborExtrapolatorOn()
    return lookup.Execute(image)


def _resampled(
    image: sitk.Image, grid: Grid, transform: sitk.Transform | None, method: int, default: float, pixels: int
) -> sitk.Image:
    lookup = transform or sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(image, grid.size, lookup, method, grid.origin, grid.spacing, grid.direction, default, pixels)


def volume_of(grid: Grid) -> sitk.Image:
    """One voxel of 1 that fills the grid's volume: resampled with "nearest", it is 1 where one looks inside."""
    image = sitk.GetImageFromArray(np.ones((1, 1, 1), np.uint8))
    image.SetSpacing(grid.extent.tolist())
    image.SetOrigin(grid.centre.tolist())
    image.SetDirection(grid.direction)
    return image


def jacobian_determinant(field: DisplacementField) -> NDArray[np.float32]:
    """Determinant of the mapping p -> p + u(p), (z, y, x); central differences, one-sided at the border."""
    found = np.empty(field.grid.shape, np.float32)
    # The nine derivatives of a large field take three times its memory.
    for part, _ in field.grid.slabs():
        first = max(part.start - 1, 0)
        found[part] = _determinant(field, first, part.stop + 1)[part.start - first :][: part.stop - part.start]
    return found


def _determinant(field: DisplacementField, first: int, last: int) -> NDArray[np.float32]:
    # Index coordinates give the same determinant as mm: the grid's matrix cancels.
    flow = np.moveaxis(field.vectors[first:last] @ np.linalg.inv(field.grid.matrix).T.astype(np.float32), -1, 0)
    (a, b, c), (d, e, f), (g, h, i) = (np.gradient(component, axis=(2, 1, 0)) for component in flow)
    a, e, i = a + 1, e + 1, i + 1
    # Written out: numpy.linalg.det on millions of small matrices takes many times longer.
    return np.asarray(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g), dtype=np.float32)
