"""The grid of the common frame: its spacing, its size and the reference case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmreg.geometry.grid import Grid
from llmreg.preprocessing.fingerprint import CaseFingerprint, PairFingerprint

# The paper's larger grid, 192 x 208 x 176.
MOST_VOXELS = 192 * 208 * 176
# Voxels of a common grid are at most this much longer or shorter than their geometric mean along an axis.
ANISOTROPY = 1.5
_GENEROUS = "the foreground's 90th percentile and 5 %"
# Cases on one grid whose structures overlap less than this (Dice) are not aligned: their grid is only a common format.
# They need pre-alignment, since the gradient of a Dice loss is zero where nothing overlaps.
ALIGNED_DICE = 0.1


def aligned_grid(cases: Sequence[CaseFingerprint], pairs: Sequence[PairFingerprint] = ()) -> Grid | None:
    """Find the axis-aligned grid of cases that are aligned already.

    Args:
        cases: of both modalities.
        pairs: sampled pairs; where none of them is annotated, a common grid is enough to count as aligned.

    Returns:
        The grid; None where cases have different grids, or structures that do not overlap.
    """
    overlaps = [pair.dice for pair in pairs if pair.dice is not None]
    if overlaps and np.mean(overlaps) < ALIGNED_DICE:
        return None
    first = Grid.from_dict(cases[0].grid)
    if not np.allclose(np.abs(first.direction).round(), np.abs(first.direction), atol=1e-3):
        return None
    return first if all(first.same_as(Grid.from_dict(case.grid)) for case in cases) else None


def plan_grid(
    cases: Sequence[CaseFingerprint],
    *,
    aligned: bool,
    coarsening: float = 1.0,
    requested: Sequence[float] | None = None,
) -> tuple[tuple[float, ...], tuple[int, ...], str]:
    """Choose spacing (mm) and size of the common grid, x, y, z, and give the reason.

    Args:
        cases: of both modalities.
        aligned: whether the cases are aligned on one grid, which is then used.
        coarsening: the factor by which voxels are made longer, to save memory.
        requested: the user's spacing, instead of the cases'.
    """
    spacing = np.median([case.spacing for case in cases], axis=0)
    if aligned:
        extent = np.asarray(cases[0].size) * spacing
    else:
        mean = float(np.prod(spacing) ** (1 / 3))
        spacing = np.clip(spacing, mean / ANISOTROPY, mean * ANISOTROPY)
        extent = np.percentile([case.foreground_extent for case in cases], 90, axis=0) * 1.05
    spacing = spacing if requested is None else np.asarray(requested)
    coarser = coarsening * max(1.0, float(np.prod(extent / spacing) / MOST_VOXELS) ** (1 / 3))
    # The ratio is rounded first, so that the grid of aligned cases keeps its size to the voxel.
    size = np.ceil(np.round(extent / (spacing * coarser), 3)).astype(int)
    reason = (
        "All cases lie on one grid, which is used as it is"
        if aligned and requested is None
        else f"Spacing: as requested; size: {'that of the grid of all cases' if aligned else _GENEROUS}"
        if requested is not None
        else f"Spacing: the cases' median, at most {ANISOTROPY:g} times anisotropic; size: {_GENEROUS}"
    )
    if coarsening > 1:
        reason += f"; coarsened {coarser:.2f} times, to fit into memory"
    elif coarser > 1:
        reason += f"; coarsened {coarser:.2f} times to {MOST_VOXELS / 1e6:.1f} million voxels, the paper's larger grid"
    return tuple((spacing * coarser).round(4).tolist()), tuple(size.tolist()), reason + "."


def choose_reference_case(cases: Sequence[CaseFingerprint], fixed_modality: int) -> str:
    """Choose the fixed case whose extent is nearest to the median."""
    fixed = [case for case in cases if case.modality == fixed_modality]
    middle = np.median([case.foreground_extent for case in fixed], axis=0)
    return min(fixed, key=lambda c: (float(np.abs(np.asarray(c.foreground_extent) - middle).sum()), c.case)).case
