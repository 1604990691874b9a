from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from loss_batches import SHAPE, make_batch, random_flow, swap_roles
from monai.losses import DiffusionLoss
from torch import Tensor
from torch.nn import functional

from llmreg.similarity.image_similarity import Kind, similarity_loss
from llmreg.similarity.masks import comparable_voxels
from llmreg.similarity.soft_dice import soft_dice
from llmreg.similarity.term_registry import LOSS_TERMS, LossInputs, TermSettings
from llmreg.similarity.terms import SimilaritySettings, bending_energy, folding_penalty, gradient_l2

PARAMETERS = {"similarity": SimilaritySettings(weight=1)}


def compute(name: str, batch: dict[str, Tensor], flow: Tensor, full_flow: Tensor | None = None) -> Tensor:
    prediction = LossInputs(batch, flow, flow if full_flow is None else full_flow)
    return LOSS_TERMS.get(name).compute(prediction, PARAMETERS.get(name, TermSettings(weight=1)))


def comparable(batch: dict[str, Tensor], flow: Tensor) -> Tensor:
    return comparable_voxels(batch["moving_seen"], batch["fixed_seen"], flow)


def shuffle_where(batch: dict[str, Tensor], key: str, is_shuffled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The batch with the values of one volume shuffled at some of its voxels."""
    volume = batch[key]
    shuffled = volume.flatten()[torch.randperm(volume.numel(), generator=torch.Generator().manual_seed(7))]
    index = torch.stack(torch.meshgrid(*map(torch.arange, SHAPE), indexing="ij"))
    return batch | {key: torch.where(is_shuffled(index), shuffled.view_as(volume), volume)}


# Voxels beyond the fields of view; in the moving image, those that no displacement of a voxel that counts leads to.
OUTSIDE = {
    "fixed_labels": lambda index: index[0] >= 12,
    "moving_labels": lambda index: index[2] >= 17,
    "fixed": lambda index: index[0] >= 12,
    "moving": lambda index: index[2] >= 17,
}


@pytest.mark.parametrize(
    ("term", "key"),
    [("dice", "fixed_labels"), ("dice", "moving_labels"), ("similarity", "fixed"), ("similarity", "moving")],
)
def test_what_lies_outside_a_field_of_view_changes_nothing(term: str, key: str) -> None:
    batch, flow = make_batch(), random_flow()
    expected = compute(term, batch, flow)
    changed = shuffle_where(batch, key, OUTSIDE[key])
    assert not torch.equal(changed[key], batch[key])
    torch.testing.assert_close(compute(term, changed, flow), expected, rtol=1e-6, atol=1e-7)
    # Inside, shuffling changes the loss.
    assert abs(compute(term, shuffle_where(batch, key, lambda index: index[1] < 6), flow) - expected) > 1e-4


@pytest.mark.parametrize("term", ["dice", "similarity"])
def test_what_lies_outside_a_field_of_view_has_no_gradient(term: str) -> None:
    batch, flow = make_batch(), random_flow().requires_grad_()
    compute(term, batch, flow).backward()
    assert flow.grad is not None
    comparable_mask = comparable(batch, flow.detach())[:, None].expand_as(flow)
    assert 0.3 < comparable_mask.float().mean() < 0.8
    assert not flow.grad[~comparable_mask].any()
    assert flow.grad[comparable_mask].any()


def test_dice_is_soft_dice_of_what_both_see() -> None:
    batch, flow = make_batch(labels=(1, 3)), random_flow()
    labels = torch.tensor([1, 3])
    expected, _ = soft_dice(batch["moving_labels"], batch["fixed_labels"], flow, labels, comparable(batch, flow))
    assert compute("dice", batch, flow) == expected
    assert compute("dice", batch | {"labels": torch.tensor([1, 2, 3])}, flow) != expected


def test_moving_labels_out_of_view_does_not_pay() -> None:
    away = torch.zeros(1, 3, *SHAPE)
    away[:, 0] = 100.0
    assert compute("dice", make_batch(), away) == 1.0


@pytest.mark.parametrize("term", ["dice", "similarity"])
def test_the_moving_image_is_warped_and_not_the_fixed_one(term: str) -> None:
    """A shift of the moving image by two voxels along x, undone by the flow and doubled by its negation."""
    batch = make_batch() | {f"{role}_seen": torch.ones(1, *SHAPE, dtype=torch.uint8) for role in ("fixed", "moving")}
    for suffix in ("", "_labels"):
        batch[f"moving{suffix}"] = batch[f"fixed{suffix}"].roll(2, -1)
    flow = torch.zeros(1, 3, *SHAPE)
    flow[:, 0] = 2
    aligned, worse = (float(compute(term, batch, sign * flow)) for sign in (1, -1))
    assert aligned < 0.5 * worse
    # Exchanged images need the negated flow.
    assert float(compute(term, swap_roles(batch), -flow)) < 0.5 * float(compute(term, swap_roles(batch), flow))


def reduce_blocks(volume: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce each block of 2^3 voxels to one."""
    z, y, x = (n // 2 for n in SHAPE)
    return reduce(volume.float().reshape(1, 1, z, 2, y, 2, x, 2).permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5))


@pytest.mark.parametrize("kind", ["mind", "lncc"])
def test_similarity_is_that_of_what_the_network_saw(kind: Kind) -> None:
    """The network works at half resolution; a block counts where all of it is seen."""
    batch = make_batch()
    batch["moving_seen"][..., 14:] = 0  # The last block is seen in part.
    batch["moving_seen"][:, :, 7, :14] = 0
    flow = random_flow([n // 2 for n in SHAPE])
    # The full flow is another one, so that it matters which of them is looked through.
    prediction = LossInputs(batch, flow, torch.full((1, 3, *SHAPE), 0.7))
    loss = LOSS_TERMS.get("similarity").compute(prediction, SimilaritySettings(weight=1, kind=kind))
    fixed, moving = (reduce_blocks(batch[role], lambda block: block.mean(-1)) for role in ("fixed", "moving"))
    fixed_seen, moving_seen = (
        reduce_blocks(batch[f"{role}_seen"], lambda block: block.amin(-1)) for role in ("fixed", "moving")
    )
    axes = torch.meshgrid(*(torch.arange(n // 2, dtype=torch.float32) for n in SHAPE), indexing="ij")
    points = torch.stack(axes[::-1], -1) + flow.movedim(1, -1)
    grid = 2 * points / (torch.tensor([n // 2 for n in SHAPE[::-1]]) - 1) - 1
    warped = functional.grid_sample(moving, grid, align_corners=True)
    warped_seen = functional.grid_sample(moving_seen, grid, mode="nearest", align_corners=True)
    comparable_blocks = ((warped_seen > 0.5) | (moving_seen > 0.5)) & (fixed_seen > 0.5)
    assert float(loss) == pytest.approx(float(similarity_loss(kind, warped, fixed, comparable_blocks)), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "measure"),
    [("smoothness", gradient_l2), ("bending", bending_energy), ("folding", folding_penalty)],
)
def test_regularity_is_that_of_the_networks_flow(name: str, measure: Callable[[Tensor], Tensor]) -> None:
    flow, full_flow = random_flow([n // 2 for n in SHAPE]), random_flow(seed=1)
    assert compute(name, make_batch(), flow, full_flow) == measure(flow) > 0


def test_every_term_says_what_it_measures() -> None:
    assert list(LOSS_TERMS.names)[:5] == ["dice", "similarity", "smoothness", "bending", "folding"]
    for term in LOSS_TERMS.parts.values():
        assert term.documentation
        assert "\n" not in term.documentation


FLOW_SHAPE = (9, 12, 7)


def random_scaled_flow(scale: float, seed: int, shape: tuple[int, ...] = FLOW_SHAPE) -> Tensor:
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_gradient_l2_equals_a_plain_loop() -> None:
    flow = random_scaled_flow(2.0, 1, (4, 3, 5))
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
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in FLOW_SHAPE), indexing="ij")
    flow = torch.einsum("ij,jzyx->izyx", matrix, torch.stack(axes))[None]
    assert float(gradient_l2(flow)) == pytest.approx(float(DiffusionLoss()(flow)) / 3, rel=1e-4)


def test_gradient_l2_sees_a_checkerboard_that_central_differences_miss() -> None:
    flow = (torch.stack(torch.meshgrid(*map(torch.arange, FLOW_SHAPE), indexing="ij")).sum(0) % 2).float()
    flow = flow.expand(1, 3, *FLOW_SHAPE)
    assert float(DiffusionLoss()(flow)) == 0.0
    assert float(gradient_l2(flow)) == pytest.approx(1.0)


def test_bending_energy_is_the_mean_of_squared_second_derivatives() -> None:
    flow = random_scaled_flow(1.0, 5)

    def shift_field(*steps: tuple[int, int]) -> Tensor:
        """The field shifted by steps along axes, of the voxels that have all neighbours."""
        shifted = flow.roll([-step for _, step in steps], [axis for axis, _ in steps])
        return shifted[:, :, 1:-1, 1:-1, 1:-1]

    pure = [shift_field((axis, 1)) - 2 * shift_field((axis, 0)) + shift_field((axis, -1)) for axis in (2, 3, 4)]
    mixed = [
        (
            shift_field((a, 1), (b, 1))
            - shift_field((a, 1), (b, -1))
            - shift_field((a, -1), (b, 1))
            + shift_field((a, -1), (b, -1))
        )
        / 4
        for a, b in ((2, 3), (2, 4), (3, 4))
    ]
    expected = sum(second.square().mean() for second in pure) + 2 * sum(second.square().mean() for second in mixed)
    assert float(bending_energy(flow)) == pytest.approx(float(expected), rel=1e-5)


def test_folding_counts_what_determinants_lack_to_a_bound() -> None:
    flow = torch.zeros(1, 3, *FLOW_SHAPE)
    assert float(folding_penalty(flow)) == 0
    assert float(folding_penalty(flow, least=1.5)) == pytest.approx(0.5)
    # x -> -x: the determinant is -1 everywhere.
    flow[:, 0] = -2 * torch.arange(FLOW_SHAPE[2])
    assert float(folding_penalty(flow)) == pytest.approx(1)
