"""Points through transforms and through chains of them, in both directions."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates

from llmreg.geometry.field import DisplacementField, chain_transforms
from llmreg.geometry.grid import Grid

Points = NDArray[np.float64]

# The search for an inverse ends when the field leads from it back to the start to within this error, in voxels.
_CONVERGENCE_TOLERANCE = 1e-3
# The field's slope is a difference over this distance, in voxels.
_DIFFERENCE = 1e-2
# From this number of points on, using torch saves more time than importing it takes.
TORCH_FROM_POINTS = 2**17
# In folds the search does not end that well. A result with a larger error than this, in voxels, is no inverse.
INVERSE_TOLERANCE = 0.1
# A chain is merged in slabs of this number of voxels, each of which takes some 300 bytes meanwhile.
MERGE_SLAB_VOXELS = 2**19


@dataclass(frozen=True, eq=False)
class InverseField:
    """A field as a step from the moving to the fixed image."""

    field: DisplacementField


Step = sitk.Transform | DisplacementField | InverseField


def transform_points(points: ArrayLike, transform: Step) -> Points:
    """Map points (N, 3), LPS mm, through a transform; a field maps fixed points to moving points, its inverse back.

    Outside its grid a field leaves points where they are, as in ITK.
    """
    if isinstance(transform, InverseField):
        return inverse_transform_points(points, transform.field)
    start = np.asarray(points, dtype=float).reshape(-1, 3)
    if isinstance(transform, DisplacementField):
        # As in ITK, the vectors of the edge continue for half a voxel.
        index = transform.grid.physical_to_index(start)
        return start + _interpolate_vectors(index, transform) * transform.grid.contains(start)[:, None]
    if transform.IsLinear():
        offset = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        ends = np.array([transform.TransformPoint(axis) for axis in np.eye(3).tolist()])
        return np.asarray(start @ (ends - offset) + offset)
    return np.array([transform.TransformPoint(point) for point in start.tolist()]).reshape(-1, 3)


def inverse_transform_points(points: ArrayLike, field: DisplacementField) -> Points:
    """Map moving points p (N, 3), LPS mm, to fixed points x with x + u(x) = p, by 100 iterations at most.

    Outside the field's grid its affine part continues from the edge. Where the field folds, the result may lead back
    elsewhere: compare with :func:`transform_points`.
    """
    # All coordinates are in voxels of the field's grid, in the order x, y, z.
    targets = field.grid.physical_to_index(points).reshape(-1, 3)
    to_voxels = np.linalg.inv(field.grid.matrix).T
    matrix, offset = _affine_of_field(field)
    inverse_matrix = np.linalg.inv(matrix).T

    def residual(index: Points, target: Points) -> Points:
        inside = np.clip(index, 0, np.asarray(field.grid.size) - 1)
        return inside + _interpolate_vectors(inside, field) @ to_voxels + (index - inside) @ matrix.T - target

    def newton_step(index: Points, target: Points, error: Points) -> Points:
        slopes = [(residual(index + _DIFFERENCE * axis, target) - error) / _DIFFERENCE for axis in np.eye(3)]
        return np.asarray((np.linalg.pinv(np.stack(slopes, axis=-1)) @ error[..., None])[..., 0])

    index = (targets - offset) @ inverse_matrix
    error = residual(index, targets)
    step = np.ones(len(index))
    active = np.arange(len(index))
    # Most points need a few cheap steps. Where the field varies strongly, some need its slope at the point itself.
    for iteration in range(100):
        active = active[np.abs(error[active]).max(axis=1) > _CONVERGENCE_TOLERANCE]
        if active.size == 0:
            break
        is_slow = iteration >= 50
        if iteration == 50:
            step[:] = 1
        if is_slow:
            change = newton_step(index[active], targets[active], error[active])
        else:
            change = error[active] @ inverse_matrix
        candidate = index[active] - step[active, None] * change
        new_error = residual(candidate, targets[active])
        better = (new_error**2).sum(axis=1) < (error[active] ** 2).sum(axis=1)
        index[active[better]], error[active[better]] = candidate[better], new_error[better]
        # Where the field varies strongly, whole steps lead away.
        step[active[~better]] /= 2
        step[active[better & is_slow]] = 1
    return field.grid.index_to_physical(index)


def _interpolate_vectors(index: Points, field: DisplacementField) -> Points:
    """The field's vectors (N, 3), mm, at voxel indices (N, 3) in x, y, z order; outside, those of the edge continue."""
    if len(index) < TORCH_FROM_POINTS:
        zyx = index[:, ::-1].T
        return np.stack(
            [map_coordinates(field.vectors[..., k], zyx, float, order=1, mode="nearest") for k in range(3)], axis=1
        )
    import torch

    from llmreg.geometry import warping

    volume = torch.from_numpy(field.vectors).permute(3, 0, 1, 2)
    return warping.sample_volume(volume, torch.from_numpy(index.T)).T.numpy().astype(np.float64)


