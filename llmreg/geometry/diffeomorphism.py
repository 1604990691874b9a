"""The stationary velocity whose exponential is nearest to a flow that may fold."""

from __future__ import annotations

import logging

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from llmreg.geometry import warping

log = logging.getLogger(__name__)

# Widths of the smoothing that are tried, in voxels, until nothing folds.
SIGMAS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
ROUNDS = 12
# A flow counts as folding where a determinant is lower than this, which leaves linear interpolation between voxels
# some distance from 0.
LEAST_DETERMINANT = 0.02


@torch.no_grad()
def nearest_velocity(flow: Tensor) -> Tensor:
    """A velocity whose exponential follows ``flow`` as closely as smoothness without folding allows.

    The difference between the flow and the exponential is added to the velocity, which is then smoothed, repeatedly,
    as in log-demons (Vercauteren et al., MICCAI 2008); the least smoothing that folds nowhere is kept.

    Args:
        flow: displacement (1, 3, z, y, x), voxels.

    Returns:
        The velocity (1, 3, z, y, x), voxels (see :func:`llmreg.geometry.warping.exponential`). Where even the
        strongest smoothing folds, a warning is logged.
    """
    for sigma in SIGMAS:
        velocity = _smooth(flow.float(), sigma)
        for _ in range(ROUNDS):
            exponential = warping.exponential(velocity)
            # An exponential that folds in an early round still folds in the last one.
            if _folds(exponential):
                break
            velocity = _smooth(velocity + flow - exponential, sigma)
        else:
            if not _folds(warping.exponential(velocity)):
                return velocity
    log.warning("A field folds even when it is smoothed over %.1f voxels: the result may still fold.", sigma)
    return velocity


def _folds(flow: Tensor) -> bool:
    return bool(warping.jacobian_determinant(flow).min() <= LEAST_DETERMINANT)


def _smooth(flow: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing in which the edge continues outside."""
    smooth_values = gaussian_filter(flow.cpu().numpy(), (0, 0, sigma, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth_values).to(flow.device)
