"""Adapters between voxels and the language model's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from llmreg.networks.layers import SLOPE, UpConvolution


class TokenAdapter(nn.Module):
    """Adapter_0: Linear, InstanceNorm over the tokens, LeakyReLU, Linear; (B, L, C) -> (B, L, H)."""

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(channels, hidden)
        self.weight = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.project = nn.Linear(hidden, width)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.widen(tokens).float()
        variance, mean = torch.var_mean(hidden, dim=1, keepdim=True, correction=0)
        hidden = (hidden - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias
        projected: Tensor = self.project(F.leaky_relu(hidden, SLOPE))
        return projected


def voxel_shuffle(tokens: Tensor, grid: Sequence[int], factor: int) -> Tensor:
    """Spread each token's channels over a block of factor^3 voxels.

    Args:
        tokens: (B, L, C * factor^3), L = d * h * w with w fastest; channel
            c * factor^3 + dz * factor^2 + dy * factor + dx.
        grid: (d, h, w).
        factor: edge of a block.

    Returns:
        (B, C, d * factor, h * factor, w * factor) with the channel above at voxel (z * factor + dz, ...) of channel c.
    """
    batch, _, channels = tokens.shape
    d, h, w = grid
    c = channels // factor**3
    blocks = tokens.reshape(batch, d, h, w, c, factor, factor, factor).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return blocks.reshape(batch, c, d * factor, h * factor, w * factor)


class StageAdapter(nn.Module):
    """Adapter_j: tokens (B, L, H) to the feature map F^j at 1/2^(j-1) of the resolution.

    One linear layer to C_j = 16 c 4^(4-j) channels, then a voxel-shuffle. ``half`` shuffles by 2^(4-j), to half the
    stage's resolution, and a transposed convolution (kernel 2, stride 2) halves the channels and doubles the
    resolution, which gives the encoder's c 2^(j-1) channels. ``direct`` shuffles by 2^(5-j) and stops.
    """

    def __init__(self, width: int, base: int, stage: int, *, direct: bool) -> None:
        super().__init__()
        total = 16 * base * 4 ** (4 - stage)
        self.factor = 2 ** (5 - stage if direct else 4 - stage)
        shuffled = total // self.factor**3
        self.channels = shuffled if direct else shuffled // 2
        self.linear = nn.Linear(width, total)
        self.up = None if direct else UpConvolution(shuffled, self.channels)

    @override
    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        features = voxel_shuffle(self.linear(tokens), grid, self.factor)
        return features if self.up is None else self.up(features)
