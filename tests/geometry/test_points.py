"""Points through transforms and chains of them, as SimpleITK takes them."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field

from llmreg.geometry.field import DisplacementField, chain_transforms, invert_field
from llmreg.geometry.grid import Grid
from llmreg.geometry.points import (
    InverseField,
    inverse_transform_points,
    invert_steps,
    map_points,
    merge_steps,
    split_transform,
    transform_points,
)


def affine() -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((0.9, -0.4, 0.1, 0.35, 1.1, 0.0, -0.1, 0.2, 1.3))
    transform.SetCenter((10.0, -5.0, 30.0))
    transform.SetTranslation((120.0, -80.0, 4.0))
    return transform


FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)


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
# One of these points needs more than 50 iterations with the slope of the whole field; two others never get there.
@example(grid=Grid((14, 18, 12), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), seed=75)
@example(grid=Grid((12, 13, 12), (0.5, 4.0, 1.0), (0.0, 0.0, 0.0), FLIPPED), seed=3)
@example(grid=Grid((12, 12, 12), (0.5, 3.0, 1.0), (0.0, 0.0, 0.0), FLIPPED), seed=257)
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


@pytest.mark.parametrize(("voxels", "width"), [(6.4, 0.4), (8.0, 0.2)])
def test_strong_expansion_does_not_oscillate(oblique, voxels, width):
    """In the second field whole steps lead away and back for ever."""
    x = np.linspace(-1, 1, oblique.size[0], dtype=np.float32)
    flow = np.zeros((3, *oblique.shape), np.float32)
    flow[0] = np.clip(x / width, -1, 1) * voxels
    field = DisplacementField.from_flow(flow, oblique)
    points = oblique.index_to_physical(np.random.default_rng(0).uniform(0, np.array(oblique.size) - 1, (300, 3)))
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
    expected = transform_points(points, field), inverse_transform_points(points, field)
    monkeypatch.setattr("llmreg.geometry.points.TORCH_FROM_POINTS", 0)
    actual = transform_points(points, field), inverse_transform_points(points, field)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-4)
    # Both inverses are right to a thousandth of a voxel.
    np.testing.assert_allclose(actual[1], expected[1], atol=5e-3)


def turn() -> sitk.Euler3DTransform:
    return sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))


def by_itk(*transforms: sitk.Transform) -> sitk.Transform:
    """ITK's composite applies first what was added last."""
    composite = sitk.CompositeTransform(3)
    for transform in reversed(transforms):
        composite.AddTransform(transform)
    return composite


@settings(max_examples=10)
@given(first=grids(), second=grids(), seed=st.integers(0, 1000))
def test_a_chain_is_itks_composite(first, second, seed):
    # The second field lies where the first one's points are brought to.
    shift = sitk.TranslationTransform(3, (second.centre - first.centre).tolist())
    fields = random_field(first, seed, 1.5), random_field(second, seed + 1, 1.5)
    steps = (fields[0], turn(), shift, fields[1])
    composite = by_itk(fields[0].to_transform(), turn(), shift, fields[1].to_transform())
    displaced = merge_steps(steps, first)
    assert isinstance(displaced, DisplacementField)
    expected = DisplacementField.from_transform(composite, first).vectors
    off = np.abs(displaced.vectors - expected).max(axis=-1)
    # A point at the very edge of the second field may be in or out.
    assert (off < 1e-3).mean() > 0.998
    points = first.points_inside(4)
    np.testing.assert_allclose(
        map_points(points, steps)[0], [composite.TransformPoint(p) for p in points.tolist()], atol=1e-3
    )


def test_composites_come_apart_in_the_order_of_points(oblique):
    field = random_field(oblique, 1, 1.0)
    inner = by_itk(turn(), field.to_transform())
    nested = by_itk(inner, sitk.TranslationTransform(3, (1.0, 2.0, 3.0)))
    steps = split_transform(nested)
    assert [type(step) for step in steps] == [sitk.Euler3DTransform, DisplacementField, sitk.TranslationTransform]
    np.testing.assert_array_equal(steps[1].vectors, field.vectors)
    points = oblique.points_inside(5)
    np.testing.assert_allclose(
        map_points(points, steps)[0], [nested.TransformPoint(p) for p in points.tolist()], atol=1e-4
    )


