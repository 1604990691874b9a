"""Resampled images against SimpleITK's."""

import numpy as np
import pytest
import SimpleITK as sitk
from random_fields import random_field

from llmreg.geometry.arrays import array_to_image, image_to_array
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import ones_on, resample_image, resample_with_edge


@pytest.mark.parametrize("interpolator", ["linear", "bspline", "nearest"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("slices", [3, 2**20])
def test_warped_images_are_itks_rounded_and_in_range(oblique, interpolator, kind, slices, monkeypatch):
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", slices * oblique.size[0] * oblique.size[1])
    rng = np.random.default_rng(0)
    image = array_to_image((rng.random(oblique.shape) * 200 + 30).astype(kind), oblique)
    field = random_field(oblique, 1, 2.0)
    method = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}[interpolator]
    by_itk = sitk.GetArrayFromImage(sitk.Resample(image, image, field.to_transform(), method, 7.0, sitk.sitkFloat64))
    outside = by_itk == 7.0
    assert 0 < outside.mean() < 0.5
    values = image_to_array(image)
    if interpolator == "bspline":
        assert by_itk.max() > values.max()
        by_itk = np.where(outside, 7.0, np.clip(by_itk, values.min(), values.max()))
    for transform in (field, field.to_transform()):
        result = resample_image(image, oblique, transform, interpolator, 7.0)
        assert result.GetPixelID() == image.GetPixelID()
        assert Grid.from_image(result) == oblique
        np.testing.assert_allclose(image_to_array(result), by_itk, rtol=0, atol=1e-3 if kind == np.float32 else 0.5001)


def test_a_field_on_another_grid_is_zero_outside_its_own(oblique):
    field = random_field(oblique, 2, 2.0)
    wide = oblique.pad((2, 3, 4), (4, 3, 2))
    image = array_to_image(np.random.default_rng(0).random(wide.shape).astype(np.float32), wide)
    result = image_to_array(resample_image(image, wide, field))
    expected = sitk.Resample(image, image, field.to_transform(), sitk.sitkLinear)
    np.testing.assert_array_equal(result, image_to_array(expected))
    np.testing.assert_array_equal(result[0], image_to_array(image)[0])


def test_the_grids_volume_is_1_where_its_image_is_seen(oblique):
    """Against an image of ones on the grid itself, looked up through a transform."""
    turn = sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (3.5, -4.5, 2.3))
    other = Grid((20, 18, 16), (1.2, 1.0, 2.0), (-14.0, -26.0, -25.0))
    ones = array_to_image(np.ones(oblique.shape, np.uint8), oblique)
    expected = image_to_array(resample_image(ones, other, turn, "nearest"))
    np.testing.assert_array_equal(image_to_array(resample_image(ones_on(oblique), other, turn, "nearest")), expected)
    assert 0.05 < expected.mean() < 0.95


def test_the_edge_continues_outside():
    """A ramp along x, which stays at its outermost values beyond the image."""
    grid = Grid((6, 5, 4), (2.0, 1.0, 3.0), (10.0, 0.0, 0.0))
    image = array_to_image(grid.indices()[..., 0].astype(np.float32), grid)
    wide = grid.pad((3, 0, 0), (2, 0, 0))
    shift = sitk.TranslationTransform(3, (1.0, 0.0, 0.0))
    result = image_to_array(resample_with_edge(image, wide, shift))
    expected = np.clip(np.arange(-3, 8) + 0.5, 0, 5)
    # Between the last voxel's centre and its edge, ITK has the last value already.
    np.testing.assert_allclose(result, np.broadcast_to(expected, wide.shape), atol=1e-6)
