"""What TransMorph and MambaMorph share: a pyramid of tokens, and the decoder with skips from it.

Tokens of 4 x 4 x 4 voxels are merged from stage to stage.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from llmreg.networks.layers import ConvBlock, FieldHead

PATCH, WIDTH = 4, 96
# Channels of the decoder at full resolution.
_FINEST = 16
# 3x3x3 convolution, instance normalization without parameters, LeakyReLU(0.01).
_normalized_conv = partial(ConvBlock, slope=0.01, affine=False)


def stage_widths(stages: int) -> list[int]:
    """Channels of the stages' tokens."""
    return [WIDTH * 2**stage for stage in range(stages)]


def sinusoidal_positions(shape: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of each voxel's indices, (1, channels, z, y, x).

    Each of z, y and x gets a third of the channels, rounded up to an even number: the sines of the index at falling
    frequencies, then the cosines. Channels that exceed the number are cut off.
    Reference: Vaswani et al., Attention is all you need, NeurIPS 2017.

    Args:
        shape: (z, y, x).
        channels: their number.
        device: where to compute.
    """
    pairs = -(-channels // 6)
    frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
    indices = torch.meshgrid(*(torch.arange(size, dtype=torch.float32, device=device) for size in shape), indexing="ij")
    angles = torch.stack(indices)[:, None] * frequencies[:, None, None, None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).flatten(0, 1)[None, :channels]


class TokenPyramid(nn.Module):
    """Patch embedding, then stages with patch merging in between; each stage's result is normalised on its way out.

    Args:
        incoming: channels of the images together.
        stages: modules (B, d, h, w, C) -> the same, with C twice that of the one before, from 96.
        positions: whether to add a sinusoidal encoding of the tokens' positions.
    """

    def __init__(self, incoming: int, stages: Sequence[nn.Module], *, positions: bool = False) -> None:
        super().__init__()
        self.positions = positions
        self.embedding = PatchEmbed(PATCH, incoming, WIDTH, nn.LayerNorm, spatial_dims=3)
        self.stages = nn.ModuleList(stages)
        widths = stage_widths(len(stages))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.merges = nn.ModuleList(PatchMergingV2(width) for width in widths[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, 96, z / 4, y / 4, x / 4), (B, 192, z / 8, ...) and so on, finest first."""
        embedded = self.embedding(images)
        if self.positions:
            embedded = embedded + sinusoidal_positions(embedded.shape[2:], WIDTH, embedded.device)
        tokens = embedded.movedim(1, -1)
        pyramid: list[Tensor] = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            if pyramid:
                tokens = self.merges[len(pyramid) - 1](tokens)
            tokens = stage(tokens)
            pyramid.append(norm(tokens).movedim(-1, 1))
        return pyramid


class UpBlock(nn.Module):
    """Trilinear upsampling by 2, concatenation with a skip, two convolutions."""

    def __init__(self, incoming: int, skipped: int, outgoing: int) -> None:
        super().__init__()
        self.first = _normalized_conv(incoming + skipped, outgoing)
        self.second = _normalized_conv(outgoing, outgoing)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B, incoming, z, y, x) and the skip (B, skipped, 2 z, 2 y, 2 x) -> (B, outgoing, 2 z, 2 y, 2 x)."""
        finer = nn.functional.interpolate(features, scale_factor=2.0, mode="trilinear", align_corners=False)
        return cast(Tensor, self.second(self.first(finer, skip)))


class SkipDecoder(nn.Module):
    """Decode tokens to a flow or a velocity, with skips from the tokens and, by one convolution, from the images.

    Args:
        incoming: channels of the images, or of their features at full resolution, together.
        widths: channels of the tokens at 1/4, 1/8, ... of the resolution.
    """

    def __init__(self, incoming: int, widths: Sequence[int]) -> None:
        super().__init__()
        half = widths[0] // 2
        self.full_skip = _normalized_conv(incoming, _FINEST)
        self.half_skip = _normalized_conv(incoming, half)
        self.blocks = nn.ModuleList(UpBlock(a, b, b) for a, b in pairwise([*reversed(widths), half, _FINEST]))
        self.head = FieldHead(_FINEST)

    def forward(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """Predict the flow or velocity (B, 3, z, y, x), float32.

        Args:
            images: (B, incoming, z, y, x).
            pyramid: (B, width, z / 4, y / 4, x / 4) and so on, finest first.
        """
        # As published, this is a mean of 3 x 3 x 3 voxels in which the zeros beyond the border count.
        half = nn.functional.avg_pool3d(images, 3, stride=2, padding=1)
        skips = [self.full_skip(images), self.half_skip(half), *pyramid[:-1]]
        features = pyramid[-1]
        for block in self.blocks:
            features = block(features, skips.pop())
        return cast(Tensor, self.head(features))
