"""An image's foreground and the normalisation of its intensities: the same code for preprocessing and prediction."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from toy_dataset import prepare, replace_method

from llmreg.data.case_images import read_case
from llmreg.engine.prealignment import CaseTransform
from llmreg.errors import BadImage, UnreadableFile
from llmreg.geometry.grid import Grid, array_to_image, orient_to_lps
from llmreg.images.image_files import write_image
from llmreg.plans.plan_settings import Normalization
from llmreg.preprocessing.common_frame import (
    FOREGROUND_MM,
    REFERENCE_FILE,
    bring_into_frame,
    check_window,
    find_foreground,
    is_ct,
    is_mr,
    normalize,
    normalize_image,
    read_reference,
    safe_default,
)

CT = ("CT", "ct", "CT-contrast", "low dose CT", "ct_venous", "CT/abdomen", "CECT", "NCCT", "FBCT", "CBCT", "CT1", "CTA")
MR = (
    "MR",
    "mri",
    "MR-T1",
    "T1",
    "t1w",
    "T1 post",
    "T1ce",
    "T1_GD",
    "T2",
    "T2w",
    "T2*",
    "T2FLAIR",
    "FLAIR",
    "PDw",
    "DWI",
    "ADC map",
    "mri_dce",
    "MPRAGE",
    "3T MRI",
    "bSSFP",
)
OTHER = ("PET", "ultrasound", "US", "OCT", "octo", "ACTH", "tract", "histology", "X-ray", "0", "", "artery", "smart")


@pytest.mark.parametrize("name", CT + MR + OTHER)
def test_a_name_says_ct_mr_or_nothing(name: str) -> None:
    assert (is_ct(name), is_mr(name)) == (name in CT, name in MR)


TILT = np.deg2rad(15)
TURN = np.array([[np.cos(TILT), -np.sin(TILT), 0], [np.sin(TILT), np.cos(TILT), 0], [0, 0, 1]])
DIRECTIONS = {
    "LPS": np.eye(3),
    "oblique and flipped": TURN @ np.diag([-1.0, 1, -1]),
    "sagittal slices": TURN @ np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
}


def agreement(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice of two masks."""
    return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())


@pytest.mark.parametrize(("inside", "outside", "ct"), [(40.0, -1000.0, True), (200.0, 0.0, False), (200.0, 8.0, False)])
def test_the_foreground_is_the_ball(inside: float, outside: float, ct: bool) -> None:
    grid = Grid.from_centre((28, 24, 20), (3.0, 3.0, 3.0), (5, 6, 7))
    truth = np.linalg.norm(grid.physical_points() - (2, 3, 4), axis=-1) < 27
    rng = np.random.default_rng(0)
    noise = 0.0 if outside == 0 else 3.0
    values = np.where(truth, inside, outside) + rng.normal(size=truth.shape) * np.where(truth, 5.0, noise)
    foreground = find_foreground(array_to_image(values.astype(np.float32), grid), ct=ct)
    assert foreground.grid == grid
    assert agreement(foreground.mask, truth) > 0.88
    np.testing.assert_allclose(foreground.centre, (2, 3, 4), atol=1.5)
    assert np.median(foreground.intensities) == pytest.approx(inside, rel=0.05)


