"""TransMorph's parts: windows over maps of any size, and blocks that training skips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmreg.networks.network_registry import network_settings
from llmreg.networks.transmorph.network import WINDOW, TransMorph, WindowStage


@pytest.mark.parametrize("size", [(1, 2, 3), (5, 6, 7), (6, 6, 15)])
def test_windows_lie_over_maps_of_any_size(size: tuple[int, ...]) -> None:
    tokens = torch.randn(2, *size, 8)
    assert WindowStage(8, 2, [0.0, 0.0])(tokens).shape == tokens.shape


def test_attention_knows_offsets_in_maps_smaller_than_a_window() -> None:
    """With a table that favours the next token along x, each token looks there."""
    stage = WindowStage(4, 1, [0.0])
    block = stage.blocks[0]
    for linear in (block.attn.qkv, block.attn.proj, block.mlp.linear1, block.mlp.linear2):
        nn.init.zeros_(linear.weight)
    nn.init.zeros_(block.mlp.linear2.bias)
    nn.init.zeros_(block.attn.proj.bias)
    # Values are the tokens themselves, and only they reach the result.
    block.norm1 = nn.Identity()
    block.attn.qkv.weight.data[8:] = torch.eye(4)
    block.attn.proj.weight.data = torch.eye(4)
    z, y, x = WINDOW
    ahead = ((z - 1) * (2 * y - 1) + (y - 1)) * (2 * x - 1) + (x - 1) - 1
    nn.init.zeros_(block.attn.relative_position_bias_table)
    block.attn.relative_position_bias_table.data[ahead] = 50.0
    tokens = torch.randn(1, 2, 3, 4, 4)
    attention_output: Tensor = stage(tokens) - tokens
    torch.testing.assert_close(attention_output[..., :3, :], tokens[..., 1:, :], rtol=1e-4, atol=1e-4)


def test_training_skips_blocks_by_the_seed() -> None:
    network = TransMorph(network_settings("transmorph", stages=3, drop_path=0.9), (16, 16, 16))
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 16)

    def of(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with torch.no_grad():
            return network(moving, fixed)

    assert torch.equal(of(0), of(0))
    assert not torch.equal(of(0), of(1))
    network.eval()
    assert torch.equal(of(0), of(1))
