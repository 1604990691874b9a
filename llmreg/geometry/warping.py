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


def invert(flow: Tensor, iterations: int = 50, tolerance: float = 1e-3) -> Tensor:
    """The displacement v with v(p) = -u(p + v(p)), by fixed-point iteration (Chen et al., Med Phys 2008).

    The displacement of the edge continues outside. Converges where ``flow`` does not fold.

    Args:
        flow: u.
        iterations: at most so many.
        tolerance: stop when no component is off by more, in voxels.
    """
    flow = flow.float()
    found = -flow
    for _ in range(iterations):
        wanted = -warp(flow, found, padding="border")
        off = (wanted - found).abs().max()
        # Half steps keep strongly varying fields from oscillating.
        found = 0.5 * (found + wanted)
        if off < tolerance:
            break
    return found


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Determinant (B, z, y, x) of p -> p + flow(p); central differences, one-sided at the border."""
    with torch.autocast(flow.device.type, enabled=False):
        x, y, z = torch.gradient(flow.float(), dim=(4, 3, 2))
        a, b, c = (
            derivative + unit.to(flow.device).view(1, 3, 1, 1, 1)
            for derivative, unit in zip((x, y, z), torch.eye(3), strict=True)
        )
        return (a * torch.linalg.cross(b, c, dim=1)).sum(1)
