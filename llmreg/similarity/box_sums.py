"""Sums over the cube of voxels around each voxel, for measures that compare neighbourhoods."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def sum_boxes(volume: Tensor, width: int) -> Tensor:
    """Return the sum over each cube of ``width`` voxels a side that lies in the volume.

    Shifted additions take a tenth of the time of ``avg_pool3d`` on a CPU, and do not run in TF32 on a GPU as
    convolutions do.

    Args:
        volume: (B, C, z, y, x).
        width: side of the cube in voxels.

    Returns:
        (B, C, z - width + 1, y - width + 1, x - width + 1), differentiable in ``volume``.
    """
    return _BoxSum.apply(volume, width)  # type: ignore[no-untyped-call, no-any-return]


class _BoxSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, width: int) -> Tensor:
        ctx.width = width
        return _sum_boxes(volume, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum_boxes(functional.pad(gradient, (ctx.width - 1,) * 6), ctx.width), None


def _sum_boxes(volume: Tensor, width: int) -> Tensor:
    for axis in (2, 3, 4):
        # Sums over 1, 2, 4, ... voxels are doubled, with one voxel more for each binary digit of the width that is 1.
        total, reach = volume, 1
        for digit in f"{width:b}"[1:]:
            total, reach = _add_shifted(total, total, axis, reach), 2 * reach
            if digit == "1":
                total, reach = _add_shifted(total, volume, axis, reach), reach + 1
        volume = total
    return volume


def _add_shifted(first: Tensor, second: Tensor, axis: int, shift: int) -> Tensor:
    length = second.shape[axis] - shift
    return first.narrow(axis, 0, length) + second.narrow(axis, shift, length)
