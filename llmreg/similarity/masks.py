"""Masks of the voxels that count when two images are compared."""

import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping


def count_voxels(mask: Tensor) -> Tensor:
    """Return the number of voxels in the mask of each sample (B,), at least 1 so that it can divide."""
    return mask.flatten(1).sum(dim=1).clamp(min=1)


def full_or_checked_mask(mask: Tensor | None, image: Tensor) -> Tensor:
    """Return the mask, or one of all voxels where it is None.

    Raises:
        ValueError: when the mask is not bool or not of the image's shape.
    """
    if mask is None:
        return torch.ones_like(image, dtype=torch.bool)
    if mask.shape != image.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be bool and of the image's shape {tuple(image.shape)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    return mask


@torch.no_grad()
def comparable_voxels(moving_seen: Tensor, fixed_seen: Tensor, flow: Tensor) -> Tensor:
    """Return the mask of the fixed voxels at which the images can be compared, bool (B, z, y, x).

    A fixed voxel counts if it lies in the fixed field of view, and if the moving field of view contains either the
    voxel that the flow leads to or the voxel at the same index. A voxel that the flow leads out of the moving image
    therefore still counts, as background. If it did not, the network would learn to move out of view what does not fit.

    Args:
        moving_seen: above 0 in the moving image's field of view, (B, z, y, x).
        fixed_seen: the same of the fixed image.
        flow: displacement from fixed to moving in voxels, (B, 3, z, y, x), channels (x, y, z).
    """
    looked_up = warping.warp(moving_seen[:, None].float(), flow, mode="nearest")[:, 0]
    return ((looked_up > 0.5) | (moving_seen > 0)) & (fixed_seen > 0)


def shrink_mask(seen: Tensor, factor: int) -> Tensor:
    """Return a mask (B, z, y, x) on a grid that is coarser by a factor: a block is seen where all its voxels are."""
    return 1 - functional.max_pool3d(1 - seen[:, None].float(), factor)[:, 0] if factor > 1 else seen
