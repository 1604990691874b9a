"""Dice, folding and SDlogJ of numpy arrays in index order (z, y, x).

Label arrays hold whole numbers and lie on the fixed image's grid. ``documentation/evaluation.md`` compares the
definitions with those of Learn2Reg (https://github.com/MDL-UzL/L2R, ``evaluation/evaluation.py``).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def dice_per_label(
    moving: Array, fixed: Array, labels: Iterable[int], unwarped: Array | None = None
) -> dict[int, float]:
    """Dice coefficient 2 |A and B| / (|A| + |B|) of each label.

    A label that is absent from ``fixed`` is not counted: NaN, whether or not ``moving`` has it. One that ``fixed`` has
    and ``moving`` lacks counts as 0. Learn2Reg also leaves out labels that the moving image lacked before warping; give
    ``unwarped`` for that rule. Then a structure outside the moving image's field of view does not count against the
    registration, and one that the field pushed out of view does.

    Args:
        moving: (z, y, x) the (warped) moving label map on the fixed grid.
        fixed: (z, y, x) the fixed label map.
        labels: positive ids.
        unwarped: the moving label map before warping, on any grid.

    Raises:
        ValueError: when the shapes differ or an id is not positive.
    """
    ids = check_ids(moving, fixed, labels)
    in_moving, in_fixed = (count_voxels(array, ids) for array in (moving, fixed))
    in_both = count_voxels(moving[moving == fixed], ids)
    in_unwarped = in_fixed if unwarped is None else count_voxels(unwarped, ids)
    return {
        i: float(2 * in_both[i] / (in_moving[i] + in_fixed[i])) if in_fixed[i] and in_unwarped[i] else float("nan")
        for i in ids
    }


def folding(determinant: Array, mask: Array | None = None, margin: int = 1) -> float:
    """Percentage of voxels whose Jacobian determinant is <= 0: there the mapping is not invertible.

    Args:
        determinant: (z, y, x), of :func:`llmreg.geometry.field.jacobian_determinant`.
        mask: (z, y, x) voxels that count; all of them by default.
        margin: voxels left out along each face, where differences are one-sided.

    Returns:
        0 to 100; NaN when no voxel is left, or one of them is NaN.
    """
    inside = _interior(determinant, mask, margin)
    if not inside.size or np.isnan(inside).any():
        return float("nan")
    return float(100 * np.mean(inside <= 0))


def sd_log_jacobian(determinant: Array, mask: Array | None = None, margin: int = 1) -> float:
    """Standard deviation of log(clip(|J|, 1e-9, 1e9)): 0 for a rigid mapping, larger for a rougher field.

    A folded voxel counts as log(1e-9) = -20.7. Arguments as for :func:`folding`.
    """
    return _sd_log(_interior(determinant, mask, margin))


def sd_log_jacobian_learn2reg(determinant: Array, mask: Array | None = None, margin: int = 2) -> float:
    """SDlogJ on the scale of Learn2Reg's tables, which add 3 to |J| before the logarithm and crop 2 voxels.

    The offset shrinks the number to about a quarter and hides folding, so it compares with Learn2Reg only.
    """
    return _sd_log(_interior(determinant, mask, margin) + 3)


def check_ids(moving: Array, fixed: Array, labels: Iterable[int]) -> list[int]:
    """Return the ids as a list. Raises ValueError when the arrays differ in shape or an id is not positive."""
    if moving.shape != fixed.shape:
        raise ValueError(f"the label arrays differ in shape: {moving.shape} and {fixed.shape}")
    ids = [int(label) for label in labels]
    if any(i <= 0 for i in ids):
        raise ValueError(f"label ids must be positive, got {ids}")
    return ids


def count_voxels(array: Array, ids: Sequence[int]) -> NDArray[np.intp]:
    """Count the voxels of each id; the result is indexed by the ids."""
    size = max(ids, default=0) + 2
    # Leaving out the background, which is most of an image, saves most of the time.
    return np.bincount(clip_ids(array[array > 0], size), minlength=size)


def clip_ids(array: Array, size: int) -> NDArray[np.intp]:
    """Flatten ids; everything outside 1 .. size - 2 becomes 0 or size - 1, which no label uses."""
    return np.clip(np.ravel(array), 0, size - 1).astype(np.intp)


def _interior(determinant: Array, mask: Array | None, margin: int) -> NDArray[np.float64]:
    inner = tuple(slice(margin, max(size - margin, margin)) for size in determinant.shape)
    values = np.asarray(determinant[inner], dtype=np.float64)
    return values.ravel() if mask is None else values[np.asarray(mask[inner], dtype=bool)]


def _sd_log(determinant: NDArray[np.float64]) -> float:
    return float(np.std(np.log(np.clip(determinant, 1e-9, 1e9)))) if determinant.size else float("nan")
