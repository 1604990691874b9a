"""What all baselines have in common: their published sizes, and that they do what training and prediction ask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from llmreg.geometry import warping
from llmreg.networks.factory import build_network
from llmreg.networks.layers import FieldHead
from llmreg.networks.network_registry import NETWORKS, network_settings, plugin_of
from llmreg.networks.registration_network import RegistrationNetwork

# No edge is a multiple of 4.
SHAPE = (18, 15, 10)
SMALL = {"voxelmorph": {"size": "small"}, "transmorph": {"stages": 3}, "mambamorph": {"features": False}}
BASELINES = [name for name in NETWORKS.names if name != "llm_morph"]


def build_small(name: str, shape: tuple[int, ...] = SHAPE, **changes: Any) -> RegistrationNetwork:
    torch.manual_seed(0)
    return build_network(network_settings(name, **SMALL.get(name, {}), **changes), shape).eval()


def images(batch: int = 1) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 1, *SHAPE), torch.rand(batch, 1, *SHAPE)


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        ("voxelmorph", {}, 327_331),
        ("voxelmorph", {"size": "small"}, 92_179),
        ("transmorph", {}, 46_771_251),
        ("transmorph", {"stages": 3}, 14_287_299),
        # As published, without the head for contrastive learning: a convolution 16 -> 8 and one 8 -> 3.
        ("mambamorph", {}, 7_594_646 - (16 * 8 * 27 + 8) - (8 * 3 * 27 + 3)),
        ("mambamorph", {"features": False}, 7_305_459),
        ("dual_pyramid", {}, 200_455),
    ],
)
def test_networks_have_as_many_parameters_as_published(name: str, changes: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        network = build_network(network_settings(name, **changes), SHAPE, torch.device("meta"))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert network.llm_sha256 == ""
    settings = network_settings(name, **changes)
    assert plugin_of(settings).language_model(settings) is None


@pytest.mark.parametrize("name", BASELINES)
def test_any_size_gives_a_field_near_zero_for_each_pair_alone(name: str) -> None:
    network = build_small(name)
    moving, fixed = images(batch=2)
    with torch.no_grad():
        flow = network(moving, fixed)
        alone = torch.cat([network(moving[i : i + 1], fixed[i : i + 1]) for i in range(2)])
    assert (flow.shape, flow.dtype) == ((2, 3, *SHAPE), torch.float32)
    assert 0 < flow.abs().max() < 1e-2
    torch.testing.assert_close(flow, alone, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="are needed"):
        network(moving[..., :-1], fixed)


@pytest.mark.parametrize("name", BASELINES)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build_small(name)
    for head in network.modules():
        if isinstance(head, FieldHead):
            nn.init.normal_(head.weight, std=0.05)
    (network(*images()) - 1).square().mean().backward()
    assert not [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize("field", ["displacement", "velocity"])
@pytest.mark.parametrize("name", BASELINES)
def test_fields_are_in_voxels_along_x_y_and_z(name: str, field: str) -> None:
    if name == "dual_pyramid" and field == "velocity":
        with pytest.raises(ValidationError):
            network_settings(name, field=field)
        return
    network = build_small(name, field=field)
    assert network.predicts_velocity == (field == "velocity")
    heads = [module for module in network.modules() if isinstance(module, FieldHead)]
    for head in heads:
        nn.init.zeros_(head.weight)
    heads[-1].bias.data = torch.tensor([1.5, -0.5, 0.25])
    with torch.no_grad():
        flow, raw = network(*images()), network.predict_raw(*images())
    expected = torch.tensor([1.5, -0.5, 0.25]).view(1, 3, 1, 1, 1).expand_as(flow)
    torch.testing.assert_close(flow, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(warping.exponential(raw) if network.predicts_velocity else raw, flow)
    # Each voxel shows what lies at its index plus the field.
    ramps = warping.identity_grid(SHAPE)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    torch.testing.assert_close((warping.warp(ramps, flow) - ramps)[inner], expected[inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("voxelmorph", {"size": "huge"}), ("transmorph", {"stages": 5}), ("mambamorph", {"depth": 1})],
)
def test_settings_that_no_network_has_are_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        network_settings(name, **changes)


@pytest.mark.parametrize("shape", [(32, 16), (0, 16, 16)])
def test_shapes_that_are_not_three_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="three sizes"):
        build_small("voxelmorph", shape)


@pytest.mark.parametrize(
    ("name", "first"), [("voxelmorph", "unet"), ("transmorph", "encoder"), ("mambamorph", "encoder")]
)
def test_the_moving_image_is_the_first_channel(name: str, first: str) -> None:
    """Checkpoints of a network that was trained so would predict nonsense if the channels were exchanged."""
    network = build_small(name)
    inputs: list[Tensor] = []
    getattr(network, first).register_forward_pre_hook(lambda module, values: inputs.append(values[0]))
    moving, fixed = images()
    with torch.no_grad():
        network(moving, fixed)
    padded = inputs[0][:, :, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    torch.testing.assert_close(padded, torch.cat([moving, fixed], dim=1))
