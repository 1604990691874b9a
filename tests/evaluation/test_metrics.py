from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice
from scipy.ndimage import gaussian_filter

from llmreg.evaluation.metrics import (
    dice_per_label,
    folding,
    sd_log_jacobian,
    sd_log_jacobian_learn2reg,
)


def blobs(seed: int, labels: int, shape: tuple[int, int, int] = (18, 20, 22)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(labels + 1, *shape))
    return np.argmax([gaussian_filter(channel, 2.5) for channel in noise], axis=0).astype(np.uint8)


def one_hot(array: np.ndarray, labels: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([array == i for i in range(labels + 1)])[None].astype(np.float32))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), labels=st.integers(1, 6))
def test_dice_equals_a_plain_loop_and_monai(seed: int, labels: int) -> None:
    a, b = blobs(seed, labels, (8, 9, 10)), blobs(seed + 1, labels, (8, 9, 10))
    ids = range(1, labels + 1)
    dice = dice_per_label(a, b, ids)
    for i in ids:
        shared, total = np.sum((a == i) & (b == i)), np.sum(a == i) + np.sum(b == i)
        expected = 2 * shared / total if (b == i).any() else np.nan
        assert dice[i] == pytest.approx(expected, nan_ok=True)
    monai = compute_dice(one_hot(a, labels), one_hot(b, labels), include_background=False)[0].numpy()
    np.testing.assert_allclose(list(dice.values()), monai, rtol=1e-6)


def test_absent_labels() -> None:
    full, empty = np.full((3, 3, 3), 2, dtype=np.int16), np.zeros((3, 3, 3), dtype=np.int16)
    nan = pytest.approx(np.nan, nan_ok=True)
    assert dice_per_label(empty, empty, [2]) == {2: nan}
    assert dice_per_label(full, empty, [2]) == {2: nan}
    assert dice_per_label(empty, full, [2]) == {2: 0.0}
    assert dice_per_label(empty, full, [2], unwarped=full) == {2: 0.0}
    assert dice_per_label(empty, full, [2], unwarped=empty) == {2: nan}
    assert dice_per_label(full, full, [2]) == {2: 1.0}
    assert dice_per_label(full, full, []) == {}


def test_ids_that_are_not_asked_for_do_not_count() -> None:
    a = np.array([[[-3, 0, 1, 1, 9, 300]]])
    b = np.array([[[-3, 0, 1, 0, 9, 200]]])
    assert dice_per_label(a, b, [1, 5]) == {1: pytest.approx(2 / 3), 5: pytest.approx(np.nan, nan_ok=True)}


def test_wrong_input_is_refused() -> None:
    a = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        dice_per_label(a, a[:1], [1])
    with pytest.raises(ValueError, match="positive"):
        dice_per_label(a, a, [0])


def test_folding_counts_the_interior_only() -> None:
    determinant = np.ones((6, 6, 6))
    determinant[0], determinant[:, -1], determinant[2, 2, 2], determinant[3, 3, 3] = -1, -1, 0, -0.5
    assert folding(determinant) == pytest.approx(100 * 2 / 4**3)
    mask = np.zeros((6, 6, 6))
    mask[2, 2, 2:4] = 1
    assert folding(determinant, mask) == pytest.approx(50.0)
    assert folding(determinant, margin=0) == pytest.approx(100 * (36 + 30 + 2) / 216)
    assert np.isnan(folding(np.ones((2, 6, 6))))
    assert np.isnan(folding(determinant, np.zeros((6, 6, 6))))
    determinant[2, 2, 3] = np.nan
    assert np.isnan(folding(determinant))
    assert np.isnan(sd_log_jacobian(determinant))


def test_sd_log_jacobian() -> None:
    determinant = np.exp(np.random.default_rng(0).normal(size=(8, 9, 10)))
    inner = determinant[1:-1, 1:-1, 1:-1]
    assert sd_log_jacobian(determinant) == pytest.approx(np.log(inner).std())
    learn2reg = np.log(determinant[2:-2, 2:-2, 2:-2] + 3).std()
    assert sd_log_jacobian_learn2reg(determinant) == pytest.approx(learn2reg)
    assert sd_log_jacobian(np.full((5, 5, 5), 0.3)) == pytest.approx(0)
    half = np.ones((4, 4, 4))
    half[:2] = -1
    assert sd_log_jacobian(half) == pytest.approx(-np.log(1e-9) / 2)
    assert np.isnan(sd_log_jacobian(np.ones((2, 2, 2))))
