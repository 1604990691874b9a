"""Points through transforms, in both directions."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from llmreg.geometry.field import DisplacementField

Points = NDArray[np.float64]

# An inverse is accepted when the field leads from it back to within this part of a voxel.
_TOLERANCE = 1e-3
_ITERATIONS = 50
# From this number of points on, torch saves more time than its import takes.
TORCH_FROM_POINTS = 2**17
# Number of samples along each axis to which an affine mapping is fitted.
_SAMPLES = 20


def transform_points(points: ArrayLike, transform: sitk.Transform | DisplacementField) -> Points:
    """Map points (N, 3), LPS mm, through a transform; a field maps fixed points to moving points.

    Outside its grid a field leaves points where they are, as in ITK.
    """
    start = np.asarray(points, dtype=float).reshape(-1, 3)
    if isinstance(transform, DisplacementField):
        # As in ITK, the vectors of the edge continue for half a voxel.
        index = transform.grid.physical_to_index(start)
        return start + _interpolate_vectors(index, transform) * transform.grid.contains(start)[:, None]
    if transform.IsLinear():
        matrix, offset = _affine_of_transform(transform)
        return start @ matrix.T + offset
    return np.array([transform.TransformPoint(point) for point in start.tolist()]).reshape(-1, 3)


def inverse_transform_points(points: ArrayLike, field: DisplacementField) -> Points:
    """Map moving points p (N, 3), LPS mm, to fixed points x with x + u(x) = p, by iteration for each point.

    Outside the field's grid its affine part continues from the edge. Where the field folds, the result may lead back
    elsewhere: compare with :func:`transform_points`.
    """
    # All coordinates are in voxels of the field's grid, in the order x, y, z.
    targets = field.grid.physical_to_index(points).reshape(-1, 3)
    to_voxels = np.linalg.inv(field.grid.matrix).T
    last = np.asarray(field.grid.size) - 1
    matrix, offset = _affine_of_field(field)
    inverse_matrix = np.linalg.inv(matrix).T

    def residual(index: Points, target: Points) -> Points:
        inside = np.clip(index, 0, last)
        return inside + _interpolate_vectors(inside, field) @ to_voxels + (index - inside) @ matrix.T - target

    index = (targets - offset) @ inverse_matrix
    error = residual(index, targets)
    step = np.ones(len(index))
    active = np.arange(len(index))
    for _ in range(_ITERATIONS):
        active = active[np.abs(error[active]).max(axis=1) > _TOLERANCE]
        if active.size == 0:
            break
        candidate = index[active] - step[active, None] * (error[active] @ inverse_matrix)
        new_error = residual(candidate, targets[active])
        better = (new_error**2).sum(axis=1) < (error[active] ** 2).sum(axis=1)
        index[active[better]], error[active[better]] = candidate[better], new_error[better]
        # Where the field varies strongly, whole steps lead away.
        step[active[~better]] /= 2
    return field.grid.index_to_physical(index)


def _interpolate_vectors(index: Points, field: DisplacementField) -> Points:
    """The field's vectors (N, 3), mm, at voxel indices (N, 3) in x, y, z order; outside, those of the edge continue."""
    if len(index) < TORCH_FROM_POINTS:
        zyx = index[:, ::-1].T
        return np.stack(
            [map_coordinates(field.vectors[..., k], zyx, float, order=1, mode="nearest") for k in range(3)], axis=1
        )
    import torch
    from torch.nn.functional import grid_sample

    # grid_sample takes coordinates between -1 and 1.
    unit = torch.from_numpy((index * (2 / np.maximum(np.asarray(field.grid.size) - 1, 1)) - 1).astype(np.float32))
    volume = torch.from_numpy(field.vectors).permute(3, 0, 1, 2)[None]
    vectors = grid_sample(volume, unit.view(1, 1, 1, -1, 3), padding_mode="border", align_corners=True)
    return vectors[0, :, 0, 0].T.numpy().astype(np.float64)


def _affine_of_transform(transform: sitk.Transform) -> tuple[Points, Points]:
    """Matrix and offset of a linear transform."""
    offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    ends = np.array([transform.TransformPoint(axis) for axis in np.eye(3).tolist()])
    return (ends - offset).T, offset


def _affine_of_field(field: DisplacementField) -> tuple[Points, Points]:
    """The affine mapping (matrix, offset) of voxel indices that fits the field's mapping best."""
    steps = tuple(slice(None, None, max(1, n // _SAMPLES)) for n in field.grid.shape)
    z, y, x = np.meshgrid(*[np.arange(n)[step] for n, step in zip(field.grid.shape, steps, strict=True)], indexing="ij")
    index = np.stack((x, y, z), axis=-1).reshape(-1, 3).astype(float)
    ends = index + field.vectors[steps].reshape(-1, 3) @ np.linalg.inv(field.grid.matrix).T
    middle = index.mean(axis=0)
    matrix = np.linalg.lstsq(index - middle, ends - ends.mean(axis=0), rcond=None)[0].T
    if np.linalg.det(matrix) <= 0:
        matrix = np.eye(3)
    return matrix, ends.mean(axis=0) - matrix @ middle
