"""The convolutional pyramid of one image."""

from __future__ import annotations

from torch import Tensor, nn

from llmreg.networks.gradient_checkpointing import call_with_checkpointing
from llmreg.networks.layers import ConvBlock


class Encoder(nn.Module):
    """Five levels with c, 2c, 4c, 8c, 16c channels at 1, 1/2, 1/4, 1/8, 1/16 of the resolution.

    Args:
        width: c.
        normalization: ``instance`` or ``none``.
        with_tokens: whether there is the fifth level, which only the encoding blocks look at.
    """

    def __init__(self, width: int, normalization: str, *, with_tokens: bool = True) -> None:
        super().__init__()
        levels: list[nn.Module] = [
            nn.Sequential(ConvBlock(1, width, normalization), ConvBlock(width, width, normalization))
        ]
        levels += [
            nn.Sequential(
                ConvBlock(channels // 2, channels, normalization, stride=2),
                ConvBlock(channels, channels, normalization),
                ConvBlock(channels, channels, normalization),
            )
            for channels in (2 * width, 4 * width, 8 * width)
        ]
        if with_tokens:
            levels.append(ConvBlock(8 * width, 16 * width, normalization, stride=2))
        self.levels = nn.ModuleList(levels)

    def forward(self, image: Tensor, *, recompute: bool = False) -> list[Tensor]:
        """Features of an image (B, 1, z, y, x), finest first; ``recompute``: gradient checkpointing of the finest."""
        pyramid: list[Tensor] = []
        features = image
        for level in self.levels:
            features = call_with_checkpointing(level, features, when=recompute and not pyramid)
            pyramid.append(features)
        return pyramid
