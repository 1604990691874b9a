"""How unlike two images are around each voxel: where to look, told to a decoder instead of left for it to learn.

Cost volumes are PWC-Net's (Sun et al., "PWC-Net: CNNs for Optical Flow Using Pyramid, Warping, and Cost Volume", CVPR
2018). Features of two contrasts cannot be compared before they are learnt, so that here, as in ConvexAdam, MIND-SSC's
self-similarities are.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from llmreg.networks.config import cost_channels
from llmreg.similarity.image_terms import mind_ssc

# From a voxel to the neighbours that describe it: the levels are coarse already.
DILATION = 1
# Of a mean squared difference of descriptors, so that it is of the size of other features.
SCALE = 10.0


@torch.no_grad()
def cost_volume(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    """Mean squared difference of MIND-SSC between the fixed image and the moving one a step further, for all steps.

    Beyond its faces the moving image goes on with its outermost voxels. There is no gradient: the field is told what is
    to be seen around it, but is not moved towards what looks alike.

    Args:
        moving: (B, 1, z, y, x), warped as far as is known.
        fixed: (B, 1, z, y, x).
        radius: the longest step along each axis, voxels.

    Returns:
        (B, (2 * radius + 1)^3, z, y, x) float32, steps in the order of (z, y, x), x fastest.
    """
    here, there = mind_ssc(fixed, dilation=DILATION), mind_ssc(moving, dilation=DILATION)
    z, y, x = fixed.shape[2:]
    there = F.pad(there, (radius,) * 6, mode="replicate")
    found = here.new_empty(len(fixed), cost_channels(radius), z, y, x)
    for channel, (i, j, k) in enumerate(product(range(2 * radius + 1), repeat=3)):
        apart = here - there[:, :, i : i + z, j : j + y, k : k + x]
        found[:, channel] = SCALE * apart.square().mean(dim=1)
    return found