@pytest.mark.parametrize("thickness", [5, 9])
@pytest.mark.parametrize(
    "spacing", [(0.8, 0.8, 2.0), (1.0, 1.0, 5.0), (2.0, 2.0, 2.0), (2.9, 2.9, 2.9), (4.0, 4.0, 4.0)]
)
def test_a_table_that_touches_the_body_is_no_foreground(spacing: tuple[float, ...], thickness: float) -> None:
    grid = Grid.from_centre([round(mm / s) for mm, s in zip((360, 280, 40), spacing, strict=True)], spacing, (5, 6, 7))
    points = grid.physical_points()
    body = (((points - (2, -20, 0)) / (130, 90, 1e3)) ** 2).sum(-1) < 1
    # The table reaches a little into the body, and far beyond it on both sides.
    table = (points[..., 1] > 68) & (points[..., 1] < 68 + thickness) & (np.abs(points[..., 0]) < 170)
    values = np.where(body, 40, np.where(table, 300, -1000)) + np.random.default_rng(0).normal(0, 10, body.shape)
    foreground = find_foreground(array_to_image(values.astype(np.int16), grid), ct=True)
    expected = np.ptp(points[body], axis=0) + spacing
    tolerance = np.add(foreground.grid.spacing, (0, thickness, 0))
    # What is left of the table lies below the body.
    assert np.all(np.abs(foreground.extent - expected) <= tolerance)
    assert np.all(np.abs(foreground.centre - (points[body].min(0) + points[body].max(0)) / 2) <= tolerance)
    inside = foreground.grid.physical_points()[foreground.mask]
    assert (((inside - (2, -20, 0)) / (130, 90, 1e3)) ** 2).sum(-1).max() < 1.2**2
    assert (foreground.intensities > 200).mean() < 0.02


@pytest.mark.parametrize("ct", [True, False])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_centre_and_extent_are_those_at_full_resolution(name: str, ct: bool) -> None:
    grid = Grid((131, 142, 63), (1.1, 0.9, 2.2), (40.0, -20.0, 5.0), tuple(DIRECTIONS[name].ravel().tolist()))
    points = grid.physical_points()
    middle = np.add(grid.centre, (5, -7, 6))
    body = (((points - middle) / (50, 45, 40)) ** 2).sum(-1) < 1
    values = np.where(body, 40, -1000) + np.random.default_rng(0).integers(-20, 20, body.shape) * body
    image = orient_to_lps(array_to_image((values if ct else values + 1000).astype(np.int16), grid))
    foreground = find_foreground(image, ct=ct)
    assert min(foreground.grid.spacing) > 1.5 * min(grid.spacing)
    assert max(foreground.grid.spacing) <= FOREGROUND_MM
    # Centre and extent are measured along LPS, however the image is turned.
    body_points = points[body]
    coarse, fine = (np.abs(g.matrix).sum(axis=1) for g in (foreground.grid, grid))
    assert np.all(np.abs(foreground.extent - np.ptp(body_points, axis=0) - fine) <= coarse)
    assert np.all(np.abs(foreground.centre - (body_points.min(0) + body_points.max(0)) / 2) <= coarse)
    assert foreground.intensities.min() >= (20 if ct else 1020)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(4, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 4.0)] * 3),
    direction=st.sampled_from(sorted(DIRECTIONS)),
)
def test_its_grid_is_every_so_many_voxels_of_the_image(size, spacing, direction) -> None:
    grid = Grid(size, spacing, (10.0, -30.0, 50.0), tuple(DIRECTIONS[direction].ravel().tolist()))
    stored = array_to_image(np.arange(np.prod(size), dtype=np.int32).reshape(grid.shape), grid)
    everything = array_to_image(np.ones(grid.shape, np.uint8), grid)
    foreground = find_foreground(orient_to_lps(stored), ct=False, mask=everything)
    assert foreground.mask.all()
    # Each value is the number of its voxel. The sampled voxels lie where the grid says, to half a voxel.
    sampled_indices = np.stack(np.unravel_index(foreground.intensities, grid.shape)[::-1], axis=-1)
    grid_indices = grid.physical_to_index(foreground.grid.physical_points().reshape(-1, 3))
    assert np.abs(sampled_indices - grid_indices).max() <= 0.5 + 1e-6
    assert np.all(np.array(foreground.grid.spacing) <= np.maximum(FOREGROUND_MM, orient_to_lps(stored).GetSpacing()))
    # Less than a coarse voxel of the image is left out.
    assert np.all(
        np.abs(foreground.grid.extent - Grid.from_image(orient_to_lps(stored)).extent) < foreground.grid.spacing
    )


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_users_mask_is_taken_unless_it_is_empty(name: str) -> None:
    grid = Grid((50, 44, 30), (1.5, 1.5, 3.0), (3.0, 4.0, 5.0), tuple(DIRECTIONS[name].ravel().tolist()))
    values = 1 + np.random.default_rng(0).permutation(np.prod(grid.size)).reshape(grid.shape)
    values[:8] = 0
    image = orient_to_lps(array_to_image(values.astype(np.int32), grid))
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[10:20, 12:30, 8:20] = 255
    foreground = find_foreground(image, ct=False, mask=array_to_image(drawn, grid))
    points = grid.physical_points()[drawn > 0]
    axes = np.reshape(image.GetDirection(), (3, 3))
    assert np.all(np.abs((foreground.centre - points.mean(axis=0)) @ axes) <= foreground.grid.spacing)
    assert foreground.mask.sum() * np.prod(foreground.grid.spacing) == pytest.approx(
        len(points) * np.prod(grid.spacing), rel=0.2
    )
    assert set(foreground.intensities) <= set(values[drawn > 0])
    unmasked = find_foreground(image, ct=False)
    empty = find_foreground(image, ct=False, mask=array_to_image(0 * drawn, grid))
    np.testing.assert_array_equal(empty.mask, unmasked.mask)
    assert empty.mask.sum() > 5 * foreground.mask.sum()


