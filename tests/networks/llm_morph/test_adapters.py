"""Where channels of tokens land among voxels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmreg.networks.llm_morph.adapters import StageAdapter, TokenAdapter, UpConvolution, voxel_shuffle

GRIDS = {8: (2, 2, 2), 180: (6, 5, 6), 1716: (11, 13, 12)}


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_each_channel_lands_in_its_voxel(factor: int) -> None:
    grid, channels = (2, 3, 4), 2
    d, h, w = grid
    tokens = torch.arange(d * h * w * channels * factor**3, dtype=torch.float32).reshape(1, d * h * w, -1)
    volume = voxel_shuffle(tokens, grid, factor)
    assert volume.shape == (1, channels, d * factor, h * factor, w * factor)
    for token in range(d * h * w):
        z, y, x = token // (h * w), token // w % h, token % w
        for c in range(channels):
            for offset in range(factor**3):
                dz, dy, dx = offset // factor**2, offset // factor % factor, offset % factor
                voxel = volume[0, c, z * factor + dz, y * factor + dy, x * factor + dx]
                assert voxel == tokens[0, token, c * factor**3 + offset]


@pytest.mark.parametrize("tokens", GRIDS)
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("direct", [False, True])
def test_stage_adapters_match_the_encoder(tokens: int, stage: int, direct: bool) -> None:
    grid, base = GRIDS[tokens], 16
    with torch.device("meta"):
        adapter = StageAdapter(576, base, stage, direct=direct)
        features = adapter(torch.empty(1, tokens, 576), grid)
    assert adapter.linear.out_features == {4: 256, 3: 1024, 2: 4096, 1: 16384}[stage]
    channels = {4: 32, 3: 16, 2: 8, 1: 4}[stage] if direct else base * 2 ** (stage - 1)
    assert features.shape == (1, channels, *(size * 2 ** (5 - stage) for size in grid))
    assert adapter.channels == channels


def test_up_convolution_equals_a_matrix_per_voxel() -> None:
    up = UpConvolution(5, 3)
    features = torch.randn(2, 5, 2, 3, 4)
    blocks = torch.einsum("bcdhw,coxyz->bodxhywz", features, up.weight)
    expected = blocks.reshape(2, 3, 4, 6, 8) + up.bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(up(features), expected, rtol=1e-4, atol=1e-5)


def test_adapter_0_normalises_over_tokens() -> None:
    adapter = TokenAdapter(6, 10, 7)
    tokens = torch.randn(2, 9, 6)
    hidden = F.leaky_relu(F.instance_norm(adapter.widen(tokens).transpose(1, 2)), 0.2).transpose(1, 2)
    torch.testing.assert_close(adapter(tokens), adapter.project(hidden), rtol=1e-4, atol=1e-5)
