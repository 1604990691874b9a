"""Every registered network learns a known shift of two voxels, in the right direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmreg.geometry import warping
from llmreg.networks.factory import build_network
from llmreg.networks.network_registry import NETWORKS, default_settings
from llmreg.networks.registration_network import GridNetwork

SIZE, STEPS, TOLERANCE = 32, 150, 0.3
# The smallest settings of each network and a learning rate that suits it; other networks take their default settings.
SMALLEST: dict[str, tuple[dict[str, Any], float]] = {
    "llm_morph": ({"width": 4, "token_width": 32, "blocks": "adapters", "cost_volume": 1}, 2e-3),
    "voxelmorph": ({"size": "small"}, 5e-3),
    "dual_pyramid": ({"width": 4}, 5e-3),
    "transmorph": ({"stages": 3, "drop_path": 0.0}, 3e-3),
    "mambamorph": ({"features": False}, 1e-3),
}
# From a voxel of the fixed image to the same place in the moving one, (x, y, z).
SHIFT = (2.0, 0.0, 0.0)
INSIDE = (slice(None), slice(None), *[slice(6, -6)] * 3)


def shifted_pair() -> tuple[Tensor, Tensor]:
    """A moving and a fixed image with fixed(p) = moving(p + 2 along x)."""
    coarse = torch.rand(1, 1, 9, 9, 10, generator=torch.Generator().manual_seed(0))
    wide = functional.interpolate(coarse, size=(SIZE, SIZE, SIZE + 4), mode="trilinear")
    return wide[..., :SIZE].clone(), wide[..., 2 : SIZE + 2].clone()


def mean_error(first: Tensor, second: Tensor) -> Tensor:
    return (first - second)[INSIDE].square().mean()


@pytest.mark.parametrize("name", NETWORKS.names)
def test_a_shift_of_two_voxels_is_learned(name: str) -> None:
    changes, rate = SMALLEST.get(name, ({}, 1e-3))
    torch.manual_seed(0)
    settings = default_settings(name).model_copy(update=changes)
    network = GridNetwork(build_network(settings, (SIZE, SIZE, SIZE)), 1).train()
    moving, fixed = shifted_pair()
    expected = torch.tensor(SHIFT)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=rate)
    for _ in range(STEPS):
        flow = network(moving, fixed).full
        error = mean_error(warping.warp(moving, flow), fixed)
        mean = flow.detach()[INSIDE].mean(dim=(0, 2, 3, 4))
        if (mean - expected).abs().max() < TOLERANCE and error < 0.3 * mean_error(moving, fixed):
            break
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    torch.testing.assert_close(mean, expected, rtol=0, atol=TOLERANCE)
    assert error < 0.3 * mean_error(moving, fixed)
    # The field leads from the fixed to the moving image: applied the wrong way round it moves them further apart.
    assert mean_error(warping.warp(fixed, flow.detach()), moving) > mean_error(moving, fixed)
