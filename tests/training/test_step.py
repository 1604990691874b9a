from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loss_batches import label_blocks, make_batch, rand
from torch import Tensor, nn
from torch.nn import functional

from llmreg.plans.plan_settings import Training
from llmreg.similarity.loss_settings import LossSettings, compute_terms, sum_terms
from llmreg.similarity.term_registry import LossInputs
from llmreg.training.step import Learner, NonFiniteBatch, add_sums, mean_values

SHAPE = (8, 8, 8)
# The image term makes the result depend on images as well as labels, and on the flow at both resolutions.
LOSS = LossSettings(similarity=1, similarity_kind="lncc")


class Shift(nn.Module):
    """A network that shifts everything by what it has learned, depending on the moving image, at half resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]))

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        flow = self.shift.view(1, 3, 1, 1, 1) * (1 + functional.avg_pool3d(moving, 2))
        return flow, 2 * functional.interpolate(flow, scale_factor=2.0)


def batch(seed: int) -> dict[str, Tensor]:
    seen_mask = torch.ones(1, *SHAPE, dtype=torch.uint8)
    return make_batch(labels=(1,)) | {
        "fixed": rand(1, 1, *SHAPE, seed=10 * seed + 1),
        "moving": rand(1, 1, *SHAPE, seed=10 * seed + 2),
        "fixed_labels": label_blocks(1, 10 * seed + 3, SHAPE),
        "moving_labels": label_blocks(1, 10 * seed + 4, SHAPE),
        "fixed_seen": seen_mask,
        "moving_seen": seen_mask,
        "sample": torch.tensor([seed]),
    }


def make_learner(network: nn.Module, **training: object) -> Learner:
    settings = Training.model_validate({"clip_gradient": None, "autocast": "none"} | training)
    return Learner(network, torch.optim.SGD(network.parameters(), lr=1.0), torch.device("cpu"), LOSS, settings)


def losses(network: nn.Module, seeds: range) -> Iterator[Tensor]:
    for pair in map(batch, seeds):
        flow, full_flow = network(pair["moving"], pair["fixed"])
        yield sum_terms(compute_terms(LossInputs(pair, flow, full_flow), LOSS), LOSS)


def test_a_step_goes_down_the_mean_gradient_of_what_it_accumulates() -> None:
    network, expected = Shift(), Shift()
    sums = make_learner(network, accumulate=3).step(map(batch, range(3)), 0.5)
    mean = torch.stack(list(losses(expected, range(3)))).mean()
    mean.backward()
    assert expected.shift.grad is not None
    torch.testing.assert_close(network.shift.data, expected.shift.data - 0.5 * expected.shift.grad)
    assert mean_values(sums)["loss"] == pytest.approx(mean.item(), rel=1e-6)
    assert set(sums) == {"loss", "loss_dice", "loss_similarity", "loss_smoothness"}
    assert {count for _, count in sums.values()} == {3}


def test_gradients_are_clipped_where_the_settings_say_so() -> None:
    network = Shift()
    start = network.shift.data.clone()
    make_learner(network, clip_gradient=1e-3).step(map(batch, range(1)), 1.0)
    assert float((network.shift.data - start).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    network = Shift()
    start = network.shift.data.clone()
    bad_batch = batch(7) | {"moving": torch.full((1, 1, *SHAPE), torch.nan)}
    with pytest.raises(NonFiniteBatch) as failure:
        make_learner(network, accumulate=2).step(iter([bad_batch, batch(8)]), 1.0)
    assert torch.equal(network.shift.data, start)
    assert failure.value.batch["sample"].tolist() == [7]
    assert "loss_smoothness" in failure.value.values


def test_a_batch_without_any_term_changes_nothing() -> None:
    """Dice is the only term, and the pairs have no structure in common."""
    network = Shift()
    start = network.shift.data.clone()
    settings = Training(clip_gradient=None, autocast="none")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    learner = Learner(network, optimizer, torch.device("cpu"), LossSettings(smoothness=0), settings)
    unlabelled_batch = batch(0) | {"labels": torch.zeros(0, dtype=torch.long)}
    assert learner.step(iter([unlabelled_batch]), 1.0) == {"loss": (0.0, 1)}
    assert torch.equal(network.shift.data, start)


def test_sums_of_values_that_are_not_always_known() -> None:
    sums = add_sums([{"a": (1.0, 1), "b": (2.0, 1)}, {"a": (3.0, 2)}, {}])
    assert sums == {"a": (4.0, 3), "b": (2.0, 1)}
    assert mean_values(sums) == {"a": 4 / 3, "b": 2.0}
