from __future__ import annotations

from itertools import combinations, product
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import LocalNormalizedCrossCorrelationLoss
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score
from smooth import smooth_noise
from torch import Tensor
from torch.nn import functional

from llmreg.similarity import image_terms as similarity
from llmreg.similarity.image_terms import Kind, mind_ssc, similarity_loss

KINDS: tuple[Kind, ...] = get_args(Kind)
SHAPE = (7, 6, 8)
Array = NDArray[np.float64]


def random_image(seed: int, shape: tuple[int, ...] = SHAPE, batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, *shape, generator=torch.Generator().manual_seed(seed))


def random_mask(seed: int, share: float, batch: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Blocks of 2 voxels, so that there is some inside."""
    coarse = random_image(seed, tuple(-(-n // 2) for n in shape), batch) < share
    for axis in (2, 3, 4):
        coarse = coarse.repeat_interleave(2, dim=axis)
    return coarse[:, :, : shape[0], : shape[1], : shape[2]].contiguous()


def two_contrasts(seed: int) -> tuple[Tensor, Tensor]:
    """Images of one anatomy whose tissues have unrelated intensities, and each its noise."""
    rng = np.random.default_rng(seed)
    tissue = np.digitize(smooth_noise(rng, (20, 22, 24), 2.5), (-0.4, -0.1, 0.15, 0.4))
    images = (np.array(levels)[tissue] for levels in ((0.1, 0.6, 0.35, 0.9, 0.5), (0.7, 0.2, 0.9, 0.45, 0.1)))
    first, second = (torch.from_numpy(image + rng.normal(0, 0.02, image.shape)).float()[None, None] for image in images)
    return first, second


def gradient_of(kind: Kind, warped: Tensor, fixed: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = warped.clone().requires_grad_()
    loss = similarity_loss(kind, leaf, fixed, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def plain_mind(image: Array, inside: NDArray[np.bool_], radius: int, dilation: int) -> Array:
    """MIND-SSC (z, y, x, 12) by loops over voxels, pairs of neighbours and voxels of the patch."""

    def moved(voxel: tuple[int, ...], step: tuple[int, ...], side: tuple[int, ...]) -> tuple[int, ...]:
        where = (i + j + dilation * k for i, j, k in zip(voxel, step, side, strict=True))
        return tuple(min(max(i, 0), n - 1) for i, n in zip(where, image.shape, strict=True))

    neighbours = [step for step in product((-1, 0, 1), repeat=3) if np.abs(step).sum() == 1]
    pairs = [(p, q) for p, q in combinations(neighbours, 2) if np.square(np.subtract(p, q)).sum() == 2]
    assert len(pairs) == 12
    distances = np.zeros((*image.shape, 12))
    for voxel in np.ndindex(image.shape):
        for channel, (p, q) in enumerate(pairs):
            squares = []
            for step in product(range(-radius, radius + 1), repeat=3):
                one, other = moved(voxel, step, p), moved(voxel, step, q)
                if inside[one] and inside[other]:
                    squares.append((image[one] - image[other]) ** 2)
            distances[(*voxel, channel)] = np.mean(squares) if squares else 0
    excess = distances - distances.min(axis=-1, keepdims=True)
    variance = excess.mean(axis=-1, keepdims=True)
    mean = variance[inside].mean()
    return np.exp(-excess / np.clip(variance, 0.001 * mean, 1000 * mean))


def plain_lncc(first: Array, second: Array, inside: NDArray[np.bool_]) -> float:
    """Minus the mean squared correlation in windows cut to the image and the mask."""
    half, floor = similarity.LNCC_WIDTH // 2, similarity._LNCC_VARIANCE_FLOOR
    found = []
    for voxel in np.argwhere(inside):
        window = tuple(slice(max(0, i - half), i + half + 1) for i in voxel)
        a, b = first[window][inside[window]], second[window][inside[window]]
        covariance = np.mean((a - a.mean()) * (b - b.mean()))
        found.append(covariance**2 / ((a.var() + floor) * (b.var() + floor)))
    return -float(np.mean(found))


def plain_mutual_information(first: Array, second: Array) -> float:
    """Mutual information (nats) of two vectors with Gaussian Parzen windows of half a bin's width."""
    centres = np.linspace(0, 1, similarity.MI_BINS)
    windows = []
    for values in (first, second):
        window = np.exp(-0.5 * ((values[:, None] - centres) / (0.5 * centres[1])) ** 2)
        windows.append(window / window.sum(axis=1, keepdims=True))
    joint = windows[0].T @ windows[1] / len(first)
    independent = np.outer(windows[0].mean(axis=0), windows[1].mean(axis=0))
    filled = joint > 1e-12
    return float((joint[filled] * np.log(joint[filled] / independent[filled])).sum())


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 3), (2, 1)])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_mind_ssc_equals_plain_loops(radius: int, dilation: int, share: float) -> None:
    shape = (4, 3, 9) if radius < 2 else (3, 3, 4)
    image, mask = random_image(1, shape), random_mask(2, share, shape=shape)
    image[..., :5] *= 0.01 if radius < 2 else 1  # so quiet that the variance is raised to its lower bound
    ours = mind_ssc(image, radius, dilation, mask)
    assert ours.shape == (1, 12, *shape)
    inside = mask[0, 0].numpy()
    plain = plain_mind(image[0, 0].double().numpy(), inside, radius, dilation)[inside]
    found = ours[0].permute(1, 2, 3, 0).numpy()[inside]
    # The order of the channels is free, but one for all voxels.
    apart = np.abs(found[:, :, None] - plain[:, None]).max(axis=0)
    assert sorted(apart.argmin(axis=1)) == list(range(12))
    assert apart.min(axis=1).max() < 1e-4


