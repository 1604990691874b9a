"""Dual-PRNet's pyramid: how the fields of its levels come together."""

from __future__ import annotations

import torch
from torch import nn

from llmreg.networks.dual_pyramid.network import DualPyramid
from llmreg.networks.network_registry import network_settings


def test_constant_fields_of_the_levels_add_up_in_the_finest_voxels() -> None:
    network = DualPyramid(network_settings("dual_pyramid"), (16, 32, 16))
    for head, displacement in zip(network.heads, (0.5, 0.25, -0.25, 0.125, 0.0625), strict=True):
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor([0.0, displacement, 0.0])
    with torch.no_grad():
        flow = network(torch.rand(1, 1, 16, 32, 16), torch.rand(1, 1, 16, 32, 16))
    expected = 8 * 0.5 + 4 * 0.25 - 2 * 0.25 + 0.125 + 0.0625
    torch.testing.assert_close(flow[:, 1], torch.full_like(flow[:, 1], expected))
    assert flow[:, [0, 2]].abs().max() == 0


def test_each_image_passes_through_the_encoder_alone_and_moving_features_come_first() -> None:
    network = DualPyramid(network_settings("dual_pyramid", width=2), (16, 16, 16))
    head_inputs = []
    network.heads[0].register_forward_hook(lambda module, inputs, output: head_inputs.append(inputs[0]))
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 16)
    with torch.no_grad():
        for pair in ((moving, fixed), (moving, moving), (fixed, fixed)):
            network(*pair)
    of_pair, (of_moving, _), (of_fixed, _) = (features.chunk(2, dim=1) for features in head_inputs)
    torch.testing.assert_close(of_pair, (of_moving, of_fixed))
    assert not torch.allclose(of_moving, of_fixed)


def test_the_coarser_flow_moves_the_features_of_the_moving_image_alone() -> None:
    network = DualPyramid(network_settings("dual_pyramid", width=2), (16, 16, 64))
    for head in network.heads:
        nn.init.zeros_(head.weight)
    head_inputs = []
    network.heads[1].register_forward_hook(lambda module, inputs, output: head_inputs.append(inputs[0]))
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 64)
    with torch.no_grad():
        for displacement, *pair in ((0.0, moving, moving), (0.0, fixed, fixed), (0.5, moving, fixed)):
            network.heads[0].bias.data = torch.tensor([displacement, 0.0, 0.0])
            network(*pair)
    (plain_moving, _), (plain_fixed, _), (warped_moving, warped_fixed) = (
        inputs.chunk(2, dim=1) for inputs in head_inputs
    )
    torch.testing.assert_close(warped_fixed, plain_fixed)
    # Half a voxel of the coarsest level is a whole one of the next.
    torch.testing.assert_close(warped_moving[..., :-1], plain_moving[..., 1:])
    assert not torch.allclose(warped_moving, plain_moving)
