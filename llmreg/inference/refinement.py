"""Refinement: a predicted field made to fit its two images better, without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.preprocessing.plans import Loss
from llmreg.training.losses import gradient_l2
from llmreg.training.objective import comparable
from llmreg.training.similarity import mind_ssc

# Grids of the correction, coarse to fine: a node for each block of so many voxels a side.
_STAGES = (4, 2)
# Descriptors are compared as means over blocks of so many voxels a side.
_BLOCK = 2
_SMOOTHNESS = 1.0
_FOLDING = 10.0
_MARGIN = 0.1
_RATE = 0.2
_PATIENCE, _TOLERANCE = 10, 1e-3


@dataclass(frozen=True, eq=False)
class Refined:
    flow: Tensor
    before: float
    after: float
    iterations: int


@dataclass(frozen=True, eq=False)
class _Problem:
    initial: Tensor
    fixed: Tensor
    moving: Tensor
    fixed_seen: Tensor
    moving_seen: Tensor


def refine(
    flow: Tensor,
    fixed: Tensor,
    moving: Tensor,
    fixed_seen: Tensor,
    moving_seen: Tensor,
    loss: Loss,
    iterations: int,
) -> Refined:
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(flow.device.type, enabled=False):
        # Tensors of inference mode cannot take part in autograd; their clones can.
        given = flow.clone().float()
        seen = [mask.clone() > 0 for mask in (fixed_seen, moving_seen)]
        images = [image.clone().float() for image in (fixed, moving)]
        whole = _problem(given, images, seen)
        before = _objective(whole, torch.zeros_like(whole.initial), loss).item()
        correction, done = _optimised(_coarser(whole), loss, iterations)
        correction = _BLOCK * _spread(correction, whole.initial)
        with torch.no_grad():
            after = _objective(whole, correction, loss).item()
        z, y, x = flow.shape[2:]
        return Refined(given + correction[..., :z, :y, :x], before, after, done)


def _problem(flow, images, seen):
    descriptors = [
        torch.where(mask[:, None], mind_ssc(image, mask=mask[:, None]), 0.0)
        for image, mask in zip(images, seen, strict=True)
    ]
    far = [-n % max(_STAGES) for n in flow.shape[2:]]
    pad = (0, far[2], 0, far[1], 0, far[0])
    flow = functional.pad(flow, pad, mode="replicate")
    descriptors = [functional.pad(d, pad) for d in descriptors]
    seen = [functional.pad(mask, pad) for mask in seen]
    return _Problem(flow, *descriptors, *seen)


def _coarser(problem):
    def seen_whole(seen):
        return functional.max_pool3d((~seen)[:, None].float(), _BLOCK)[:, 0] < 0.5

    fs, ms = seen_whole(problem.fixed_seen), seen_whole(problem.moving_seen)
    return _Problem(
        warping.downsample_image(problem.initial, _BLOCK) / _BLOCK,
        torch.where(fs[:, None], warping.downsample_image(problem.fixed, _BLOCK), 0.0),
        torch.where(ms[:, None], warping.downsample_image(problem.moving, _BLOCK), 0.0),
        fs,
        ms,
    )


def _objective(problem, correction, loss):
    flow = problem.initial + correction
    mask = comparable(problem.fixed_seen, problem.moving_seen, flow)[:, None]
    moving = torch.cat((problem.moving, problem.moving_seen[:, None].float()), 1)
    looked_up = warping.warp(moving, flow)
    warped = looked_up[:, :-1] / looked_up[:, -1:].clamp(min=0.5)
    difference = (warped - problem.fixed).square().mean(dim=1, keepdim=True)
    similarity = torch.where(mask, difference, 0.0).sum() / mask.sum().clamp(min=1)
    folding = functional.relu(_MARGIN - warping.jacobian_determinant(flow)).mean()
    return similarity + _SMOOTHNESS * gradient_l2(correction) + _FOLDING * folding


def _spread(nodes, like):
    return functional.interpolate(nodes, size=like.shape[2:], mode="trilinear", align_corners=False)


def _smooth(nodes):
    return functional.avg_pool3d(nodes, 3, 1, 1, count_include_pad=False)


def _optimised(problem, loss, iterations):
    best, lowest, done = torch.zeros_like(problem.initial), float("inf"), 0
    nodes = None
    for number, stage in enumerate(_STAGES):
        shape = [n * _BLOCK // stage for n in problem.initial.shape[2:]]
        if nodes is None:
            nodes = problem.initial.new_zeros(1, 3, *shape)
        else:
            nodes = functional.interpolate(nodes.detach(), size=shape, mode="trilinear", align_corners=False)
        nodes.requires_grad_()
        adam = torch.optim.Adam([nodes], _RATE)
        history = []
        for _ in range(iterations * (number + 1) // len(_STAGES) - iterations * number // len(_STAGES)):
            correction = _spread(_smooth(nodes), problem.initial)
            value = _objective(problem, correction, loss)
            history.append(value.item())
            if history[-1] < lowest:
                lowest, best = history[-1], correction.detach()
            if len(history) > _PATIENCE and min(history[-_PATIENCE:]) > (1 - _TOLERANCE) * min(history[:-_PATIENCE]):
                break
            adam.zero_grad()
            value.backward()
            adam.step()
            done += 1
    return best, done
