from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import LocalNormalizedCrossCorrelationLoss
from numpy.typing import NDArray
from similar_images import SHAPE, gradient_of, random_image, random_mask, two_contrasts
from sklearn.metrics import mutual_info_score
from torch.nn import functional

from llmreg.similarity.image_similarity import (
    BINS,
    VARIANCE_FLOOR,
    WIDTH,
    Kind,
    choose_evenly,
    local_correlation_loss,
    mutual_information_loss,
    similarity_loss,
)
from llmreg.similarity.mind import mind_loss

KINDS: tuple[Kind, ...] = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.1, 0.5, 0.9]), filling=st.sampled_from(["nan", "inf", "9"]))
def test_what_lies_outside_the_mask_changes_nothing(kind: Kind, seed: int, share: float, filling: str) -> None:
    warped, fixed, mask = random_image(seed), random_image(seed + 1), random_mask(seed + 2, share)
    loss, gradient = gradient_of(kind, warped, fixed, mask)
    outside = ~mask, float(filling)
    changed = gradient_of(kind, warped.masked_fill(*outside), fixed.masked_fill(*outside), mask)
    assert torch.equal(changed[0], loss)
    assert torch.equal(changed[1], gradient)
    assert not gradient[~mask].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_is_a_full_one(kind: Kind) -> None:
    warped, fixed = random_image(1), random_image(2)
    assert torch.equal(
        similarity_loss(kind, warped, fixed), similarity_loss(kind, warped, fixed, torch.ones_like(warped).bool())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_zero_with_zero_gradient(kind: Kind) -> None:
    warped, mask = random_image(1, batch=2), torch.zeros(2, 1, *SHAPE, dtype=torch.bool)
    for image in (warped, torch.full_like(warped, torch.nan)):
        loss, gradient = gradient_of(kind, image, random_image(2, batch=2), mask)
        assert float(loss) == 0
        assert not gradient.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_averaged_over_the_samples_that_count(kind: Kind) -> None:
    warped, fixed, mask = random_image(1, batch=3), random_image(2, batch=3), random_mask(3, 0.6, batch=3)
    mask[1] = False
    alone = [float(similarity_loss(kind, warped[[i]], fixed[[i]], mask[[i]])) for i in (0, 2)]
    assert float(similarity_loss(kind, warped, fixed, mask)) == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_aligned_is_better_than_shifted(kind: Kind, axis: int) -> None:
    first, second = two_contrasts(1)
    everywhere = torch.ones_like(first, dtype=torch.bool)
    # As in training, the mask is where the shifted image shows something.
    losses = []
    for shift in range(4):
        length = first.shape[axis] - shift
        mask = everywhere.clone()
        mask.narrow(axis, length, shift).fill_(False)
        losses.append(float(similarity_loss(kind, first.roll(-shift, axis), second, mask)))
    assert losses == sorted(losses)
    assert losses[0] < losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_constant_images_give_finite_gradients(kind: Kind) -> None:
    constant, other = torch.full((1, 1, *SHAPE), 0.3), random_image(1)
    for warped, fixed in ((constant, constant), (constant, other), (other, constant)):
        loss, gradient = gradient_of(kind, warped, fixed)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.6, 1.0])
def test_gradient_in_double_precision_by_finite_differences(kind: Kind, share: float) -> None:
    shape = (3, 4, 5)
    warped, fixed = random_image(1, shape, 2).double(), random_image(2, shape, 2).double()
    mask = random_mask(3, share, 2, shape)
    measures = {"mind": mind_loss, "mutual_information": mutual_information_loss, "lncc": local_correlation_loss}
    measure = measures[kind]
    assert torch.autograd.gradcheck(lambda image: measure(image, fixed, mask), warped.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_goes_down(kind: Kind) -> None:
    warped, fixed = two_contrasts(2)
    loss, gradient = gradient_of(kind, warped.roll(1, 2), fixed)
    step = 1e-3 / gradient.norm()
    after = similarity_loss(kind, warped.roll(1, 2) - step * gradient, fixed)
    assert float(loss - after) == pytest.approx(1e-3 * float(gradient.norm()), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_always_in_float32_and_without_autograd(kind: Kind) -> None:
    warped, fixed, mask = random_image(1).bfloat16(), random_image(2).bfloat16(), random_mask(3, 0.6)
    expected, _ = gradient_of(kind, warped.float(), fixed.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = gradient_of(kind, warped, fixed, mask)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(loss, expected)
    with torch.inference_mode():
        assert torch.equal(similarity_loss(kind, warped, fixed, mask), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_is_the_same(kind: Kind) -> None:
    first, second = two_contrasts(1)
    mask = random_mask(3, 0.6, shape=tuple(first.shape[2:]))
    on_cpu = gradient_of(kind, first, second, mask)
    on_gpu = gradient_of(kind, first.to("cuda"), second.to("cuda"), mask.to("cuda"))
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours.cpu(), expected, atol=1e-5, rtol=1e-3)


def test_wrong_input_is_refused() -> None:
    image = random_image(1)
    mask = torch.ones_like(image, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^warped .*\(B, 1, z, y, x\)"):
        similarity_loss("mind", image[0], image[0])
    with pytest.raises(ValueError, match=r"^fixed "):
        similarity_loss("mind", image, image[..., 1:])
    with pytest.raises(ValueError, match=r"^mask "):
        similarity_loss("mind", image, image, mask.float())
    with pytest.raises(ValueError, match=r"^mask "):
        similarity_loss("mind", image, image, mask[:, 0])


Array = NDArray[np.float64]


def plain_lncc(first: Array, second: Array, inside: NDArray[np.bool_]) -> float:
    """Minus the mean squared correlation in windows cut to the image and the mask."""
    half, floor = WIDTH // 2, VARIANCE_FLOOR
    correlations = []
    for voxel in np.argwhere(inside):
        window = tuple(slice(max(0, i - half), i + half + 1) for i in voxel)
        a, b = first[window][inside[window]], second[window][inside[window]]
        covariance = np.mean((a - a.mean()) * (b - b.mean()))
        correlations.append(covariance**2 / ((a.var() + floor) * (b.var() + floor)))
    return -float(np.mean(correlations))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.2, 0.6, 1.0]))
def test_lncc_equals_plain_loops(seed: int, share: float) -> None:
    shape = (6, 11, 12)  # shorter and longer than a window
    warped, fixed, mask = (
        random_image(seed, shape),
        random_image(seed + 1, shape),
        random_mask(seed, share, shape=shape),
    )
    fixed = 0.5 * fixed + 0.5 * (1 - warped)
    expected = plain_lncc(warped[0, 0].double().numpy(), fixed[0, 0].double().numpy(), mask[0, 0].numpy())
    assert float(similarity_loss("lncc", warped, fixed, mask)) == pytest.approx(expected, rel=1e-3)


def test_lncc_equals_monai_in_double_precision() -> None:
    # In a margin of zeros, windows that go on with zeros (MONAI's) and windows cut to the image (ours) see the same.
    # Large intensities, so that the floors of the variances, which differ, do not matter.
    warped, fixed = (functional.pad(100 * random_image(seed, (9, 10, 11)), (8,) * 6) for seed in (1, 2))
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=WIDTH)
    expected = float(monai(warped.double(), fixed.double()))
    assert float(similarity_loss("lncc", warped, fixed)) == pytest.approx(expected, rel=1e-3)


