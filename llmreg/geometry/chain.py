"""Chains of transforms, in both directions, for landmarks and for resampling images once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from llmreg.geometry.field import DisplacementField, chain_transforms
from llmreg.geometry.grid import Grid
from llmreg.geometry.points import Points, inverse_transform_points, transform_points

# An inverse is valid where the field leads from it back to the start within this part of a voxel.
INVERSE_TOLERANCE = 0.1
# Voxels per slab; each takes some 300 bytes while a chain is merged.
SLAB_VOXELS = 2**19


@dataclass(frozen=True, eq=False)
class InverseField:
    """A field as a step from the moving to the fixed image."""

    field: DisplacementField


Step: TypeAlias = sitk.Transform | DisplacementField | InverseField


def split_transform(transform: sitk.Transform) -> tuple[Step, ...]:
    """A transform's parts in the order in which points go through them; its fields in single precision."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        # ITK applies the last one first.
        parts = [transform.GetNthTransform(k) for k in reversed(range(transform.GetNumberOfTransforms()))]
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
        if isinstance(step, InverseField):
            inverse = _apply_step(mapped, step)
            error = np.linalg.norm(transform_points(inverse, step.field) - mapped, axis=1)
            tolerance = INVERSE_TOLERANCE * min(step.field.grid.spacing)
            is_defined &= step.field.grid.contains(inverse) & (error <= tolerance)
            mapped = inverse
        else:
            if isinstance(step, DisplacementField):
                is_defined &= step.grid.contains(mapped)
            mapped = _apply_step(mapped, step)
    return mapped, is_defined


def merge_steps(steps: Sequence[Step], grid: Grid) -> sitk.Transform | DisplacementField:
    """Merge a chain into what resampling onto a grid needs: one transform, or its displacement at the grid's voxels.

    Memory holds only the result and the fields, in single precision; everything else is computed in slabs.
    """
    transforms = [step for step in steps if isinstance(step, sitk.Transform)]
    if len(transforms) == len(steps):
        return chain_transforms(*transforms)
    first = steps[0]
    if len(steps) == 1 and isinstance(first, DisplacementField) and first.grid.same_as(grid, 1e-4):
        return DisplacementField(first.vectors, grid)
    vectors = np.empty((*grid.shape, 3), np.float32)

    def fill_slab(slab: tuple[slice, Grid]) -> None:
        part, slab_grid = slab
        start = slab_grid.physical_points()
        mapped = start.reshape(-1, 3)
        for step in steps:
            mapped = _apply_step(mapped, step)
        vectors[part] = mapped.reshape(start.shape) - start

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as workers:
        list(workers.map(fill_slab, grid.slabs(SLAB_VOXELS)))
    return DisplacementField(vectors, grid)


def _apply_step(points: Points, step: Step) -> Points:
    if isinstance(step, InverseField):
        return inverse_transform_points(points, step.field)
    return transform_points(points, step)


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
