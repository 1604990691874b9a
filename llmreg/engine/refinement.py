"""Refinement: a displacement is fitted further to its own two images, without labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from monai.losses import BendingEnergyLoss
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.similarity.loss_settings import LossSettings
from llmreg.similarity.masks import comparable_voxels
from llmreg.similarity.mind import mind_ssc
from llmreg.similarity.terms import gradient_l2

# Adam's learning rates: the first one, and the one below which the descent ends.
FIRST_RATE, LEAST_RATE = 0.4, 0.025
# The rate is halved when the objective has not fallen by the share GAIN for PATIENCE steps.
GAIN, PATIENCE = 1e-3, 2


def descend(objective: Callable[[Tensor], Tensor], start: Tensor, limit: int) -> tuple[Tensor, int]:
    """Minimise an objective.

    Args:
        objective: a scalar, which can be differentiated by the values.
        start: the first values.
        limit: the most steps to take.

    Returns:
        The values with the lowest objective among all that were met, and the number of steps that were taken.
    """
    values = start.clone().requires_grad_()
    adam = torch.optim.Adam([values], FIRST_RATE)
    rate = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=PATIENCE, threshold=GAIN)
    best, lowest = start, math.inf
    for step in range(limit + 1):
        value = objective(values)
        if value.item() < lowest:
            best, lowest = values.detach().clone(), value.item()
        rate.step(value.item())
        if step == limit or adam.param_groups[0]["lr"] < LEAST_RATE:
            break
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return best, step


# These numbers were chosen by measurement, see documentation/refinement.md.

# The objective is a mean over blocks with this number of voxels a side.
_BLOCK = 2
# Spacings of the correction's nodes in voxels, coarse to fine.
_NODE_SPACINGS = (4, 2)
# Weights of the plans that are lower than these are raised to them. In training, labels keep the flow regular too, but
# refinement has none.
_LEAST_SMOOTHNESS, _LEAST_FOLDING = 1.0, 2.0
# Jacobian determinants below this are penalised. It is above zero since a flow folds between the centres of blocks
# before it folds at them.
_LEAST_DETERMINANT = 0.3


@dataclass(frozen=True, eq=False)
class RefinementResult:
    """A refined displacement.

    Attributes:
        flow: (1, 3, z, y, x) float32, components (x, y, z), voxels of the frame.
        before: the objective of the displacement that was given.
        after: the objective of ``flow``, never above ``before``.
        iterations: steps of the optimiser that were taken.
    """

    flow: Tensor
    before: float
    after: float
    iterations: int


@dataclass(frozen=True, eq=False)
class _Side:
    """One image of the pair, in blocks.

    Attributes:
        descriptors: means of MIND-SSC (1, 12, z, y, x), 0 in blocks that the field of view does not cover.
        seen: bool (1, z, y, x), whether the field of view covers the whole block.
    """

    descriptors: Tensor
    seen: Tensor


def refine(
    flow: Tensor,
    fixed: Tensor,
    moving: Tensor,
    fixed_seen: Tensor,
    moving_seen: Tensor,
    loss: LossSettings,
    iterations: int,
) -> RefinementResult:
    """Add a smooth correction to a displacement so that its images fit better; no labels are needed.

    The objective is the mean squared difference of the images' MIND-SSC descriptors plus the regularisers of the plans:
    the smoothness and the bending energy of the correction, and the folding of the corrected flow. Only the correction
    has to be smooth, not the flow: where the network, which learned from labels, bends the flow, the bend stays, and
    where the images tell nothing the flow stays as it is.

    Adam moves the nodes of the correction, first coarse and then fine ones. The best flow that was met is returned,
    which may be the one that was given.

    Descriptors are computed once, within each image's field of view, and looked up through the flow. Values outside
    the fields of view have no influence, see :func:`llmreg.similarity.masks.comparable_voxels`.

    Args:
        flow: the predicted displacement on the frame's grid, (1, 3, z, y, x), components (x, y, z), voxels, pull-back.
        fixed: the fixed image in the frame, (1, 1, z, y, x), intensities about [0, 1].
        moving: the moving image, likewise.
        fixed_seen: above 0 in the fixed image's field of view, (1, z, y, x).
        moving_seen: the same of the moving image.
        loss: the weights of the plans.
        iterations: the most steps to take, half of them with each spacing of nodes.

    Raises:
        ValueError: shapes are not as above, or iterations is negative.
    """
    size = tuple(flow.shape[2:])
    shapes = [tuple(array.shape) for array in (flow, fixed, moving, fixed_seen, moving_seen)]
    if shapes != [(1, 3, *size), *[(1, 1, *size)] * 2, *[(1, *size)] * 2]:
        raise ValueError(f"expected flow (1, 3, z, y, x), images (1, 1, z, y, x), masks (1, z, y, x), got {shapes}")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast(flow.device.type, enabled=False):
        # The displacement that was given may be a tensor of inference mode, but its copy is not.
        start = flow.clone().float()
        padded = _pad(start, "replicate")
        objective = partial(
            _objective,
            flow=_shrink_flow(padded),
            fixed=_describe(fixed, fixed_seen),
            moving=_describe(moving, moving_seen),
            loss=loss,
        )
        nodes, steps = _optimise(objective, padded, iterations)
        with torch.no_grad():
            correction = _interpolate_nodes(nodes, padded.shape[2:])
            before = objective(torch.zeros_like(_shrink_flow(padded))).item()
            after = objective(_shrink_flow(correction)).item()
        if not after < before:
            return RefinementResult(start, before, before, steps)
        return RefinementResult(start + correction[..., : size[0], : size[1], : size[2]], before, after, steps)


def _objective(correction: Tensor, *, flow: Tensor, fixed: _Side, moving: _Side, loss: LossSettings) -> Tensor:
    """The objective of a flow with a correction, both (1, 3, z, y, x) with one vector a block, in units of blocks."""
    flow = flow + correction
    folding = functional.relu(_LEAST_DETERMINANT - warping.jacobian_determinant(flow)).mean()
    # This is the mean squared difference of descriptors, over the channels and the blocks that are comparable.
    counted = comparable_voxels(moving.seen, fixed.seen, flow)[:, None]
    looked_up = warping.warp(torch.cat((moving.descriptors, moving.seen[:, None].float()), dim=1), flow)
    # A sample that the field of view covers in part gets the mean of that part; outside, it gets 0, unlike any
    # descriptor.
    warped = looked_up[:, :-1] / looked_up[:, -1:].clamp(min=0.5)
    difference = (warped - fixed.descriptors).square().mean(dim=1, keepdim=True)
    mismatch = torch.where(counted, difference, 0.0).sum() / counted.sum().clamp(min=1)
    smoothness = max(loss.smoothness, _LEAST_SMOOTHNESS) * gradient_l2(correction)
    value = mismatch + smoothness + max(loss.folding, _LEAST_FOLDING) * folding
    return value + loss.bending * BendingEnergyLoss()(correction) if loss.bending else value


def _optimise(objective: Callable[[Tensor], Tensor], padded: Tensor, iterations: int) -> tuple[Tensor, int]:
    """Find the best correction of a padded flow: its nodes (1, 3, z, y, x), in voxels, and the steps taken."""

    def objective_of_nodes(nodes: Tensor) -> Tensor:
        return objective(_interpolate_nodes(nodes, blocks) / _BLOCK)

    blocks = [n // _BLOCK for n in padded.shape[2:]]
    nodes, steps = padded.new_zeros(1, 3, 1, 1, 1), 0
    for stage, spacing in enumerate(_NODE_SPACINGS):
        start = functional.interpolate(nodes, [n * _BLOCK // spacing for n in blocks], mode="trilinear")
        # The spacings share the iterations; the later ones take the remainder.
        nodes, steps_taken = descend(objective_of_nodes, start, (iterations + stage) // len(_NODE_SPACINGS))
        steps += steps_taken
    return nodes, steps


def _describe(image: Tensor, seen: Tensor) -> _Side:
    inside = seen > 0
    # The padding beyond the frame is not seen.
    is_whole = functional.max_pool3d(1 - _pad(inside[:, None].float(), "constant"), _BLOCK)[:, 0] < 0.5
    means = warping.downsample_image(_pad(mind_ssc(image, mask=inside[:, None]), "constant"), _BLOCK)
    return _Side(torch.where(is_whole[:, None], means, 0.0), is_whole)


def _pad(volume: Tensor, mode: str) -> Tensor:
    """Pad a volume at its far ends to whole blocks of every size."""
    unit = math.lcm(_BLOCK, *_NODE_SPACINGS)
    z, y, x = (-n % unit for n in volume.shape[2:])
    return functional.pad(volume, (0, x, 0, y, 0, z), mode=mode)


def _shrink_flow(flow: Tensor) -> Tensor:
    """Turn a flow in voxels into one with one vector a block, in units of blocks."""
    return warping.downsample_image(flow, _BLOCK) / _BLOCK


def _interpolate_nodes(nodes: Tensor, size: Sequence[int]) -> Tensor:
    """Turn nodes into a flow: each node is smoothed over its neighbours and then interpolated."""
    smooth = functional.avg_pool3d(nodes, 3, stride=1, padding=1, count_include_pad=False)
    return functional.interpolate(smooth, tuple(size), mode="trilinear")
