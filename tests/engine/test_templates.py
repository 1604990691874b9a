"""Cases that were moved and scaled must be brought together by their labels, and found again by their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth import smooth_noise

from llmreg.engine.prealignment import CaseToPlace, CaseTransform, Template
from llmreg.engine.templates import (
    SCALES,
    Placement,
    PlacementExample,
    align_placements,
    learn_templates,
    local_contrast,
    match_template,
    place_by_centroids,
    place_by_template,
    place_examples,
    read_templates,
    write_templates,
)
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.geometry.resampling import resample_image

ATLAS = Grid.from_centre((60, 50, 70), (6.0, 6.0, 6.0), (0, 0, 0))
STRUCTURES = {1: np.array([-60.0, 0, 20]), 2: np.array([50.0, 30, -40]), 3: np.array([10.0, -40, 60])}
HALF_BODY = np.array([70.0, 60.0, 90.0])


@pytest.fixture(scope="module")
def anatomy() -> sitk.Image:
    """A patterned body, about the common origin."""
    texture = smooth_noise(np.random.default_rng(5), ATLAS.shape, 3.0)
    inside = ((ATLAS.physical_points() / (150, 120, 190)) ** 2).sum(-1) < 1
    return array_to_image(np.where(inside, 0.5 + 0.4 * texture, 0).astype(np.float32), ATLAS)


def seen(anatomy: sitk.Image, scale: float, shift: tuple[float, ...], window: tuple[float, ...]) -> PlacementExample:
    """A case whose points lie at ``scale x + shift`` in the anatomy; its field of view is about ``window`` there."""
    placement = Placement(scale, np.array(shift))
    centre = (np.array(window) - placement.shift) / scale
    size = np.ceil(2 * HALF_BODY / scale / (5.0, 5.0, 7.0))
    grid = Grid.from_centre(size, (5.0, 5.0, 7.0), centre)
    # Case point -> anatomy point is what resampling onto the case's grid looks through.
    through = sitk.AffineTransform((scale * np.eye(3)).ravel().tolist(), list(map(float, shift)))
    image = resample_image(anatomy, grid, through)
    centroids = {label: (point - placement.shift) / scale for label, point in STRUCTURES.items()}
    return PlacementExample(0, image, grid.centre, centroids)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.9, 1.15), *[st.floats(-300, 300)] * 3), min_size=2, max_size=6))
def test_labels_bring_cases_together(places: list[tuple[float, float, float, float]]) -> None:
    centroids = [{k: (p - np.array(shift)) / scale for k, p in STRUCTURES.items()} for scale, *shift in places]
    # Partly annotated cases come in by what they share.
    centroids[-1] = {label: centroids[-1][label] for label in (1, 3)}
    fits = place_by_centroids(centroids)
    placed = [
        {k: fit.apply(p) for k, p in c.items()} for fit, c in zip(fits, centroids, strict=True) if fit is not None
    ]
    assert len(placed) == len(places)
    for own in placed:
        for label, point in own.items():
            np.testing.assert_allclose(point, placed[0][label], atol=1e-3)
    assert np.exp(np.mean([np.log(fit.scale) for fit in fits if fit is not None])) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.9, 1.15), *[st.floats(-300, 300)] * 3), min_size=3, max_size=6))
def test_what_was_learned_from_some_cases_lies_in_the_frame_of_all(places: list[tuple[float, ...]]) -> None:
    centroids = [{k: (p - np.array(shift)) / scale for k, p in STRUCTURES.items()} for scale, *shift in places]
    image = array_to_image(np.zeros((8, 8, 8), np.float32), Grid.from_centre((8, 8, 8), (8.0, 8.0, 8.0), (0, 0, 0)))
    examples = [PlacementExample(0, image, own[1], own) for own in centroids]
    everyone = place_examples(examples, 0, np.zeros(3))
    some = place_examples(examples[:-1], 0, np.zeros(3))
    # Without the last case the middle of the frame and the mean size are others; as a whole, the places are the same.
    for mine, theirs in zip(align_placements(some, everyone[:-1]), everyone[:-1], strict=True):
        assert mine is not None
        assert theirs is not None
        np.testing.assert_allclose(mine.scale, theirs.scale, rtol=1e-4)
        np.testing.assert_allclose(mine.shift, theirs.shift, atol=0.05)


def test_a_case_that_shares_no_structure_has_no_place() -> None:
    one, other = {1: np.zeros(3), 2: np.ones(3)}, {9: np.zeros(3)}
    assert place_by_centroids([one, other])[1] is None
    assert place_by_centroids([]) == []


@pytest.mark.parametrize(("scale", "window"), [(1.0, (0, 0, 0)), (SCALES[0], (20, -10, 60)), (SCALES[2], (0, 10, -50))])
def test_a_case_is_found_by_its_image(anatomy: sitk.Image, scale: float, window: tuple[float, ...]) -> None:
    training = [
        seen(anatomy, size, shift, where)
        for size, shift, where in (
            (1.0, (100.0, 0, 0), (0, 0, 40)),
            (1.04, (-80.0, 50, 20), (0, 0, 0)),
            (0.97, (0.0, 0, 300), (0, 0, -40)),
        )
    ]
    examples = [PlacementExample(0, local_contrast(case.image), case.centre, case.centroids) for case in training]
    templates = learn_templates(examples, place_examples(examples, 0, np.zeros(3)))
    # The training cases lie on average in the middle of the frame.
    np.testing.assert_allclose(templates[0].centre, 0, atol=1e-6)
    case = seen(anatomy, scale, (30.0, -400, 90), window)
    found = place(case, templates[0])
    assert found.stage == "template"
    assert found.score is not None
    assert found.score > 0.6
    # Where the labels are, without having been shown: within the diagonal of a template's voxel.
    expected = _structures_in_frame(examples)
    for label, point in case.centroids.items():
        reached = np.linalg.solve(found.matrix, point - found.translation)
        assert np.linalg.norm(reached - expected[label]) < 8.0 * np.sqrt(3)
    again = place(case, templates[0])
    np.testing.assert_array_equal(again.translation, found.translation)


def place(case: PlacementExample, template: Template) -> CaseTransform:
    (transform,) = place_by_template(CaseToPlace(case.image, case.centre, ATLAS, template=template))
    return transform


def _structures_in_frame(examples: list[PlacementExample]) -> dict[int, np.ndarray]:
    """Where the labels put the structures in the frame of the templates."""
    known = [
        (e, fit) for e, fit in zip(examples, place_by_centroids([e.centroids for e in examples]), strict=True) if fit
    ]
    middle = np.mean([fit.apply(example.centre) for example, fit in known], axis=0)
    first, fit = known[0]
    return {label: fit.apply(point) - middle for label, point in first.centroids.items()}


def test_places_are_counted_as_the_filter_does() -> None:
    """A template cut out of noise goes back where it was cut."""
    rng = np.random.default_rng(0)
    frame = Grid.from_centre((20, 18, 22), (8.0, 8.0, 8.0), (4.0, 0, -8.0))
    values = rng.standard_normal(frame.shape).astype(np.float32)
    cut = array_to_image(values[5:17, 3:14, 6:18], frame.pad((-6, -3, -5), (-2, -4, -5)))
    template = Template(array_to_image(values, frame), np.ones(frame.shape, bool), np.zeros(3), np.full(3, 1e3))
    place, correlation = match_template(cut, Grid.from_image(cut).centre, template)
    assert place.scale == 1.0
    np.testing.assert_allclose(place.shift, 0, atol=1e-6)
    assert correlation == pytest.approx(1, abs=1e-4)


def test_templates_survive_their_files(anatomy: sitk.Image, tmp_path: Path) -> None:
    example = seen(anatomy, 1.0, (0, 0, 0), (0, 0, 0))
    templates = learn_templates([example], place_examples([example], 0, np.ones(3)))
    write_templates(tmp_path, templates)
    back = read_templates(tmp_path)
    assert back.keys() == templates.keys()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back[0].image), sitk.GetArrayFromImage(templates[0].image))
    np.testing.assert_array_equal(back[0].seen, templates[0].seen)
    np.testing.assert_allclose(back[0].centre, templates[0].centre)
    (tmp_path / "templates.json").write_text('{"0": {"centre": 1}}')
    with pytest.raises(UserError, match="damaged"):
        read_templates(tmp_path)
    assert learn_templates([], place_examples([], 0, np.zeros(3))) == {}
