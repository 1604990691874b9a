"""Our warp, SimpleITK on the written file and SciPy on the Learn2Reg export must agree."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field
from scipy.ndimage import map_coordinates
from scipy.signal.windows import tukey

from llmreg.geometry import warping
from llmreg.geometry.field import (
    DisplacementField,
    chain_transforms,
    fade_outside,
    from_learn2reg,
    invert_field,
    jacobian_determinant,
    resample_field,
    sample_transform,
    to_learn2reg,
)
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.geometry.resampling import resample_image
from llmreg.images.fields import write_field


@settings(max_examples=15)
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
        by_us = image_to_array(resample_image(image, grid, field))
        by_itk = sitk.GetArrayFromImage(sitk.Resample(image, image, written, sitk.sitkLinear, 0.0))
        index = np.moveaxis(exported, -1, 0) + np.indices(grid.size)
        by_scipy = map_coordinates(values.transpose(2, 1, 0), index, order=1).transpose(2, 1, 0)
        for other in (by_us, by_itk, by_scipy, lookup[..., axis]):
            np.testing.assert_allclose(by_torch[inside], other[inside], atol=1e-3)


@settings(max_examples=10)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_a_field_after_its_inverse_is_the_identity(grid, seed):
    field = random_field(grid, seed, voxels=1.5)
    inverse = invert_field(field)
    composite = sitk.CompositeTransform([field.to_transform(), inverse.to_transform()])
    # Near the border the path leaves the grid, where ITK knows no displacement.
    inner = grid.pad((-3, -3, -3), (-3, -3, -3))
    error = DisplacementField.from_transform(composite, inner).to_flow()
    assert np.linalg.norm(error, axis=0).max() < 0.05


def test_a_guess_that_is_precise_enough_stays(oblique):
    field = random_field(oblique, 5, 1.5)
    precise = invert_field(field, tolerance=1e-5)
    np.testing.assert_allclose(invert_field(field, precise, tolerance=0.1).vectors, precise.vectors, atol=1e-4)
    assert np.abs(invert_field(field, tolerance=0.1).vectors - precise.vectors).max() > 1e-3


def test_transforms_are_chained_in_the_order_given():
    turn = sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))
    scale = sitk.ScaleTransform(3, (1.0, 2.0, 3.0))
    point = (7.0, 8.0, 9.0)
    expected = scale.TransformPoint(turn.TransformPoint(point))
    np.testing.assert_allclose(chain_transforms(turn, scale).TransformPoint(point), expected, atol=1e-9)


def test_a_sampled_transform_is_the_way_from_each_voxel(oblique):
    turn = sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))
    vectors = image_to_array(sample_transform(turn, oblique))
    for index in [(0, 0, 0), (3, 5, 7), (13, 11, 9)]:
        start = oblique.index_to_physical(index)
        end = turn.TransformPoint(start.tolist())
        np.testing.assert_allclose(start + vectors[index[::-1]], end, atol=1e-4)
    np.testing.assert_array_equal(DisplacementField.from_transform(turn, oblique).vectors, vectors)


def test_vectors_that_do_not_fit_their_grid_are_refused(oblique):
    for vectors in (np.zeros((*oblique.size, 3), np.float32), np.zeros((*oblique.shape, 3))):
        with pytest.raises(ValueError, match="shape"):
            DisplacementField(vectors, oblique)


def test_fading_keeps_the_inside_and_ends_near_zero(oblique):
    field = random_field(oblique, 4, 2.0)
    faded = fade_outside(field, 6)
    inside = (slice(6, -6),) * 3
    np.testing.assert_array_equal(faded.vectors[inside], field.vectors)
    assert np.abs(faded.vectors[0]).max() < 0.1 * np.abs(field.vectors).max()
    np.testing.assert_allclose(
        faded.grid.index_to_physical((6, 6, 6)), field.grid.index_to_physical((0, 0, 0)), atol=1e-9
    )


def test_fading_is_scipys_window_on_the_continued_edge(oblique):
    margin = 5
    field = random_field(oblique, 4, 2.0)
    faded = fade_outside(field, margin)
    continued = field.vectors[np.ix_(*[np.arange(-margin, n + margin).clip(0, n - 1) for n in oblique.shape])]
    # A Tukey window ends at zero, a voxel beyond the padding.
    lengths = [n + 2 * (margin + 1) for n in oblique.shape]
    windows = [tukey(length, 2 * (margin + 1) / (length - 1))[1:-1] for length in lengths]
    np.testing.assert_allclose(faded.vectors, np.einsum("zyxc,z,y,x->zyxc", continued, *windows), atol=1e-6)
    np.testing.assert_array_equal(fade_outside(field, 0).vectors, field.vectors)


def test_resampling_keeps_the_edge_and_the_millimetres(oblique):
    field = random_field(oblique, 10, 1.0)
    # On its own grid nothing changes, not even in the outermost voxels.
    np.testing.assert_allclose(resample_field(field, oblique).vectors, field.vectors, atol=1e-5)
    constant = DisplacementField(np.full((*oblique.shape, 3), 2.5, np.float32), oblique)
    for factor in (0.5, 2.0):
        spacing = tuple(factor * length for length in oblique.spacing)
        grid = Grid(oblique.size, spacing, tuple((oblique.centre - (3.1, 2.3, 4.7)).tolist()), oblique.direction)
        moved = resample_field(constant, grid)
        inside = oblique.contains(grid.physical_points())
        assert inside.any()
        np.testing.assert_allclose(moved.vectors[inside], 2.5, atol=1e-5)
        assert not moved.vectors[~inside].any()


def test_the_determinant_of_an_affine_mapping_is_the_matrix_determinant(oblique):
    matrix = np.array([[1.1, 0.1, 0.0], [0.0, 0.9, 0.2], [0.1, 0.0, 1.05]])
    vectors = (oblique.physical_points() @ (matrix - np.eye(3)).T).astype(np.float32)
    determinant = jacobian_determinant(DisplacementField(vectors, oblique))
    np.testing.assert_allclose(determinant, np.linalg.det(matrix), atol=1e-4)


@pytest.mark.parametrize("slices", [2, 6, 7, 8])
def test_determinants_of_slabs_are_those_of_the_whole(slices, monkeypatch):
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", 60)  # three slices each
    vectors = np.random.default_rng(slices).normal(size=(slices, 5, 4, 3)).astype(np.float32)
    field = DisplacementField(vectors, Grid((4, 5, slices), (1.0, 2.0, 0.5), (0.0, 0.0, 0.0)))
    gradients = np.gradient(field.to_flow().astype(np.float64), axis=(3, 2, 1))
    matrices = np.stack(gradients, axis=-1).transpose(1, 2, 3, 0, 4) + np.eye(3)
    np.testing.assert_allclose(jacobian_determinant(field), np.linalg.det(matrices), rtol=1e-4, atol=1e-4)


OTHER = Grid((20, 18, 16), (1.2, 1.0, 2.0), (0.0, -10.0, 3.0))


def test_large_fields_are_converted_in_slabs(oblique, monkeypatch):
    field = random_field(oblique, 9, 1.0)
    expected = to_learn2reg(field, OTHER)
    monkeypatch.setattr("llmreg.geometry.grid.SLAB_VOXELS", 3 * oblique.size[0] * oblique.size[1])
    assert len(list(oblique.slabs())) == 4
    np.testing.assert_array_equal(to_learn2reg(field, OTHER), expected)
    np.testing.assert_allclose(from_learn2reg(expected, oblique, OTHER).vectors, field.vectors, atol=1e-3)


def test_steps_lead_to_the_same_point_of_the_moving_image(oblique):
    """In voxels along each array's axes, from a fixed index to a moving one, by SimpleITK's own coordinates."""
    field = random_field(oblique, 3, 1.0)
    fixed, moving = (array_to_image(np.zeros(grid.shape, np.uint8), grid) for grid in (oblique, OTHER))
    steps = to_learn2reg(field, OTHER)
    assert steps.shape == (*oblique.size, 3)
    for index in [(0, 0, 0), (3, 5, 7), (13, 11, 9)]:
        point = np.array(fixed.TransformIndexToPhysicalPoint(index)) + field.vectors[index[::-1]]
        expected = moving.TransformPhysicalPointToContinuousIndex(point.tolist())
        np.testing.assert_allclose(index + steps[index], expected, atol=1e-4)
    # Images on one grid need no second one.
    np.testing.assert_allclose(to_learn2reg(field), to_learn2reg(field, replace(oblique)), atol=0)
    np.testing.assert_allclose(from_learn2reg(to_learn2reg(field), oblique).vectors, field.vectors, atol=1e-4)


def test_where_nothing_moves_the_steps_are_zero(oblique):
    assert not to_learn2reg(DisplacementField(np.zeros((*oblique.shape, 3), np.float32), oblique)).any()
