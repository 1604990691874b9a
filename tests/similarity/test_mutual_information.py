from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from similar_images import random_image, random_mask, two_contrasts
from sklearn.metrics import mutual_info_score

from llmreg.similarity.image_similarity import similarity_loss
from llmreg.similarity.mutual_information import BINS, choose_evenly, mutual_information_loss

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
    others = torch.where(random_image(2, (12, 12, 12)) < 0.7, 3 - classes, classes.flip(2))
    warped, fixed = (levels * (10 / (BINS - 1)) for levels in (classes, others))  # on centres of bins
    expected = mutual_info_score(classes.flatten(), others.flatten())
    assert float(similarity_loss("mutual_information", warped, fixed)) == pytest.approx(-expected, abs=1e-3)


def test_mutual_information_of_a_sample_is_close_to_that_of_all() -> None:
    first, second = two_contrasts(1)
    first.requires_grad_()
    everywhere = torch.ones_like(first, dtype=torch.bool)
    whole = mutual_information_loss(first, second, everywhere)
    loss = mutual_information_loss(first, second, everywhere, samples=3000)
    (gradient,) = torch.autograd.grad(loss.sum(), first)
    assert float(loss) == pytest.approx(float(whole), rel=0.1)
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
