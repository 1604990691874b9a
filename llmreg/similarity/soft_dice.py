"""Soft Dice of warped label maps, without one-hot volumes."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Number of voxels that are handled at a time on a CPU: the temporaries of one chunk then stay in the cache. A GPU takes
# a volume at once.
_CPU_CHUNK = 1 << 16
# Two layers of background around the moving label map, so that a clamped corner index always falls into background.
_PAD = 2


def soft_dice(
    moving_labels: Tensor, fixed_labels: Tensor, flow: Tensor, labels: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return one minus the mean soft Dice of the warped moving labels and the fixed labels.

    The soft Dice of label k is ``2 sum(w_k f_k) / (sum w_k + sum f_k)``: w_k is the one-hot moving volume of k sampled
    trilinearly at index + flow (zero outside), f_k the one-hot fixed volume. Neither is built. Every voxel spreads its
    eight corner weights over a table of (fixed label, moving label); its diagonal and its column sums give Dice, and
    the gradient of that table is the coefficient of each corner weight. Cells of the moving volume whose eight corners
    agree have no gradient and are only counted, so that work is spent at the borders of structures alone.

    Labels that are absent from either volume are left out of the mean, as in Learn2Reg. A batch is averaged over its
    samples that have any label left; with none the loss is zero, and so is its gradient. A displacement that is not
    finite counts as outside.

    Args:
        moving_labels: integer ids, (B, z, y, x).
        fixed_labels: integer ids, (B, z, y, x).
        flow: displacement from fixed to moving in voxels, (B, 3, z, y, x), channels (x, y, z).
        labels: the ids that count, 1-D, distinct and positive; with partial annotation, the annotated ones.
        counted: bool, (B, z, y, x): the fixed voxels that the sums run over; all of them when None. No gradient
            flows through it.

    Returns:
        The loss (a float32 scalar) and the Dice of each of ``labels`` averaged over the samples that have it, detached,
        NaN for a label that no sample has.

    Raises:
        ValueError: when shapes disagree or an id of ``labels`` is not positive.
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

    lookup = _build_lookup(labels.to(flow.device))
    moving, fixed = _encode(moving_labels, lookup), _encode(fixed_labels, lookup)
    if counted is not None:
        # Voxels that do not count get a row of the table of their own, which is left out of every sum.
        fixed = fixed.masked_fill(~counted, len(labels) + 1)
    samples = zip(flow.float(), moving, fixed, strict=True)
    # The table is float64, (B, fixed, moving).
    table = torch.stack([_JointHistogram.apply(*sample, len(labels)) for sample in samples])  # type: ignore[no-untyped-call]
    overlap = table.diagonal(dim1=1, dim2=2)[:, 1:]
    in_warped = table.sum(dim=1)[:, 1:]
    # The corner weights of a voxel sum to one, so rows do not depend on the flow.
    in_fixed = table.detach().sum(dim=2)[:, 1:]
    in_moving = torch.stack([sample.flatten().bincount(minlength=len(labels) + 1) for sample in moving])[:, 1:]
    present = (in_moving > 0) & (in_fixed > 0.5)
    dice = torch.where(present, 2.0 * overlap / (in_warped + in_fixed + 1e-6), 0.0)

    label_counts = present.sum(dim=1)
    per_sample = torch.where(label_counts > 0, 1.0 - dice.sum(dim=1) / label_counts.clamp(min=1), 0.0)
    loss = per_sample.sum() / (label_counts > 0).sum().clamp(min=1)
    per_label = dice.detach().sum(dim=0) / present.sum(dim=0)  # 0 / 0 gives the NaN that the docstring promises.
    return loss.float(), per_label.float()


def _build_lookup(labels: Tensor) -> Tensor:
    """Return the code of each id: n + 1 for the n-th label, 0 for other ids. The last entry stands for larger ids."""
    # Gathers from the table are bound by memory, so it is uint8 as long as codes and the mark of mixed cells fit.
    dtype = torch.uint8 if len(labels) < 255 else torch.int32
    codes = torch.arange(1, len(labels) + 1, dtype=dtype, device=labels.device)
    return codes.new_zeros(int(labels.max()) + 2).index_copy_(0, labels.long(), codes)


def _encode(volume: Tensor, lookup: Tensor) -> Tensor:
    flat = volume.reshape(-1).to(device=lookup.device, dtype=torch.int32).clamp(0, len(lookup) - 1)
    return lookup.index_select(0, flat).view(volume.shape)


def _cells(padded: Tensor, mixed: int) -> Tensor:
    """Return for each cell (a voxel and its seven upper neighbours) their common code, or ``mixed``."""
    low = high = padded
    for axis in range(3):
        length = padded.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, length), low.narrow(axis, 1, length))
        high = torch.maximum(high.narrow(axis, 0, length), high.narrow(axis, 1, length))
    # Cells have the shape of the padded volume, so that one linear index serves both; the last planes are never read.
    cells = torch.zeros_like(padded)
    cells[:-1, :-1, :-1] = low.masked_fill_(low != high, mixed)
    return cells


class _JointHistogram(torch.autograd.Function):
    """Joint histogram of the fixed and warped moving codes of a sample, (codes, codes) float64, differentiable in flow.

    Entry (f, m) is the sum of the corner weights of moving code m at the voxels of fixed code f.
    """

    @staticmethod
    def forward(ctx: Any, flow: Tensor, moving: Tensor, fixed: Tensor, count: int) -> Tensor:
        # Beyond the last code there is one more column, for voxels in mixed cells, and one more row, for voxels that do
        # not count.
        mixed, width = count + 1, count + 2
        padded = functional.pad(moving, (_PAD,) * 6)
        cells = _cells(padded, mixed).view(-1)
        plane, row, _ = padded.stride()
        corners = torch.tensor(
            [z * plane + y * row + x for z in (0, 1) for y in (0, 1) for x in (0, 1)],
            dtype=torch.int32,
            device=flow.device,
        ).unsqueeze(1)
        counts = torch.zeros(width * width, dtype=torch.float64, device=flow.device)
        ctx.shape, ctx.mixed_voxels = flow.shape, []
        voxels_of_plane = fixed.shape[1] * fixed.shape[2]
        planes = max(1, _CPU_CHUNK // voxels_of_plane) if flow.device.type == "cpu" else len(fixed)
        for start in range(0, len(fixed), planes):
            base = _linear_base(flow[:, start : start + planes], start, padded.shape)
            cell = cells.index_select(0, base)
            fixed_row = fixed[start : start + planes].reshape(-1).to(torch.int32).mul_(width)
            counts += torch.bincount(fixed_row + cell, minlength=width * width)
            voxels = (cell == mixed).nonzero().view(-1)
            if not len(voxels):
                continue
            corner_codes = padded.view(-1).index_select(0, (base.index_select(0, voxels) + corners).view(-1))
            joint = corner_codes.view(8, -1) + fixed_row.index_select(0, voxels)
            voxels = voxels + start * voxels_of_plane
            fraction = flow.reshape(3, -1).index_select(1, voxels)
            fraction -= fraction.floor()
            # The trilinear weights of the eight corners, in the order of z, y, x.
            x, y, z = (torch.stack((1.0 - part, part)) for part in fraction)
            weights = (z[:, None, None] * y[:, None]).mul(x)
            counts += torch.bincount(joint.view(-1), weights.view(-1), minlength=width * width)
            ctx.mixed_voxels.append((voxels, joint, fraction))
        return counts.view(width, width)[:mixed, :mixed].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The column of mixed cells is never looked up, and the row of voxels that do not count has no gradient.
        coefficients = functional.pad(gradient.float(), (0, 1, 0, 1)).view(-1)
        result = torch.zeros(ctx.shape, device=gradient.device).view(3, -1)
        for voxels, joint, (x, y, z) in ctx.mixed_voxels:
            value = coefficients.index_select(0, joint.view(-1)).view(2, 2, 2, -1)  # Corner coefficients by z, y, x.
            slope_x = value[:, :, 1] - value[:, :, 0]
            value = torch.addcmul(value[:, :, 0], slope_x, x)
            slope_x = torch.lerp(slope_x[:, 0], slope_x[:, 1], y)
            slope_y = value[:, 1] - value[:, 0]
            value = torch.addcmul(value[:, 0], slope_y, y)
            slopes = torch.lerp(slope_x[0], slope_x[1], z), torch.lerp(slope_y[0], slope_y[1], z), value[1] - value[0]
            result.index_copy_(1, voxels, torch.stack(slopes))
        return result.view(ctx.shape), None, None, None


def _linear_base(flow: Tensor, first: int, padded: torch.Size) -> Tensor:
    """Return the linear index in the padded moving volume of the lowest corner at each voxel of a slab, int32.

    The floor is taken of the displacement, not of the position, so that the fraction loses no digits. The index is
    clamped as an integer: the conversion sends NaN and infinity far out, and the clamp then brings them to the border.
    """
    # The bounds lie far beyond any volume and far from overflow.
    corner = flow.floor().clamp_(-1e6, 1e6).to(torch.int32)
    index = torch.zeros((), dtype=torch.int32, device=flow.device)
    for axis in range(3):  # z, y, x
        start = _PAD + (first if axis == 0 else 0)
        length = flow.shape[axis + 1]
        steps = torch.arange(start, start + length, dtype=torch.int32, device=flow.device)
        along = corner[2 - axis] + steps.view([length if other == axis else 1 for other in range(3)])
        index = index * padded[axis] + along.clamp_(0, padded[axis] - _PAD)
    return index.view(-1)