def _affine_of_field(field: DisplacementField) -> tuple[Points, Points]:
    """The affine mapping (matrix, offset) of voxel indices that fits the field's mapping best at some 20^3 voxels."""
    axes = [np.arange(0, n, max(1, n // 20)) for n in field.grid.shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    index = np.stack((x, y, z), axis=-1).reshape(-1, 3).astype(float)
    ends = index + field.vectors[z, y, x].reshape(-1, 3) @ np.linalg.inv(field.grid.matrix).T
    middle = index.mean(axis=0)
    matrix = np.linalg.lstsq(index - middle, ends - ends.mean(axis=0), rcond=None)[0].T
    if np.linalg.det(matrix) <= 0:
        matrix = np.eye(3)
    return matrix, ends.mean(axis=0) - matrix @ middle


def split_transform(transform: sitk.Transform) -> tuple[Step, ...]:
    """A transform's parts in the order in which points go through them; its fields in single precision."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        # ITK applies the last transform first.
        parts = [transform.GetNthTransform(n) for n in reversed(range(transform.GetNumberOfTransforms()))]
        return tuple(step for part in parts for step in split_transform(part))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return (DisplacementField.from_image(transform.GetDisplacementField()),)
    return (transform,)


def invert_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The chain in the opposite direction: each step inverted, the last one first.

    Raises:
        ValueError: a transform has no inverse.
    """
    return tuple(_invert_step(step) for step in reversed(steps))


def map_points(points: ArrayLike, steps: Sequence[Step]) -> tuple[Points, NDArray[np.bool_]]:
    """Map points (N, 3), LPS mm, through all steps.

    Returns:
        The mapped points (N, 3), LPS mm, and whether (N,) every field is defined there: the point lies in the field's
        grid; for an inverse field, the mapped point does, and the field leads from it back (it does not in folds).
    """
    mapped = np.asarray(points, dtype=float).reshape(-1, 3)
    is_defined = np.ones(len(mapped), bool)
    for step in steps:
        start, mapped = mapped, transform_points(mapped, step)
        if isinstance(step, DisplacementField):
            is_defined &= step.grid.contains(start)
        elif isinstance(step, InverseField):
            error = np.linalg.norm(transform_points(mapped, step.field) - start, axis=1)
            tolerance = INVERSE_TOLERANCE * min(step.field.grid.spacing)
            is_defined &= step.field.grid.contains(mapped) & (error <= tolerance)
    return mapped, is_defined


def merge_steps(steps: Sequence[Step], grid: Grid) -> sitk.Transform | DisplacementField:
    """Merge a chain into what resampling onto a grid needs: one transform, or its displacement at the grid's voxels.

    Memory holds only the result and the fields, in single precision; everything else is computed in slabs.
    """
    transforms = [step for step in steps if isinstance(step, sitk.Transform)]
    if len(transforms) == len(steps):
        return chain_transforms(*transforms)
    if len(steps) == 1 and isinstance(steps[0], DisplacementField) and steps[0].grid.same_as(grid, 1e-4):
        return DisplacementField(steps[0].vectors, grid)
    vectors = np.empty((*grid.shape, 3), np.float32)

    def fill_slab(slab: tuple[slice, Grid]) -> None:
        part, slab_grid = slab
        start = mapped = slab_grid.physical_points()
        for step in steps:
            mapped = transform_points(mapped, step)
        vectors[part] = mapped.reshape(start.shape) - start

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as workers:
        list(workers.map(fill_slab, grid.slabs(MERGE_SLAB_VOXELS)))
    return DisplacementField(vectors, grid)


def _invert_step(step: Step) -> Step:
    if isinstance(step, InverseField):
        return step.field
    if isinstance(step, DisplacementField):
        return InverseField(step)
    try:
        inverse: sitk.Transform = step.GetInverse()
    except RuntimeError as error:
        raise ValueError(f"{step.GetName()} has no inverse") from error
    return inverse
