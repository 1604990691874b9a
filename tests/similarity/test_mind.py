from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from similar_images import random_image, random_mask

from llmreg.similarity.image_similarity import similarity_loss
from llmreg.similarity.mind import mind_loss, mind_ssc

Array = NDArray[np.float64]


def plain_mind(image: Array, inside: NDArray[np.bool_], radius: int, dilation: int) -> Array:
    """MIND-SSC (z, y, x, 12) by loops over voxels, pairs of neighbours and voxels of the patch."""

    def move(voxel: tuple[int, ...], step: tuple[int, ...], side: tuple[int, ...]) -> tuple[int, ...]:
        position = (i + j + dilation * k for i, j, k in zip(voxel, step, side, strict=True))
        return tuple(min(max(i, 0), n - 1) for i, n in zip(position, image.shape, strict=True))

    neighbours = [step for step in product((-1, 0, 1), repeat=3) if np.abs(step).sum() == 1]
    pairs = [(p, q) for p, q in combinations(neighbours, 2) if np.square(np.subtract(p, q)).sum() == 2]
    assert len(pairs) == 12
    distances = np.zeros((*image.shape, 12))
    for voxel in np.ndindex(image.shape):
        for channel, (p, q) in enumerate(pairs):
            squares = []
            for step in product(range(-radius, radius + 1), repeat=3):
                first, second = move(voxel, step, p), move(voxel, step, q)
                if inside[first] and inside[second]:
                    squares.append((image[first] - image[second]) ** 2)
            distances[(*voxel, channel)] = np.mean(squares) if squares else 0
    excess = distances - distances.min(axis=-1, keepdims=True)
    variance = excess.mean(axis=-1, keepdims=True)
    mean = variance[inside].mean()
    return np.exp(-excess / np.clip(variance, 0.001 * mean, 1000 * mean))


@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (0, 3), (2, 1)])
@pytest.mark.parametrize("share", [1.0, 0.7])
def test_mind_ssc_equals_plain_loops(radius: int, dilation: int, share: float) -> None:
    shape = (4, 3, 9) if radius < 2 else (3, 3, 4)
    image, mask = random_image(1, shape), random_mask(2, share, shape=shape)
    image[..., :5] *= 0.01 if radius < 2 else 1  # so quiet that the variance is raised to its lower bound
    descriptors = mind_ssc(image, radius, dilation, mask)
    assert descriptors.shape == (1, 12, *shape)
    inside = mask[0, 0].numpy()
    expected = plain_mind(image[0, 0].double().numpy(), inside, radius, dilation)[inside]
    actual = descriptors[0].permute(1, 2, 3, 0).numpy()[inside]
    # The order of the channels is free, but the same for all voxels.
    differences = np.abs(actual[:, :, None] - expected[:, None]).max(axis=0)
    assert sorted(differences.argmin(axis=1)) == list(range(12))
    assert differences.min(axis=1).max() < 1e-4


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


def test_slabs_of_a_large_volume_change_nothing() -> None:
    """The volume has more voxels than one slab, so that the loss and its gradient come from several."""
    warped, fixed = (random_image(seed, (72, 32, 32)).requires_grad_() for seed in (1, 2))
    mask = random_mask(3, 0.6, shape=(72, 32, 32))
    loss = mind_loss(warped, fixed.detach(), mask)
    difference = (mind_ssc(warped, mask=mask) - mind_ssc(fixed.detach(), mask=mask)).square().mean(dim=1, keepdim=True)
    expected = difference[mask].mean()
    torch.testing.assert_close(loss[0], expected, atol=1e-7, rtol=1e-4)
    gradients = [torch.autograd.grad(value, warped)[0] for value in (loss.sum(), expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-3)


def test_wrong_input_is_refused() -> None:
    image = random_image(1)
    with pytest.raises(ValueError, match=r"\(B, 1, z, y, x\)"):
        mind_ssc(image[0])
    with pytest.raises(ValueError, match="dilation"):
        mind_ssc(image, 1, 0)
    with pytest.raises(ValueError, match=r"^mask "):
        mind_ssc(image, mask=image)
