"""Losses of training: soft Dice of warped label maps without one-hot volumes, and smoothness of the displacement."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from llmreg.geometry.warping import jacobian_determinant

# Voxels handled at a time on a CPU: the temporaries of one chunk then stay in the cache. A GPU takes a volume at once.
_CPU_CHUNK = 1 << 16
# Two layers of background around the moving label map, so that a clamped corner index always falls into background.
_PAD = 2


def soft_dice(
    moving_labels: Tensor, fixed_labels: Tensor, flow: Tensor, labels: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return one minus the mean soft Dice of the warped moving labels and the fixed labels.

    The soft Dice of label k is `2 sum(w_k f_k) / (sum w_k + sum f_k)`: w_k is the one-hot moving volume of k sampled
    trilinearly at index + flow (zero outside), f_k the one-hot fixed volume. Neither is built. Every voxel spreads its
    eight corner weights over a table of (fixed label, moving label); its diagonal and its column sums give Dice, and
    the gradient of that table is the coefficient of each corner weight. Cells of the moving volume whose eight corners
    agree have no gradient and are only counted, so that work is spent at the borders of structures alone.

    Labels that are absent from either volume are left out of the mean, as in Learn2Reg. A batch is averaged over its
    samples that have any label left; with none the loss is zero, and so is its gradient. A displacement that is not
    finite counts as outside.

    Args:
        moving_labels: Integer ids, (B, z, y, x).
        fixed_labels: Integer ids, (B, z, y, x), of the same shape.
        flow: Displacement from fixed to moving in voxels, (B, 3, z, y, x), channels (x, y, z).
        labels: The ids that count, 1-D, distinct and positive; with partial annotation, the annotated ones.
        counted: Bool, (B, z, y, x): the fixed voxels that the sums run over; all of them when None. No gradient
            flows through it.

    Returns:
        The loss (a float32 scalar) and the Dice of each of `labels` averaged over the samples that have it, detached,
        NaN for a label that no sample has.

    Raises:
        ValueError: If shapes disagree or an id of `labels` is not positive.
    """
    shape = moving_labels.shape
    if len(shape) != 4 or fixed_labels.shape != shape or flow.shape != (shape[0], 3, *shape[1:]):
        raise ValueError(
            f"expected labels (B, z, y, x) of one shape and flow (B, 3, z, y, x), got moving {tuple(shape)}, fixed "
            f"{tuple(fixed_labels.shape)} and flow {tuple(flow.shape)}"
        )
    if not len(labels):
        return flow.sum() * 0.0, flow.new_zeros(0)
    if int(labels.min()) <= 0:
        raise ValueError("labels must be positive: background is not counted")

    lookup = _lookup(labels.to(flow.device))
    moving, fixed = _codes(moving_labels, lookup), _codes(fixed_labels, lookup)
    if counted is not None:
        # A row of the table of their own, which is left out of every sum.
        fixed = fixed.masked_fill(~counted, len(labels) + 1)
    table = _JointHistogram.apply(flow.float(), moving, fixed, len(labels))  # float64, (B, fixed, moving)
    overlap = table.diagonal(dim1=1, dim2=2)[:, 1:]
    in_warped = table.sum(dim=1)[:, 1:]
    in_fixed = table.detach().sum(dim=2)[:, 1:]  # corner weights of a voxel sum to one, so rows do not depend on flow
    in_moving = torch.stack([_count(sample, len(labels) + 1) for sample in moving])[:, 1:]
    present = (in_moving > 0) & (in_fixed > 0.5)
    dice = torch.where(present, 2.0 * overlap / (in_warped + in_fixed + 1e-6), 0.0)

    found = present.sum(dim=1)
    per_sample = torch.where(found > 0, 1.0 - dice.sum(dim=1) / found.clamp(min=1), 0.0)
    loss = per_sample.sum() / (found > 0).sum().clamp(min=1)
    per_label = dice.detach().sum(dim=0) / present.sum(dim=0)  # 0 / 0 is the promised NaN
    return loss.float(), per_label.float()


