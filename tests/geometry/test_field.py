"""Our warp, SimpleITK on the written file and SciPy on the Learn2Reg export must agree."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from scipy.ndimage import map_coordinates

from llmreg.geometry import field as fields
from llmreg.geometry import warping
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.formats import to_learn2reg
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import array_to_image, image_to_array, write_field


@settings(max_examples=15, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_four_ways_to_look_up_a_coordinate_agree(grid, seed, tmp_path_factory):
    # Warping an image that holds a voxel coordinate shows where each voxel looks, to be compared in voxels.
    field = random_field(grid, seed, voxels=2.0)
    path = tmp_path_factory.mktemp("field") / "disp.nii.gz"
    write_field(field, path)
    written = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    exported = to_learn2reg(field)
    flow = torch.from_numpy(field.to_flow())[None]
    inside = np.all((lookup := grid.indices() + np.moveaxis(field.to_flow(), 0, -1)) >= 0.01, axis=-1)
    inside &= np.all(lookup <= np.array(grid.size) - 1.01, axis=-1)
    assert inside.mean() > 0.2
    for axis in range(3):
        values = grid.indices()[..., axis].astype(np.float32)
        image = array_to_image(values, grid)
        by_torch = warping.warp(torch.from_numpy(values)[None, None], flow)[0, 0].numpy()
        by_us = image_to_array(fields.warp_image(image, field))
        by_itk = sitk.GetArrayFromImage(sitk.Resample(image, image, written, sitk.sitkLinear, 0.0))
        index = np.moveaxis(exported, -1, 0) + np.indices(grid.size)
        by_scipy = map_coordinates(values.transpose(2, 1, 0), index, order=1).transpose(2, 1, 0)
        for other in (by_us, by_itk, by_scipy, lookup[..., axis]):
            np.testing.assert_allclose(by_torch[inside], other[inside], atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_a_field_after_its_inverse_is_the_identity(grid, seed):
    field = random_field(grid, seed, voxels=1.5)
    back = fields.compose(fields.inverse(field), field)
    # Near the border the composed path leaves the grid, where ITK knows no displacement.
    inner = (slice(3, -3),) * 3
    error = np.linalg.norm(np.moveaxis(back.to_flow(), 0, -1)[inner], axis=-1)
    assert error.max() < 0.05


def test_composing_is_following_one_field_after_the_other(oblique):
    first, second = random_field(oblique, 1, 0.8), random_field(oblique, 2, 0.8)
    both = fields.compose(first, second)
    for index in [(4, 4, 4), (7, 5, 3), (6, 6, 5)]:
        point = oblique.index_to_physical(index)
        there = second.to_transform().TransformPoint(first.to_transform().TransformPoint(point.tolist()))
        np.testing.assert_allclose(point + both.vectors[index[::-1]], there, atol=1e-3)
    flows = [torch.from_numpy(f.to_flow())[None] for f in (first, second)]
    inner = (slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(warping.compose(*flows)[0].numpy()[inner], both.to_flow()[inner], atol=1e-3)


def test_upsampling_doubles_voxels_and_keeps_millimetres(oblique):
    coarse = random_field(oblique, 3, 1.0, sigma=4.0)
    fine = fields.upsample(coarse, 2)
    assert fine.grid.same_as(oblique.upsampled(2))
    by_torch = warping.upsample(torch.from_numpy(coarse.to_flow())[None], 2)[0].numpy()
    np.testing.assert_allclose(fine.to_flow(), by_torch, atol=1e-4)
    constant = torch.full((1, 3, 4, 4, 4), 1.5)
    assert torch.allclose(warping.upsample(constant, 2), torch.tensor(3.0))


def test_fading_keeps_the_inside_and_ends_near_zero(oblique):
    field = random_field(oblique, 4, 2.0)
    faded = fields.fade_outside(field, 6)
    inside = (slice(6, -6),) * 3
    np.testing.assert_array_equal(faded.vectors[inside], field.vectors)
    assert np.abs(faded.vectors[0]).max() < 0.1 * np.abs(field.vectors).max()
    np.testing.assert_allclose(
        faded.grid.index_to_physical((6, 6, 6)), field.grid.index_to_physical((0, 0, 0)), atol=1e-9
    )


def test_resampling_keeps_the_edge_and_the_millimetres(oblique):
    field = random_field(oblique, 10, 1.0)
    # On its own grid nothing changes, not even in the outermost voxels.
    np.testing.assert_allclose(fields.resample(field, oblique).vectors, field.vectors, atol=1e-5)
    constant = DisplacementField(np.full((*oblique.shape, 3), 2.5, np.float32), oblique)
    for grid in (oblique.downsampled(2), oblique.upsampled(2)):
        inner = (slice(1, -1),) * 3
        np.testing.assert_allclose(fields.resample(constant, grid).vectors[inner], 2.5, atol=1e-5)


def test_the_determinant_of_an_affine_mapping_is_the_matrix_determinant(oblique):
    matrix = np.array([[1.1, 0.1, 0.0], [0.0, 0.9, 0.2], [0.1, 0.0, 1.05]])
    vectors = (oblique.physical_points() @ (matrix - np.eye(3)).T).astype(np.float32)
    determinant = fields.jacobian_determinant(DisplacementField(vectors, oblique))
    np.testing.assert_allclose(determinant, np.linalg.det(matrix), atol=1e-4)


@pytest.mark.parametrize("slices", [2, 6, 7, 8])
def test_determinants_of_slabs_are_those_of_the_whole(slices, monkeypatch):
    whole = Grid.slabs
    monkeypatch.setattr(Grid, "slabs", lambda grid: whole(grid, 60))  # three slices each
    vectors = np.random.default_rng(slices).normal(size=(slices, 5, 4, 3)).astype(np.float32)
    field = DisplacementField(vectors, Grid((4, 5, slices), (1.0, 2.0, 0.5), (0.0, 0.0, 0.0)))
    gradients = np.gradient(field.to_flow().astype(np.float64), axis=(3, 2, 1))
    matrices = np.stack(gradients, axis=-1).transpose(1, 2, 3, 0, 4) + np.eye(3)
    np.testing.assert_allclose(fields.jacobian_determinant(field), np.linalg.det(matrices), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("interpolator", ["linear", "bspline", "nearest"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("slices", [3, 2**20])
def test_warped_images_are_itks_rounded_and_in_range(oblique, interpolator, kind, slices, monkeypatch):
    monkeypatch.setattr(Grid.slabs, "__defaults__", (slices * oblique.size[0] * oblique.size[1],))
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
    for through in (field, field.to_transform()):
        found = fields.resample_image(image, oblique, through, interpolator, 7.0)
        assert found.GetPixelID() == image.GetPixelID()
        assert Grid.from_image(found) == oblique
        np.testing.assert_allclose(image_to_array(found), by_itk, rtol=0, atol=1e-3 if kind == np.float32 else 0.5001)
