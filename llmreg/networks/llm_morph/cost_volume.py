"""Cost volumes: how unlike two images are at each step around a voxel, as a hint where the moving image fits.

Cost volumes are PWC-Net's (Sun et al., "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR
2018). Features of two contrasts cannot be compared before they are learnt, so MIND-SSC's self-similarities are compared
here, as in ConvexAdam.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from llmreg.networks.llm_morph.settings import cost_channels
from llmreg.similarity.mind import mind_ssc

# Voxels between a voxel and the neighbours that describe it; small, since the levels are coarse already.
DILATION = 1
# Factor of a mean squared difference of descriptors, which makes it about as large as other features.
SCALE = 10.0


@torch.no_grad()
def cost_volume(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """Mean squared difference of MIND-SSC between the fixed image and the moving image one step away, for all steps.

    Beyond its faces the moving image is continued by its outermost voxels. There is no gradient: the costs inform the
    decoder, but the field is not pulled towards what looks alike.

    Args:
        moving: (B, 1, z, y, x), warped by the field so far.
        fixed: (B, 1, z, y, x).
        radius: the longest step along each axis, voxels.

    Returns:
        (B, (2 * radius + 1)^3, z, y, x) float32, steps in the order of (z, y, x), x fastest.
    """
    fixed_mind, moving_mind = mind_ssc(fixed, dilation=DILATION), mind_ssc(moving, dilation=DILATION)
    z, y, x = fixed.shape[2:]
    moving_mind = F.pad(moving_mind, (radius,) * 6, mode="replicate")
    costs = fixed_mind.new_empty(len(fixed), cost_channels(radius), z, y, x)
    for channel, (i, j, k) in enumerate(product(range(2 * radius + 1), repeat=3)):
        difference = fixed_mind - moving_mind[:, :, i : i + z, j : j + y, k : k + x]
        costs[:, channel] = SCALE * difference.square().mean(dim=1)
    return costs
