"""Refinement: a displacement is fitted further to its own two images, without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from smooth import smooth_noise
from torch import Tensor

from llmreg.engine.refinement import FIRST_RATE, descend, refine
from llmreg.geometry import warping
from llmreg.similarity.loss_settings import LossSettings
from llmreg.similarity.mind import mind_ssc
from llmreg.similarity.terms import gradient_l2


def test_the_best_values_are_kept_even_if_later_ones_are_worse() -> None:
    heights, means = iter((3.0, 1.0, 2.0, 4.0)), []

    def objective(values: Tensor) -> Tensor:
        means.append(float(values.detach().mean()))
        # The value is the next height; the slope moves all values on.
        return next(heights) + values.sum() - values.sum().detach()

    best, steps = descend(objective, torch.zeros(4), 3)
    assert steps == 3
    assert means[0] > means[1] > means[2] > means[3]
    assert float(best.mean()) == pytest.approx(means[1])


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


SHAPE = (30, 34, 37)
EVERYTHING = (torch.ones(1, *SHAPE), torch.ones(1, *SHAPE))


def error(flow: Tensor, true: Tensor) -> float:
    inner = (..., *(slice(5, -5),) * 3)
    return float((flow - true)[inner].norm(dim=1).mean())


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor, Tensor]:
    """Fixed and moving image in two contrasts, and the field between them: 1.5 voxels on average."""
    rng = np.random.default_rng(5)
    texture = torch.from_numpy(smooth_noise(rng, SHAPE, 2.0).astype(np.float32))[None, None] / 2 + 0.5
    true = torch.from_numpy(np.stack([smooth_noise(rng, SHAPE, 5.0) for _ in range(3)]).astype(np.float32))[None]
    true *= 1.5 / error(true, torch.zeros_like(true))
    fixed = (1.2 - warping.warp(texture, true, padding="border")).clamp(0, 1) ** 2
    return fixed, texture, true


def test_a_known_deformation_is_found_from_nothing(pair) -> None:
    fixed, moving, true = pair
    zero = torch.zeros_like(true)
    refinement = refine(zero, fixed, moving, *EVERYTHING, LossSettings(), 80)
    assert refinement.after < refinement.before
    assert 0 < refinement.iterations <= 80
    assert error(refinement.flow, true) < 0.5 * error(zero, true)
    assert (warping.jacobian_determinant(refinement.flow) <= 0).float().mean() < 5e-4
    repetition = refine(zero, fixed, moving, *EVERYTHING, LossSettings(), 80)
    assert torch.equal(refinement.flow, repetition.flow)


def test_a_good_field_hardly_moves_and_is_never_worse(pair) -> None:
    fixed, moving, true = pair
    refinement = refine(true, fixed, moving, *EVERYTHING, LossSettings(), 30)
    assert refinement.after <= refinement.before
    assert error(refinement.flow, true) < 0.3
    unchanged = refine(true, fixed, moving, *EVERYTHING, LossSettings(), 0)
    assert torch.equal(unchanged.flow, true)
    assert unchanged.after == unchanged.before
    assert unchanged.iterations == 0


def test_what_is_not_seen_does_not_pull(pair) -> None:
    fixed, moving, true = pair
    fixed_mask = torch.ones(1, *SHAPE)
    fixed_mask[:, :12] = 0
    spoilt = fixed.clone()
    spoilt[:, :, :12] = torch.rand(fixed[:, :, :12].shape, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(true)
    expected = refine(zero, fixed, moving, fixed_mask, EVERYTHING[1], LossSettings(), 20)
    actual = refine(zero, spoilt, moving, fixed_mask, EVERYTHING[1], LossSettings(), 20)
    torch.testing.assert_close(expected.flow, actual.flow, atol=1e-4, rtol=0)
    unseen = refine(zero, fixed, moving, torch.zeros(1, *SHAPE), EVERYTHING[1], LossSettings(), 5)
    assert torch.equal(unseen.flow, zero)


def test_a_folding_field_folds_less_afterwards(pair) -> None:
    fixed, moving, true = pair
    rng = np.random.default_rng(1)
    folded = true + torch.from_numpy(np.stack([5 * smooth_noise(rng, SHAPE, 2.5) for _ in range(3)]).astype(np.float32))
    before = (warping.jacobian_determinant(folded) <= 0).float().mean()
    assert before > 0.001
    refinement = refine(folded, fixed, moving, *EVERYTHING, LossSettings(), 60)
    assert (warping.jacobian_determinant(refinement.flow) <= 0).float().mean() < before
    assert refinement.after < refinement.before


def test_it_works_where_gradients_are_switched_off(pair) -> None:
    fixed, moving, true = pair
    with torch.inference_mode():
        refinement = refine(torch.zeros_like(true), fixed.clone(), moving.clone(), *EVERYTHING, LossSettings(), 20)
    assert refinement.after < refinement.before


def test_shapes_that_do_not_belong_together_are_refused(pair) -> None:
    fixed, moving, true = pair
    with pytest.raises(ValueError, match="expected"):
        refine(true[:, :2], fixed, moving, *EVERYTHING, LossSettings(), 1)


def part(pair: tuple[Tensor, Tensor, Tensor], *size: int) -> tuple[Tensor, ...]:
    """Fixed image, moving image and field from the middle of the pair, and masks that see everything."""
    middle = (..., *(slice(5, 5 + n) for n in size))
    return (*(array[middle].contiguous() for array in pair), torch.ones(1, *size), torch.ones(1, *size))


def test_the_objective_is_that_of_descriptors_in_blocks(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, moving, true, *masks = part(pair, 12, 16, 20)
    means = (mind_ssc(image)[0].reshape(12, 6, 2, 8, 2, 10, 2).mean(dim=(2, 4, 6)) for image in (fixed, moving))
    expected = torch.sub(*means).square().mean()
    refinement = refine(torch.zeros_like(true), fixed, moving, *masks, LossSettings(), 0)
    assert refinement.before == pytest.approx(float(expected), rel=1e-5)


def test_the_field_has_the_objective_that_is_reported(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    """It is the objective of the refined field as a start, plus the smoothness term of the correction."""
    fixed, moving, true, *masks = part(pair, 16, 20, 24)
    start = 0.5 * true
    refinement = refine(start, fixed, moving, *masks, LossSettings(), 20)
    correction = (refinement.flow - start).reshape(1, 3, 8, 2, 10, 2, 12, 2).mean(dim=(3, 5, 7)) / 2
    restart = refine(refinement.flow, fixed, moving, *masks, LossSettings(), 0)
    assert refinement.after == pytest.approx(restart.before + float(gradient_l2(correction)), rel=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.9, 1.0])
def test_it_is_never_worse(pair: tuple[Tensor, Tensor, Tensor], factor: float, iterations: int) -> None:
    fixed, moving, true, *masks = part(pair, 16, 14, 20)
    refinement = refine(factor * true, fixed, moving, *masks, LossSettings(), iterations)
    assert refinement.after < refinement.before or torch.equal(refinement.flow, factor * true)
    assert refinement.iterations <= iterations


def test_it_stops_when_nothing_is_left_to_gain(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, *_ = pair
    zero = torch.zeros(1, 3, *SHAPE)
    refinement = refine(zero, fixed, fixed, *EVERYTHING, LossSettings(), 1000)
    assert refinement.iterations < 100
    assert torch.equal(refinement.flow, zero)


def fields_of_view() -> tuple[Tensor, Tensor]:
    """The fixed field of view ends at y = 27, the moving one begins at x = 9."""
    fixed, moving = torch.ones(2, 1, *SHAPE)
    fixed[:, :, 28:] = 0
    moving[..., :9] = 0
    return fixed, moving


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_nothing_outside_fields_of_view_matters(pair: tuple[Tensor, Tensor, Tensor], value: float) -> None:
    fixed, moving, true = pair
    masks = fields_of_view()
    filled = (image.where(mask[:, None] > 0, value) for image, mask in zip((fixed, moving), masks, strict=True))
    expected = refine(0.5 * true, fixed, moving, *masks, LossSettings(), 10)
    actual = refine(0.5 * true, *filled, *masks, LossSettings(), 10)
    assert torch.equal(expected.flow, actual.flow)


@pytest.mark.parametrize("displacement", [0.0, 0.5])
def test_edges_of_fields_of_view_hardly_pull(pair: tuple[Tensor, Tensor, Tensor], displacement: float) -> None:
    """One image with two fields of view: far from where they end, nothing moves."""
    fixed, *_ = pair
    masks = fields_of_view()
    flow = refine(torch.full((1, 3, *SHAPE), displacement), fixed, fixed, *masks, LossSettings(), 40).flow
    assert float(flow.abs().mean()) < 0.1
    inner = flow[:, :, :, :18, 19:]
    assert float(inner.abs().max()) < 0.5


def test_a_stiffer_plan_makes_a_smoother_correction(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, moving, true = pair
    plans = (LossSettings(), LossSettings(smoothness=10), LossSettings(bending=10))
    fields = (refine(torch.zeros_like(true), fixed, moving, *EVERYTHING, plan, 20).flow for plan in plans)
    plain, stiff, unbent = (float(gradient_l2(field)) for field in fields)
    assert stiff < 0.5 * plain
    assert unbent < 0.9 * plain


def test_a_looser_plan_changes_nothing(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, moving, true = pair
    usual, loose = (
        refine(torch.zeros_like(true), fixed, moving, *EVERYTHING, plan, 5)
        for plan in (LossSettings(), LossSettings(smoothness=0.1))
    )
    assert torch.equal(usual.flow, loose.flow)


def test_masks_and_steps_that_make_no_sense_are_refused(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, moving, true = pair
    with pytest.raises(ValueError, match="expected flow"):
        refine(true, fixed, moving, EVERYTHING[0][None], EVERYTHING[1], LossSettings(), 1)
    with pytest.raises(ValueError, match="negative"):
        refine(true, fixed, moving, *EVERYTHING, LossSettings(), -1)


@pytest.mark.parametrize(("amplitude", "before", "share"), [(2.0, 0.01, 0.5), (5.0, 0.02, 0.4)])
def test_folding_goes_as_far_as_possible(
    pair: tuple[Tensor, Tensor, Tensor], amplitude: float, before: float, share: float
) -> None:
    fixed, moving, true = pair
    noise = np.stack([smooth_noise(np.random.default_rng(seed), SHAPE, 2.5) for seed in range(3)])
    start = true + amplitude * torch.from_numpy(noise).float()
    refinement = refine(start, fixed, moving, *EVERYTHING, LossSettings(), 60)
    first, last = ((warping.jacobian_determinant(u) <= 0).float().mean() for u in (start, refinement.flow))
    assert first > before
    assert last < share * first


def test_looking_out_of_the_moving_image_does_not_pay(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    """A voxel that both images show without the field counts as unlike anything once the field leads it outside."""
    fixed, *_ = part(pair, 12, 16, 20)
    everything, half = torch.ones(2, 1, 12, 16, 20)
    half[..., 10:] = 0
    shift = torch.zeros(1, 3, 12, 16, 20)
    shift[:, 0] = 10
    blocks = mind_ssc(fixed)[0].reshape(12, 6, 2, 8, 2, 10, 2).mean(dim=(2, 4, 6))[..., :5]
    refinement = refine(shift, fixed, fixed, everything, half, LossSettings(), 0)
    assert refinement.before == pytest.approx(float(blocks.square().mean()), rel=1e-5)


def test_the_images_cannot_be_swapped(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    """The field leads from fixed to moving: for the swapped images it points the wrong way."""
    fixed, moving, true, *masks = part(pair, 16, 20, 24)
    right, wrong = (
        refine(true, *images, *masks, LossSettings(), 0).before for images in ((fixed, moving), (moving, fixed))
    )
    assert right < 0.7 * wrong


def test_fields_of_view_belong_to_their_images(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    """A voxel that leads out of the moving field of view may count; one outside the fixed field of view never does."""
    fixed, *_ = part(pair, 12, 16, 20)
    zero, everything, nothing = torch.zeros(1, 3, 12, 16, 20), torch.ones(1, 12, 16, 20), torch.zeros(1, 12, 16, 20)
    left_half, right_half = everything.clone(), everything.clone()
    left_half[..., 10:], right_half[..., :10] = 0, 0
    shift = zero.clone()
    shift[:, 0] = 10
    # All of the fixed image's left half leads into the moving image's right half.
    left_to_right = refine(shift, fixed, fixed, left_half, right_half, LossSettings(), 0).before
    right_to_left = refine(shift, fixed, fixed, right_half, left_half, LossSettings(), 0).before
    assert left_to_right > 0
    assert right_to_left == 0
    assert refine(shift, fixed, fixed, nothing, everything, LossSettings(), 0).before == 0
