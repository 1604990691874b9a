"""Learn2Reg's convention of displacements: voxel steps between two arrays, without geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid


def to_learn2reg(field: DisplacementField, moving_grid: Grid | None = None) -> NDArray[np.float32]:
    """Learn2Reg's array (X, Y, Z, 3): voxel steps along the array's axes, added to the fixed index.

    Reference: Hering et al., Learn2Reg, IEEE TMI 2023, and the challenge's evaluation code.

    Args:
        field: on the fixed image's grid.
        moving_grid: the moving image's grid; the fixed one when the images share it, as the challenge assumes.
    """
    moving = field.grid if moving_grid is None else moving_grid
    if moving == field.grid:
        # Where nothing moves the step is exactly zero; a rounding error could lead just outside the image.
        return field.to_flow().transpose(3, 2, 1, 0)
    steps = np.empty_like(field.vectors)
    for part, slab in field.grid.slabs():
        target = moving.physical_to_index(slab.physical_points() + field.vectors[part])
        steps[part] = target - slab.indices() - (0, 0, part.start)
    return steps.transpose(2, 1, 0, 3)


def from_learn2reg(array: NDArray[Any], grid: Grid, moving_grid: Grid | None = None) -> DisplacementField:
    """The inverse of :func:`to_learn2reg`.

    Args:
        array: (X, Y, Z, 3), voxel steps.
        grid: the fixed image's grid, of size (X, Y, Z).
        moving_grid: the moving image's grid; the fixed one when None.
    """
    moving = grid if moving_grid is None else moving_grid
    steps = array.transpose(2, 1, 0, 3)
    vectors = np.empty((*grid.shape, 3), np.float32)
    for part, slab in grid.slabs():
        target = moving.index_to_physical(steps[part] + slab.indices() + (0, 0, part.start))
        vectors[part] = target - slab.physical_points()
    return DisplacementField(vectors, grid)
