"""Cost volumes, against loops over voxels and steps."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from llmreg.networks.llm_morph.cost_volume import DILATION, SCALE, cost_volume
from llmreg.networks.llm_morph.settings import cost_channels
from llmreg.similarity.mind import mind_ssc


def by_loops(moving: Tensor, fixed: Tensor, radius: int) -> Tensor:
    there, here = mind_ssc(moving, dilation=DILATION), mind_ssc(fixed, dilation=DILATION)
    shape = fixed.shape[2:]
    found = torch.zeros(len(fixed), cost_channels(radius), *shape)
    for channel, step in enumerate(product(range(-radius, radius + 1), repeat=3)):
        for voxel in product(*map(range, shape)):
            z, y, x = (min(max(i + s, 0), n - 1) for i, s, n in zip(voxel, step, shape, strict=True))
            apart = here[(..., *voxel)] - there[:, :, z, y, x]
            found[(slice(None), channel, *voxel)] = SCALE * apart.square().mean(dim=1)
    return found


@pytest.mark.parametrize("radius", [1, 2])
def test_as_by_loops(radius: int) -> None:
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(2, 1, 4, 5, 6, generator=generator) for _ in range(2))
    torch.testing.assert_close(cost_volume(moving, fixed, radius), by_loops(moving, fixed, radius))


def test_the_step_to_where_the_image_went_costs_nothing_in_another_contrast_too() -> None:
    fixed = torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(1))
    # fixed(p) = moving(p + step) with step (z, y, x) = (0, 1, -1), and the contrast is inverted.
    moving = 0.8 - 0.5 * fixed.roll((1, -1), dims=(3, 4))
    costs = cost_volume(moving, fixed, 1)[0, :, 4:-4, 4:-4, 4:-4].mean(dim=(1, 2, 3))
    there = list(product((-1, 0, 1), repeat=3)).index((0, 1, -1))
    assert costs[there] == pytest.approx(0, abs=1e-5)
    assert costs[torch.arange(27) != there].min() > 0.1


def test_it_has_no_gradient_and_computes_in_float32() -> None:
    moving = torch.rand(1, 1, 8, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cost_volume(moving, torch.rand(1, 1, 8, 8, 8), 1)
    assert not found.requires_grad
    assert found.dtype == torch.float32
    assert (cost_channels(0), cost_channels(1), cost_channels(2)) == (0, 27, 125)
