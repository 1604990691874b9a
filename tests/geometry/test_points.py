"""Points through transforms, as SimpleITK takes them."""

import numpy as np
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field

from llmreg.geometry.field import DisplacementField, chain_transforms, invert_field
from llmreg.geometry.points import inverse_transform_points, transform_points


def affine() -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((0.9, -0.4, 0.1, 0.35, 1.1, 0.0, -0.1, 0.2, 1.3))
    transform.SetCenter((10.0, -5.0, 30.0))
    transform.SetTranslation((120.0, -80.0, 4.0))
    return transform


@settings(max_examples=15)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_points_go_where_itk_takes_them(grid, seed):
    rng = np.random.default_rng(seed)
    field = random_field(grid, seed, 2.0)
    # Some lie outside, where ITK leaves them; none at the very border of the outermost voxels.
    index = rng.uniform(-3, np.array(grid.size) + 2, (200, 3))
    border = np.minimum(np.abs(index + 0.5), np.abs(index - np.array(grid.size) + 0.5)).min(axis=1) < 1e-3
    points = grid.index_to_physical(index[~border])
    spline = sitk.BSplineTransform(3, 3)
    spline.SetParameters(rng.normal(size=len(spline.GetParameters())).tolist())
    for transform in (field, affine(), sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.3), spline):
        by_itk = transform.to_transform() if isinstance(transform, DisplacementField) else transform
        expected = [by_itk.TransformPoint(point) for point in points.tolist()]
        np.testing.assert_allclose(transform_points(points, transform), expected, atol=1e-4)
    assert transform_points(np.empty((0, 3)), field).shape == (0, 3)


@settings(max_examples=15)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_points_come_back_through_a_field_with_a_large_affine_part(grid, seed):
    deformation = random_field(grid, seed, 1.5)
    placed = affine()
    field_of_both = DisplacementField.from_transform(chain_transforms(deformation.to_transform(), placed), grid)
    index = np.random.default_rng(seed).uniform(0, np.array(grid.size) - 1, (300, 3))
    points = grid.index_to_physical(index)
    moved = transform_points(points, field_of_both)
    inverse = inverse_transform_points(moved, field_of_both)
    assert np.linalg.norm(inverse - points, axis=1).max() < 0.1
    # Both ways, also where no inverse on the fixed grid could be looked up: the moving points lie elsewhere.
    np.testing.assert_allclose(transform_points(inverse, field_of_both), moved, atol=4e-3 * max(grid.spacing))
    assert not grid.contains(moved).all()


def test_an_affine_part_goes_on_outside(oblique):
    field = DisplacementField.from_transform(affine(), oblique)
    far = oblique.corners() * 3
    np.testing.assert_allclose(inverse_transform_points(transform_points(far, affine()), field), far, atol=1e-2)


def test_point_inverses_agree_with_the_inverse_field(oblique):
    field = random_field(oblique, 3, 1.0)
    inner = oblique.index_to_physical(np.random.default_rng(0).uniform(3, 6, (50, 3)))
    expected = transform_points(inner, invert_field(field, tolerance=1e-5))
    # The inverse field is exact at its voxels only.
    np.testing.assert_allclose(inverse_transform_points(inner, field), expected, atol=0.2)


def test_strong_expansion_does_not_oscillate(oblique):
    x = np.linspace(-1, 1, oblique.size[0], dtype=np.float32)
    flow = np.zeros((3, *oblique.shape), np.float32)
    flow[0] = np.where(np.abs(x) < 0.4, 4 * x, 4 * 0.4 * np.sign(x)) * 4
    field = DisplacementField.from_flow(flow, oblique)
    points = oblique.index_to_physical(np.random.default_rng(0).uniform(2, 8, (100, 3)))
    mapped = transform_points(inverse_transform_points(points, field), field)
    np.testing.assert_allclose(mapped, points, atol=4e-3)


def test_one_slice_has_an_inverse(oblique):
    flat = oblique.pad((0, 0, 0), (0, 0, 1 - oblique.size[2]))
    field = DisplacementField(np.full((*flat.shape, 3), 5.0, np.float32), flat)
    points = flat.index_to_physical([[3.0, 4.0, 0.0]])
    np.testing.assert_allclose(inverse_transform_points(points + 5, field), points, atol=1e-3)


def test_many_points_are_looked_up_as_few_are(oblique, monkeypatch):
    field = random_field(oblique, 4, 1.5)
    points = oblique.index_to_physical(np.random.default_rng(0).uniform(-2, np.array(oblique.size) + 1, (500, 3)))
    few = transform_points(points, field), inverse_transform_points(points, field)
    monkeypatch.setattr("llmreg.geometry.points.TORCH_FROM_POINTS", 0)
    many = transform_points(points, field), inverse_transform_points(points, field)
    np.testing.assert_allclose(many[0], few[0], atol=1e-4)
    # To a thousandth of a voxel.
    np.testing.assert_allclose(many[1], few[1], atol=5e-3)
