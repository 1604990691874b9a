from __future__ import annotations

import pytest
import torch
from monai.losses import DiffusionLoss
from torch import Tensor

from llmreg.similarity.regularity import bending_energy, folding_penalty, gradient_l2

SHAPE = (9, 12, 7)


def random_flow(scale: float, seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_gradient_l2_equals_a_plain_loop() -> None:
    flow = random_flow(2.0, 1, (4, 3, 5))
    means = []
    for axis in range(3):
        squares = []
        for index in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(3), torch.arange(5)).tolist():
            after = list(index)
            after[axis + 1] += 1
            if after[axis + 1] < (4, 3, 5)[axis]:
                squares.append(float(flow[(0, *after)] - flow[(0, *index)]) ** 2)
        means.append(sum(squares) / len(squares))
    assert float(gradient_l2(flow)) == pytest.approx(sum(means) / 3, rel=1e-5)


def test_gradient_l2_of_a_linear_field_equals_monai_up_to_its_sum_over_axes() -> None:
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in SHAPE), indexing="ij")
    flow = torch.einsum("ij,jzyx->izyx", matrix, torch.stack(axes))[None]
    assert float(gradient_l2(flow)) == pytest.approx(float(DiffusionLoss()(flow)) / 3, rel=1e-4)


def test_gradient_l2_sees_a_checkerboard_that_central_differences_miss() -> None:
    flow = (torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij")).sum(0) % 2).float()
    flow = flow.expand(1, 3, *SHAPE)
    assert float(DiffusionLoss()(flow)) == 0.0
    assert float(gradient_l2(flow)) == pytest.approx(1.0)


def test_bending_energy_is_the_mean_of_squared_second_derivatives() -> None:
    flow = random_flow(1.0, 5)

    def moved(*steps: tuple[int, int]) -> Tensor:
        """The field shifted by steps along axes, of the voxels that have all neighbours."""
        shifted = flow.roll([-step for _, step in steps], [axis for axis, _ in steps])
        return shifted[:, :, 1:-1, 1:-1, 1:-1]

    pure = [moved((axis, 1)) - 2 * moved((axis, 0)) + moved((axis, -1)) for axis in (2, 3, 4)]
    mixed = [
        (moved((a, 1), (b, 1)) - moved((a, 1), (b, -1)) - moved((a, -1), (b, 1)) + moved((a, -1), (b, -1))) / 4
        for a, b in ((2, 3), (2, 4), (3, 4))
    ]
    expected = sum(second.square().mean() for second in pure) + 2 * sum(second.square().mean() for second in mixed)
    assert float(bending_energy(flow)) == pytest.approx(float(expected), rel=1e-5)


def test_folding_counts_what_determinants_lack_to_a_bound() -> None:
    flow = torch.zeros(1, 3, *SHAPE)
    assert float(folding_penalty(flow)) == 0
    assert float(folding_penalty(flow, least=1.5)) == pytest.approx(0.5)
    # x -> -x: the determinant is -1 everywhere.
    flow[:, 0] = -2 * torch.arange(SHAPE[2])
    assert float(folding_penalty(flow)) == pytest.approx(1)