def test_an_image_without_a_body_is_all_foreground() -> None:
    grid = Grid.from_centre((12, 12, 12), (4.0, 4.0, 4.0), (0, 0, 0))
    checks = (grid.indices().sum(-1) % 2 * 100).astype(np.int16)
    foreground = find_foreground(array_to_image(checks, grid), ct=False)
    assert foreground.mask.all()
    np.testing.assert_allclose(foreground.extent, grid.extent)


def test_two_legs_are_one_foreground() -> None:
    grid = Grid.from_centre((40, 30, 20), (3.0, 3.0, 3.0), (0, 0, 0))
    legs = np.zeros(grid.shape, bool)
    legs[:, 8:20, 5:16], legs[:, 9:20, 24:34] = True, True
    foreground = find_foreground(array_to_image(np.where(legs, 50, -1000).astype(np.int16), grid), ct=True)
    assert agreement(foreground.mask, legs) > 0.95


@pytest.mark.parametrize(("size", "spacing"), [((60, 60, 10), (1.0, 1.0, 1.0)), ((60, 60, 4), (0.5, 0.5, 0.5))])
def test_few_thin_slices_are_enough(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    grid = Grid.from_centre(size, spacing, (0, 0, 0))
    truth = np.linalg.norm(grid.physical_points()[..., :2], axis=-1) < 20 * spacing[0]
    values = np.where(truth, 200, 8) + np.random.default_rng(0).normal(0, 3, truth.shape)
    foreground = find_foreground(array_to_image(values.astype(np.float32), grid), ct=False)
    np.testing.assert_allclose(foreground.centre[:2], 0, atol=3)
    np.testing.assert_allclose(foreground.extent[:2], 40 * spacing[0], atol=6)


def test_what_is_much_smaller_than_the_body_is_left_out_and_pinholes_are_filled() -> None:
    grid = Grid.from_centre((40, 30, 20), (3.0, 3.0, 3.0), (0, 0, 0))
    truth, other = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    truth[3:17, 5:25, 4:22], other[5:9, 8:16, 28:34] = True, True
    values = np.where(truth | other, 50, -1000).astype(np.int16)
    values[10, 15, 13] = -900
    foreground = find_foreground(array_to_image(values, grid), ct=True)
    assert agreement(foreground.mask, truth) > 0.95
    assert not (foreground.mask & other).any()
    assert foreground.mask[10, 15, 13]


HU = Normalization(modality="CT", scheme="window", lower=-180, upper=400)
UNIT = Normalization(modality="CT", scheme="window", lower=0, upper=1)
PAPER_MR = Normalization(modality="MR", scheme="percentiles", lower=0, upper=95)


def test_a_window_clips_and_scales():
    values = np.array([[[-500.0, -180, 110, 400, 900]]])
    np.testing.assert_allclose(normalize(values, values, HU), [[[0, 0, 0.5, 1, 1]]], atol=1e-6)


def test_percentiles_are_ranks_in_the_foreground():
    values = np.arange(1000.0).reshape(10, 10, 10)
    inside = values >= 500
    scaled = normalize(values, values[inside], PAPER_MR)
    assert scaled.dtype == np.float32
    assert (scaled[~inside] == 0).all()
    assert scaled[inside].max() == 1
    assert (scaled == 1).sum() == pytest.approx(25, abs=1)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32, np.float64]),
    lower=st.integers(0, 60),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_type_is_scaled_as_in_a_plain_computation(kind: type, lower: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 250, (4, 5, 6)).astype(kind)
    for scheme in ("window", "percentiles"):
        plan = Normalization(modality="X", scheme=scheme, lower=lower, upper=lower + width)
        before = values.copy()
        low, high = (lower, lower + width) if scheme == "window" else np.percentile(values, [lower, lower + width])
        expected = np.clip((values.astype(float) - low) / max(high - low, 1e-6), 0, 1)
        np.testing.assert_allclose(normalize(values, values.ravel(), plan), expected, atol=1e-5)
        np.testing.assert_array_equal(values, before)


