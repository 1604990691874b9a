"""Chains against SimpleITK's composites."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field

from llmreg.geometry.chain import InverseField, invert_steps, map_points, merge_steps, split_transform
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid


def turn() -> sitk.Euler3DTransform:
    return sitk.Euler3DTransform((5.0, 3.0, -4.0), 0.1, -0.05, 0.2, (0.5, -0.5, 0.3))


def by_itk(*transforms: sitk.Transform) -> sitk.Transform:
    """ITK's composite applies the last added first."""
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
    error = np.array([transform.TransformPoint(point) for point in inverse.tolist()]) - points
    leads_back = np.linalg.norm(error, axis=1) <= 0.1 * min(oblique.spacing)
    inside = oblique.contains(inverse)
    assert (inside & ~leads_back).sum() > 10
    assert is_defined[inside].tolist() == leads_back[inside].tolist()
    assert not is_defined[~inside].any()


def test_merged_steps_need_no_more_than_they_must(oblique):
    field = random_field(oblique, 4, 1.0)
    same = merge_steps((field,), oblique)
    assert isinstance(same, DisplacementField)
    assert same.vectors is field.vectors
    assert isinstance(merge_steps((turn(), turn()), oblique), sitk.Transform)
    part = oblique.pad((-2, -2, -2), (-2, -2, -2))
    np.testing.assert_allclose(merge_steps((field,), part).vectors, field.vectors[2:-2, 2:-2, 2:-2], atol=1e-5)


def test_slabs_give_what_the_whole_gives(oblique, monkeypatch):
    steps = (random_field(oblique, 5, 1.0), turn(), InverseField(random_field(oblique, 6, 1.0)))
    expected = merge_steps(steps, oblique).vectors
    monkeypatch.setattr("llmreg.geometry.chain.SLAB_VOXELS", 1)
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
