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


def make_example(
    anatomy: sitk.Image, scale: float, shift: tuple[float, ...], window: tuple[float, ...]
) -> PlacementExample:
    """Make a case whose points lie at ``scale x + shift`` in the anatomy, with a field of view about ``window``."""
    placement = Placement(scale, np.array(shift))
    centre = (np.array(window) - placement.shift) / scale
    size = np.ceil(2 * HALF_BODY / scale / (5.0, 5.0, 7.0))
    grid = Grid.from_centre(size, (5.0, 5.0, 7.0), centre)
    # Resampling onto the case's grid takes the transform from case to anatomy.
    transform = sitk.AffineTransform((scale * np.eye(3)).ravel().tolist(), list(map(float, shift)))
    image = resample_image(anatomy, grid, transform)
    centroids = {label: (point - placement.shift) / scale for label, point in STRUCTURES.items()}
    return PlacementExample(0, image, grid.centre, centroids)


def centroids_at(places: list[tuple[float, ...]]) -> dict[str, dict[int, np.ndarray]]:
    """The centroids of cases, by name, in each of which the structures lie at another scale and shift."""
    return {
        f"case {number}": {label: (point - np.array(shift)) / scale for label, point in STRUCTURES.items()}
        for number, (scale, *shift) in enumerate(places)
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.9, 1.15), *[st.floats(-300, 300)] * 3), min_size=2, max_size=6))
def test_labels_bring_cases_together(places: list[tuple[float, float, float, float]]) -> None:
    centroids = centroids_at(places)
    # A partly annotated case is placed by the structures that it shares.
    last = list(centroids)[-1]
    centroids[last] = {label: centroids[last][label] for label in (1, 3)}
    fits = place_by_centroids(centroids)
    assert fits.keys() == centroids.keys()
    placed_points = [
        {label: fits[case].apply(point) for label, point in points.items()} for case, points in centroids.items()
    ]
    for points in placed_points:
        for label, point in points.items():
            np.testing.assert_allclose(point, placed_points[0][label], atol=1e-3)
    assert np.exp(np.mean([np.log(fit.scale) for fit in fits.values()])) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.9, 1.15), *[st.floats(-300, 300)] * 3), min_size=3, max_size=6))
def test_what_was_learned_from_some_cases_lies_in_the_frame_of_all(places: list[tuple[float, ...]]) -> None:
    image = array_to_image(np.zeros((8, 8, 8), np.float32), Grid.from_centre((8, 8, 8), (8.0, 8.0, 8.0), (0, 0, 0)))
    examples = {case: PlacementExample(0, image, points[1], points) for case, points in centroids_at(places).items()}
    placements = place_examples(examples, 0, np.zeros(3))
    assert placements.keys() == examples.keys()
    all_but_last = {case: examples[case] for case in list(examples)[:-1]}
    # Without the last case the frame has another middle and another mean size; aligned, the places are the same.
    aligned_placements = align_placements(place_examples(all_but_last, 0, np.zeros(3)), placements)
    assert aligned_placements.keys() == all_but_last.keys()
    for case, placement in aligned_placements.items():
        np.testing.assert_allclose(placement.scale, placements[case].scale, rtol=1e-4)
        np.testing.assert_allclose(placement.shift, placements[case].shift, atol=0.05)


def test_a_case_that_shares_no_structure_has_no_place() -> None:
    assert place_by_centroids({"a": {1: np.zeros(3), 2: np.ones(3)}, "b": {9: np.zeros(3)}}).keys() == {"a"}
    assert place_by_centroids({}) == {}


def test_without_a_place_of_the_fixed_modality_there_is_none() -> None:
    image = array_to_image(np.zeros((8, 8, 8), np.float32), Grid.from_centre((8, 8, 8), (8.0, 8.0, 8.0), (0, 0, 0)))
    example = PlacementExample(0, image, np.zeros(3), {1: np.zeros(3)})
    assert place_examples({"a": example}, 0, np.zeros(3)).keys() == {"a"}
    assert place_examples({"a": example}, 1, np.zeros(3)) == {}
    assert align_placements({}, {"a": Placement(1.0, np.zeros(3))}) == {}


