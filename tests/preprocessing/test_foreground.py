"""Where the body is, against what the images were made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmreg.geometry.arrays import array_to_image, orient_to_lps
from llmreg.geometry.grid import Grid
from llmreg.preprocessing.foreground import COARSE_MM, find_foreground

TILT = np.deg2rad(15)
TURN = np.array([[np.cos(TILT), -np.sin(TILT), 0], [np.sin(TILT), np.cos(TILT), 0], [0, 0, 1]])
DIRECTIONS = {
    "LPS": np.eye(3),
    "oblique and flipped": TURN @ np.diag([-1.0, 1, -1]),
    "sagittal slices": TURN @ np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
}


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    """Dice."""
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


@pytest.mark.parametrize(("inside", "outside", "ct"), [(40.0, -1000.0, True), (200.0, 0.0, False), (200.0, 8.0, False)])
def test_the_foreground_is_the_ball(inside: float, outside: float, ct: bool) -> None:
    grid = Grid.from_centre((28, 24, 20), (3.0, 3.0, 3.0), (5, 6, 7))
    truth = np.linalg.norm(grid.physical_points() - (2, 3, 4), axis=-1) < 27
    rng = np.random.default_rng(0)
    noise = 0.0 if outside == 0 else 3.0
    values = np.where(truth, inside, outside) + rng.normal(size=truth.shape) * np.where(truth, 5.0, noise)
    found = find_foreground(array_to_image(values.astype(np.float32), grid), ct=ct)
    assert found.grid == grid
    assert agreement(found.mask, truth) > 0.88
    np.testing.assert_allclose(found.centre, (2, 3, 4), atol=1.5)
    assert np.median(found.intensities) == pytest.approx(inside, rel=0.05)


@pytest.mark.parametrize("thickness", [5, 9])
@pytest.mark.parametrize(
    "spacing", [(0.8, 0.8, 2.0), (1.0, 1.0, 5.0), (2.0, 2.0, 2.0), (2.9, 2.9, 2.9), (4.0, 4.0, 4.0)]
)
def test_a_table_that_touches_the_body_is_no_foreground(spacing: tuple[float, ...], thickness: float) -> None:
    grid = Grid.from_centre([round(mm / s) for mm, s in zip((360, 280, 40), spacing, strict=True)], spacing, (5, 6, 7))
    points = grid.physical_points()
    body = (((points - (2, -20, 0)) / (130, 90, 1e3)) ** 2).sum(-1) < 1
    # It reaches a little into the body, and far beyond it on both sides.
    table = (points[..., 1] > 68) & (points[..., 1] < 68 + thickness) & (np.abs(points[..., 0]) < 170)
    values = np.where(body, 40, np.where(table, 300, -1000)) + np.random.default_rng(0).normal(0, 10, body.shape)
    found = find_foreground(array_to_image(values.astype(np.int16), grid), ct=True)
    expected = np.ptp(points[body], axis=0) + spacing
    tolerance = np.add(found.grid.spacing, (0, thickness, 0))
    # What is left of it lies below the body.
    assert np.all(np.abs(found.extent - expected) <= tolerance)
    assert np.all(np.abs(found.centre - (points[body].min(0) + points[body].max(0)) / 2) <= tolerance)
    inside = found.grid.physical_points()[found.mask]
    assert (((inside - (2, -20, 0)) / (130, 90, 1e3)) ** 2).sum(-1).max() < 1.2**2
    assert (found.intensities > 200).mean() < 0.02


@pytest.mark.parametrize("ct", [True, False])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_centre_and_extent_are_those_at_full_resolution(name: str, ct: bool) -> None:
    grid = Grid((131, 142, 63), (1.1, 0.9, 2.2), (40.0, -20.0, 5.0), tuple(DIRECTIONS[name].ravel().tolist()))
    points = grid.physical_points()
    middle = np.add(grid.centre, (5, -7, 6))
    body = (((points - middle) / (50, 45, 40)) ** 2).sum(-1) < 1
    values = np.where(body, 40, -1000) + np.random.default_rng(0).integers(-20, 20, body.shape) * body
    image = orient_to_lps(array_to_image((values if ct else values + 1000).astype(np.int16), grid))
    found = find_foreground(image, ct=ct)
    assert min(found.grid.spacing) > 1.5 * min(grid.spacing)
    assert max(found.grid.spacing) <= COARSE_MM
    # Along LPS however the image is turned, from the points of all voxels.
    along = points[body]
    coarse, fine = (np.abs(of.matrix).sum(axis=1) for of in (found.grid, grid))
    assert np.all(np.abs(found.extent - np.ptp(along, axis=0) - fine) <= coarse)
    assert np.all(np.abs(found.centre - (along.min(0) + along.max(0)) / 2) <= coarse)
    assert found.intensities.min() >= (20 if ct else 1020)


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
    found = find_foreground(orient_to_lps(stored), ct=False, mask=everything)
    assert found.mask.all()
    # The values say which voxels were taken; they lie where the grid says, to half a voxel.
    taken = np.stack(np.unravel_index(found.intensities, grid.shape)[::-1], axis=-1)
    claimed = grid.physical_to_index(found.grid.physical_points().reshape(-1, 3))
    assert np.abs(taken - claimed).max() <= 0.5 + 1e-6
    assert np.all(np.array(found.grid.spacing) <= np.maximum(COARSE_MM, orient_to_lps(stored).GetSpacing()))
    # None of the image is left out but less than a coarse voxel.
    assert np.all(np.abs(found.grid.extent - Grid.from_image(orient_to_lps(stored)).extent) < found.grid.spacing)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_users_mask_is_taken_unless_it_is_empty(name: str) -> None:
    grid = Grid((50, 44, 30), (1.5, 1.5, 3.0), (3.0, 4.0, 5.0), tuple(DIRECTIONS[name].ravel().tolist()))
    values = 1 + np.random.default_rng(0).permutation(np.prod(grid.size)).reshape(grid.shape)
    values[:8] = 0
    image = orient_to_lps(array_to_image(values.astype(np.int32), grid))
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[10:20, 12:30, 8:20] = 255
    found = find_foreground(image, ct=False, mask=array_to_image(drawn, grid))
    points = grid.physical_points()[drawn > 0]
    axes = np.reshape(image.GetDirection(), (3, 3))
    assert np.all(np.abs((found.centre - points.mean(axis=0)) @ axes) <= found.grid.spacing)
    assert found.mask.sum() * np.prod(found.grid.spacing) == pytest.approx(len(points) * np.prod(grid.spacing), rel=0.2)
    assert set(found.intensities) <= set(values[drawn > 0])
    without = find_foreground(image, ct=False)
    empty = find_foreground(image, ct=False, mask=array_to_image(0 * drawn, grid))
    np.testing.assert_array_equal(empty.mask, without.mask)
    assert empty.mask.sum() > 5 * found.mask.sum()


def test_an_image_without_a_body_is_all_foreground() -> None:
    grid = Grid.from_centre((12, 12, 12), (4.0, 4.0, 4.0), (0, 0, 0))
    checks = (grid.indices().sum(-1) % 2 * 100).astype(np.int16)
    found = find_foreground(array_to_image(checks, grid), ct=False)
    assert found.mask.all()
    np.testing.assert_allclose(found.extent, grid.extent)


def test_two_legs_are_one_foreground() -> None:
    grid = Grid.from_centre((40, 30, 20), (3.0, 3.0, 3.0), (0, 0, 0))
    legs = np.zeros(grid.shape, bool)
    legs[:, 8:20, 5:16], legs[:, 9:20, 24:34] = True, True
    found = find_foreground(array_to_image(np.where(legs, 50, -1000).astype(np.int16), grid), ct=True)
    assert agreement(found.mask, legs) > 0.95


@pytest.mark.parametrize(("size", "spacing"), [((60, 60, 10), (1.0, 1.0, 1.0)), ((60, 60, 4), (0.5, 0.5, 0.5))])
def test_few_thin_slices_are_enough(size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    grid = Grid.from_centre(size, spacing, (0, 0, 0))
    truth = np.linalg.norm(grid.physical_points()[..., :2], axis=-1) < 20 * spacing[0]
    values = np.where(truth, 200, 8) + np.random.default_rng(0).normal(0, 3, truth.shape)
    found = find_foreground(array_to_image(values.astype(np.float32), grid), ct=False)
    np.testing.assert_allclose(found.centre[:2], 0, atol=3)
    np.testing.assert_allclose(found.extent[:2], 40 * spacing[0], atol=6)


def test_what_is_much_smaller_than_the_body_is_left_out_and_pinholes_are_filled() -> None:
    grid = Grid.from_centre((40, 30, 20), (3.0, 3.0, 3.0), (0, 0, 0))
    truth, other = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    truth[3:17, 5:25, 4:22], other[5:9, 8:16, 28:34] = True, True
    values = np.where(truth | other, 50, -1000).astype(np.int16)
    values[10, 15, 13] = -900
    found = find_foreground(array_to_image(values, grid), ct=True)
    assert agreement(found.mask, truth) > 0.95
    assert not (found.mask & other).any()
    assert found.mask[10, 15, 13]
