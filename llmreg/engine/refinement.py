"""Refinement: a predicted field fitted further to its own two images, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses import BendingEnergyLoss
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.plans.plans import Loss
from llmreg.similarity.image_terms import mind_ssc
from llmreg.similarity.losses import gradient_l2
from llmreg.training.objective import comparable

# These numbers were chosen by measurement: documentation/refinement.md.

# The objective is a mean over blocks of so many voxels a side.
_BLOCK = 2
# The correction's nodes, coarse to fine: one for so many voxels along each axis.
_STAGES = (4, 2)
# Adam's, in voxels: the first, and the one below which a stage ends. It is halved when the objective has not fallen by
# this share for so many steps.
_RATE, _LEAST_RATE = 0.4, 0.025
_GAIN, _PATIENCE = 1e-3, 2
# The plan's weights, but no less: labels hold a network's field where the images alone would let it go.
_LEAST_SMOOTHNESS, _LEAST_FOLDING = 1.0, 2.0
# Determinants below this cost. It is above zero since a field folds between the centres of blocks before it does there.
_LEAST_DETERMINANT = 0.3


@dataclass(frozen=True, eq=False)
class Refined:
    """A refined field.

    Attributes:
        flow: (1, 3, z, y, x) float32, components (x, y, z), voxels of the frame.
        before: the objective of the given field.
        after: that of ``flow``, never above ``before``.
        iterations: steps of the optimiser that were taken.
    """

    flow: Tensor
    before: float
    after: float
    iterations: int


@dataclass(frozen=True, eq=False)
class _Side:
    """One image, in blocks.

    Attributes:
        descriptors: means of MIND-SSC (1, 12, z, y, x), 0 where the block is not seen whole.
        seen: whether it is, bool (1, z, y, x).
    """

    descriptors: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class _Problem:
    """What the objective is made of.

    Attributes:
        flow: the given field, (1, 3, z, y, x), a vector a block, in blocks.
        fixed: the fixed image.
        moving: the moving image.
        loss: the plan's weights.
    """

    flow: Tensor
    fixed: _Side
    moving: _Side
    loss: Loss


def refine(
    flow: Tensor,
    fixed: Tensor,
    moving: Tensor,
    fixed_seen: Tensor,
    moving_seen: Tensor,
    loss: Loss,
    iterations: int,
) -> Refined:
    """Add a smooth correction to a field so that its images fit better; needs no labels.

    The objective is the mean squared difference of the images' MIND-SSC descriptors and the plan's regulariser: the
    smoothness and the bending energy of the correction, and folding of the corrected field. Of the correction, not of
    the field: where the network, which learned from labels, found bending worth its price, that is not taken back, and
    where the images tell nothing the field stays as it is.

    Adam moves the correction's nodes, first coarse, then fine ones, and leaves either when it no longer helps. The best
    field it came by is returned, which may be the given one.

    The descriptors are made once, of what each image's field of view shows, and looked up through the field. Whatever
    the arrays hold outside has no influence; what counts is :func:`llmreg.training.objective.comparable`.

    Args:
        flow: the predicted displacement on the frame's grid, (1, 3, z, y, x), components (x, y, z), voxels, pull-back.
        fixed: the fixed image in the frame, (1, 1, z, y, x), intensities about [0, 1].
        moving: the moving image, likewise.
        fixed_seen: above 0 in the fixed image's field of view, (1, z, y, x).
        moving_seen: the same of the moving image.
        loss: the plan's weights.
        iterations: the most steps to take, half of them with each size of nodes.

    Raises:
        ValueError: shapes are not as above, or iterations is negative.
    """
    size = tuple(flow.shape[2:])
    shapes = [tuple(array.shape) for array in (flow, fixed, moving, fixed_seen, moving_seen)]
    if shapes != [(1, 3, *size), *[(1, 1, *size)] * 2, *[(1, *size)] * 2]:
        raise ValueError(f"expected flow (1, 3, z, y, x), images (1, 1, z, y, x), masks (1, z, y, x), got {shapes}")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(flow.device.type, enabled=False):
        # A copy, which is no tensor of inference mode even where the given one is.
        given = flow.clone().float()
        padded = _padded(given, "replicate")
        problem = _Problem(_in_blocks(padded), _side(fixed, fixed_seen), _side(moving, moving_seen), loss)
        nodes, taken = _optimised(problem, iterations)
        with torch.no_grad():
            correction = _spread(nodes, padded.shape[2:])
            before = _objective(problem, torch.zeros_like(problem.flow)).item()
            after = _objective(problem, _in_blocks(correction)).item()
        if not after < before:
            return Refined(given, before, before, taken)
        z, y, x = size
        return Refined(given + correction[..., :z, :y, :x], before, after, taken)


def _objective(problem: _Problem, correction: Tensor) -> Tensor:
    """The objective of the given field and a correction (1, 3, z, y, x), a vector a block, in blocks."""
    loss, flow = problem.loss, problem.flow + correction
    folding = functional.relu(_LEAST_DETERMINANT - warping.jacobian_determinant(flow)).mean()
    found = _dissimilarity(problem.fixed, problem.moving, flow)
    found = found + max(loss.smoothness, _LEAST_SMOOTHNESS) * gradient_l2(correction)
    found = found + max(loss.folding, _LEAST_FOLDING) * folding
    return found + loss.bending * BendingEnergyLoss()(correction) if loss.bending else found


def _dissimilarity(fixed: _Side, moving: _Side, flow: Tensor) -> Tensor:
    """Mean squared difference of descriptors, over the channels and the blocks that are comparable."""
    counted = comparable(fixed.seen, moving.seen, flow)[:, None]
    looked_up = warping.warp(torch.cat((moving.descriptors, moving.seen[:, None].float()), dim=1), flow)
    # At the edge of what is seen, the mean of the part that is; where nothing is, 0, which is unlike any descriptor.
    warped = looked_up[:, :-1] / looked_up[:, -1:].clamp(min=0.5)
    difference = (warped - fixed.descriptors).square().mean(dim=1, keepdim=True)
    return torch.where(counted, difference, 0.0).sum() / counted.sum().clamp(min=1)


def _optimised(problem: _Problem, iterations: int) -> tuple[Tensor, int]:
    """The best correction's nodes (1, 3, z, y, x), in voxels, and how many steps were taken."""
    blocks = problem.flow.shape[2:]
    nodes, taken = problem.flow.new_zeros(1, 3, 1, 1, 1), 0
    for stage, spacing in enumerate(_STAGES):
        nodes = _resized(nodes, [n * _BLOCK // spacing for n in blocks])
        share = iterations * (stage + 1) // len(_STAGES) - iterations * stage // len(_STAGES)
        nodes, steps = _descended(problem, nodes, share)
        taken += steps
    return nodes, taken


def _descended(problem: _Problem, start: Tensor, limit: int) -> tuple[Tensor, int]:
    """The best nodes on Adam's way from ``start``, and its steps."""
    nodes = start.clone().requires_grad_()
    adam = torch.optim.Adam([nodes], _RATE)
    rate = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=_PATIENCE, threshold=_GAIN)
    best, lowest = start, math.inf
    for step in range(limit + 1):
        value = _objective(problem, _spread(nodes, problem.flow.shape[2:]) / _BLOCK)
        if value.item() < lowest:
            best, lowest = nodes.detach().clone(), value.item()
        rate.step(value.item())
        if step == limit or adam.param_groups[0]["lr"] < _LEAST_RATE:
            break
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return best, step


def _side(image: Tensor, seen: Tensor) -> _Side:
    inside = seen > 0
    # Beyond the frame nothing is seen.
    hidden = functional.max_pool3d(1 - _padded(inside[:, None].float(), "constant"), _BLOCK)[:, 0]
    whole = hidden < 0.5
    descriptors = _padded(mind_ssc(image, mask=inside[:, None]), "constant")
    means = warping.downsample_image(descriptors, _BLOCK)
    return _Side(torch.where(whole[:, None], means, 0.0), whole)


def _padded(volume: Tensor, mode: str) -> Tensor:
    """The volume up to whole blocks of every size, added at the far ends."""
    unit = math.lcm(_BLOCK, *_STAGES)
    z, y, x = (-n % unit for n in volume.shape[2:])
    return functional.pad(volume, (0, x, 0, y, 0, z), mode=mode)


def _in_blocks(flow: Tensor) -> Tensor:
    """A field in voxels as a vector a block, in blocks."""
    return warping.downsample_image(flow, _BLOCK) / _BLOCK


def _spread(nodes: Tensor, size: Sequence[int]) -> Tensor:
    """The field that nodes make: each is spread over its neighbours, too."""
    return _resized(functional.avg_pool3d(nodes, 3, stride=1, padding=1, count_include_pad=False), size)


def _resized(field: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(field, size=tuple(size), mode="trilinear", align_corners=False)