def test_an_image_of_one_value_stays_finite() -> None:
    values = np.full((3, 3, 3), 7.0)
    assert np.isfinite(normalize(values, values.ravel(), PAPER_MR)).all()


@pytest.fixture
def tilted_grid(oblique: Grid) -> Grid:
    """An oblique grid with voxels so large that the foreground skips none."""
    return Grid(oblique.size, (3.0, 3.5, 4.0), oblique.origin, oblique.direction)


def image(values: np.ndarray, grid: Grid) -> sitk.Image:
    return array_to_image(values.astype(np.float32), grid)


def test_an_image_is_turned_and_ranked_in_its_foreground(tilted_grid: Grid) -> None:
    rng = np.random.default_rng(0)
    values = np.zeros(tilted_grid.shape)
    values[2:8, 2:10, 3:12] = rng.uniform(100, 200, (6, 8, 9))
    stored = image(values, tilted_grid)
    normal, foreground = normalize_image(stored, PAPER_MR)
    # The background is not ranked: the brightest twentieth of what is inside is 1, not that of the whole image.
    ranks = sitk.GetArrayFromImage(normal)
    assert (ranks == 1).sum() == pytest.approx(0.05 * 432, abs=4)
    assert np.median(foreground.intensities) > 100
    for point, value in ((p, values[p[::-1]]) for p in ((5, 4, 3), (11, 9, 7), (0, 0, 0))):
        index = normal.TransformPhysicalPointToIndex(stored.TransformIndexToPhysicalPoint(point))
        low, high = foreground.intensities.min(), np.percentile(foreground.intensities, 95)
        assert normal[index] == pytest.approx(np.clip((value - low) / (high - low), 0, 1), abs=1e-5)
    assert all(np.diag(np.reshape(normal.GetDirection(), (3, 3))) > 0.9)


def test_the_users_mask_says_what_is_ranked(tilted_grid: Grid) -> None:
    values = np.random.default_rng(0).uniform(0, 1000, tilted_grid.shape)
    mask = np.zeros(tilted_grid.shape, np.uint8)
    mask[3:6, 2:8, 4:9] = 1
    normal, foreground = normalize_image(image(values, tilted_grid), PAPER_MR, array_to_image(mask, tilted_grid))
    assert sorted(foreground.intensities) == pytest.approx(sorted(values[mask > 0]), rel=1e-6)
    assert (sitk.GetArrayFromImage(normal) == 1).sum() == (values >= np.percentile(values[mask > 0], 95) - 1e-3).sum()


@pytest.mark.parametrize(
    ("plan", "low", "high", "is_kept"),
    [
        (HU, -1000, 1500, True),
        (HU, 0, 4000, False),
        (Normalization(modality="CT", scheme="window", lower=5, upper=80), 0, 300, True),
        (UNIT, 0, 1, True),
        (UNIT, -0.01, 1.2, True),
        (UNIT, 0, 255, False),
        (PAPER_MR, 0, 4000, True),
    ],
)
def test_a_window_for_other_values_is_not_used(
    caplog: pytest.LogCaptureFixture, tilted_grid: Grid, plan: Normalization, low: float, high: float, is_kept: bool
) -> None:
    values = np.linspace(low, high, int(np.prod(tilted_grid.size))).reshape(tilted_grid.shape)
    with caplog.at_level(logging.WARNING):
        normalization = check_window(plan, image(values, tilted_grid))
    assert normalization == (plan if is_kept else safe_default(plan.modality))
    assert len(caplog.records) == (0 if is_kept else 1)


