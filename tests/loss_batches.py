"""Batches of random pairs that tests of loss terms and of training share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

SHAPE = (16, 12, 20)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_flow(shape: Sequence[int] = SHAPE, seed: int = 0, batch: int = 1) -> Tensor:
    return 3 * rand(batch, 3, *shape, seed=seed) - 1.5


def label_blocks(count: int, seed: int, shape: Sequence[int] = SHAPE) -> Tensor:
    """A map of ids 0 to ``count`` in blocks of 4^3 voxels, uint8."""
    coarse = (rand(1, 1, *(n // 4 for n in shape), seed=seed) * (count + 1)).floor()
    return functional.interpolate(coarse, size=tuple(shape))[0].to(torch.uint8)


def make_batch(labels: Sequence[int] = (1, 2, 3), seed: int = 0) -> dict[str, Tensor]:
    """A batch of one pair: the fixed field of view ends at z = 11, the moving one at x = 14."""
    fixed_seen, moving_seen = torch.ones(2, 1, *SHAPE, dtype=torch.uint8)
    fixed_seen[:, 12:] = 0
    moving_seen[..., 15:] = 0
    return {
        "fixed": rand(1, 1, *SHAPE, seed=seed + 1),
        "moving": rand(1, 1, *SHAPE, seed=seed + 2),
        "fixed_labels": label_blocks(3, seed + 3),
        "moving_labels": label_blocks(3, seed + 4),
        "fixed_seen": fixed_seen,
        "moving_seen": moving_seen,
        "labels": torch.tensor(labels, dtype=torch.long),
    }


def swap_roles(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the moving image, labels and field of view in place of the fixed ones, and the reverse."""
    renamed = {"fixed": "moving", "moving": "fixed"}
    return {key.replace(role := key.split("_")[0], renamed.get(role, role)): value for key, value in batch.items()}
