"""VoxelMorph: a U-Net on both images that predicts a stationary velocity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from llmreg.geometry import warping
from llmreg.networks.layers import FieldHead
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.voxelmorph.plugin import VoxelMorphSettings
from llmreg.networks.voxelmorph.unet import UNet

# Channels down and up: the authors' default, and what MambaMorph's scripts compare with.
_CHANNELS = {
    "published": ((16, 32, 32, 32), (32, 32, 32, 32, 32, 16, 16)),
    "small": ((16, 16, 16, 16), (16, 16, 16, 16, 16, 16)),
}


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

    @override
    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        flow: Tensor = self.head(self.unet(torch.cat([moving, fixed], dim=1)))
        # Halves of values on half the grid, and back: what is left is smooth.
        return warping.upsample(warping.downsample_image(flow, 2) / 2) if self.velocity else flow