@pytest.mark.parametrize(("scale", "window"), [(1.0, (0, 0, 0)), (SCALES[0], (20, -10, 60)), (SCALES[2], (0, 10, -50))])
def test_a_case_is_found_by_its_image(anatomy: sitk.Image, scale: float, window: tuple[float, ...]) -> None:
    training = [
        make_example(anatomy, size, shift, example_window)
        for size, shift, example_window in (
            (1.0, (100.0, 0, 0), (0, 0, 40)),
            (1.04, (-80.0, 50, 20), (0, 0, 0)),
            (0.97, (0.0, 0, 300), (0, 0, -40)),
        )
    ]
    examples = {
        str(number): PlacementExample(0, local_contrast(case.image), case.centre, case.centroids)
        for number, case in enumerate(training)
    }
    templates = learn_templates(examples, place_examples(examples, 0, np.zeros(3)))
    # The training cases lie on average in the middle of the frame.
    np.testing.assert_allclose(templates[0].centre, 0, atol=1e-6)
    case = make_example(anatomy, scale, (30.0, -400, 90), window)
    transform = place(case, templates[0])
    assert transform.stage == "template"
    assert transform.score is not None
    assert transform.score > 0.6
    # The image alone tells the places of the structures, within the diagonal of a template's voxel.
    expected = _structures_in_frame(examples)
    for label, point in case.centroids.items():
        reached = np.linalg.solve(transform.matrix, point - transform.translation)
        assert np.linalg.norm(reached - expected[label]) < 8.0 * np.sqrt(3)
    repetition = place(case, templates[0])
    np.testing.assert_array_equal(repetition.translation, transform.translation)


def place(case: PlacementExample, template: Template) -> CaseTransform:
    (transform,) = place_by_template(CaseToPlace(case.image, case.centre, ATLAS, template=template))
    return transform


def _structures_in_frame(examples: dict[str, PlacementExample]) -> dict[int, np.ndarray]:
    """Where the labels put the structures in the frame of the templates."""
    fits = place_by_centroids({case: example.centroids for case, example in examples.items()})
    middle = np.mean([fit.apply(examples[case].centre) for case, fit in fits.items()], axis=0)
    case, fit = next(iter(fits.items()))
    return {label: fit.apply(point) - middle for label, point in examples[case].centroids.items()}


def test_places_are_counted_as_the_filter_does() -> None:
    """A template cut out of noise goes back where it was cut."""
    rng = np.random.default_rng(0)
    frame = Grid.from_centre((20, 18, 22), (8.0, 8.0, 8.0), (4.0, 0, -8.0))
    values = rng.standard_normal(frame.shape).astype(np.float32)
    piece = array_to_image(values[5:17, 3:14, 6:18], frame.pad((-6, -3, -5), (-2, -4, -5)))
    template = Template(array_to_image(values, frame), np.ones(frame.shape, bool), np.zeros(3), np.full(3, 1e3))
    placement, correlation = match_template(piece, Grid.from_image(piece).centre, template)
    assert placement.scale == 1.0
    np.testing.assert_allclose(placement.shift, 0, atol=1e-6)
    assert correlation == pytest.approx(1, abs=1e-4)


def test_templates_survive_their_files(anatomy: sitk.Image, tmp_path: Path) -> None:
    examples = {"a": make_example(anatomy, 1.0, (0, 0, 0), (0, 0, 0))}
    templates = learn_templates(examples, place_examples(examples, 0, np.ones(3)))
    write_templates(tmp_path, templates)
    stored = read_templates(tmp_path)
    assert stored.keys() == templates.keys()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored[0].image), sitk.GetArrayFromImage(templates[0].image))
    np.testing.assert_array_equal(stored[0].seen, templates[0].seen)
    np.testing.assert_allclose(stored[0].centre, templates[0].centre)
    (tmp_path / "templates.json").write_text('{"0": {"centre": 1}}')
    with pytest.raises(UserError, match="damaged"):
        read_templates(tmp_path)
    assert learn_templates({}, place_examples({}, 0, np.zeros(3))) == {}
