"""Grids and arrays of voxels, against SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk

from llmreg.geometry.grid import (
    Grid,
    array_to_image,
    image_to_array,
    lps_to_ras,
    orient_to_lps,
    place_image,
    ras_to_lps,
)


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


def test_padding_is_itk_pad_and_crop(oblique):
    image = array_to_image(np.zeros(oblique.shape, np.float32), oblique)
    padded = Grid.from_image(sitk.ConstantPad(image, [1, 2, 3], [4, 5, 6]))
    assert padded.same_as(oblique.pad([1, 2, 3], [4, 5, 6]), 1e-6)
    cropped = Grid.from_image(sitk.Crop(image, [1, 0, 2], [0, 3, 1]))
    assert cropped.same_as(oblique.pad([-1, 0, -2], [0, -3, -1]), 1e-6)


def test_a_grid_from_its_centre_has_it_and_dict_round_trips(oblique):
    grid = Grid.from_centre((5, 6, 7), (1, 2, 3), (1.0, 2.0, 3.0))
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


def test_points_lie_inside_where_a_voxel_is_nearest(oblique):
    image = array_to_image(np.zeros(oblique.shape, np.uint8), oblique)
    points = oblique.index_to_physical(np.random.default_rng(1).uniform(-3, np.array(oblique.size) + 2, (200, 3)))
    inside = []
    for point in points.tolist():
        index = image.TransformPhysicalPointToIndex(point)
        inside.append(all(0 <= i < n for i, n in zip(index, image.GetSize(), strict=True)))
    assert oblique.contains(points).tolist() == inside
    assert 0.2 < np.mean(inside) < 0.8


def test_the_share_inside_another_grid_is_that_of_its_volume():
    grid = Grid((8, 8, 8), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    half = Grid((4, 8, 8), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    assert grid.share_inside(half) == 0.5
    assert half.share_inside(grid) == 1


def test_slabs_are_the_slices_of_the_grid(oblique, monkeypatch):
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", 3 * oblique.size[0] * oblique.size[1])
    slabs = list(oblique.slabs())
    assert [part.stop - part.start for part, _ in slabs] == [3, 3, 3, 1]
    for part, slab in slabs:
        np.testing.assert_allclose(slab.physical_points(), oblique.physical_points()[part], atol=1e-9)


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
