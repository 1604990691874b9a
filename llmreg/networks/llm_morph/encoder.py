"""The convolutional pyramid of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmreg.networks.convolution import Conv3d
from llmreg.networks.gradient_checkpointing import recomputed
from llmreg.networks.llm_morph.adapters import SLOPE


class ConvBlock(nn.Module):
    """3x3x3 convolution, normalization, LeakyReLU."""

    slope = SLOPE

    def __init__(self, incoming: int, outgoing: int, normalization: str, stride: int = 1) -> None:
        super().__init__()
        normalized = normalization == "instance"
        self.conv = Conv3d(incoming, outgoing, 3, stride=stride, padding=1, bias=not normalized)
        self.norm = nn.InstanceNorm3d(outgoing, affine=True) if normalized else None

    def forward(self, *parts: Tensor, apart: bool = False) -> Tensor:
        """Features of the parts' channels together; ``apart`` saves the memory of their concatenation, at some time."""
        features = self.conv.over_parts(parts) if apart else self.conv(torch.cat(parts, 1) if parts[1:] else parts[0])
        if self.norm is not None:
            features = self._normalized(features, self.norm)
        return F.leaky_relu(features, self.slope, inplace=True)

    def _normalized(self, features: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
        # A group a channel is the same, in half the time on a CPU. On CUDA, autocast would turn it to float32.
        if features.device.type == "cpu":
            return F.group_norm(features, norm.num_features, norm.weight, norm.bias, norm.eps)
        normalized: Tensor = norm(features)
        return normalized


class Encoder(nn.Module):
    """Five levels with c, 2c, 4c, 8c, 16c channels at 1, 1/2, 1/4, 1/8, 1/16 of the resolution.

    Args:
        width: c.
        normalization: ``instance`` or ``none``.
        deepest: whether there is the fifth level, which only the encoding blocks look at.
    """

    def __init__(self, width: int, normalization: str, deepest: bool = True) -> None:
        super().__init__()
        levels: list[nn.Module] = [
            nn.Sequential(ConvBlock(1, width, normalization), ConvBlock(width, width, normalization))
        ]
        for level in range(1, 4):
            channels = width * 2**level
            levels.append(
                nn.Sequential(
                    ConvBlock(channels // 2, channels, normalization, stride=2),
                    ConvBlock(channels, channels, normalization),
                    ConvBlock(channels, channels, normalization),
                )
            )
        if deepest:
            levels.append(ConvBlock(8 * width, 16 * width, normalization, stride=2))
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor, recompute: bool = False) -> list[Tensor]:
        """Features of an image (B, 1, z, y, x), finest first; ``recompute`` as in LLMMorph."""
        pyramid: list[Tensor] = []
        features = image
        for level in self.levels:
            features = recomputed(level, features, when=recompute and not pyramid)
            pyramid.append(features)
        return pyramid
