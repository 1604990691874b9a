"""Flows, the displacements that networks compute: warping with them, composing, inverting and unfolding them.

Everything is computed in float32 (autocast lowers none of the operations), and is differentiable but for the inverse
and the unfolding. Images are (B, C, z, y, x); flows are (B, 3, z, y, x) with components (x, y, z) in voxels of their
own grid, pull-back: the image is sampled at index + flow.
"""

import logging

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)

# With 7, as in VoxelMorph, the first step is at most a 128th of the displacement.
SQUARINGS = 7
# Newton steps are taken in the first iterations, where the determinant is larger and the step shorter (in voxels) than
# these limits.
_NEWTON_ITERATIONS, _LEAST_DETERMINANT, _LONGEST_STEP = 12, 0.1, 3.0
# Widths of the smoothing that are tried, in voxels, until nothing folds.
UNFOLDING_SIGMAS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
UNFOLDING_ROUNDS = 12
# A flow counts as folding where a determinant is lower than this, which leaves linear interpolation between voxels
# some distance from 0.
FOLDING_DETERMINANT = 0.02


def identity_grid(shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Voxel indices (1, 3, z, y, x), components (x, y, z), of an array of ``shape`` (z, y, x)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])[None]


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Sample ``image`` at index + ``flow``.

    Args:
        image: (B, C, z, y, x).
        flow: (B, 3, z, y, x), voxels.
        mode: interpolation, as :func:`torch.nn.functional.grid_sample` names it.
        padding: values outside the image, likewise.

    Returns:
        (B, C, z, y, x), float32.

    Raises:
        ValueError: the shapes (z, y, x) differ.
    """
    if image.shape[2:] != flow.shape[2:]:
        raise ValueError(f"image and flow differ in shape: {tuple(image.shape[2:])} and {tuple(flow.shape[2:])}")
    shape = tuple(image.shape[2:])
    size = torch.tensor(shape[::-1], dtype=torch.float32, device=flow.device).view(1, 3, 1, 1, 1)
    points = (identity_grid(shape, flow.device) + flow.float()) * (2 / (size - 1).clamp(min=1)) - 1
    return F.grid_sample(image.float(), points.movedim(1, -1), mode=mode, padding_mode=padding, align_corners=True)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The flow that applies ``first``, then ``second``: first(p) + second(p + first(p))."""
    return first.float() + warp(second, first, padding="border")


def exponential(velocity: Tensor) -> Tensor:
    """The flow after following a stationary velocity for unit time, by scaling and squaring.

    It has an inverse, the exponential of the negated velocity, and does not fold where the velocity is smooth.
    Reference: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.

    Args:
        velocity: (B, 3, z, y, x), voxels.
    """
    flow: Tensor = velocity.float() / 2**SQUARINGS
    for _ in range(SQUARINGS):
        flow = compose(flow, flow)
    return flow


def upsample(flow: Tensor, factor: int = 2) -> Tensor:
    """The same displacement on a grid ``factor`` times finer: values, in voxels, grow by ``factor``."""
    return F.interpolate(flow.float(), scale_factor=factor, mode="trilinear", align_corners=False) * factor


def downsample_image(image: Tensor, factor: int) -> Tensor:
    """Mean over blocks of factor^3 voxels; the image itself for a factor of 1."""
    return F.avg_pool3d(image, factor) if factor > 1 else image


