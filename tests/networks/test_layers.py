from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from llmreg.networks.layers import ConvBlock, FieldHead, up_convolution


@pytest.mark.parametrize("save_memory", [False, True])
@pytest.mark.parametrize(("normalization", "affine"), [("instance", True), ("instance", False), ("none", True)])
def test_a_block_is_convolution_normalization_and_leaky_relu(
    normalization: str, affine: bool, save_memory: bool
) -> None:
    torch.manual_seed(0)
    block = ConvBlock(3, 4, normalization, stride=2, slope=0.1, affine=affine)
    for name, parameter in block.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter)
    parts = torch.randn(1, 2, 6, 6, 8), torch.randn(1, 1, 6, 6, 8)
    weights = block.state_dict()
    expected = functional.conv3d(
        torch.cat(parts, dim=1), weights["conv.weight"], weights.get("conv.bias"), stride=2, padding=1
    )
    if normalization == "instance":
        assert "conv.bias" not in weights
        expected = functional.instance_norm(expected, weight=weights.get("norm.weight"), bias=weights.get("norm.bias"))
    expected = functional.leaky_relu(expected, 0.1)
    torch.testing.assert_close(block(*parts, save_memory=save_memory), expected, rtol=1e-4, atol=1e-5)


def test_a_field_head_starts_near_zero_and_computes_in_float32() -> None:
    head = FieldHead(4)
    features = torch.randn(1, 4, 5, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        field = head(features.bfloat16())
    assert (field.dtype, field.shape) == (torch.float32, (1, 3, 5, 5, 5))
    assert 0 < field.abs().max() < 1e-3


def test_an_up_convolution_doubles_the_resolution() -> None:
    up = up_convolution(2, 3)
    features = torch.randn(1, 2, 2, 3, 4)
    output = up(features)
    assert output.shape == (1, 3, 4, 6, 8)
    # Each voxel is spread over the block of eight that lies where it is.
    weights = up.state_dict()
    block = torch.einsum("c,coxyz->oxyz", features[0, :, 1, 2, 3], weights["weight"]) + weights["bias"].view(3, 1, 1, 1)
    torch.testing.assert_close(output[0, :, 2:4, 4:6, 6:8], block)
