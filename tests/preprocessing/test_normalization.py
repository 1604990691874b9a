import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.preprocessing.normalization import foreground_mask, is_ct, normalize
from llmreg.preprocessing.plans import Normalization


def ball(shape=(20, 24, 28), radius=9.0):
    z, y, x = np.indices(shape)
    return (z - 10) ** 2 + (y - 12) ** 2 + (x - 14) ** 2 < radius**2


def test_a_window_clips_and_scales():
    values = np.array([[[-500.0, -180, 110, 400, 900]]])
    plan = Normalization(modality="CT", scheme="window", lower=-180, upper=400)
    np.testing.assert_allclose(normalize(values, values > 0, plan), [[[0, 0, 0.5, 1, 1]]], atol=1e-6)


def test_percentiles_are_ranks_in_the_foreground():
    values = np.arange(1000.0).reshape(10, 10, 10)
    mask = values >= 500
    plan = Normalization(modality="MR", scheme="percentiles", lower=0, upper=95)
    scaled = normalize(values, mask, plan)
    assert scaled.dtype == np.float32
    assert (scaled[~mask] == 0).all()
    assert scaled[mask].max() == 1
    assert (scaled == 1).sum() == pytest.approx(25, abs=1)


@pytest.mark.parametrize(("inside", "outside", "ct"), [(40.0, -1000.0, True), (200.0, 0.0, False), (200.0, 8.0, False)])
def test_the_foreground_is_the_ball(inside, outside, ct):
    truth = ball()
    rng = np.random.default_rng(0)
    noise = 0.0 if outside == 0 else 3.0
    values = np.where(truth, inside, outside) + rng.normal(size=truth.shape) * np.where(truth, 5.0, noise)
    found = foreground_mask(sitk.GetImageFromArray(values.astype(np.float32)), ct)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.88


def test_ct_is_known_by_its_name():
    assert all(
        map(is_ct, ("CT", "ct", "CT-contrast", "low dose CT", "ct_venous", "CT/abdomen", "CECT", "FBCT", "CT1", "CTA"))
    )
    assert not any(map(is_ct, ("MR", "T1", "octo", "PET", "ACTH", "OCT")))
