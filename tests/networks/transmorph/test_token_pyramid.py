"""What TransMorph and MambaMorph share: positions, the pyramid of tokens and the decoder."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmreg.networks.transmorph.token_pyramid import SkipDecoder, TokenPyramid, sinusoidal_positions


@pytest.mark.parametrize("channels", [96, 12, 10])
def test_positions_are_encoded_axis_by_axis(channels: int) -> None:
    encoding = sinusoidal_positions((3, 4, 5), channels, torch.device("cpu"))
    assert encoding.shape == (1, channels, 3, 4, 5)
    pairs = math.ceil(channels / 6)
    # The second frequency of y at index 3: its sine, then its cosine.
    frequency = 10000 ** (-1 / pairs)
    voxel = encoding[0, :, 2, 3, 4]
    assert voxel[2 * pairs + 1] == pytest.approx(math.sin(3 * frequency), abs=1e-5)
    assert voxel[3 * pairs + 1] == pytest.approx(math.cos(3 * frequency), abs=1e-5)


@pytest.mark.parametrize("positions", [False, True])
def test_stages_see_merged_tokens_of_four_voxels(positions: bool) -> None:
    stage_inputs: list[Tensor] = []
    stages = [nn.Identity(), nn.Identity()]
    for stage in stages:
        stage.register_forward_pre_hook(lambda _, inputs: stage_inputs.append(inputs[0]))
    pyramid = TokenPyramid(2, stages, positions=positions)
    images = torch.rand(1, 2, 8, 16, 24)
    fine, coarse = pyramid(images)
    assert (fine.shape, coarse.shape) == ((1, 96, 2, 4, 6), (1, 192, 1, 2, 3))
    embedded = pyramid.embedding(images) + (sinusoidal_positions((2, 4, 6), 96, images.device) if positions else 0)
    torch.testing.assert_close(stage_inputs[0], embedded.movedim(1, -1))
    torch.testing.assert_close(stage_inputs[1], pyramid.merges[0](stage_inputs[0]))
    torch.testing.assert_close(fine.movedim(1, -1), functional.layer_norm(stage_inputs[0], (96,)))


def test_the_decoder_joins_each_resolution_with_its_skip() -> None:
    """Features of each resolution enter the block of that resolution through their skip."""
    decoder = SkipDecoder(2, [8, 16])
    nn.init.normal_(decoder.head.weight, std=0.1)
    images, pyramid = torch.rand(1, 2, 16, 16, 32), [torch.rand(1, 8, 4, 4, 8), torch.rand(1, 16, 2, 2, 4)]
    block_inputs: dict[int, tuple[Tensor, ...]] = {}
    for index, block in enumerate(decoder.blocks):
        block.register_forward_pre_hook(lambda _, inputs, index=index: block_inputs.__setitem__(index, inputs))
    with torch.no_grad():
        field = decoder(images, pyramid)
    assert (field.shape, field.dtype) == ((1, 3, 16, 16, 32), torch.float32)
    assert torch.equal(block_inputs[0][0], pyramid[1])
    skips = [pyramid[0], decoder.half_skip(functional.avg_pool3d(images, 3, 2, 1)), decoder.full_skip(images)]
    for index, skip in enumerate(skips):
        torch.testing.assert_close(block_inputs[index][1], skip)
