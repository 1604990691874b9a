"""Networks that are built without memory for their numbers, and what is true of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from llmreg.devices import Machine
from llmreg.networks.factory import build_network
from llmreg.networks.network_registry import NetworkSettings, StepCost, StepSize, plugin_of


def build_on_meta(settings: NetworkSettings, shape: Sequence[int] = (32, 32, 32)) -> nn.Module:
    with torch.device("meta"):
        return build_network(settings, shape, torch.device("meta"))


def count_parameters(settings: NetworkSettings) -> int:
    return sum(parameter.numel() for parameter in build_on_meta(settings).parameters() if parameter.requires_grad)


def cost_of(settings: NetworkSettings, edge: int = 64, *, bfloat16: bool = False, **changes: Any) -> StepCost:
    """The cost of a step on a cube of some voxels along each edge."""
    size = StepSize((edge,) * 3, edge**3, Machine("cpu", 64, 2, bfloat16), **changes)
    return plugin_of(settings).step_cost(settings, size)


def count_coarsest_stride(settings: NetworkSettings, edge: int = 32) -> int:
    """How many voxels of a cube one voxel or token of the network's smallest features spans."""
    torch.manual_seed(0)
    network = build_network(settings, (edge,) * 3).eval()
    edges: set[int] = set()

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        # Channels come second or last.
        if torch.is_tensor(output) and output.ndim == 5 and output.shape[2] == output.shape[3]:
            edges.add(output.shape[2])

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.no_grad():
        network(*torch.rand(2, 1, 1, edge, edge, edge))
    return edge // min(edges)


def assert_cost_grows_with_voxels(settings: NetworkSettings) -> None:
    """Twice the edge has eight times the voxels; parameters stay, and bfloat16 takes less time."""
    small, large, rounded = cost_of(settings), cost_of(settings, 128), cost_of(settings, bfloat16=True)
    assert small.trained_parameters == large.trained_parameters == rounded.trained_parameters
    assert small.activations_gb > 0
    assert small.core_seconds > 0
    assert large.activations_gb == pytest.approx(8 * small.activations_gb)
    assert large.core_seconds == pytest.approx(8 * small.core_seconds)
    assert rounded.core_seconds < small.core_seconds
    assert small.frozen_bytes == 0


def assert_any_shape_fits(settings: NetworkSettings) -> None:
    """The network takes a configuration whose edges share no factor."""
    plugin, shape = plugin_of(settings), (18, 15, 11)
    assert plugin.stride(settings) == 1
    assert plugin.token_grid(settings, shape) is None
    assert plugin.shape_problem(settings, shape, (1, 1, 1)) is None
    build_on_meta(settings, shape)
