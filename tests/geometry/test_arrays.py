"""Arrays against SimpleITK's own indices."""

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.geometry.arrays import array_to_image, image_to_array, lps_to_ras, orient_to_lps, place_image, ras_to_lps
from llmreg.geometry.grid import Grid


@pytest.fixture
def image(oblique):
    values = np.random.default_rng(0).normal(size=oblique.shape).astype(np.float32)
    return array_to_image(values, oblique)


def test_turning_to_lps_moves_no_voxel(image):
    turned = orient_to_lps(image)
    point = image.TransformIndexToPhysicalPoint((3, 4, 5))
    index = turned.TransformPhysicalPointToIndex(point)
    assert turned[index] == image[3, 4, 5]
    assert np.all(np.diag(np.reshape(turned.GetDirection(), (3, 3))) > 0.5)


def test_lps_and_ras_differ_in_x_and_y():
    np.testing.assert_array_equal(lps_to_ras(np.array([1.0, 2.0, 3.0])), [-1, -2, 3])
    np.testing.assert_array_equal(ras_to_lps(np.array([[-1.0, -2.0, 3.0]])), [[1, 2, 3]])


def test_arrays_have_x_last(image, oblique):
    array = image_to_array(image)
    assert array.shape == oblique.size[::-1]
    assert array[5, 4, 3] == image[3, 4, 5]
    assert Grid.from_image(image) == oblique


def test_an_array_of_another_shape_is_refused(oblique):
    with pytest.raises(ValueError, match="shape"):
        array_to_image(np.zeros(oblique.size), oblique)


def test_a_placed_image_has_the_grid(oblique):
    image = sitk.Image(oblique.size, sitk.sitkUInt8)
    assert place_image(image, oblique) is image
    assert Grid.from_image(image) == oblique
