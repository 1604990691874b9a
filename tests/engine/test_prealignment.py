"""Placing a case by the plans' method, and what the placements of two cases say about the pair."""

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from outside_packages import run_python, write_package
from pydantic import ValidationError
from smooth import smooth_noise

from llmreg.engine.prealignment import (
    PREALIGNMENTS,
    CaseToPlace,
    CaseTransform,
    PreAlignment,
    PreAlignmentMethod,
    Template,
    align_case,
    pair_prealignment,
)
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid, array_to_image, orient_to_lps
from llmreg.geometry.resampling import resample_image

FRAME = Grid.from_centre((30, 28, 26), (4.0, 4.0, 4.0), (7, -8, 9))
CASE_CENTRE = np.array((50.0, 40.0, -30.0))


def settings(method: str, grid: Grid | None = None) -> PreAlignment:
    return PreAlignment(
        method=method, reference_case="A_0001_0000", aligned_grid=None if grid is None else grid.to_dict()
    )


@pytest.fixture(scope="module")
def body() -> sitk.Image:
    inside = (((FRAME.physical_points() - FRAME.centre) / (42, 38, 36)) ** 2).sum(-1) < 1
    texture = smooth_noise(np.random.default_rng(3), FRAME.shape, 2.5)
    return array_to_image(np.where(inside, 0.55 + 0.4 * texture, 0).astype(np.float32), FRAME)


def test_the_method_is_a_registered_one():
    assert PREALIGNMENTS.names[:6] == ("identity", "centre", "search", "rigid", "affine", "template")
    assert all(method.summary for method in PREALIGNMENTS.parts.values())
    assert [name for name in PREALIGNMENTS.names if settings(name).uses_templates] == ["template"]
    with pytest.raises(ValidationError, match="elastic"):
        settings("elastic")


def test_a_package_outside_adds_a_method(tmp_path):
    source = """
from dataclasses import replace

from llmreg.engine.prealignment import PREALIGNMENTS, PreAlignmentMethod, centre_transform


def lift(case):
    centred = centre_transform(case)
    yield centred
    yield replace(centred, translation=centred.translation + (0, 0, 5), stage="lifted")


PREALIGNMENTS.register("lifted", PreAlignmentMethod("the body is centred and lifted by 5 mm", lift))
"""
    write_package(tmp_path, "lifting", source, "llmreg.prealignments")
    script = """
import json
import numpy as np
import SimpleITK as sitk
from llmreg.engine.prealignment import CaseToPlace, PreAlignment, align_case
from llmreg.geometry.grid import Grid

frame = Grid.from_centre((8, 8, 8), (1.0, 1.0, 1.0), (0, 0, 0))
case = CaseToPlace(sitk.Image([8, 8, 8], sitk.sitkFloat32), np.array([1.0, 2, 3]), frame)
placed = align_case(case, PreAlignment(method="lifted", reference_case="A"))
print(json.dumps([placed.stage, placed.translation.tolist()]))
"""
    assert json.loads(run_python(tmp_path, script)) == ["lifted", [1, 2, 8]]


def test_a_method_that_finds_nothing_is_a_sentence(body, monkeypatch):
    nothing = PreAlignmentMethod("finds nothing", lambda case: iter(()))
    monkeypatch.setattr(PREALIGNMENTS, "get", lambda name: nothing)
    with pytest.raises(UserError, match="'lost' finds no transform"):
        align_case(CaseToPlace(body, CASE_CENTRE, FRAME), settings("lost"))


def test_identity_and_centre(body):
    case = CaseToPlace(body, CASE_CENTRE, FRAME, body)
    identity = align_case(case, settings("identity"))
    assert identity.stage == "identity"
    np.testing.assert_array_equal(identity.matrix, np.eye(3))
    np.testing.assert_array_equal(identity.translation, 0)
    centred_transform = align_case(case, settings("centre"))
    assert centred_transform.stage == "centre"
    np.testing.assert_allclose(centred_transform.to_sitk().TransformPoint(FRAME.centre.tolist()), CASE_CENTRE)


@pytest.mark.parametrize("method", ["centre", "search", "rigid", "affine", "template"])
def test_a_case_without_a_reference_or_template_is_centred(body, method):
    transform = align_case(CaseToPlace(body, CASE_CENTRE, FRAME), settings(method))
    assert transform.stage == "centre"
    np.testing.assert_allclose(transform.to_sitk().TransformPoint((7.0, -8.0, 9.0)), CASE_CENTRE)


@pytest.mark.parametrize("flips", [(True, False, True), (False, True, False)])
def test_an_aligned_case_stays_whatever_the_method_and_the_order_of_its_axes(body, flips):
    stored = sitk.Flip(sitk.PermuteAxes(body, (2, 0, 1)), flips)
    case = CaseToPlace(
        orient_to_lps(stored),
        CASE_CENTRE,
        FRAME,
        body,
        Template(body, np.ones(FRAME.shape, bool), CASE_CENTRE, CASE_CENTRE),
    )
    for method in ("affine", "template"):
        assert align_case(case, settings(method, FRAME)).stage == "identity"
    smaller = Grid.from_centre((29, 28, 26), (4.0, 4.0, 4.0), (7, -8, 9))
    assert align_case(case, settings("centre", smaller)).stage == "centre"


def test_a_case_transform_round_trips():
    transform = sitk.AffineTransform(3)
    transform.Rotate(0, 1, 0.3)
    transform.SetCenter((5.0, 6.0, 7.0))
    transform.SetTranslation((1.0, 2.0, 3.0))
    stored = CaseTransform.from_dict(replace(CaseTransform.from_sitk(transform, "affine"), score=0.5).to_dict())
    for point in [(0.0, 0.0, 0.0), (10.0, -20.0, 30.0)]:
        np.testing.assert_allclose(stored.to_sitk().TransformPoint(point), transform.TransformPoint(point), atol=1e-9)
    assert (stored.stage, stored.score, stored.uncertainty_mm) == ("affine", 0.5, None)


def test_a_pair_leads_from_the_fixed_to_the_moving_case():
    """A frame point is carried into both cases; the pair's transform leads from the one to the other."""
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    fixed = CaseTransform(1.1 * turn, np.array([5.0, 0, -3]), "affine")
    moving = CaseTransform(0.9 * np.eye(3), np.array([-20.0, 7, 30]), "affine")
    for point in ((0.0, 0.0, 0.0), (10.0, -4.0, 25.0)):
        start, end = fixed.to_sitk().TransformPoint(point), moving.to_sitk().TransformPoint(point)
        np.testing.assert_allclose(pair_prealignment(fixed, moving).TransformPoint(start), end, atol=1e-9)
        assert np.linalg.norm(np.subtract(pair_prealignment(moving, fixed).TransformPoint(start), end)) > 10


def test_the_reference_stays_and_the_case_is_moved(body):
    """The transform leads from the reference's frame into the case: swapping both would invert it."""
    shift = sitk.TranslationTransform(3, (12.0, -9.0, 6.0))
    image = resample_image(body, FRAME, shift)
    transform = align_case(CaseToPlace(image, FRAME.centre, FRAME, body), settings("rigid"))
    assert transform.stage == "rigid"
    point = np.add(FRAME.centre, 5)
    np.testing.assert_allclose(transform.to_sitk().TransformPoint(point.tolist()), point - (12, -9, 6), atol=2)
