"""A case that was moved must be placed as it was, in its own and in another contrast."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from smooth import smooth_noise

from llmreg.engine.prealignment import PREALIGNMENTS, CaseToPlace, CaseTransform
from llmreg.engine.rigid_alignment import coarsen
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.geometry.resampling import resample_image

FRAME = Grid.from_centre((40, 40, 36), (4.0, 4.0, 4.0), (0, 0, 0))


@pytest.fixture(scope="module")
def body() -> sitk.Image:
    points = FRAME.physical_points()
    inside = ((points / (58, 45, 55)) ** 2).sum(-1) < 1
    texture = smooth_noise(np.random.default_rng(3), FRAME.shape, 2.5)
    return array_to_image(np.where(inside, 0.55 + 0.4 * texture, 0).astype(np.float32), FRAME)


def place(method: str, *case) -> CaseTransform:
    *_, last = PREALIGNMENTS.get(method).stages(CaseToPlace(*case))
    return last


def move_body(body: sitk.Image) -> tuple[sitk.Image, sitk.Transform]:
    """Move the body to another place, grid and contrast; return it with the true map from frame to case."""
    truth = sitk.Euler3DTransform()
    truth.SetRotation(0.10, -0.08, 0.15)
    truth.SetTranslation((60.0, -30.0, 20.0))
    grid = Grid((50, 46, 44), (3.5, 4.0, 4.0), (-30.0, -120.0, -70.0))
    values = sitk.GetArrayFromImage(resample_image(body, grid, truth.GetInverse()))
    return array_to_image(np.where(values > 0.05, 1.1 - values, 0).astype(np.float32), grid), truth


def middle(image: sitk.Image) -> np.ndarray:
    """The middle of the box around all that is above 0, mm LPS."""
    points = Grid.from_image(image).physical_points()[sitk.GetArrayFromImage(image) > 0]
    return (points.min(axis=0) + points.max(axis=0)) / 2


def test_a_moved_case_is_found_in_another_contrast(body):
    image, truth = move_body(body)
    transform = place("affine", image, middle(image), FRAME, body)
    assert transform.stage in ("rigid", "affine")
    corners = FRAME.centre + np.array([[40, 0, 0], [0, 30, 0], [0, 0, 40], [-40, 0, 0], [0, 0, 0]])
    error = [
        np.linalg.norm(np.subtract(transform.to_sitk().TransformPoint(p.tolist()), truth.TransformPoint(p.tolist())))
        for p in corners
    ]
    assert max(error) < 4.0  # a voxel
    repetition = place("affine", image, middle(image), FRAME, body)
    np.testing.assert_array_equal(transform.matrix, repetition.matrix)


def test_a_search_along_the_body_finds_a_case_whose_centre_misleads(body):
    image, truth = move_body(body)
    wrong_centre = np.add(middle(image), (0, 0, 72))

    def error(method: str) -> float:
        transforms[method] = place(method, image, wrong_centre, FRAME, body)
        return float(
            np.linalg.norm(np.subtract(transforms[method].to_sitk().TransformPoint(HERE), truth.TransformPoint(HERE)))
        )

    transforms: dict[str, CaseTransform] = {}
    assert error("search") < 4.0
    shifted = list(PREALIGNMENTS.get("search").stages(CaseToPlace(image, wrong_centre, FRAME, body)))[1]
    assert shifted.stage == "search"
    # The shift alone brings the case to within half a step along the body.
    assert abs(shifted.translation[2] - truth.TransformPoint(HERE)[2]) <= 4.5
    assert error("rigid") > 30.0
    # Half a step, where one place looks best by far.
    assert transforms["search"].uncertainty_mm == pytest.approx(4, abs=8)
    assert transforms["rigid"].uncertainty_mm is None


HERE = (0.0, 0.0, 0.0)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(4, 60)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    mm=st.sampled_from([4.0, 8.0]),
)
def test_a_coarse_image_is_the_same_one(size, spacing, mm):
    """One value stays that value, up to the borders; a slope stays where it is."""
    grid = Grid(size, spacing, (5.0, -7.0, 9.0), (0.0, -1, 0, 1, 0, 0, 0, 0, 1))
    flat = coarsen(array_to_image(np.full(grid.shape, 0.75, np.float32), grid), mm)
    np.testing.assert_allclose(sitk.GetArrayFromImage(flat), 0.75, atol=1e-4)
    coarse_grid = Grid.from_image(flat)
    np.testing.assert_allclose(coarse_grid.centre, grid.centre, atol=1e-6)
    np.testing.assert_allclose(coarse_grid.extent, grid.extent)
    slope = sitk.GetArrayFromImage(coarsen(array_to_image(grid.physical_points()[..., 1].astype(np.float32), grid), mm))
    expected = coarse_grid.physical_points()[..., 1]
    inside = (
        np.abs((coarse_grid.physical_points() - grid.centre) @ np.reshape(grid.direction, (3, 3)))
        < grid.extent / 2 - 3 * mm
    )
    np.testing.assert_allclose(slope[inside.all(-1)], expected[inside.all(-1)], atol=0.5)


def test_images_that_cannot_be_compared_stay_centred(body):
    flat = array_to_image(np.full(FRAME.shape, 0.5, np.float32), FRAME)
    for reference, case in (
        (body, flat),
        (flat, body),
        (array_to_image(np.zeros(FRAME.shape, np.float32), FRAME), body),
    ):
        transform = place("affine", case, FRAME.centre, FRAME, reference)
        assert transform.stage in ("centre", "rigid", "affine")
        assert np.isfinite(transform.to_sitk().GetParameters()).all()
        assert transform.score is None or np.isfinite(transform.score)


@pytest.mark.parametrize(("scale", "stages"), [(1.08, ("affine",)), (1.2, ("centre", "rigid"))])
def test_a_body_grows_only_within_reason(body, scale, stages):
    """1.08 along each axis is 1.26 in volume, which people differ by; 1.2 is 1.73."""
    larger = sitk.AffineTransform((np.eye(3) / scale).ravel().tolist(), (0.0, 0.0, 0.0))
    image = resample_image(body, FRAME, larger)
    transform = place("affine", image, middle(image), FRAME, body)
    assert transform.stage in stages


def test_stages_rise_and_only_search_measures_the_uncertainty(body):
    image, _ = move_body(body)
    stages = {
        method: list(PREALIGNMENTS.get(method).stages(CaseToPlace(image, middle(image), FRAME, body)))
        for method in ("search", "rigid", "affine")
    }
    names = {method: [transform.stage for transform in transforms] for method, transforms in stages.items()}
    assert names["rigid"] == ["centre", "rigid"]
    assert names["affine"][:2] == ["centre", "rigid"]
    assert names["search"][-1] == "rigid"
    for transforms in stages.values():
        scores = [transform.score for transform in transforms]
        assert scores == sorted(scores)
    assert all(transform.uncertainty_mm is None for transform in stages["affine"])
    assert all(transform.uncertainty_mm > 0 for transform in stages["search"][1:])
