from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from llmreg.similarity.box_sums import sum_boxes


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 9])
def test_a_sum_is_the_mean_of_a_pooling_window_times_its_voxels(width: int) -> None:
    volume = torch.rand(2, 3, 9, 11, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = functional.avg_pool3d(volume, width, stride=1) * width**3
    torch.testing.assert_close(sum_boxes(volume, width), expected)


def test_gradient_by_finite_differences() -> None:
    volume = torch.rand(1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda leaf: sum_boxes(leaf, 3), volume.requires_grad_())
