from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid
from llmreg.report import rendering
from llmreg.report.rendering import PLANES, SIDES

FINER = 3


def test_planes_are_seen_as_radiologists_see_them() -> None:
    volume = np.zeros((3, 4, 5))
    volume[2, 3, 4] = 1  # Head, back, left.
    corners = {plane: np.argwhere(rendering.slice_of(volume, plane, -1)).tolist() for plane in PLANES}
    assert corners == {"axial": [[3, 4]], "coronal": [[0, 4]], "sagittal": [[0, 3]]}
    # SIDES says the same in letters: what lies at the right and at the bottom, or at the top for the head.
    assert [SIDES[plane][1] for plane in PLANES] == ["L", "L", "P"]
    assert (SIDES["axial"][3], SIDES["coronal"][2], SIDES["sagittal"][2]) == ("P", "S", "S")


def test_outlines_are_the_pixels_of_a_label_beside_others() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (6, 7)).astype(np.int32)
    labels[2:5, 2:6] = 2
    outlines = rendering.outlines(labels, FINER)
    fine = labels.repeat(FINER, 0).repeat(FINER, 1)
    for row, column in np.ndindex(fine.shape):
        beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        inside = [place for place in beside if 0 <= place[0] < fine.shape[0] and 0 <= place[1] < fine.shape[1]]
        border = any(fine[place] != fine[row, column] for place in inside)
        assert outlines[row, column] == (fine[row, column] if border else 0)


def test_small_volumes_have_finer_lines() -> None:
    assert [rendering.fineness((length, 40, 50)) for length in (300, 256, 192, 96, 60)] == [1, 1, 2, 4, 6]


def test_contours_have_their_labels_colours_and_dashes_are_a_part_of_them() -> None:
    labels = np.zeros((20, 20), np.int32)
    labels[4:16, 3:12], labels[6:9, 12:18] = 1, 5
    solid, dashed = (rendering.contours(labels, FINER, dashed=dashed) for dashed in (False, True))
    lines = rendering.outlines(labels, FINER)
    for label in (1, 5):
        assert (solid[lines == label] == (*rendering.colour_of(label), 255)).all()
    assert (solid[lines == 0] == 0).all()
    drawn = dashed[..., 3] > 0
    assert 0.3 < drawn.sum() / (lines > 0).sum() < 0.7
    assert (dashed[drawn] == solid[drawn]).all()


@pytest.mark.parametrize(("plane", "along", "down"), [("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2)])
def test_grid_lines_lie_where_the_field_looks_up_the_moving_grid(plane: str, along: int, down: int) -> None:
    shape, step = (24, 20, 16), 4
    flow = np.zeros((3, *shape), np.float32)

    def columns_and_rows() -> tuple[set[int], set[int]]:
        lines = rendering.grid_lines(flow, plane, 3, step, FINER)
        rows = np.flatnonzero(lines.mean(axis=1) > 0.9)
        return set(np.flatnonzero(lines.mean(axis=0) > 0.9).tolist()), set(rows.tolist())

    size = shape[::-1]
    at_rest = columns_and_rows()
    positions = [set(range(step * FINER, FINER * size[axis], step * FINER)) for axis in (along, down)]
    assert at_rest == (positions[0], positions[1])
    # Looking a voxel further along brings the moving lines a voxel back.
    flow[along] = 1
    columns, rows = columns_and_rows()
    assert columns == {line - FINER for line in positions[0]} | (
        {FINER * (size[along] - 1)} if size[along] % step == 0 else set()
    )
    assert rows == positions[1]
    # A displacement across the slice is not visible in it.
    flow[:] = 0
    flow[3 - along - down] = 2
    assert columns_and_rows() == at_rest


def test_a_stretched_grid_has_wider_cells() -> None:
    flow = np.zeros((3, 4, 40, 40), np.float32)
    flow[0] = -0.5 * np.arange(40)
    lines = rendering.grid_lines(flow, "axial", 0, 5, FINER)
    columns = np.flatnonzero(lines.mean(axis=0) > 0.9)
    np.testing.assert_allclose(np.diff(columns), 5 * FINER / 0.5, atol=1)


def test_the_jacobians_colours_tell_larger_from_smaller_and_folded() -> None:
    values = np.array([[1.0, 1.8, 0.6, 0.0, -3.0]], np.float32)
    unchanged, larger, smaller, *folded = rendering.jacobian_picture(values)[0].astype(int)
    assert unchanged.min() > 230
    assert larger[0] > larger[2] + 50
    assert smaller[2] > smaller[0] + 50
    assert all(tuple(colour) == rendering.FOLDED for colour in folded)


def test_uncertainty_gets_brighter_to_its_top() -> None:
    picture = rendering.uncertainty_picture(np.array([[0.0, 1.0, 2.0, 4.0, 9.0]], np.float32), 4.0)
    brightness = picture[0].astype(int).sum(axis=1)
    assert (np.diff(brightness[:4]) > 0).all()
    assert brightness[4] == brightness[3]


def test_pictures_are_webp_and_lines_lose_nothing() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[4:16, 3:12] = 1
    lines = rendering.contours(labels, FINER, dashed=True)
    opened = Image.open(io.BytesIO(base64.b64decode(rendering.encode_webp(lines))))
    assert opened.format == "WEBP"
    decoded = np.asarray(opened.convert("RGBA"))
    assert (decoded[..., 3] == lines[..., 3]).all()
    assert (decoded[lines[..., 3] > 0] == lines[lines[..., 3] > 0]).all()
    grey = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    opened = Image.open(io.BytesIO(base64.b64decode(rendering.encode_webp(grey))))
    decoded = np.asarray(opened.convert("L")).astype(int)
    assert np.abs(decoded - grey).mean() < 6


def test_the_lines_of_a_real_field_pass_where_its_inverse_says() -> None:
    grid = Grid((24, 22, 4), (1.0,) * 3, (0.0,) * 3)
    x = np.arange(24)
    vectors = np.zeros((*grid.shape, 3), np.float32)
    vectors[..., 0] = 1.5 * np.sin(x / 5)
    lines = rendering.grid_lines(DisplacementField(vectors, grid).to_flow(), "axial", 1, 6, FINER)
    columns = np.flatnonzero(lines.mean(axis=0) > 0.9) / FINER
    # Positions are counted from the edges of voxels, which adds half a voxel.
    expected = np.interp(np.arange(6, 24, 6), x + 1.5 * np.sin(x / 5) + 0.5, x + 0.5)
    np.testing.assert_allclose(columns, expected, atol=0.5)
