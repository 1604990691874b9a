"""Chains against SimpleITK's composites."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from random_fields import grids, random_field

from llmreg.geometry.chain import Backwards, follow, lookup, reversed_steps, steps_of
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


@settings(max_examples=10, deadline=None)
@given(first=grids(), second=grids(), seed=st.integers(0, 1000))
def test_a_chain_is_itks_composite(first, second, seed):
    # The second field lies where the first one's points are brought to.
    there = sitk.TranslationTransform(3, (second.centre - first.centre).tolist())
    fields = random_field(first, seed, 1.5), random_field(second, seed + 1, 1.5)
    steps = (fields[0], turn(), there, fields[1])
    composite = by_itk(fields[0].to_transform(), turn(), there, fields[1].to_transform())
    displaced = lookup(steps, first)
    assert isinstance(displaced, DisplacementField)
    expected = DisplacementField.from_transform(composite, first).vectors
    off = np.abs(displaced.vectors - expected).max(axis=-1)
    # A point at the very edge of the second field may be in or out.
    assert (off < 1e-3).mean() > 0.998
    points = first.points_inside(4)
    np.testing.assert_allclose(
        follow(points, steps)[0], [composite.TransformPoint(p) for p in points.tolist()], atol=1e-3
    )


def test_composites_come_apart_in_the_order_of_points(oblique):
    field = random_field(oblique, 1, 1.0)
    inner = by_itk(turn(), field.to_transform())
    nested = by_itk(inner, sitk.TranslationTransform(3, (1.0, 2.0, 3.0)))
    steps = steps_of(nested)
    assert [type(step) for step in steps] == [sitk.Euler3DTransform, DisplacementField, sitk.TranslationTransform]
    np.testing.assert_array_equal(steps[1].vectors, field.vectors)
    points = oblique.points_inside(5)
    np.testing.assert_allclose(follow(points, steps)[0], [nested.TransformPoint(p) for p in points.tolist()], atol=1e-4)


def test_the_way_back_leads_back(oblique):
    whole = DisplacementField.from_transform(by_itk(random_field(oblique, 1, 1.0).to_transform(), turn()), oblique)
    wide = random_field(oblique.padded((9, 9, 9), (9, 9, 9)), 2, 1.0)
    steps = (whole, wide, turn())
    index = np.random.default_rng(0).uniform(1, np.array(oblique.size) - 2, (100, 3))
    points = oblique.index_to_physical(index)
    there, known = follow(points, steps)
    back, found = follow(there, reversed_steps(steps))
    assert known.all()
    assert found.all()
    np.testing.assert_allclose(back, points, atol=0.02)
    for step, twice in zip(steps[:2], reversed_steps(reversed_steps(steps))[:2], strict=True):
        assert twice is step


def test_points_that_no_field_knows_are_told(oblique):
    field = random_field(oblique, 3, 1.0)
    points = oblique.index_to_physical([[5, 5, 5], [-4, 5, 5], [5, 30, 5]])
    assert follow(points, (field,))[1].tolist() == [True, False, False]
    assert follow(points, (turn(),))[1].all()
    assert follow(points, (Backwards(field),))[1].tolist() == [True, False, False]
    folding = np.zeros((3, *oblique.shape), np.float32)
    folding[0] = np.where(np.arange(oblique.size[0]) < 7, 4.0, -4.0)
    folded = DisplacementField.from_flow(folding, oblique)
    # Nothing comes to lie at x = 0; in the middle three points do.
    assert not follow(oblique.index_to_physical([[0.0, 5, 5]]), (Backwards(folded),))[1].any()


def test_lookups_need_no_more_than_they_must(oblique):
    field = random_field(oblique, 4, 1.0)
    same = lookup((field,), oblique)
    assert isinstance(same, DisplacementField)
    assert same.vectors is field.vectors
    assert isinstance(lookup((turn(), turn()), oblique), sitk.Transform)
    part = oblique.padded((-2, -2, -2), (-2, -2, -2))
    np.testing.assert_allclose(lookup((field,), part).vectors, field.vectors[2:-2, 2:-2, 2:-2], atol=1e-5)


def test_slabs_give_what_the_whole_gives(oblique, monkeypatch):
    steps = (random_field(oblique, 5, 1.0), turn(), Backwards(random_field(oblique, 6, 1.0)))
    whole = lookup(steps, oblique).vectors
    monkeypatch.setattr("llmreg.geometry.chain._SLAB", 1)
    np.testing.assert_allclose(lookup(steps, oblique).vectors, whole, atol=1e-5)


def test_a_transform_without_inverse_is_named():
    with pytest.raises(ValueError, match="BSplineTransform"):
        reversed_steps((sitk.BSplineTransform(3, 3),))


def test_the_inverse_is_looked_up_where_the_moving_image_lies():
    """The fixed grid and the moving one share no point, so that no inverse on the fixed grid would serve."""
    fixed = Grid((12, 12, 12), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    moving = Grid((10, 14, 12), (1.5, 2.0, 2.0), (203.0, 100.0, 3.0))
    shift = sitk.TranslationTransform(3, (200.0, 100.0, 0.0))
    bent = random_field(fixed, 7, 1.0)
    field = DisplacementField.from_transform(by_itk(bent.to_transform(), shift), fixed)
    back = lookup((Backwards(field),), moving)
    points = moving.physical_points().reshape(-1, 3)
    ends = points + back.vectors.reshape(-1, 3)
    index = fixed.physical_to_index(ends)
    inside = ((index >= 0) & (index <= 11)).all(axis=1)
    assert inside.mean() > 0.3
    forwards = field.to_transform()
    again = np.array([forwards.TransformPoint(p) for p in ends[inside].tolist()])
    np.testing.assert_allclose(again, points[inside], atol=0.02)
