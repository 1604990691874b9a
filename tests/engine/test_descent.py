import pytest
import torch
from torch import Tensor

from llmreg.engine.descent import FIRST_RATE, descend


def test_the_best_values_are_kept_even_if_later_ones_are_worse() -> None:
    heights, met = iter((3.0, 1.0, 2.0, 4.0)), []

    def objective(values: Tensor) -> Tensor:
        met.append(float(values.detach().mean()))
        # The height that is asked for, with a slope that moves every value on.
        return next(heights) + values.sum() - values.sum().detach()

    best, steps = descend(objective, torch.zeros(4), 3)
    assert steps == 3
    assert met[0] > met[1] > met[2] > met[3]
    assert float(best.mean()) == pytest.approx(met[1])


def test_a_parabola_ends_at_its_bottom_before_the_limit() -> None:
    start = torch.tensor([2.0, -1.0])
    best, steps = descend(lambda values: (values - torch.tensor([0.5, 0.25])).square().sum(), start, 1000)
    torch.testing.assert_close(best, torch.tensor([0.5, 0.25]), atol=0.25, rtol=0)
    assert steps < 200
    torch.testing.assert_close(start, torch.tensor([2.0, -1.0]))


def test_the_first_step_is_as_long_as_the_rate() -> None:
    best, steps = descend(lambda values: values.sum(), torch.zeros(3), 1)
    torch.testing.assert_close(best, torch.full((3,), -FIRST_RATE))
    assert steps == 1


def test_without_steps_nothing_moves() -> None:
    best, steps = descend(lambda values: values.sum(), torch.ones(3), 0)
    assert torch.equal(best, torch.ones(3))
    assert steps == 0
