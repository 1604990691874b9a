"""Grids, the positions of an image's voxels in space, and arrays of those voxels; LPS to and from RAS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

# Voxels in a slab, the part of a large grid that is worked on at a time.
SLAB_VOXELS = 2**21


@dataclass(frozen=True)
class Grid:
    """Size, spacing (mm), origin (mm, LPS) and direction (row-major 3x3), all in x, y, z order as in ITK.

    Raises:
        ValueError: a size or spacing is not positive, or the direction is singular.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 1:
            raise ValueError(f"size must be three positive integers, got {self.size}")
        if len(self.spacing) != 3 or min(self.spacing) <= 0:
            raise ValueError(f"spacing must be three positive lengths, got {self.spacing}")
        if len(self.origin) != 3 or len(self.direction) != 9:
            raise ValueError(f"origin needs 3 and direction 9 numbers, got {self.origin} and {self.direction}")
        if abs(np.linalg.det(np.reshape(self.direction, (3, 3)))) < 1e-6:
            raise ValueError(f"direction is singular: {self.direction}")

    @classmethod
    def from_image(cls, image: sitk.Image) -> Self:
        """The grid of a 3-D SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_centre(cls, size: Sequence[int], spacing: Sequence[float], centre: ArrayLike) -> Self:
        """A grid along the LPS axes around ``centre`` (mm, LPS); size and spacing (mm) in x, y, z order."""
        origin = np.asarray(centre, dtype=float) - (np.asarray(size) - 1) / 2 * np.asarray(spacing)
        return cls(tuple(int(n) for n in size), tuple(float(s) for s in spacing), tuple(origin.tolist()))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            tuple(int(n) for n in content["size"]),
            tuple(content["spacing"]),
            tuple(content["origin"]),
            tuple(content["direction"]),
        )

    def to_dict(self) -> dict[str, list[float]]:
        """The grid as JSON stores it."""
        return {
            "size": list(self.size),
            "spacing": list(self.spacing),
            "origin": list(self.origin),
            "direction": list(self.direction),
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an array on this grid, (z, y, x)."""
        return self.size[::-1]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """3x3: a step in voxels (x, y, z) to a step in LPS mm."""
        return np.asarray(np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing))

    @property
    def centre(self) -> NDArray[np.float64]:
        """The middle of the volume, LPS mm."""
        return self.index_to_physical((np.asarray(self.size) - 1) / 2)

    @property
    def extent(self) -> NDArray[np.float64]:
        """Edge lengths of the volume along its own axes, mm."""
        return np.multiply(self.size, self.spacing)

    def index_to_physical(self, points: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) in x, y, z order to LPS mm."""
        return np.asarray(np.asarray(points, dtype=float) @ self.matrix.T + np.asarray(self.origin))

    def physical_to_index(self, points: ArrayLike) -> NDArray[np.float64]:
        """LPS mm (..., 3) to voxel indices in x, y, z order."""
        return np.asarray((np.asarray(points, dtype=float) - np.asarray(self.origin)) @ np.linalg.inv(self.matrix).T)

    def indices(self) -> NDArray[np.float64]:
        """The index (x, y, z) of every voxel, as an array (z, y, x, 3)."""
        return np.stack(tuple(np.indices(self.shape, dtype=float))[::-1], axis=-1)

    def physical_points(self) -> NDArray[np.float64]:
        """LPS mm of every voxel, as an array (z, y, x, 3)."""
        return self.index_to_physical(self.indices())

    def corners(self) -> NDArray[np.float64]:
        """LPS mm of the eight outermost voxels, (8, 3)."""
        return self.index_to_physical(np.stack(np.meshgrid(*[(0, n - 1) for n in self.size]), -1).reshape(-1, 3))

    def share_inside(self, other: Self) -> float:
        """Share of this grid's volume that lies inside another's, estimated by points spread evenly over it."""
        return float(other.contains(self.points_inside()).mean())

    def points_inside(self, samples: int = 16) -> NDArray[np.float64]:
        """Points spread evenly over the volume, ``samples`` along each axis, LPS mm, (n, 3)."""
        steps = [(np.arange(samples) + 0.5) / samples * n - 0.5 for n in self.size]
        return self.index_to_physical(np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3))

    def slabs(self, voxels: int | None = None) -> Iterator[tuple[slice, Self]]:
        """Parts of whole slices with about ``voxels`` each (:data:`SLAB_VOXELS`): their slices along z, their grids."""
        depth = max(1, (voxels or SLAB_VOXELS) // (self.size[0] * self.size[1]))
        for start in range(0, self.size[2], depth):
            stop = min(start + depth, self.size[2])
            yield slice(start, stop), self.pad((0, 0, -start), (0, 0, stop - self.size[2]))

    def contains(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Whether points (..., 3), LPS mm, lie in the volume: in any voxel, its edges included."""
        index = self.physical_to_index(points)
        return np.asarray(((index >= -0.5) & (index <= np.asarray(self.size) - 0.5)).all(axis=-1))

    def same_as(self, other: Self, tolerance: float = 0.01) -> bool:
        """Whether every corner lies within ``tolerance`` voxels of the other's.

        The default lets headers that were written by different programs differ by rounding.
        """
        limit = tolerance * min(self.spacing)
        return self.size == other.size and np.allclose(self.corners(), other.corners(), rtol=0, atol=limit)

    def pad(self, lower: Sequence[int], upper: Sequence[int]) -> Self:
        """The grid with voxels added (removed where negative) before and after each axis, in x, y, z order."""
        size = tuple(n + int(a) + int(b) for n, a, b in zip(self.size, lower, upper, strict=True))
        return replace(self, size=size, origin=tuple(self.index_to_physical(np.negative(lower)).tolist()))


def image_to_array(image: sitk.Image) -> NDArray[Any]:
    """The voxels as an array (z, y, x), in which vectors have their components on a last axis."""
    return np.asarray(sitk.GetArrayFromImage(image))


def array_to_image(array: NDArray[Any], grid: Grid) -> sitk.Image:
    """An image with the voxels of an array (z, y, x) on a grid.

    Raises:
        ValueError: the array does not fit the grid.
    """
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} does not fit a grid of shape {grid.shape}")
    return place_image(sitk.GetImageFromArray(np.ascontiguousarray(array)), grid)


def place_image(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Give an image the spacing, origin and direction of a grid, and return it."""
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    return image


def orient_to_lps(image: sitk.Image) -> sitk.Image:
    """The same voxels, with axes permuted and flipped to run as nearly as possible to left, posterior, superior."""
    result: sitk.Image = sitk.DICOMOrient(image, "LPS")
    return result


def lps_to_ras(vectors: NDArray[Any]) -> NDArray[Any]:
    """Points or vectors (..., 3), mm, from LPS to RAS. The same change of signs leads from RAS to LPS."""
    return np.asarray(vectors * np.array([-1, -1, 1], dtype=vectors.dtype))


ras_to_lps = lps_to_ras
