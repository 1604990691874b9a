"""Warping with displacement tensors, differentiable, always in float32.

Images are (B, C, z, y, x); displacements ("flows") are (B, 3, z, y, x) with components (x, y, z) in voxels of their own
grid, pull-back: the image is sampled at index + displacement.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# With 7, as VoxelMorph has it, no first step is longer than a 128th of the displacement.
SQUARINGS = 7
# Newton's steps are taken so often, where the determinant is above, and so long at most, in voxels.
_NEWTON_STEPS, _LEAST_SLOPE, _LONGEST_STEP = 12, 0.1, 3.0


def identity_grid(shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Voxel indices (1, 3, z, y, x), components (x, y, z), of an array of ``shape`` (z, y, x)."""
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in shape]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y, z))[None]


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Sample ``image`` at index + ``flow``; both have the same (z, y, x) shape. Returns float32."""
    if image.shape[2:] != flow.shape[2:]:
        raise ValueError(f"image and flow differ in shape: {tuple(image.shape[2:])} and {tuple(flow.shape[2:])}")
    shape = tuple(image.shape[2:])
    with torch.autocast(flow.device.type, enabled=False):
        size = torch.tensor(shape[::-1], dtype=torch.float32, device=flow.device).view(1, 3, 1, 1, 1)
        points = (identity_grid(shape, flow.device) + flow.float()) * (2 / (size - 1).clamp(min=1)) - 1
        return F.grid_sample(image.float(), points.movedim(1, -1), mode=mode, padding_mode=padding, align_corners=True)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The displacement of going first by ``first``, then by ``second``: first(p) + second(p + first(p))."""
    return first.float() + warp(second, first, padding="border")


def exponential(velocity: Tensor, squarings: int = SQUARINGS) -> Tensor:
    """The displacement after following a stationary velocity for unit time, by scaling and squaring.

    It has an inverse, the exponential of the negated velocity, and does not fold where the velocity is smooth.
    Reference: Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms, MICCAI 2006.

    Args:
        velocity: (B, 3, z, y, x), voxels.
        squarings: the first step is 2^-squarings of the velocity.
    """
    flow = velocity.float() / 2**squarings
    for _ in range(squarings):
        flow = compose(flow, flow)
    return flow


def upsample(flow: Tensor, factor: int = 2) -> Tensor:
    """The same displacement on a grid ``factor`` times finer: values, in voxels, grow by ``factor``."""
    with torch.autocast(flow.device.type, enabled=False):
        return F.interpolate(flow.float(), scale_factor=factor, mode="trilinear", align_corners=False) * factor


def downsample_image(image: Tensor, factor: int) -> Tensor:
    """Mean over blocks of factor^3 voxels."""
    return F.avg_pool3d(image, factor)


def invert(flow: Tensor, start: Tensor | None = None, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """The displacement v with v(p) + u(p + v(p)) = 0, by Newton's method for each voxel on its own.

    The displacement of the edge continues outside. Where ``flow`` folds there is none: what was found last is returned.

    Args:
        flow: u, (B, 3, z, y, x), voxels.
        start: what v is about, -u when None.
        iterations: at most so many.
        tolerance: a voxel is left alone when no component is off by more, in voxels.
    """
    flow = flow.float()
    start = -flow if start is None else start.float()
    return torch.stack([_inverted(u, v, iterations, tolerance) for u, v in zip(flow, start, strict=True)])


def _inverted(flow: Tensor, start: Tensor, iterations: int, tolerance: float) -> Tensor:
    """One of a batch: both (3, z, y, x)."""
    derivatives = torch.cat(torch.gradient(flow, dim=(3, 2, 1)))
    places = identity_grid(tuple(flow.shape[1:]), flow.device)[0].flatten(1)
    found = start.flatten(1).clone()
    open_ = torch.arange(found.shape[1], device=flow.device)
    for iteration in range(iterations):
        now = found[:, open_]
        off = now + _looked_up(flow, places[:, open_] + now)
        wrong = off.abs().amax(dim=0) > tolerance
        open_, now, off = open_[wrong], now[:, wrong], off[:, wrong]
        if not len(open_):
            break
        slopes = _looked_up(derivatives, places[:, open_] + now).view(3, 3, -1)
        a, b, c = slopes + torch.eye(3, device=flow.device)[..., None]
        b_c = torch.linalg.cross(b, c, dim=0)
        determinant = (a * b_c).sum(0)
        # Cramer's rule.
        a_off = torch.linalg.cross(a, off, dim=0)
        step = torch.stack(((off * b_c).sum(0), (a_off * c).sum(0), -(a_off * b).sum(0))) / determinant
        # Next to a fold the slope leads astray, and from one side of a kink, as at the border, to the other and back.
        # Half of what is missing is a step of fixed-point iteration (Chen et al., Med Phys 2008).
        usable = (determinant > _LEAST_SLOPE) & (step.abs().amax(dim=0) < _LONGEST_STEP) & (iteration < _NEWTON_STEPS)
        found[:, open_] = now - torch.where(usable, step, 0.5 * off)
    return found.view_as(flow)


def _looked_up(volume: Tensor, places: Tensor) -> Tensor:
    """Values (C, n) of a volume (C, z, y, x) at voxel indices (3, n), components (x, y, z); its edge continues."""
    size = torch.tensor(volume.shape[:0:-1], dtype=torch.float32, device=volume.device)[:, None]
    points = (places * (2 / (size - 1).clamp(min=1)) - 1).T[None, None, None]
    return F.grid_sample(volume[None], points, padding_mode="border", align_corners=True)[0, :, 0, 0]


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Determinant (B, z, y, x) of p -> p + flow(p); central differences, one-sided at the border."""
    with torch.autocast(flow.device.type, enabled=False):
        x, y, z = torch.gradient(flow.float(), dim=(4, 3, 2))
        a, b, c = (
            derivative + unit.to(flow.device).view(1, 3, 1, 1, 1)
            for derivative, unit in zip((x, y, z), torch.eye(3), strict=True)
        )
        return (a * torch.linalg.cross(b, c, dim=1)).sum(1)
