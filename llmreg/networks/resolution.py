"""A network's field at the resolution it works at, and on the images' grid."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llmreg.geometry import warping


def predict_flow(
    network: Callable[[Tensor, Tensor], Tensor], moving: Tensor, fixed: Tensor, downsampling: int
) -> tuple[Tensor, Tensor]:
    """The network's displacement, and the same upsampled to the images' grid (voxels of each).

    Args:
        network: takes (moving, fixed).
        moving: (B, 1, z, y, x).
        fixed: (B, 1, z, y, x).
        downsampling: from the images' grid to the network's.

    Returns:
        Two fields (B, 3, z, y, x), channels (x, y, z).
    """
    if downsampling > 1:
        moving, fixed = (warping.downsample_image(image, downsampling) for image in (moving, fixed))
    flow = network(moving, fixed)
    return flow, warping.upsample(flow, downsampling) if downsampling > 1 else flow
