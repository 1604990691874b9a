from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import LocalNormalizedCrossCorrelationLoss
from numpy.typing import NDArray
from similar_images import random_image, random_mask
from torch.nn import functional

from llmreg.similarity.image_similarity import similarity_loss
from llmreg.similarity.local_correlation import VARIANCE_FLOOR, WIDTH

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