def test_mind_loss_is_the_mean_over_the_mask_of_squared_differences_of_descriptors() -> None:
    warped, fixed, mask = random_image(1, batch=2), random_image(2, batch=2), random_mask(3, 0.6, batch=2)
    difference = (mind_ssc(warped, mask=mask) - mind_ssc(fixed, mask=mask)).square().mean(dim=1, keepdim=True)
    expected = torch.stack([sample[inside].mean() for sample, inside in zip(difference, mask, strict=True)]).mean()
    assert float(similarity_loss("mind", warped, fixed, mask)) == pytest.approx(float(expected), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    scale=st.floats(0.2, 3.0),
    inverted=st.booleans(),
    offset=st.floats(-1.0, 1.0),
    share=st.sampled_from([0.5, 1.0]),
)
def test_mind_is_blind_to_brightness_and_contrast(
    seed: int, scale: float, inverted: bool, offset: float, share: float
) -> None:
    image, mask = random_image(seed), random_mask(seed + 1, share)
    changed = image * (-scale if inverted else scale) + offset
    before, after = mind_ssc(image, mask=mask), mind_ssc(changed, mask=mask)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
    assert float(similarity_loss("mind", changed, image, mask)) < 1e-7


def test_mind_by_small_slabs_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    warped, fixed, mask = random_image(1, batch=2), random_image(2, batch=2), random_mask(3, 0.6, batch=2)
    whole = gradient_of("mind", warped, fixed, mask)
    monkeypatch.setattr(similarity, "_CPU_CHUNK", 2 * 2 * SHAPE[1] * SHAPE[2])  # two planes: the last slab is thinner
    for ours, expected in zip(gradient_of("mind", warped, fixed, mask), whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-4)


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
    monai = LocalNormalizedCrossCorrelationLoss(kernel_size=similarity.LNCC_WIDTH)
    expected = float(monai(warped.double(), fixed.double()))
    assert float(similarity_loss("lncc", warped, fixed)) == pytest.approx(expected, rel=1e-3)


def test_lncc_of_flat_images_stays_within_its_range() -> None:
    noise = 1e-3 * random_image(1, (12, 12, 12))
    for level in (0.0, 0.7, 1.0):
        loss = float(similarity_loss("lncc", level + noise, 0.9 + noise.flip(2)))
        assert -1 <= loss <= 0
    assert float(similarity_loss("lncc", torch.full_like(noise, 0.9), torch.full_like(noise, 0.7))) > -1e-3


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_mutual_information_equals_the_plain_formula(share: float) -> None:
    fixed, mask = random_image(1, (12, 13, 14)), random_mask(2, share, shape=(12, 13, 14))
    warped = (1 - fixed + 0.1 * random_image(3, (12, 13, 14))).clamp(0, 1)
    expected = -plain_mutual_information(*(image[mask].double().numpy() for image in (warped, fixed)))
    assert float(similarity_loss("mutual_information", warped, fixed, mask)) == pytest.approx(expected, abs=2e-3)


def test_mutual_information_of_few_levels_is_that_of_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 4, (1, 1, 12, 12, 12), generator=generator)
    others = torch.where(random_image(2, (12, 12, 12)) < 0.7, 3 - classes, classes.flip(2))
    warped, fixed = (levels * (10 / (similarity.MI_BINS - 1)) for levels in (classes, others))  # on centres of bins
    expected = mutual_info_score(classes.flatten(), others.flatten())
    assert float(similarity_loss("mutual_information", warped, fixed)) == pytest.approx(-expected, abs=1e-3)


def test_mutual_information_of_a_sample_is_close_to_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_contrasts(1)
    whole = float(similarity_loss("mutual_information", first, second))
    monkeypatch.setattr(similarity, "MI_SAMPLES", 3000)
    loss, gradient = gradient_of("mutual_information", first, second)
    assert float(loss) == pytest.approx(whole, rel=0.1)
    assert int(gradient.count_nonzero()) <= 3000


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 3000), limit=st.integers(1, 500))
def test_samples_are_spread_evenly_and_distinct(count: int, limit: int) -> None:
    found = similarity._spread(torch.arange(count), limit)
    assert len(found) == min(count, limit)
    if count > limit:
        stretch = found.double() * limit / count
        assert (found.diff() > 0).all()
        assert (stretch - torch.arange(limit) < 1).all()
        assert (stretch - torch.arange(limit) > -1).all()


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
    measure = similarity._MEASURES[kind]
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
    with pytest.raises(ValueError, match=r"kind must be one of mind.*'ssd'"):
        similarity_loss("ssd", image, image)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warped must be \(B, 1, z, y, x\)"):
        similarity_loss("mind", image[0], image[0])
    with pytest.raises(ValueError, match="fixed must have warped's shape"):
        similarity_loss("mind", image, image[..., 1:])
    with pytest.raises(ValueError, match="mask must be bool"):
        similarity_loss("mind", image, image, mask.float())
    with pytest.raises(ValueError, match="mask must be bool"):
        similarity_loss("mind", image, image, mask[:, 0])
    with pytest.raises(ValueError, match="dilation at least 1"):
        mind_ssc(image, 1, 0)
