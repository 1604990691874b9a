"""A case that was moved must be found again, in its own and in another contrast."""

import numpy as np
import pytest
import SimpleITK as sitk
from smooth import smooth_noise

from llmreg.geometry.field import resample_image
from llmreg.geometry.grid import Grid
from llmreg.geometry.io import image_from
from llmreg.preprocessing.plans import PreAlignment
from llmreg.preprocessing.prealignment import CaseTransform, align_case

FRAME = Grid.axis_aligned((40, 40, 36), (4.0, 4.0, 4.0), (0, 0, 0))
PLAN = PreAlignment(method="affine", reference_case="A_0001_0000")


@pytest.fixture(scope="module")
def body() -> sitk.Image:
    points = FRAME.physical_points()
    inside = ((points / (58, 45, 55)) ** 2).sum(-1) < 1
    texture = smooth_noise(np.random.default_rng(3), FRAME.shape, 2.5)
    return image_from(np.where(inside, 0.55 + 0.4 * texture, 0).astype(np.float32), FRAME)


def moved(body: sitk.Image) -> tuple[sitk.Image, sitk.Transform]:
    """The body in another contrast, grid and place; and the true map from frame to case."""
    truth = sitk.Euler3DTransform()
    truth.SetRotation(0.10, -0.08, 0.15)
    truth.SetTranslation((60.0, -30.0, 20.0))
    grid = Grid((50, 46, 44), (3.5, 4.0, 4.0), (-30.0, -120.0, -70.0))
    values = sitk.GetArrayFromImage(resample_image(body, grid, truth.GetInverse()))
    return image_from(np.where(values > 0.05, 1.1 - values, 0).astype(np.float32), grid), truth


def middle(image: sitk.Image) -> np.ndarray:
    """Of the box around all that is above 0, mm LPS."""
    points = Grid.from_image(image).physical_points()[sitk.GetArrayFromImage(image) > 0]
    return (points.min(axis=0) + points.max(axis=0)) / 2


def test_a_moved_case_is_found_in_another_contrast(body):
    image, truth = moved(body)
    found = align_case(image, middle(image), Grid.from_image(image), FRAME, PLAN, body)
    assert found.stage in ("rigid", "affine")
    corners = FRAME.centre + np.array([[40, 0, 0], [0, 30, 0], [0, 0, 40], [-40, 0, 0], [0, 0, 0]])
    error = [
        np.linalg.norm(np.subtract(found.to_sitk().TransformPoint(p.tolist()), truth.TransformPoint(p.tolist())))
        for p in corners
    ]
    assert max(error) < 4.0  # a voxel
    again = align_case(image, middle(image), Grid.from_image(image), FRAME, PLAN, body)
    np.testing.assert_array_equal(found.matrix, again.matrix)


def test_the_stages_are_those_of_the_plan(body):
    image, _ = moved(body)
    at, grid = middle(image), Grid.from_image(image)
    centre = align_case(image, at, grid, FRAME, PLAN.model_copy(update={"method": "centre"}), body)
    assert centre.stage == "centre"
    np.testing.assert_allclose(centre.translation, (60, -30, 20), atol=8)
    untouched = align_case(image, at, grid, FRAME, PLAN.model_copy(update={"method": "identity"}), body)
    shared = align_case(image, at, grid, FRAME, PLAN.model_copy(update={"aligned_grid": grid.to_dict()}), body)
    for stays in (untouched, shared):
        np.testing.assert_array_equal(stays.matrix, np.eye(3))
        np.testing.assert_array_equal(stays.translation, 0)


@pytest.mark.parametrize("method", ["centre", "rigid", "affine", "template"])
def test_a_case_without_a_reference_or_template_is_centred(body, method):
    frame = Grid.axis_aligned((30, 30, 30), (4.0, 4.0, 4.0), (7, -8, 9))
    plan, image = PLAN.model_copy(update={"method": method}), moved(body)[0]
    found = align_case(image, np.array((50.0, 40.0, -30.0)), Grid.from_image(image), frame, plan, None)
    assert found.stage == "centre"
    np.testing.assert_allclose(found.to_sitk().TransformPoint((7.0, -8.0, 9.0)), (50, 40, -30))


def test_a_case_transform_round_trips():
    transform = sitk.AffineTransform(3)
    transform.Rotate(0, 1, 0.3)
    transform.SetCenter((5.0, 6.0, 7.0))
    transform.SetTranslation((1.0, 2.0, 3.0))
    found = CaseTransform.from_dict(CaseTransform.from_sitk(transform, "affine", 0.5).to_dict())
    for point in [(0.0, 0.0, 0.0), (10.0, -20.0, 30.0)]:
        np.testing.assert_allclose(found.to_sitk().TransformPoint(point), transform.TransformPoint(point), atol=1e-9)
    assert (found.stage, found.score) == ("affine", 0.5)
