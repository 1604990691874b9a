"""VoxelMorph's parts: its U-Net and its velocity on half the grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmreg.networks.network_registry import network_settings
from llmreg.networks.voxelmorph.network import UNet, VoxelMorph


@pytest.mark.parametrize("image", [(1, 2, 8, 4, 12), (2, 2, 4, 4, 4)])
def test_a_unet_gives_its_last_channels_at_full_resolution(image: tuple[int, ...]) -> None:
    features = UNet(2, (4, 6), (5, 7, 3, 9))(torch.rand(image))
    assert features.shape == (image[0], 9, *image[2:])


def test_a_velocity_has_half_the_resolution() -> None:
    network = VoxelMorph(network_settings("voxelmorph", size="small"), (16, 16, 16))
    nn.init.normal_(network.head.weight, std=0.1)
    moving, fixed = torch.rand(2, 1, 1, 16, 16, 16)
    with torch.no_grad():
        velocity = network.predict_raw(moving, fixed)
    assert velocity.abs().max() > 1e-3
    # Between the centres of half as many voxels it is linear: of its steps from voxel to voxel, every other one is the
    # mean of its neighbours.
    steps = velocity.diff(dim=4)
    torch.testing.assert_close(steps[..., 2:-1:2], (steps[..., 1:-2:2] + steps[..., 3::2]) / 2)