def invert(flow: Tensor, start: Tensor | None = None, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """The flow v with v(p) + u(p + v(p)) = 0, by Newton's method for each voxel on its own.

    The displacement of the edge continues outside. Where ``flow`` folds there is no inverse, and the result of the last
    iteration is returned.

    Args:
        flow: u, (B, 3, z, y, x), voxels.
        start: an approximation of v, -u when None.
        iterations: the largest number of iterations.
        tolerance: a voxel has converged when no component of the error is larger, in voxels.
    """
    flow = flow.float()
    start = -flow if start is None else start.float()
    return torch.stack([_invert_sample(u, v, iterations, tolerance) for u, v in zip(flow, start, strict=True)])


def _invert_sample(flow: Tensor, start: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Invert a single flow of a batch; both tensors are (3, z, y, x)."""
    derivatives = torch.cat(torch.gradient(flow, dim=(3, 2, 1)))
    indices = identity_grid(tuple(flow.shape[1:]), flow.device)[0].flatten(1)
    inverse = start.flatten(1).clone()
    unconverged = torch.arange(inverse.shape[1], device=flow.device)
    for iteration in range(iterations):
        current = inverse[:, unconverged]
        error = current + sample_volume(flow, indices[:, unconverged] + current)
        is_wrong = error.abs().amax(dim=0) > tolerance
        unconverged, current, error = unconverged[is_wrong], current[:, is_wrong], error[:, is_wrong]
        if not len(unconverged):
            break
        gradients = sample_volume(derivatives, indices[:, unconverged] + current).view(3, 3, -1)
        a, b, c = gradients + torch.eye(3, device=flow.device)[..., None]
        b_c = torch.linalg.cross(b, c, dim=0)
        determinant = (a * b_c).sum(0)
        # The linear equations are solved by Cramer's rule.
        a_error = torch.linalg.cross(a, error, dim=0)
        step = torch.stack(((error * b_c).sum(0), (a_error * c).sum(0), -(a_error * b).sum(0))) / determinant
        # Next to a fold the gradient leads astray, and at a kink, as at the border, Newton's method jumps between both
        # sides. Half of the error is then a step of fixed-point iteration (Chen et al., Med Phys 2008).
        is_short = step.abs().amax(dim=0) < _LONGEST_STEP
        takes_newton_step = (determinant > _LEAST_DETERMINANT) & is_short & (iteration < _NEWTON_ITERATIONS)
        inverse[:, unconverged] = current - torch.where(takes_newton_step, step, 0.5 * error)
    return inverse.view_as(flow)


def sample_volume(volume: Tensor, indices: Tensor) -> Tensor:
    """Values (C, n) of a volume (C, z, y, x) at voxel indices (3, n), components (x, y, z); its edge continues."""
    size = torch.tensor(volume.shape[:0:-1], dtype=indices.dtype, device=volume.device)[:, None]
    points = (indices * (2 / (size - 1).clamp(min=1)) - 1).T[None, None, None].to(volume.dtype)
    return F.grid_sample(volume[None], points, padding_mode="border", align_corners=True)[0, :, 0, 0]


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Determinant (B, z, y, x) of p -> p + flow(p); central differences, one-sided at the border."""
    derivatives = torch.gradient(flow.float(), dim=(4, 3, 2))
    units = torch.eye(3, device=flow.device).view(3, 1, 3, 1, 1, 1)
    a, b, c = (derivative + unit for derivative, unit in zip(derivatives, units, strict=True))
    return torch.sum(a * torch.linalg.cross(b, c, dim=1), 1)


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
    for sigma in UNFOLDING_SIGMAS:
        velocity = _smooth(flow.float(), sigma)
        for _ in range(UNFOLDING_ROUNDS):
            result = exponential(velocity)
            # An exponential that folds in an early round still folds in the last one.
            if _folds(result):
                break
            velocity = _smooth(velocity + flow - result, sigma)
        else:
            if not _folds(exponential(velocity)):
                return velocity
    log.warning("A field folds even when it is smoothed over %.1f voxels: the result may still fold.", sigma)
    return velocity


def _folds(flow: Tensor) -> bool:
    return bool(jacobian_determinant(flow).min() <= FOLDING_DETERMINANT)


def _smooth(flow: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing in which the edge continues outside."""
    smooth_values = gaussian_filter(flow.cpu().numpy(), (0, 0, sigma, sigma, sigma), mode="nearest")
    return torch.from_numpy(smooth_values).to(flow.device)
