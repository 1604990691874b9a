"""Dual-PRNet: features of both images, compared from coarse to fine, each level warped by the flow so far."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.dual_pyramid.plugin import DualPyramidSettings
from llmreg.networks.layers import ConvBlock, FieldHead
from llmreg.networks.registration_network import RegistrationNetwork

# A 3x3x3 convolution and ReLU.
_conv = partial(ConvBlock, normalization="none", slope=0.0)


class DualPyramid(RegistrationNetwork):
    """Dual-PRNet's pyramid, with 200,455 parameters at the published width of 8.

    One encoder and one decoder serve both images; flows at 1/8, 1/4 and 1/2 of the resolution, and two at the full
    resolution, are composed.
    Reference: Kang et al., Dual-stream pyramid registration network, MedIA 2022.

    Args:
        settings: the network's settings.
        shape: (z, y, x) of the images.
    """

    multiple = 16

    def __init__(self, settings: DualPyramidSettings, shape: Sequence[int]) -> None:
        super().__init__(shape, settings.field)
        c = settings.width
        down, up = (c, 2 * c, 2 * c, 4 * c, 4 * c), (4 * c, 4 * c, 2 * c, 2 * c, c)
        before, skips = [1, *down], [*reversed(down[:-1]), 0]
        self.down = nn.ModuleList(_conv(before[i], down[i], stride=2 if i else 1) for i in range(5))
        before = [down[-1], *up]
        self.up = nn.ModuleList(_conv(before[i] + skips[i], up[i]) for i in range(5))
        self.heads = nn.ModuleList(FieldHead(2 * channels) for channels in up)

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        skips = [torch.cat([moving, fixed])]
        for conv in self.down:
            skips.append(conv(skips[-1]))
        features = skips.pop()
        flow: Tensor | None = None
        for level in range(4):
            finer = nn.functional.interpolate(features, scale_factor=2.0, mode="trilinear", align_corners=False)
            features = self.up[level](finer, skips.pop())
            flow = self._refine(level, features, None if flow is None else warping.upsample(flow))
        return self._refine(4, self.up[4](features), flow)

    def _refine(self, level: int, features: Tensor, coarse: Tensor | None) -> Tensor:
        """Improve the coarser flow by a level's features, which hold the moving images before the fixed ones."""
        moving, fixed = features.chunk(2)
        if coarse is not None:
            # As in the authors' code, no gradient reaches the coarser levels through the warping.
            moving = warping.warp(moving, coarse.detach(), padding="border").to(fixed.dtype)
        residual: Tensor = self.heads[level](torch.cat([moving, fixed], dim=1))
        return residual if coarse is None else warping.compose(residual, coarse)