def gradient_l2(flow: Tensor) -> Tensor:
    """Return the mean over the three axes of the mean squared forward difference (VoxelMorph's `Grad("l2")`).

    MONAI's `DiffusionLoss` is not used: its central differences ignore a field that alternates between voxels, leave
    out the border voxels, and sum over the axes.

    Args:
        flow: Displacement in voxels, (B, 3, z, y, x).
    """
    flow = flow.float()
    total = flow.new_zeros(())
    for axis in (2, 3, 4):
        length = flow.shape[axis] - 1
        # One fused pass; a difference, its square and its mean take half as long again.
        total = total + functional.mse_loss(flow.narrow(axis, 1, length), flow.narrow(axis, 0, length))
    return total / 3.0


def folding_penalty(flow: Tensor) -> Tensor:
    """Return how far determinants of the Jacobian lie below zero, a mean over the voxels (Mok & Chung, CVPR 2020).

    Args:
        flow: Displacement in voxels, (B, 3, z, y, x).
    """
    return functional.relu(-jacobian_determinant(flow)).mean()


def _lookup(labels: Tensor) -> Tensor:
    """Map ids to codes: the n-th label is n + 1, every other id (the last entry stands for larger ones) is 0."""
    top = int(labels.max()) + 1
    codes = torch.arange(1, len(labels) + 1, device=labels.device, dtype=torch.int32)
    # uint8 as long as the codes and the mark of mixed cells fit: gathers from it are bound by memory.
    narrow = torch.uint8 if len(labels) < 255 else torch.int32
    return torch.zeros(top + 1, dtype=narrow, device=labels.device).index_copy_(0, labels.long(), codes.to(narrow))


def _codes(volume: Tensor, lookup: Tensor) -> Tensor:
    flat = volume.reshape(-1).to(device=lookup.device, dtype=torch.int32).clamp(0, len(lookup) - 1)
    return lookup.index_select(0, flat).view(volume.shape)


def _count(codes: Tensor, bins: int) -> Tensor:
    return torch.bincount(codes.reshape(-1), minlength=bins)


def _cells(padded: Tensor, mixed: int) -> Tensor:
    """Return for each cell (a voxel and its seven upper neighbours) their common code, or `mixed`."""
    low = high = padded
    for axis in range(3):
        length = padded.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, length), low.narrow(axis, 1, length))
        high = torch.maximum(high.narrow(axis, 0, length), high.narrow(axis, 1, length))
    # The shape of the padded volume, so that one linear index serves both; the last planes are never looked up.
    cells = torch.zeros_like(padded)
    cells[:-1, :-1, :-1] = low.masked_fill_(low != high, mixed)
    return cells