def test_the_safe_default_is_the_papers_for_mr_alone() -> None:
    assert [(d.scheme, d.lower, d.upper) for d in map(safe_default, ("T1w", "MR", "PET", "ultrasound"))] == [
        ("percentiles", 0, 95),
        ("percentiles", 0, 95),
        ("percentiles", 0.5, 99.5),
        ("percentiles", 0.5, 99.5),
    ]


@pytest.fixture(scope="module")
def prepared_case(tmp_path_factory: pytest.TempPathFactory):
    dataset, _, plans = prepare(tmp_path_factory.mktemp("frame"))
    case = dataset.case("Toy_0002_0001")
    return read_case(case, plans.labels), plans.normalization[1], replace_method(plans, "centre")


def test_a_known_transform_leads_from_the_frame_into_the_case(prepared_case) -> None:
    images, normalization, plans = prepared_case
    centre = Grid.from_image(images.image).centre
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    user_transform = CaseTransform(turn, centre - turn @ plans.frame.centre, "given by the user")
    framed = bring_into_frame(images.image, normalization, plans, "image", transform=user_transform)
    assert framed.transform is user_transform
    grid = Grid.from_image(images.image)
    window = np.clip(sitk.GetArrayFromImage(images.image), normalization.lower, normalization.upper)
    expected = (window - normalization.lower) / (normalization.upper - normalization.lower)
    points = plans.frame.physical_points() @ turn.T + user_transform.translation
    indices = np.moveaxis(grid.physical_to_index(points)[..., ::-1], -1, 0)
    inside = framed.seen & np.all([(i > 0) & (i < n - 1) for i, n in zip(indices, grid.shape, strict=True)], axis=0)
    assert inside.sum() > 1000
    looked_up = ndimage.map_coordinates(expected, indices, order=1)
    np.testing.assert_allclose(framed.image[inside], looked_up[inside], atol=1e-4)


def test_the_users_foreground_places_and_ranks_the_image(prepared_case) -> None:
    images, _, plans = prepared_case
    ranks = plans.normalization[0]
    corner = sitk.Image(images.image.GetSize(), sitk.sitkUInt8)
    corner.CopyInformation(images.image)
    corner[:6, :6, :6] = 1
    plain, masked = (bring_into_frame(images.image, ranks, plans, "image", mask=mask) for mask in (None, corner))
    assert np.linalg.norm(plain.transform.translation - masked.transform.translation) > 20
    # A corner holds air alone, whose percentiles make a body white.
    assert masked.image[masked.seen].mean() > 1.5 * plain.image[plain.seen].mean()


def test_an_image_that_misses_the_frame_is_named(prepared_case) -> None:
    images, normalization, plans = prepared_case
    away = CaseTransform(np.eye(3), np.array([5000.0, 0, 0]), "given by the user")
    with pytest.raises(BadImage) as refusal:
        bring_into_frame(images.image, normalization, plans, Path("scan.nii.gz"), transform=away)
    assert refusal.value.path == Path("scan.nii.gz")


def test_a_reference_lies_on_the_frame(prepared_case, tmp_path: Path) -> None:
    images, normalization, plans = prepared_case
    framed = bring_into_frame(images.image, normalization, plans, "image")
    reference = sitk.GetImageFromArray(framed.image)
    reference.SetSpacing(plans.spacing)
    reference.SetOrigin(plans.frame.origin)
    write_image(reference, tmp_path / REFERENCE_FILE)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_reference(tmp_path, plans)), framed.image)
    reference.SetOrigin((0.0, 0.0, 0.0))
    write_image(reference, tmp_path / REFERENCE_FILE)
    with pytest.raises(UnreadableFile) as refusal:
        read_reference(tmp_path, plans)
    assert refusal.value.path == tmp_path / REFERENCE_FILE
