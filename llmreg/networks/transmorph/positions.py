"""A sinusoidal encoding of places in a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sinusoidal_positions(shape: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Sines and cosines of each voxel's indices, (1, channels, z, y, x).

    A third of the channels, rounded up to an even number, is for each of z, y and x: the sines of the index at falling
    frequencies, then the cosines; channels beyond the last are cut off.
    Reference: Vaswani et al., Attention is all you need, NeurIPS 2017.

    Args:
        shape: (z, y, x).
        channels: their number.
        device: where to compute.
    """
    pairs = -(-channels // 6)
    frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
    parts = []
    for axis, size in enumerate(shape):
        angles = frequencies[:, None] * torch.arange(size, dtype=torch.float32, device=device)
        along = [1, 1, 1]
        along[axis] = size
        parts.append(torch.cat([angles.sin(), angles.cos()]).view(2 * pairs, *along).expand(-1, *shape))
    return torch.cat(parts)[None, :channels]