class _JointHistogram(torch.autograd.Function):
    """Joint histogram of fixed and trilinearly warped moving codes, (B, codes, codes) float64, differentiable in flow.

    Entry (f, m) is the sum of the corner weights of moving code m at the voxels of fixed code f.
    """

    @staticmethod
    def forward(ctx: Any, flow: Tensor, moving: Tensor, fixed: Tensor, count: int) -> Tensor:
        codes, mixed = count + 1, count + 1
        # One more column, for voxels that fall into mixed cells; one more row, for voxels that do not count.
        width = codes + 1
        ctx.width, ctx.shape, ctx.mixed_voxels = width, flow.shape, []
        table = torch.zeros(len(flow), width, width, dtype=torch.float64, device=flow.device)
        for sample in range(len(flow)):
            padded = functional.pad(moving[sample], (_PAD,) * 6)
            cells = _cells(padded, mixed).view(-1)
            row = padded.shape[2]
            plane = row * padded.shape[1]
            corners = torch.tensor(
                [z * plane + y * row + x for z in (0, 1) for y in (0, 1) for x in (0, 1)],
                dtype=torch.int32,
                device=flow.device,
            ).unsqueeze(1)
            displacement = flow[sample].reshape(3, -1)
            counts = torch.zeros(width * width, dtype=torch.float64, device=flow.device)
            kept = []
            for start, stop in _slabs(fixed.shape[1:], flow.device):
                base = _linear_base(flow[sample, :, start:stop], start, padded.shape)
                cell = cells.index_select(0, base)
                fixed_row = fixed[sample, start:stop].reshape(-1).to(torch.int32).mul_(width)
                counts += torch.bincount(fixed_row + cell, minlength=width * width)
                at = (cell == mixed).nonzero().view(-1)
                if not len(at):
                    continue
                joint = padded.view(-1).index_select(0, (base.index_select(0, at) + corners).view(-1)).view(8, -1)
                joint = joint + fixed_row.index_select(0, at)
                at = at + start * fixed.shape[2] * fixed.shape[3]
                fraction = displacement.index_select(1, at)
                fraction -= fraction.floor()
                counts += torch.bincount(joint.view(-1), _corner_weights(fraction).view(-1), minlength=width * width)
                kept.append((at, joint, fraction))
            table[sample] = counts.view(width, width)
            ctx.mixed_voxels.append(kept)
        return table[:, :codes, :codes].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The column of the mixed cells is never looked up; the row of voxels that do not count has no gradient.
        rest = ctx.width - gradient.shape[2]
        coefficients = functional.pad(gradient.float(), (0, rest, 0, rest))
        result = torch.zeros(ctx.shape[0], 3, ctx.shape[2:].numel(), device=gradient.device)
        for sample, kept in enumerate(ctx.mixed_voxels):
            lookup = coefficients[sample].view(-1)
            for at, joint, (x, y, z) in kept:
                value = lookup.index_select(0, joint.view(-1)).view(2, 2, 2, -1)  # corner coefficients by z, y, x
                slope_x = value[:, :, 1] - value[:, :, 0]
                value = torch.addcmul(value[:, :, 0], slope_x, x)
                slope_x = torch.lerp(slope_x[:, 0], slope_x[:, 1], y)
                slope_y = value[:, 1] - value[:, 0]
                value = torch.addcmul(value[:, 0], slope_y, y)
                slopes = torch.lerp(slope_x[0], slope_x[1], z), torch.lerp(slope_y[0], slope_y[1], z)
                for channel, slope in enumerate((*slopes, value[1] - value[0])):
                    result[sample, channel].index_copy_(0, at, slope)
        return result.view(ctx.shape), None, None, None


def _slabs(shape: torch.Size, device: torch.device) -> list[tuple[int, int]]:
    """Return ranges of z that cover the volume, each of about `_CPU_CHUNK` voxels on a CPU."""
    step = max(1, _CPU_CHUNK // max(1, shape[1] * shape[2])) if device.type == "cpu" else max(1, shape[0])
    return list(pairwise([*range(0, shape[0], step), shape[0]]))


def _linear_base(flow: Tensor, first: int, padded: torch.Size) -> Tensor:
    """Return the linear index in the padded moving volume of the lowest corner at each voxel of a slab, int32.

    The floor is taken of the displacement, not of the position, so that the fraction loses no digits. The index is
    clamped as an integer: the conversion sends NaN and infinity far out, and the clamp then brings them to the border.
    """
    # Far beyond any volume, and far from overflow.
    corner = flow.floor().clamp_(-1e6, 1e6).to(torch.int32)
    index = torch.zeros((), dtype=torch.int32, device=flow.device)
    for axis in range(3):  # z, y, x
        start = _PAD + (first if axis == 0 else 0)
        length = flow.shape[axis + 1]
        steps = torch.arange(start, start + length, dtype=torch.int32, device=flow.device)
        along = corner[2 - axis] + steps.view([length if other == axis else 1 for other in range(3)])
        index = index * padded[axis] + along.clamp_(0, padded[axis] - _PAD)
    return index.view(-1)


def _corner_weights(fraction: Tensor) -> Tensor:
    """Return the trilinear weights (8, n), corners in z, y, x order, of the fractions (3, n) along x, y, z."""
    x, y, z = (torch.stack((1.0 - part, part)) for part in fraction)
    return (z[:, None, None] * y[:, None]).mul(x).view(8, -1)