def test_the_way_back_leads_back(oblique):
    placed = DisplacementField.from_transform(by_itk(random_field(oblique, 1, 1.0).to_transform(), turn()), oblique)
    wide = random_field(oblique.pad((9, 9, 9), (9, 9, 9)), 2, 1.0)
    steps = (placed, wide, turn())
    index = np.random.default_rng(0).uniform(1, np.array(oblique.size) - 2, (100, 3))
    points = oblique.index_to_physical(index)
    moved, is_defined = map_points(points, steps)
    inverse, is_defined_inverse = map_points(moved, invert_steps(steps))
    assert is_defined.all()
    assert is_defined_inverse.all()
    np.testing.assert_allclose(inverse, points, atol=0.02)
    for step, twice in zip(steps[:2], invert_steps(invert_steps(steps))[:2], strict=True):
        assert twice is step


def test_points_that_no_field_knows_are_told(oblique):
    field = random_field(oblique, 3, 1.0)
    points = oblique.index_to_physical([[5, 5, 5], [-4, 5, 5], [5, 30, 5]])
    assert map_points(points, (field,))[1].tolist() == [True, False, False]
    assert map_points(points, (turn(),))[1].all()
    assert map_points(points, (InverseField(field),))[1].tolist() == [True, False, False]
    folding = np.zeros((3, *oblique.shape), np.float32)
    folding[0] = np.where(np.arange(oblique.size[0]) < 7, 4.0, -4.0)
    folded = DisplacementField.from_flow(folding, oblique)
    # Nothing comes to lie at x = 0; in the middle three points do.
    assert not map_points(oblique.index_to_physical([[0.0, 5, 5]]), (InverseField(folded),))[1].any()


def test_an_inverse_that_does_not_lead_back_is_told(oblique):
    """In the folds of a strong field the search may end at a point that leads elsewhere."""
    field = random_field(oblique, 1, 5.0, sigma=1.0)
    points = oblique.points_inside(6)
    inverse, is_defined = map_points(points, (InverseField(field),))
    transform = field.to_transform()
    offsets = np.array([transform.TransformPoint(point) for point in inverse.tolist()]) - points
    error, limit = np.linalg.norm(offsets, axis=1), 0.1 * min(oblique.spacing)
    inside = oblique.contains(inverse)
    assert (inside & (error > limit)).sum() > 10
    # Rounding decides about an error that is the limit.
    clear = inside & ~np.isclose(error, limit)
    np.testing.assert_array_equal(is_defined[clear], error[clear] < limit)
    assert not is_defined[~inside].any()


def test_merged_steps_need_no_more_than_they_must(oblique):
    field = random_field(oblique, 4, 1.0)
    merged = merge_steps((field,), oblique)
    assert isinstance(merged, DisplacementField)
    assert merged.vectors is field.vectors
    assert isinstance(merge_steps((turn(), turn()), oblique), sitk.Transform)
    part = oblique.pad((-2, -2, -2), (-2, -2, -2))
    np.testing.assert_allclose(merge_steps((field,), part).vectors, field.vectors[2:-2, 2:-2, 2:-2], atol=1e-5)


def test_slabs_give_what_the_whole_gives(oblique, monkeypatch):
    steps = (random_field(oblique, 5, 1.0), turn(), InverseField(random_field(oblique, 6, 1.0)))
    expected = merge_steps(steps, oblique).vectors
    monkeypatch.setattr("llmreg.geometry.points.MERGE_SLAB_VOXELS", 1)
    np.testing.assert_allclose(merge_steps(steps, oblique).vectors, expected, atol=1e-5)


def test_a_transform_without_inverse_is_named():
    with pytest.raises(ValueError, match="BSplineTransform"):
        invert_steps((sitk.BSplineTransform(3, 3),))


def test_the_inverse_is_looked_up_where_the_moving_image_lies():
    """The fixed grid and the moving one share no point, so that no inverse on the fixed grid would serve."""
    fixed = Grid((12, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    moving = Grid((10, 14, 12), (1.5, 2.0, 2.0), (203.0, 100.0, 3.0))
    shift = sitk.TranslationTransform(3, (200.0, 100.0, 0.0))
    bent = random_field(fixed, 7, 1.0)
    field = DisplacementField.from_transform(by_itk(bent.to_transform(), shift), fixed)
    inverse = merge_steps((InverseField(field),), moving)
    points = moving.physical_points().reshape(-1, 3)
    ends = points + inverse.vectors.reshape(-1, 3)
    index = fixed.physical_to_index(ends)
    inside = ((index >= 0) & (index <= 11)).all(axis=1)
    assert inside.mean() > 0.3
    forwards = field.to_transform()
    mapped = np.array([forwards.TransformPoint(p) for p in ends[inside].tolist()])
    np.testing.assert_allclose(mapped, points[inside], atol=0.02)
