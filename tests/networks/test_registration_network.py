"""Networks at the resolution of their images and at a coarser one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.networks.registration_network import GridNetwork, RegistrationNetwork, pad_to_shape

SHAPE = (3, 4, 5)


class Echo(RegistrationNetwork):
    """Predicts a field that is made of its images: (moving, fixed, 2)."""

    def predict(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return torch.cat([moving, fixed, torch.full_like(fixed, 2.0)], dim=1)


def test_at_full_resolution_the_network_sees_the_images_themselves() -> None:
    network = GridNetwork(Echo(SHAPE, "displacement"), 1)
    assert network.shape == SHAPE
    moving, fixed = torch.rand(2, 1, 1, *SHAPE)
    flow, full = network(moving, fixed)
    assert torch.equal(flow, torch.cat([moving, fixed, torch.full_like(fixed, 2.0)], dim=1))
    assert full is flow
    assert torch.equal(network.predict_raw(moving, fixed), flow)


def test_at_half_resolution_it_sees_block_means_and_its_voxels_count_twice() -> None:
    network = GridNetwork(Echo(SHAPE, "displacement"), 2)
    assert network.shape == (6, 8, 10)
    moving, fixed = torch.rand(2, 1, 1, 6, 8, 10)
    flow, full = network(moving, fixed)
    blocks = moving.view(1, 1, 3, 2, 4, 2, 5, 2).mean(dim=(3, 5, 7))
    torch.testing.assert_close(flow[:, :1], blocks)
    torch.testing.assert_close(flow[:, 1:2], functional.avg_pool3d(fixed, 2))
    assert full.shape == (1, 3, 6, 8, 10)
    assert torch.equal(full[:, 2], torch.full((1, 6, 8, 10), 4.0))
    assert torch.equal(network.predict_raw(moving, fixed), full)


def test_a_velocity_is_followed_at_the_networks_own_resolution() -> None:
    network = GridNetwork(Echo(SHAPE, "velocity"), 2)
    assert network.predicts_velocity
    moving, fixed = torch.rand(2, 1, 1, 6, 8, 10)
    velocity = torch.cat([functional.avg_pool3d(image, 2) for image in (moving, fixed)], dim=1)
    velocity = torch.cat([velocity, torch.full_like(velocity[:, :1], 2.0)], dim=1)
    flow, full = network(moving, fixed)
    torch.testing.assert_close(flow, warping.exponential(velocity))
    torch.testing.assert_close(full, warping.upsample(warping.exponential(velocity)))
    torch.testing.assert_close(network.predict_raw(moving, fixed), warping.upsample(velocity))


def test_zero_flows_have_both_resolutions() -> None:
    flow, full = GridNetwork(Echo(SHAPE, "displacement"), 2).zero_flows(torch.rand(2, 1, 6, 8, 10))
    assert (flow.shape, full.shape) == ((2, 3, *SHAPE), (2, 3, 6, 8, 10))
    assert not flow.any()
    assert not full.any()


def test_the_networks_state_keeps_its_names() -> None:
    class Learning(Echo):
        def __init__(self) -> None:
            super().__init__(SHAPE, "displacement")
            self.conv = torch.nn.Conv3d(1, 1, 1)

    network = GridNetwork(Learning(), 2)
    assert set(network.network.state_dict()) == {"conv.weight", "conv.bias"}
    assert len(list(network.parameters())) == 2


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 8, 7), (9, 9, 9)])
def test_padding_lies_on_all_sides_and_is_cut_off_again(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random((4, 5, 6), dtype=np.float32)
    padded, crop = pad_to_shape(array, shape)
    assert padded.shape == shape
    assert np.array_equal(padded[crop], array)
    assert padded.sum() == pytest.approx(array.sum(), rel=1e-6)
    # An odd voxel lies behind the array.
    assert [part.start for part in crop] == [
        (size - length) // 2 for size, length in zip(shape, array.shape, strict=True)
    ]