def test_lncc_of_flat_images_stays_within_its_range() -> None:
    noise = 1e-3 * random_image(1, (12, 12, 12))
    for level in (0.0, 0.7, 1.0):
        loss = float(similarity_loss("lncc", level + noise, 0.9 + noise.flip(2)))
        assert -1 <= loss <= 0
    assert float(similarity_loss("lncc", torch.full_like(noise, 0.9), torch.full_like(noise, 0.7))) > -1e-3


Array = NDArray[np.float64]


def plain_mutual_information(first: Array, second: Array) -> float:
    """Mutual information (nats) of two vectors with Gaussian Parzen windows of half a bin's width."""
    centres = np.linspace(0, 1, BINS)
    windows = []
    for values in (first, second):
        window = np.exp(-0.5 * ((values[:, None] - centres) / (0.5 * centres[1])) ** 2)
        windows.append(window / window.sum(axis=1, keepdims=True))
    joint = windows[0].T @ windows[1] / len(first)
    independent = np.outer(windows[0].mean(axis=0), windows[1].mean(axis=0))
    filled = joint > 1e-12
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_mutual_information_equals_the_plain_formula(share: float) -> None:
    fixed, mask = random_image(1, (12, 13, 14)), random_mask(2, share, shape=(12, 13, 14))
    warped = (1 - fixed + 0.1 * random_image(3, (12, 13, 14))).clamp(0, 1)
    expected = -plain_mutual_information(*(image[mask].double().numpy() for image in (warped, fixed)))
    assert float(similarity_loss("mutual_information", warped, fixed, mask)) == pytest.approx(expected, abs=2e-3)


def test_mutual_information_of_few_levels_is_that_of_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 4, (1, 1, 12, 12, 12), generator=generator)
    other_classes = torch.where(random_image(2, (12, 12, 12)) < 0.7, 3 - classes, classes.flip(2))
    warped, fixed = (levels * (10 / (BINS - 1)) for levels in (classes, other_classes))  # on centres of bins
    expected = mutual_info_score(classes.flatten(), other_classes.flatten())
    assert float(similarity_loss("mutual_information", warped, fixed)) == pytest.approx(-expected, abs=1e-3)


def test_mutual_information_of_a_sample_is_close_to_that_of_all() -> None:
    first, second = two_contrasts(1)
    first.requires_grad_()
    everywhere = torch.ones_like(first, dtype=torch.bool)
    expected = mutual_information_loss(first, second, everywhere)
    loss = mutual_information_loss(first, second, everywhere, samples=3000)
    (gradient,) = torch.autograd.grad(loss.sum(), first)
    assert float(loss) == pytest.approx(float(expected), rel=0.1)
    assert 2000 < int(gradient.count_nonzero()) <= 3000


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 3000), limit=st.integers(1, 500))
def test_samples_are_spread_evenly_and_distinct(count: int, limit: int) -> None:
    chosen = choose_evenly(torch.arange(count), limit)
    assert len(chosen) == min(count, limit)
    if count > limit:
        stretch = chosen.double() * limit / count
        assert (chosen.diff() > 0).all()
        assert (stretch - torch.arange(limit) < 1).all()
        assert (stretch - torch.arange(limit) > -1).all()
