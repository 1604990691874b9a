from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from llmreg.plans.plans import Loss, Training
from llmreg.training import budget
from llmreg.training.objective import Predicted, terms, total
from llmreg.training.step import Learner, NotFinite, added, means

SHAPE = (8, 8, 8)


class Shift(nn.Module):
    """A network that shifts everything by what it has learned."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.shift.view(1, 3, 1, 1, 1) * (1 + moving)


class Settings:
    """The part of plans that a learner looks at."""

    def __init__(self, **training: object) -> None:
        self.loss = Loss()
        self.training = Training.model_validate({"clip_gradient": None, "autocast": "none"} | training)


def batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 1, 1, *SHAPE, generator=generator)
    labels = (torch.rand(2, 1, *SHAPE, generator=generator) > 0.5).to(torch.uint8)
    seen = torch.ones(1, *SHAPE, dtype=torch.uint8)
    return {
        "fixed": images[0],
        "moving": images[1],
        "fixed_labels": labels[0],
        "moving_labels": labels[1],
        "fixed_seen": seen,
        "moving_seen": seen,
        "labels": torch.tensor([1]),
        "sample": torch.tensor([seed]),
    }


def learner(network: nn.Module, **training: object) -> Learner:
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    return Learner(Settings(**training), 1, network, optimizer, torch.device("cpu"))  # type: ignore[arg-type]


def losses(network: nn.Module, seeds: range) -> Iterator[Tensor]:
    for seed in seeds:
        flow = network(batch(seed)["moving"], batch(seed)["fixed"])
        yield total(terms(Predicted(batch(seed), flow, flow, 1), Loss()), Loss())


def test_a_step_goes_down_the_mean_gradient_of_what_it_accumulates() -> None:
    network, expected = Shift(), Shift()
    found = learner(network, accumulate=3).step(map(batch, range(3)), 0.5)
    mean = torch.stack(list(losses(expected, range(3)))).mean()
    mean.backward()
    assert expected.shift.grad is not None
    torch.testing.assert_close(network.shift.data, expected.shift.data - 0.5 * expected.shift.grad)
    assert means(found)["loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert set(found) == {"loss", "loss_dice", "loss_smoothness"}
    assert {count for _, count in found.values()} == {3}


def test_gradients_are_clipped_where_the_plans_say_so() -> None:
    network = Shift()
    before = network.shift.data.clone()
    learner(network, clip_gradient=1e-3).step(map(batch, range(1)), 1.0)
    assert float((network.shift.data - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_no_number_stops_before_the_weights_change() -> None:
    network = Shift()
    before = network.shift.data.clone()
    bad = batch(7) | {"moving": torch.full((1, 1, *SHAPE), torch.nan)}
    with pytest.raises(NotFinite) as met:
        learner(network).step(iter([bad]), 1.0)
    assert torch.equal(network.shift.data, before)
    assert met.value.batch["sample"].tolist() == [7]
    assert "loss_smoothness" in met.value.values


def test_sums_of_values_that_are_not_always_known() -> None:
    together = added([{"a": (1.0, 1), "b": (2.0, 1)}, {"a": (3.0, 2)}, {}])
    assert together == {"a": (4.0, 3), "b": (2.0, 1)}
    assert means(together) == {"a": 4 / 3, "b": 2.0}


def test_the_time_of_a_step_is_measured_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Shift()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    learner = Learner(Settings(), 1, network, optimizer, torch.device("cpu"))  # type: ignore[arg-type]
    before, state = network.shift.detach().clone(), torch.get_rng_state()
    clock = iter((0.0, 50.0, 100.0, 102.0, 200.0, 203.0, 300.0, 304.0, 400.0, 409.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    # Without the first, 2, 3, 4 and 9 seconds.
    assert budget.seconds_per_step(learner, optimizer, map(batch, range(budget.TRIAL_STEPS))) == 3.5
    assert torch.equal(network.shift, before)
    assert not optimizer.state
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("minutes", "expected"), [(10, 4), (9.9, 3), (0.01, 1)])
def test_epochs_that_fit(minutes: float, expected: int) -> None:
    assert budget.epochs_within(minutes, 3.0, 50) == expected
