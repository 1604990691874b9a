from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmreg.plans.plans import Loss
from llmreg.similarity.image_terms import similarity_loss
from llmreg.similarity.losses import gradient_l2, soft_dice
from llmreg.training import objective
from llmreg.training.objective import TERMS, Predicted, comparable, terms, total

SHAPE = (16, 12, 20)
ALONE = {"dice": Loss(), "similarity": Loss(dice=0, similarity=1), "both": Loss(similarity=0.5, smoothness=2)}


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_flow(shape: tuple[int, ...], seed: int = 0, batch: int = 1) -> Tensor:
    return 3 * rand(batch, 3, *shape, seed=seed) - 1.5


def blocks(count: int, seed: int) -> Tensor:
    """A map of ids 0 to ``count`` in blocks of 4^3 voxels, uint8."""
    coarse = (rand(1, 1, *(n // 4 for n in SHAPE), seed=seed) * (count + 1)).floor()
    return functional.interpolate(coarse, size=SHAPE)[0].to(torch.uint8)


def make_batch(labels: tuple[int, ...] = (1, 2, 3)) -> dict[str, Tensor]:
    """Of one pair: the fixed field of view ends at z = 11, the moving one at x = 14."""
    fixed_seen, moving_seen = torch.ones(2, 1, *SHAPE, dtype=torch.uint8)
    fixed_seen[:, 12:] = 0
    moving_seen[..., 15:] = 0
    return {
        "fixed": rand(1, 1, *SHAPE, seed=1),
        "moving": rand(1, 1, *SHAPE, seed=2),
        "fixed_labels": blocks(3, 3),
        "moving_labels": blocks(3, 4),
        "fixed_seen": fixed_seen,
        "moving_seen": moving_seen,
        "labels": torch.tensor(labels, dtype=torch.long),
    }


def looked_up(batch: dict[str, Tensor], flow: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each fixed voxel (z, y, x) and the moving voxel nearest to where it looks."""
    found = []
    for z, y, x in torch.cartesian_prod(*map(torch.arange, SHAPE)).tolist():
        dx, dy, dz = flow[0, :, z, y, x].tolist()
        found.append(((z, y, x), (round(z + dz), round(y + dy), round(x + dx))))
    return found


def test_what_is_comparable_equals_a_plain_loop() -> None:
    batch, flow = make_batch(), random_flow(SHAPE)
    found = comparable(batch["fixed_seen"], batch["moving_seen"], flow)
    assert found.dtype == torch.bool
    fixed_seen, moving_seen = batch["fixed_seen"][0], batch["moving_seen"][0]
    for here, there in looked_up(batch, flow):
        inside = all(0 <= i < n for i, n in zip(there, SHAPE, strict=True))
        expected = fixed_seen[here] and (moving_seen[here] or (inside and moving_seen[there]))
        assert bool(found[(0, *here)]) == bool(expected)


def test_looking_out_of_the_moving_image_does_not_pay() -> None:
    batch = make_batch()
    away = torch.zeros(1, 3, *SHAPE)
    away[:, 0] = 100.0
    assert of("dice", batch, away) == 1.0
    still = comparable(batch["fixed_seen"], batch["moving_seen"], torch.zeros_like(away))
    assert torch.equal(comparable(batch["fixed_seen"], batch["moving_seen"], away), still)


def with_random(batch: dict[str, Tensor], key: str, where: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The batch with other values at some voxels of one volume, of those that it has already."""
    volume = batch[key]
    shuffled = volume.flatten()[torch.randperm(volume.numel(), generator=torch.Generator().manual_seed(7))]
    index = torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    return batch | {key: torch.where(where(index), shuffled.view_as(volume), volume)}


# Beyond the fields of view; of the moving image where no displacement looks from what counts.
OUTSIDE = {
    "fixed_labels": lambda index: index[0] >= 12,
    "moving_labels": lambda index: index[2] >= 17,
    "fixed": lambda index: index[0] >= 12,
    "moving": lambda index: index[2] >= 17,
}


def of(term: str, batch: dict[str, Tensor], flow: Tensor) -> Tensor:
    return terms(Predicted(batch, flow, flow, 1), ALONE[term])[term]


@pytest.mark.parametrize(
    ("term", "key"),
    [("dice", "fixed_labels"), ("dice", "moving_labels"), ("similarity", "fixed"), ("similarity", "moving")],
)
def test_what_lies_outside_a_field_of_view_changes_nothing(term: str, key: str) -> None:
    batch, flow = make_batch(), random_flow(SHAPE)
    expected = of(term, batch, flow)
    changed = with_random(batch, key, OUTSIDE[key])
    assert not torch.equal(changed[key], batch[key])
    torch.testing.assert_close(of(term, changed, flow), expected, rtol=1e-6, atol=1e-7)
    # Inside it does.
    assert abs(of(term, with_random(batch, key, lambda index: index[1] < 6), flow) - expected) > 1e-4


@pytest.mark.parametrize("term", ["dice", "similarity"])
def test_what_lies_outside_a_field_of_view_has_no_gradient(term: str) -> None:
    batch, flow = make_batch(), random_flow(SHAPE).requires_grad_()
    of(term, batch, flow).backward()
    assert flow.grad is not None
    seen = comparable(batch["fixed_seen"], batch["moving_seen"], flow.detach())[:, None].expand_as(flow)
    assert 0.3 < seen.float().mean() < 0.8
    assert not flow.grad[~seen].any()
    assert flow.grad[seen].any()


def test_dice_is_soft_dice_of_what_both_see() -> None:
    batch, flow = make_batch(labels=(1, 3)), random_flow(SHAPE)
    counted = comparable(batch["fixed_seen"], batch["moving_seen"], flow)
    expected, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], flow, torch.tensor([1, 3]), counted)
    assert of("dice", batch, flow) == expected
    assert of("dice", batch | {"labels": torch.tensor([1, 2, 3])}, flow) != expected


def test_terms_of_weight_0_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = random_flow(SHAPE)
    predicted = Predicted(make_batch(), flow, flow, 1)
    assert set(terms(predicted, ALONE["both"])) == {"dice", "similarity", "smoothness"}
    for name in TERMS:
        monkeypatch.setitem(objective.TERMS, name, lambda *_: pytest.fail("computed"))
    for name, value in (("similarity", 3.0), ("bending", 2.0)):
        monkeypatch.setitem(objective.TERMS, name, lambda *_, value=value: torch.tensor(value))
    found = terms(predicted, Loss(dice=0, similarity=1, smoothness=0, bending=1))
    assert found == {"similarity": 3.0, "bending": 2.0}


def test_every_weight_of_the_plans_has_its_term() -> None:
    assert set(TERMS) == set(Loss.model_fields) - {"similarity_kind"}


def test_the_total_is_the_weighted_sum_of_what_is_known() -> None:
    flow = random_flow(SHAPE)
    found = terms(Predicted(make_batch(), flow, flow, 1), ALONE["both"])
    assert found["smoothness"] == gradient_l2(flow)
    expected = found["dice"] + 0.5 * found["similarity"] + 2 * found["smoothness"]
    assert total(found, ALONE["both"]) == pytest.approx(float(expected), rel=1e-6)
    assert total({"smoothness": torch.tensor(3.0)}, Loss(smoothness=0.5)) == 1.5


def test_a_batch_without_labels_has_no_dice() -> None:
    flow = random_flow(SHAPE).requires_grad_()
    predicted = Predicted(make_batch(labels=()), flow, flow, 1)
    found = terms(predicted, ALONE["both"])
    assert set(found) == {"similarity", "smoothness"}
    total(found, ALONE["both"]).backward()
    assert flow.grad is not None
    assert flow.grad.any()
    # Without an image term smoothness is left.
    assert total(terms(predicted, Loss()), Loss()) == gradient_l2(flow)


def test_bending_energy_is_the_mean_of_squared_second_derivatives() -> None:
    flow = random_flow(SHAPE, seed=5)
    found = terms(Predicted(make_batch(), flow, flow, 1), Loss(bending=1))["bending"]

    def moved(*steps: tuple[int, int]) -> Tensor:
        """The field shifted by steps along axes, of the voxels that have all neighbours."""
        shifted = flow.roll([-step for _, step in steps], [axis for axis, _ in steps])
        return shifted[:, :, 1:-1, 1:-1, 1:-1]

    pure = [moved((axis, 1)) - 2 * moved((axis, 0)) + moved((axis, -1)) for axis in (2, 3, 4)]
    mixed = [
        (moved((a, 1), (b, 1)) - moved((a, 1), (b, -1)) - moved((a, -1), (b, 1)) + moved((a, -1), (b, -1))) / 4
        for a, b in ((2, 3), (2, 4), (3, 4))
    ]
    expected = sum(one.square().mean() for one in pure) + 2 * sum(one.square().mean() for one in mixed)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_folding_counts_what_determinants_lack_to_zero() -> None:
    flow = torch.zeros(1, 3, *SHAPE)
    assert terms(Predicted(make_batch(), flow, flow, 1), Loss(folding=1))["folding"] == 0
    # x -> -x: the determinant is -1 everywhere.
    flow[:, 0] = -2 * torch.arange(SHAPE[2])
    found = terms(Predicted(make_batch(), flow, flow, 1), Loss(folding=1))["folding"]
    assert float(found) == pytest.approx(1)


def of_blocks(volume: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Each block of 2^3 voxels as one."""
    z, y, x = (n // 2 for n in SHAPE)
    return reduce(volume.float().reshape(1, 1, z, 2, y, 2, x, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5))


@pytest.mark.parametrize("kind", ["mind", "lncc"])
def test_similarity_is_that_of_what_the_network_saw(kind: str) -> None:
    """At half resolution, of blocks that are seen whole."""
    batch = make_batch()
    batch["moving_seen"][..., 14:] = 0  # The last block is seen in part.
    batch["moving_seen"][:, :, 7, :14] = 0
    small = random_flow(tuple(n // 2 for n in SHAPE))
    # An odd flow, so that it matters which one is looked through.
    full = torch.full((1, 3, *SHAPE), 0.7)
    weights = Loss(dice=0, similarity=1, similarity_kind=kind)
    found = terms(Predicted(batch, small, full, 2), weights)
    images = [of_blocks(batch[name], lambda block: block.mean(-1)) for name in ("fixed", "moving")]
    seen = [of_blocks(batch[f"{name}_seen"], lambda block: block.amin(-1)) for name in ("fixed", "moving")]
    axes = torch.meshgrid(*(torch.arange(n // 2, dtype=torch.float32) for n in SHAPE), indexing="ij")
    points = torch.stack(axes[::-1], -1) + small.movedim(1, -1)
    grid = 2 * points / (torch.tensor([n // 2 for n in SHAPE[::-1]]) - 1) - 1
    warped = functional.grid_sample(images[1], grid, align_corners=True)
    there = functional.grid_sample(seen[1], grid, mode="nearest", align_corners=True)
    comparable_blocks = ((there > 0.5) | (seen[1] > 0.5)) & (seen[0] > 0.5)
    expected = similarity_loss(kind, warped, images[0], comparable_blocks)
    assert float(found["similarity"]) == pytest.approx(float(expected), rel=1e-4)
    assert found["smoothness"] == gradient_l2(small)
