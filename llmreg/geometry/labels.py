"""Label maps through transforms."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from llmreg.geometry.field import DisplacementField, resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array

LabelInterpolation = Literal["nearest", "linear"]
# Labels whose weights differ by no more are level, and the lowest is taken, as arg max has it.
_LEVEL = 1e-6


def resample_labels(
    labels: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | DisplacementField | None = None,
    interpolation: LabelInterpolation = "nearest",
) -> sitk.Image:
    """A label map on another grid, looked up through ``transform`` (grid point -> point of the label map); 0 outside.

    Args:
        labels: the label map; its pixel type is kept.
        grid: the grid of the result.
        transform: the identity when None.
        interpolation: ``nearest``, or ``linear``: the label with the largest linearly interpolated one-hot map, whose
            surfaces are less jagged. What is looked up at a point depends on the eight voxels around it alone, so that
            no one-hot map is made, and any number of labels takes the same time.
    """
    if interpolation == "nearest":
        return resample_image(labels, grid, transform, "nearest")
    if isinstance(transform, DisplacementField) and transform.grid != grid:
        transform = transform.to_transform()
    values, source = image_to_array(labels), Grid.from_image(labels)
    borders = _borders(values)
    found = np.empty(grid.shape, values.dtype)
    for part, slab in grid.slabs():
        points = slab.physical_points()
        if isinstance(transform, DisplacementField):
            points += transform.vectors[part]
        elif transform is not None:
            points += DisplacementField.from_transform(transform, slab).vectors
        index = source.physical_to_index(points).reshape(-1, 3)
        found[part] = _most(values, borders, index).reshape(slab.shape)
    return array_to_image(found, grid)


def _borders(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a voxel and its next ones along the axes, eight in all, hold several labels."""
    lowest, highest = labels.copy(), labels.copy()
    for axis in range(3):
        for extreme, choose in ((lowest, np.minimum), (highest, np.maximum)):
            here, next_ = (extreme[(slice(None),) * axis + (part,)] for part in (slice(None, -1), slice(1, None)))
            choose(here, next_, out=here)
    return np.asarray(lowest != highest)


def _most(labels: NDArray[Any], borders: NDArray[np.bool_], index: NDArray[np.float64]) -> NDArray[Any]:
    """The label (n,) of the largest summed weight among the eight voxels around each index (n, 3), (x, y, z)."""
    size = np.array(labels.shape[::-1])
    # How far apart neighbours along x, y and z are in memory.
    strides = np.array((1, size[0], size[0] * size[1]))
    found = np.zeros(len(index), labels.dtype)
    inside = np.flatnonzero(((index >= -0.5) & (index < size - 0.5)).all(axis=1))
    index = index[inside]
    place = np.clip(index, 0, None).astype(np.int64) @ strides
    flat = labels.ravel()
    found[inside] = flat[place]
    mixed = borders.ravel()[place]
    inside, index = inside[mixed], index[mixed]
    low = np.floor(index).astype(np.int64)
    share = index - low
    # Beyond the outermost voxels' centres those voxels go on.
    ends = [np.clip(low + up, 0, size - 1) * strides for up in (0, 1)]
    corners = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    near = np.stack([flat[ends[x][:, 0] + ends[y][:, 1] + ends[z][:, 2]] for x, y, z in corners])
    weights = np.stack([np.prod(np.where(np.array(corner, bool), share, 1 - share), axis=1) for corner in corners])
    best, most = near[0].copy(), np.full(len(inside), -1.0)
    for own in near:
        total = np.where(near == own, weights, 0).sum(axis=0)
        better = (total > most + _LEVEL) | ((np.abs(total - most) <= _LEVEL) & (own < best))
        best[better], most[better] = own[better], total[better]
    found[inside] = best
    return found
