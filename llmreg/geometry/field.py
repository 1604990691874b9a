"""Displacement fields in physical space (millimetres, LPS, pull-back, as in ITK), to and from other conventions."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.grid import Grid, image_to_array, place_image


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """For each point of the fixed grid, the vector from that point to its match in the moving image.

    Attributes:
        vectors: float32 (z, y, x, 3), components (x, y, z), mm, LPS.
        grid: the grid of the vectors.

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
    def from_flow(cls, flow: NDArray[Any], grid: Grid) -> Self:
        """From a network's flow (3, z, y, x), components (x, y, z), in voxels of ``grid``."""
        return cls((np.moveaxis(flow, 0, -1) @ grid.matrix.T).astype(np.float32), grid)

    def to_flow(self) -> NDArray[np.float32]:
        """The flow (3, z, y, x), components (x, y, z), in voxels of the grid."""
        flow = self.vectors @ np.linalg.inv(self.grid.matrix).T
        return np.ascontiguousarray(np.moveaxis(flow, -1, 0), dtype=np.float32)

    @classmethod
    def from_image(cls, image: sitk.Image) -> Self:
        """From an ITK vector image (mm, LPS)."""
        return cls(image_to_array(image).astype(np.float32, copy=False), Grid.from_image(image))

    @classmethod
    def from_transform(cls, transform: sitk.Transform, grid: Grid) -> Self:
        """The displacement of any SimpleITK transform at the voxels of a grid."""
        return cls.from_image(sample_transform(transform, grid))

    def to_image(self) -> sitk.Image:
        """An ITK vector image of float32 (mm, LPS)."""
        return place_image(sitk.GetImageFromArray(self.vectors, isVector=True), self.grid)

    def to_transform(self) -> sitk.DisplacementFieldTransform:
        """The transform that maps fixed points to moving points; outside its grid it is the identity."""
        return sitk.DisplacementFieldTransform(sitk.Cast(self.to_image(), sitk.sitkVectorFloat64))


def sample_transform(transform: sitk.Transform, grid: Grid) -> sitk.Image:
    """A transform's displacement (mm, LPS) at the voxels of a grid, as an ITK vector image of float32."""
    image: sitk.Image = sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat32, grid.size, grid.origin, grid.spacing, grid.direction
    )
    return image


def chain_transforms(*transforms: sitk.Transform) -> sitk.Transform:
    """The transform that applies ``transforms`` in the order given (ITK's composite applies the last added first)."""
    return sitk.CompositeTransform(list(reversed(transforms)))


def resample_field(field: DisplacementField, grid: Grid) -> DisplacementField:
    """The same field at the voxels of another grid, linearly interpolated, zero outside. Millimetres do not scale."""
    return DisplacementField.from_transform(field.to_transform(), grid)


def fade_outside(field: DisplacementField, margin: int) -> DisplacementField:
    """Pad by ``margin`` voxels, in which the vectors of the edge continue and fade smoothly to zero."""
    vectors = np.pad(field.vectors, ((margin, margin),) * 3 + ((0, 0),), mode="edge")
    falling = 0.5 * (1 + np.cos(np.pi * (np.arange(1, margin + 1) / (margin + 1))))
    for axis, length in enumerate(field.grid.shape):
        weight = np.concatenate((falling[::-1], np.ones(length), falling)).astype(np.float32)
        vectors *= weight.reshape([-1 if k == axis else 1 for k in range(4)])
    return DisplacementField(vectors, field.grid.pad([margin] * 3, [margin] * 3))


def invert_field(
    field: DisplacementField, inverse_guess: DisplacementField | None = None, tolerance: float = 1e-3
) -> DisplacementField:
    """The field v with v(p) + u(p + v(p)) = 0 on the same grid, where u does not fold.

    The displacement of the edge continues outside, so that the inverse is right up to the border.

    Args:
        field: the field u.
        inverse_guess: an approximation of the inverse on the same grid; the negative of ``field`` when None.
        tolerance: largest error of any component, in voxels.
    """
    import torch

    from llmreg.geometry import warping

    start = None if inverse_guess is None else torch.from_numpy(inverse_guess.to_flow())[None]
    flow = warping.invert(torch.from_numpy(field.to_flow())[None], start, tolerance=tolerance)
    return DisplacementField.from_flow(flow[0].numpy(), field.grid)


def jacobian_determinant(field: DisplacementField) -> NDArray[np.float32]:
    """Determinant of the mapping p -> p + u(p), (z, y, x); central differences, one-sided at the border."""
    determinant = np.empty(field.grid.shape, np.float32)
    # Index coordinates give the same determinant as millimetres, because the grid's matrix cancels.
    to_voxels = np.linalg.inv(field.grid.matrix).T.astype(np.float32)
    # The nine derivatives of a large field take three times its memory, so they are computed in slabs.
    for part, _ in field.grid.slabs():
        first = max(part.start - 1, 0)
        flow = np.moveaxis(field.vectors[first : part.stop + 1] @ to_voxels, -1, 0)
        (a, b, c), (d, e, f), (g, h, i) = (np.gradient(component, axis=(2, 1, 0)) for component in flow)
        a, e, i = a + 1, e + 1, i + 1
        # The formula is written out, because numpy.linalg.det takes many times longer on millions of small matrices.
        slab = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        determinant[part] = slab[part.start - first :][: part.stop - part.start]
    return determinant


def to_learn2reg(field: DisplacementField, moving_grid: Grid | None = None) -> NDArray[np.float32]:
    """Learn2Reg's array (X, Y, Z, 3): voxel steps along the array's axes, added to the fixed index.

    Reference: Hering et al., Learn2Reg, IEEE TMI 2023, and the challenge's evaluation code.

    Args:
        field: on the fixed image's grid.
        moving_grid: the moving image's grid; the fixed one when the images share it, as the challenge assumes.
    """
    if moving_grid is None or moving_grid == field.grid:
        # Where nothing moves the step is exactly zero; a rounding error could lead just outside the image.
        return field.to_flow().transpose(3, 2, 1, 0)
    steps = np.empty_like(field.vectors)
    for part, slab in field.grid.slabs():
        target = moving_grid.physical_to_index(slab.physical_points() + field.vectors[part])
        steps[part] = target - slab.indices() - (0, 0, part.start)
    return steps.transpose(2, 1, 0, 3)


def from_learn2reg(array: NDArray[Any], grid: Grid, moving_grid: Grid | None = None) -> DisplacementField:
    """The inverse of :func:`to_learn2reg`.

    Args:
        array: (X, Y, Z, 3), voxel steps.
        grid: the fixed image's grid, of size (X, Y, Z).
        moving_grid: the moving image's grid; the fixed one when None.
    """
    steps = array.transpose(2, 1, 0, 3)
    vectors = np.empty((*grid.shape, 3), np.float32)
    for part, slab in grid.slabs():
        target = (moving_grid or grid).index_to_physical(steps[part] + slab.indices() + (0, 0, part.start))
        vectors[part] = target - slab.physical_points()
    return DisplacementField(vectors, grid)
