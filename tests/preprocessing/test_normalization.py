from __future__ import annotations

import logging

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from llmreg.geometry.arrays import array_to_image
from llmreg.geometry.grid import Grid
from llmreg.plans.plan_settings import Normalization
from llmreg.preprocessing.normalization import check_window, normalize, normalize_image, safe_default

HU = Normalization(modality="CT", scheme="window", lower=-180, upper=400)
UNIT = Normalization(modality="CT", scheme="window", lower=0, upper=1)
PAPER_MR = Normalization(modality="MR", scheme="percentiles", lower=0, upper=95)


def test_a_window_clips_and_scales():
    values = np.array([[[-500.0, -180, 110, 400, 900]]])
    np.testing.assert_allclose(normalize(values, values, HU), [[[0, 0, 0.5, 1, 1]]], atol=1e-6)


def test_percentiles_are_ranks_in_the_foreground():
    values = np.arange(1000.0).reshape(10, 10, 10)
    inside = values >= 500
    scaled = normalize(values, values[inside], PAPER_MR)
    assert scaled.dtype == np.float32
    assert (scaled[~inside] == 0).all()
    assert scaled[inside].max() == 1
    assert (scaled == 1).sum() == pytest.approx(25, abs=1)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64]),
    lower=st.integers(0, 60),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_type_is_scaled_as_in_a_plain_computation(kind: type, lower: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 250, (4, 5, 6)).astype(kind)
    for scheme in ("window", "percentiles"):
        plan = Normalization(modality="X", scheme=scheme, lower=lower, upper=lower + width)
        before = values.copy()
        low, high = (lower, lower + width) if scheme == "window" else np.percentile(values, [lower, lower + width])
        expected = np.clip((values.astype(float) - low) / max(high - low, 1e-6), 0, 1)
        np.testing.assert_allclose(normalize(values, values.ravel(), plan), expected, atol=1e-5)
        np.testing.assert_array_equal(values, before)


def test_an_image_of_one_value_stays_finite() -> None:
    values = np.full((3, 3, 3), 7.0)
    assert np.isfinite(normalize(values, values.ravel(), PAPER_MR)).all()


@pytest.fixture
def tilted(oblique: Grid) -> Grid:
    """Oblique, of voxels that the foreground does not skip."""
    return Grid(oblique.size, (3.0, 3.5, 4.0), oblique.origin, oblique.direction)


def image(values: np.ndarray, grid: Grid) -> sitk.Image:
    return array_to_image(values.astype(np.float32), grid)


def test_an_image_is_turned_and_ranked_in_its_foreground(tilted: Grid) -> None:
    rng = np.random.default_rng(0)
    values = np.zeros(tilted.shape)
    values[2:8, 2:10, 3:12] = rng.uniform(100, 200, (6, 8, 9))
    stored = image(values, tilted)
    normal, foreground = normalize_image(stored, PAPER_MR)
    # The background is not ranked: the brightest twentieth of what is inside is 1, not that of the whole image.
    found = sitk.GetArrayFromImage(normal)
    assert (found == 1).sum() == pytest.approx(0.05 * 432, abs=4)
    assert np.median(foreground.intensities) > 100
    for point, value in ((p, values[p[::-1]]) for p in ((5, 4, 3), (11, 9, 7), (0, 0, 0))):
        there = normal.TransformPhysicalPointToIndex(stored.TransformIndexToPhysicalPoint(point))
        low, high = foreground.intensities.min(), np.percentile(foreground.intensities, 95)
        assert normal[there] == pytest.approx(np.clip((value - low) / (high - low), 0, 1), abs=1e-5)
    assert all(np.diag(np.reshape(normal.GetDirection(), (3, 3))) > 0.9)


def test_the_users_mask_says_what_is_ranked(tilted: Grid) -> None:
    values = np.random.default_rng(0).uniform(0, 1000, tilted.shape)
    mask = np.zeros(tilted.shape, np.uint8)
    mask[3:6, 2:8, 4:9] = 1
    normal, foreground = normalize_image(image(values, tilted), PAPER_MR, array_to_image(mask, tilted))
    assert sorted(foreground.intensities) == pytest.approx(sorted(values[mask > 0]), rel=1e-6)
    assert (sitk.GetArrayFromImage(normal) == 1).sum() == (values >= np.percentile(values[mask > 0], 95) - 1e-3).sum()


@pytest.mark.parametrize(
    ("plan", "low", "high", "same"),
    [
        (HU, -1000, 1500, True),
        (HU, 0, 4000, False),
        (Normalization(modality="CT", scheme="window", lower=5, upper=80), 0, 300, True),
        (UNIT, 0, 1, True),
        (UNIT, -0.01, 1.2, True),
        (UNIT, 0, 255, False),
        (PAPER_MR, 0, 4000, True),
    ],
)
def test_a_window_for_other_values_is_not_used(
    caplog: pytest.LogCaptureFixture, tilted: Grid, plan: Normalization, low: float, high: float, same: bool
) -> None:
    values = np.linspace(low, high, int(np.prod(tilted.size))).reshape(tilted.shape)
    with caplog.at_level(logging.WARNING):
        found = check_window(plan, image(values, tilted))
    assert found == (plan if same else safe_default(plan.modality))
    assert len(caplog.records) == (0 if same else 1)


def test_the_safe_default_is_the_papers_for_mr_alone() -> None:
    assert [(d.scheme, d.lower, d.upper) for d in map(safe_default, ("T1w", "MR", "PET", "ultrasound"))] == [
        ("percentiles", 0, 95),
        ("percentiles", 0, 95),
        ("percentiles", 0.5, 99.5),
        ("percentiles", 0.5, 99.5),
    ]
