"""Transforms one after the other, forwards and back, as one lookup."""

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

# Where the way back leads there again to within so many voxels, it was found.
FOUND = 0.1
# Few voxels at a time: each takes some 300 bytes.
_SLAB = 2**19


@dataclass(frozen=True, eq=False)
class Backwards:
    """A field that is followed from the moving to the fixed image."""

    field: DisplacementField


Step: TypeAlias = sitk.Transform | DisplacementField | Backwards


def steps_of(transform: sitk.Transform) -> tuple[Step, ...]:
    """A transform's parts in the order in which points go through them; fields in single precision."""
    transform = transform.Downcast()
    if isinstance(transform, sitk.CompositeTransform):
        # ITK applies the last one first.
        parts = [transform.GetNthTransform(k) for k in reversed(range(transform.GetNumberOfTransforms()))]
        return tuple(step for part in parts for step in steps_of(part))
    if isinstance(transform, sitk.DisplacementFieldTransform):
        return (DisplacementField.from_image(transform.GetDisplacementField()),)
    return (transform,)


def reversed_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The way back: each step inverted, the last one first.

    Raises:
        ValueError: a transform has no inverse.
    """
    return tuple(_inverted(step) for step in reversed(steps))


def follow(points: ArrayLike, steps: Sequence[Step]) -> tuple[Points, NDArray[np.bool_]]:
    """Points (N, 3), LPS mm, through all steps.

    Returns:
        Where they come to, and whether (N,) all fields knew them: forwards, they lay in the field's grid; backwards, so
        did what was found, and it leads there again (not so in folds).
    """
    at = np.asarray(points, dtype=float).reshape(-1, 3)
    known = np.ones(len(at), bool)
    for step in steps:
        if isinstance(step, Backwards):
            found = _moved(at, step)
            off = np.linalg.norm(transform_points(found, step.field) - at, axis=1)
            known &= step.field.grid.contains(found) & (off <= FOUND * min(step.field.grid.spacing))
            at = found
        else:
            if isinstance(step, DisplacementField):
                known &= step.grid.contains(at)
            at = _moved(at, step)
    return at, known


def lookup(steps: Sequence[Step], grid: Grid) -> sitk.Transform | DisplacementField:
    """What resampling onto a grid needs: one transform, or the whole displacement at the grid's voxels.

    Only the result and the fields themselves are held, in single precision; the rest is done in slabs.
    """
    plain = [step for step in steps if isinstance(step, sitk.Transform)]
    if len(plain) == len(steps):
        return chain_transforms(*plain)
    first = steps[0]
    if len(steps) == 1 and isinstance(first, DisplacementField) and first.grid.same_as(grid, 1e-4):
        return DisplacementField(first.vectors, grid)
    vectors = np.empty((*grid.shape, 3), np.float32)

    def fill(slab: tuple[slice, Grid]) -> None:
        part, own = slab
        start = own.physical_points()
        at = start.reshape(-1, 3)
        for step in steps:
            at = _moved(at, step)
        vectors[part] = at.reshape(start.shape) - start

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as workers:
        list(workers.map(fill, grid.slabs(_SLAB)))
    return DisplacementField(vectors, grid)


def _moved(points: Points, step: Step) -> Points:
    if isinstance(step, Backwards):
        return inverse_transform_points(points, step.field)
    return transform_points(points, step)


def _inverted(step: Step) -> Step:
    if isinstance(step, Backwards):
        return step.field
    if isinstance(step, DisplacementField):
        return Backwards(step)
    try:
        return step.GetInverse()
    except RuntimeError as error:
        raise ValueError(f"{step.GetName()} has no inverse") from error
