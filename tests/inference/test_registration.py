"""A registration's parts agree with what SimpleITK makes of its transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation
from smooth import smooth_noise

from llmreg import Registration
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import BadArgument, UnknownName
from llmreg.geometry.field import DisplacementField, fade_outside, jacobian_determinant
from llmreg.geometry.grid import Grid, array_to_image, image_to_array
from llmreg.images.fields import read_field
from llmreg.images.formats import FIELD_FORMATS
from llmreg.images.image_files import read_image
from llmreg.inference.registration import DEFAULT_OUTPUTS, OUTPUTS

FRAME = Grid.from_centre((20, 18, 16), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))


def oblique_grid(size: tuple[int, ...], spacing: tuple[float, ...], angle: float) -> Grid:
    """An oblique grid about the origin, one of whose axes is flipped."""
    direction = Rotation.from_euler("xyz", [angle, -angle / 2, angle / 3], degrees=True).as_matrix() @ np.diag(
        [1, -1, 1]
    )
    corner = direction @ (-(np.array(size) - 1) / 2 * spacing)
    return Grid(size, spacing, tuple(corner.tolist()), tuple(direction.ravel().tolist()))


def image_on(grid: Grid, seed: int) -> sitk.Image:
    noise = smooth_noise(np.random.default_rng(seed), grid.shape, 2.0)
    return array_to_image((1000 * noise).astype(np.float32), grid)


@pytest.fixture(scope="module")
def pair() -> Registration:
    """Both images oblique, anisotropic and flipped, each placed in the frame by an affine transform."""
    rng = np.random.default_rng(1)
    fixed, moving = (
        image_on(oblique_grid((24, 20, 12), (2.0, 2.5, 4.0), 20), 2),
        image_on(oblique_grid((22, 26, 14), (2.5, 2.0, 3.5), -15), 3),
    )
    vectors = np.stack([2.5 * smooth_noise(rng, FRAME.shape, 3.0) for _ in range(3)], axis=-1).astype(np.float32)
    placements = [
        CaseTransform(np.eye(3) + 0.05 * rng.normal(size=(3, 3)), rng.normal(size=3), "affine") for _ in range(2)
    ]
    return Registration(fixed, moving, *placements, fade_outside(DisplacementField(vectors, FRAME), 6))


def test_warping_is_simpleitk_with_the_written_field(pair: Registration, tmp_path: Path) -> None:
    files = pair.save(tmp_path, "A_0001_0000_A_0002_0001")
    assert set(files) == set(DEFAULT_OUTPUTS)
    field = sitk.ReadImage(str(tmp_path / files["field"]), sitk.sitkVectorFloat64)
    expected = image_to_array(sitk.Resample(pair.moving, pair.fixed, sitk.DisplacementFieldTransform(field)))
    value_range = np.ptp(image_to_array(pair.moving))
    # Where the border of the image is looked up, rounding decides between a value and none.
    differs = np.abs(image_to_array(read_image(tmp_path / files["warped"])) - expected) > 1e-3 * value_range
    assert differs.mean() < 1e-3
    affine = sitk.ReadTransform(str(tmp_path / files["prealignment"]))
    point = (4.0, -3.0, 5.0)
    frame_point = pair.fixed_transform.to_sitk().GetInverse().TransformPoint(point)
    assert np.allclose(affine.TransformPoint(point), pair.moving_transform.to_sitk().TransformPoint(frame_point))


def test_every_output_is_written_and_lies_where_it_should(pair: Registration, tmp_path: Path) -> None:
    label = sitk.Cast(pair.moving > 0, sitk.sitkUInt8)
    spread = array_to_image(np.full(FRAME.shape, 1.5, np.float32), FRAME)
    registration = Registration(*list(vars(pair).values())[:5], spread=spread)
    files = registration.save(tmp_path, "pair", OUTPUTS, label=label)
    assert set(files) == set(OUTPUTS)
    for output, file in files.items():
        if file.endswith(".nii.gz"):
            grid = Grid.from_image(pair.moving if output == "inverse" else pair.fixed)
            assert Grid.from_image(sitk.ReadImage(str(tmp_path / file))).same_as(grid)
    expected = sitk.Resample(
        label, pair.fixed, sitk.ReadTransform(str(tmp_path / files["transform"])), sitk.sitkNearestNeighbor
    )
    assert (image_to_array(read_image(tmp_path / files["labels"])) != image_to_array(expected)).mean() < 1e-3
    assert set(np.unique(image_to_array(read_image(tmp_path / files["seen"])))) == {0, 1}
    np.testing.assert_allclose(image_to_array(read_image(tmp_path / files["uncertainty"])), 1.5, rtol=1e-3)
    determinant = jacobian_determinant(read_field(tmp_path / files["field"]))
    np.testing.assert_allclose(image_to_array(read_image(tmp_path / files["jacobian"])), determinant, atol=1e-3)


def test_what_the_field_looks_at_in_the_moving_image_is_seen(pair: Registration) -> None:
    """Points that are looked up inside or outside the moving image, by more than rounding, are seen or not."""
    seen_mask = image_to_array(pair.seen)
    grid, moving = Grid.from_image(pair.fixed), Grid.from_image(pair.moving)
    points = pair.warp_points(grid.physical_points().reshape(-1, 3))
    index = moving.physical_to_index(points).reshape(*grid.shape, 3)
    # Distance from the border of the field of view, which ends half a voxel beyond the outermost centres.
    depth = np.minimum(index + 0.5, np.array(moving.size) - 0.5 - index).min(axis=-1)
    assert (depth > 0.1).any()
    assert (depth < -0.1).any()
    assert (seen_mask[depth > 0.1] == 1).all()
    assert (seen_mask[depth < -0.1] == 0).all()


def test_landmarks_come_back_by_the_inverse(pair: Registration) -> None:
    points = FRAME.points_inside(4) / 2
    moved_points = pair.warp_points(points)
    assert np.linalg.norm(moved_points - points, axis=1).max() > 2
    returned_points = pair.inverse().warp_points(moved_points)
    assert np.linalg.norm(returned_points - points, axis=1).max() < 0.1
    moved_point = pair.transform.TransformPoint(points[3].tolist())
    np.testing.assert_allclose(moved_points[3], moved_point, atol=1e-4)
    # The two fields that are written, on the grids of the two images, bring points back, too.
    forward, backward = pair.field.to_transform(), pair.inverse().field.to_transform()
    for point in points:
        assert np.linalg.norm(np.subtract(backward.TransformPoint(forward.TransformPoint(point.tolist())), point)) < 0.1


@pytest.mark.parametrize("format", FIELD_FORMATS.names)
def test_fields_are_written_in_each_format(pair: Registration, tmp_path: Path, format: str) -> None:
    files = pair.save(tmp_path, "A_0001_0000_A_0002_0001", ("field", "inverse"), format)
    moving, fixed = Grid.from_image(pair.moving), Grid.from_image(pair.fixed)
    field = read_field(tmp_path / files["field"], format, fixed, moving)
    np.testing.assert_allclose(field.vectors, pair.field.vectors, atol=1e-3)
    inverse = read_field(tmp_path / files["inverse"], format, moving, fixed)
    np.testing.assert_allclose(inverse.vectors, pair.inverse().field.vectors, atol=1e-3)
    if format == "learn2reg":
        assert files["field"] == "learn2reg/disp_0001_0002.nii.gz"
    if format == "itk":
        assert read_field(tmp_path / files["field"]).grid.same_as(fixed)


def test_missing_outputs_are_refused(pair: Registration, tmp_path: Path) -> None:
    for output, argument in (("labels", "label"), ("uncertainty", "uncertainty")):
        with pytest.raises(BadArgument) as refusal:
            pair.save(tmp_path, "pair", (output,))
        assert refusal.value.argument == argument
    with pytest.raises(UnknownName) as unknown:
        pair.save(tmp_path, "pair", ("fields",))
    assert (unknown.value.name, unknown.value.known) == ("fields", tuple(OUTPUTS))
    with pytest.raises(UnknownName, match="png"):
        pair.save(tmp_path, "pair", format="png")
    assert not list(tmp_path.iterdir())


def test_an_interpolation_that_does_not_exist_is_refused(pair: Registration) -> None:
    for warp, kind in ((pair.warp_image, "interpolator"), (pair.warp_label, "interpolation")):
        with pytest.raises(UnknownName) as refusal:
            warp(pair.moving, "cubic")
        assert (refusal.value.kind, refusal.value.name) == (kind, "cubic")
