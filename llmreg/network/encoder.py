"""The convolutional pyramid of one image."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from llmreg.network.adapters import SLOPE


class ConvBlock(nn.Module):
    """3x3x3 convolution, normalization, LeakyReLU."""

    def __init__(self, incoming: int, outgoing: int, normalization: str, stride: int = 1) -> None:
        super().__init__()
        normalized = normalization == "instance"
        self.conv = nn.Conv3d(incoming, outgoing, 3, stride=stride, padding=1, bias=not normalized)
        self.norm = nn.InstanceNorm3d(outgoing, affine=True) if normalized else None

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv(image)
        if self.norm is not None:
            features = self.norm(features)
        return F.leaky_relu(features, SLOPE, inplace=True)


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

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of an image (B, 1, z, y, x), finest first."""
        pyramid: list[Tensor] = []
        features = image
        for level in self.levels:
            features = level(features)
            pyramid.append(features)
        return pyramid
