"""VoxelMorph's U-Net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from llmreg.networks.layers import ConvBlock


class UNet(nn.Module):
    """A convolution a level, down by maxima and up by repetition, and further ones at full resolution; LeakyReLU(0.2).

    Args:
        incoming: channels of what it is given.
        down: channels of the levels from full resolution down; each is followed by halving.
        up: channels from the coarsest level up, one for each of ``down``, then those of the further convolutions.
    """

    def __init__(self, incoming: int, down: Sequence[int], up: Sequence[int]) -> None:
        super().__init__()
        before = [incoming, *down]
        self.down = nn.ModuleList(ConvBlock(a, b, "none") for a, b in zip(before, down, strict=False))
        levels = len(down)
        skips = [0, *reversed(down)]
        before = [down[-1], *up]
        self.up = nn.ModuleList(ConvBlock(before[i] + skips[i], up[i], "none") for i in range(levels))
        self.finest = nn.ModuleList(
            ConvBlock(before[i] + (skips[levels] if i == levels else 0), up[i], "none") for i in range(levels, len(up))
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, incoming, z, y, x), multiples of 2^levels, to (B, up[-1], z, y, x)."""
        skips: list[Tensor] = []
        features = image
        for conv in self.down:
            skips.append(conv(features))
            features = F.max_pool3d(skips[-1], 2)
        parts: tuple[Tensor, ...] = (features,)
        for conv in self.up:
            parts = F.interpolate(conv(*parts), scale_factor=2.0, mode="nearest"), skips.pop()
        for conv in self.finest:
            parts = (conv(*parts),)
        return parts[0]
