"""VoxelMorph: a U-Net on both images that predicts a stationary velocity."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.layers import ConvBlock, FieldHead
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.voxelmorph.plugin import VoxelMorphSettings

# The channels on the way down and up are the authors' default, with which MambaMorph's scripts compare too.
_CHANNELS = {
    "published": ((16, 32, 32, 32), (32, 32, 32, 32, 32, 16, 16)),
    "small": ((16, 16, 16, 16), (16, 16, 16, 16, 16, 16)),
}


class UNet(nn.Module):
    """A convolution a level, down by maxima and up by repetition, and further ones at full resolution; LeakyReLU(0.2).

    Args:
        incoming: channels of what it is given.
        down: channels of the levels from full resolution down; each is followed by halving.
        up: channels from the coarsest level up, one for each of ``down``, then those of the further convolutions.
    """

    def __init__(self, incoming: int, down: Sequence[int], up: Sequence[int]) -> None:
        super().__init__()
        self.down = nn.ModuleList(ConvBlock(a, b, "none") for a, b in pairwise([incoming, *down]))
        levels = len(down)
        skips = [0, *reversed(down)]
        before = [down[-1], *up]
        self.up = nn.ModuleList(ConvBlock(before[i] + skips[i], up[i], "none") for i in range(levels))
        self.finest = nn.ModuleList(
            ConvBlock(before[i] + (skips[levels] if i == levels else 0), up[i], "none") for i in range(levels, len(up))
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, incoming, z, y, x), multiples of 2^levels, to (B, up[-1], z, y, x)."""
        features, skips = image, []
        for conv in self.down:
            skips.append(conv(features))
            features = nn.functional.max_pool3d(skips[-1], 2)
        parts: tuple[Tensor, ...] = (features,)
        for conv in self.up:
            parts = nn.functional.interpolate(conv(*parts), scale_factor=2.0, mode="nearest"), skips.pop()
        for conv in self.finest:
            parts = (conv(*parts),)
        return parts[0]


class VoxelMorph(RegistrationNetwork):
    """VoxelMorph, with 327,331 parameters as published, or the small one with 92,179.

    A velocity is kept at half the resolution, as published, but followed at full resolution.
    References: Balakrishnan et al., VoxelMorph: A learning framework for deformable medical image registration, TMI
    2019; Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration for images and surfaces, MedIA
    2019.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images.
    """

    multiple = 16

    def __init__(self, settings: VoxelMorphSettings, shape: Sequence[int]) -> None:
        super().__init__(shape, settings.field)
        down, up = _CHANNELS[settings.size]
        self.unet = UNet(2, down, up)
        self.head = FieldHead(up[-1])

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        flow: Tensor = self.head(self.unet(torch.cat([moving, fixed], dim=1)))
        # The velocity is brought to half the grid, where its values in voxels are halved, and back, which smooths it.
        return warping.upsample(warping.downsample_image(flow, 2) / 2) if self.predicts_velocity else flow
