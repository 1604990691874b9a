"""Resampled images against SimpleITK's."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from smooth import smooth_noise

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import ones_on, resample_image, resample_labels, resample_with_edge


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


def blobs(grid: Grid, seed: int, labels: int, kind: type = np.uint8) -> sitk.Image:
    rng = np.random.default_rng(seed)
    noise = [smooth_noise(rng, grid.shape, 1.5) for _ in range(labels)]
    return array_to_image(np.argmax(noise, axis=0).astype(kind), grid)


def one_hot(labels: sitk.Image, grid: Grid, transform: sitk.Transform) -> np.ndarray:
    """(labels, z, y, x), each map linearly interpolated."""
    reference = array_to_image(np.zeros(grid.shape, np.uint8), grid)
    values = image_to_array(labels)
    maps = []
    for label in range(values.max() + 1):
        one_map = array_to_image((values == label).astype(np.float64), Grid.from_image(labels))
        maps.append(image_to_array(sitk.Resample(one_map, reference, transform, sitk.sitkLinear, 0.0)))
    return np.stack(maps)


@settings(max_examples=12)
@given(grid=grids(), source=grids(), seed=st.integers(0, 1000), count=st.sampled_from([2, 5, 35]))
def test_linear_is_the_arg_max_of_one_hot_maps(grid, source, seed, count):
    labels = blobs(source, seed, count)
    shift = (source.centre - grid.centre).astype(np.float32)
    field = DisplacementField(random_field(grid, seed, 2.0).vectors + shift, grid)
    result = image_to_array(resample_labels(labels, grid, field, "linear"))
    maps = one_hot(labels, grid, field.to_transform())
    largest = np.sort(maps, axis=0)
    clear = largest[-1] - largest[-2] > 1e-4
    inside = largest[-1] > 0
    assert clear[inside].mean() > 0.9
    assert not result[~inside].any()
    np.testing.assert_array_equal(result[clear], maps.argmax(axis=0)[clear])
    # Elsewhere the label is one of those whose maps are equally large.
    np.testing.assert_allclose(np.take_along_axis(maps, result[None].astype(int), 0)[0], largest[-1], atol=1e-4)


def test_level_labels_are_decided_as_by_arg_max(oblique):
    labels = blobs(oblique, 1, 4)
    half = sitk.TranslationTransform(3, (oblique.matrix @ (0.5, 0, 0)).tolist())
    result = image_to_array(resample_labels(labels, oblique, half, "linear"))
    values = image_to_array(labels)
    # Between two voxels the lower label; before the last voxel's centre none is level.
    np.testing.assert_array_equal(result[..., :-1], np.minimum(values[..., :-1], values[..., 1:]))


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_types_and_large_labels_are_kept(oblique, interpolation, kind):
    labels = blobs(oblique, 2, 4, kind) * 30
    result = resample_labels(labels, oblique, None, interpolation)
    assert result.GetPixelID() == labels.GetPixelID()
    np.testing.assert_array_equal(image_to_array(result), image_to_array(labels))
    assert Grid.from_image(result).same_as(oblique)


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_beyond_the_label_map_is_background(oblique, interpolation):
    labels = blobs(oblique, 3, 3) + 1
    wide = oblique.pad((3, 2, 1), (1, 2, 3))
    result = image_to_array(resample_labels(labels, wide, None, interpolation))
    assert (result[1:-3, 2:-2, 3:-1] == image_to_array(labels)).all()
    assert result.sum() == image_to_array(labels).sum()
    far = sitk.TranslationTransform(3, (1e4, 0, 0))
    assert not image_to_array(resample_labels(labels, wide, far, interpolation)).any()


@settings(max_examples=8)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_nearest_is_itks(grid, seed):
    labels = blobs(grid, seed, 5)
    field = random_field(grid, seed, 2.0)
    expected = sitk.Resample(labels, labels, field.to_transform(), sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(image_to_array(resample_labels(labels, grid, field)), image_to_array(expected))


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_fields_on_other_grids_and_slabs_give_the_same(oblique, interpolation, monkeypatch):
    labels = blobs(oblique, 4, 5)
    field = random_field(oblique, 4, 2.0)
    expected = image_to_array(resample_labels(labels, oblique, field, interpolation))
    by_transform = image_to_array(resample_labels(labels, oblique, field.to_transform(), interpolation))
    assert (expected == by_transform).mean() > 0.999
    part = oblique.pad((0, 0, -4), (0, 0, 0))
    assert (image_to_array(resample_labels(labels, part, field, interpolation)) == expected[4:]).mean() > 0.999
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", 3 * oblique.size[0] * oblique.size[1])
    np.testing.assert_array_equal(image_to_array(resample_labels(labels, oblique, field, interpolation)), expected)
