import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image


def test_points_are_those_of_itk(oblique):
    image = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    rng = np.random.default_rng(0)
    for index in rng.uniform(-3, 20, (10, 3)):
        expected = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
        np.testing.assert_allclose(oblique.index_to_physical(index), expected, atol=1e-9)
        np.testing.assert_allclose(oblique.physical_to_index(expected), index, atol=1e-9)
    np.testing.assert_allclose(
        oblique.physical_points()[3, 5, 7], image.TransformIndexToPhysicalPoint((7, 5, 3)), atol=1e-9
    )


def test_downsampled_is_itk_bin_shrink_and_upsampled_leads_back(oblique):
    image = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    assert Grid.from_image(sitk.BinShrink(image, [2, 2, 2])).same_as(oblique.downsampled(2), 1e-6)
    assert oblique.downsampled(2).upsampled(2).same_as(oblique, 1e-6)


def test_padded_is_itk_pad_and_crop(oblique):
    image = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    padded = Grid.from_image(sitk.ConstantPad(image, [1, 2, 3], [4, 5, 6]))
    assert padded.same_as(oblique.padded([1, 2, 3], [4, 5, 6]), 1e-6)
    cropped = Grid.from_image(sitk.Crop(image, [1, 0, 2], [0, 3, 1]))
    assert cropped.same_as(oblique.padded([-1, 0, -2], [0, -3, -1]), 1e-6)


def test_axis_aligned_is_centred_and_dict_round_trips(oblique):
    grid = Grid.axis_aligned((5, 6, 7), (1, 2, 3), (1.0, 2.0, 3.0))
    np.testing.assert_allclose(grid.centre, (1, 2, 3))
    assert Grid.from_dict(oblique.to_dict()) == oblique
    assert not grid.same_as(oblique)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 1, 1)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"direction": (0.0,) * 9},
        {"origin": (0.0, 0.0)},
    ],
)
def test_nonsense_is_refused(wrong):
    right = {"size": (2, 2, 2), "spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0)}
    with pytest.raises(ValueError, match=r"size|spacing|direction|origin"):
        Grid(**(right | wrong))


def test_downsampling_needs_a_divisible_size(oblique):
    with pytest.raises(ValueError, match="divide"):
        oblique.downsampled(4)
