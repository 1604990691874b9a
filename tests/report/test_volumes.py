from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_predictions import write_predictions

from llmreg.errors import MissingFile, UnreadableFile
from llmreg.geometry.grid import Grid, array_to_image, image_to_array, orient_to_lps
from llmreg.images.image_files import read_image
from llmreg.images.itk import write_with_itk
from llmreg.predictions import PredictedPair
from llmreg.report.rendering import slice_of
from llmreg.report.shown_predictions import ShownPair, read_results, select_pairs
from llmreg.report.volumes import NARROWEST, Scene, read_result, read_scene, shown_grid, window


def pairs_in(folder: Path) -> list[ShownPair]:
    return select_pairs([read_results("method", [folder])], 10)


@pytest.fixture
def wide(oblique: Grid) -> Grid:
    """An oblique, flipped and anisotropic grid."""
    return Grid((36, 26, 14), oblique.spacing, oblique.origin, oblique.direction)


def brightest(scene: Scene, plane: str, index: int) -> tuple[bool, bool]:
    """Whether the bright corner is in the lower and in the right half of the picture."""
    picture = slice_of(scene.fixed.image, plane, index)
    row, column = np.argwhere(picture == 255).mean(axis=0)
    return bool(row > picture.shape[0] / 2), bool(column > picture.shape[1] / 2)


def test_the_shown_grid_is_upright_cubic_and_fills_the_image(wide: Grid) -> None:
    image = array_to_image(np.zeros(wide.shape, np.float32), wide)
    grid = shown_grid(image)
    assert grid.spacing == (1.0,) * 3
    assert (np.diag(np.reshape(grid.direction, (3, 3))) > 0.9).all()
    np.testing.assert_allclose(grid.centre, wide.centre, atol=0.5)
    np.testing.assert_allclose(sorted(grid.extent), sorted(wide.extent), atol=0.5)
    lps_grid = Grid.from_image(orient_to_lps(image))
    edges = [g.index_to_physical([-0.5] * 3) for g in (grid, lps_grid)]
    np.testing.assert_allclose(edges[0], edges[1], atol=1e-6)


def test_a_large_image_is_shown_in_larger_voxels() -> None:
    image = sitk.Image(512, 300, 8, sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.5, 4.0))
    grid = shown_grid(image)
    assert grid.size == (256, 150, 32)


def test_an_image_that_is_cubic_keeps_its_voxels() -> None:
    grid = Grid((20, 30, 25), (2.0,) * 3, (1.0, 2.0, 3.0))
    assert shown_grid(array_to_image(np.zeros(grid.shape, np.uint8), grid)) == grid


def test_a_corner_at_the_left_back_and_top_is_shown_there(tmp_path: Path, wide: Grid) -> None:
    (pair,) = pairs_in(write_predictions(tmp_path / "out", wide, [3.0]))
    scene = read_scene(pair)
    depth, rows, columns = scene.fixed.image.shape
    assert brightest(scene, "axial", depth - 2) == (True, True)
    assert brightest(scene, "coronal", rows - 3) == (False, True)
    assert brightest(scene, "sagittal", columns - 3) == (False, True)


def test_what_is_shown_is_what_the_field_does(tmp_path: Path) -> None:
    fixed = Grid.from_centre((30, 28, 26), (1.25,) * 3, (5.0, -3.0, 2.0))
    (pair,) = pairs_in(write_predictions(tmp_path / "out", fixed, [3.75]))
    scene = read_scene(pair)
    result = read_result(scene, pair.predictions[0])
    assert scene.grid.same_as(fixed)
    moving = read_image(Path(pair.images.moving_label or ""))
    expected = sitk.Resample(
        moving,
        read_image(Path(pair.images.fixed_path or "")),
        sitk.TranslationTransform(3, (3.75, 0, 0)),
        sitk.sitkNearestNeighbor,
    )
    np.testing.assert_array_equal(result.warped.labels, image_to_array(expected))
    apart = [np.mean(stage.labels != scene.fixed.labels) for stage in (scene.before, result.warped)]
    assert apart[1] < 0.3 * apart[0]
    np.testing.assert_allclose(result.flow[0], 3.0, atol=1e-4)
    np.testing.assert_allclose(result.flow[1:], 0, atol=1e-4)
    np.testing.assert_allclose(result.jacobian, 1, atol=1e-4)
    np.testing.assert_allclose(result.uncertainty, 4.25, atol=1e-4)


def test_a_prealignment_is_shown_where_it_moves_something(tmp_path: Path, wide: Grid) -> None:
    folder = write_predictions(tmp_path / "out", wide, [3.0])
    (pair,) = pairs_in(folder)
    assert read_scene(pair).prealigned is None
    for shift, moves in ((0.1, False), (3.0, True)):
        write_with_itk(sitk.TranslationTransform(3, (shift, 0, 0)), folder / "start.tfm")
        started = pair.images.model_copy(update={"prealignment": "start.tfm"})
        scene = read_scene(ShownPair("pair 0", 1, 1, (started,)))
        assert (scene.prealigned is not None) == moves
    result = read_result(scene, started)
    assert (scene.prealigned.labels == result.warped.labels).mean() > 0.999


def test_windows_show_the_foreground_and_of_ct_soft_tissue() -> None:
    rng = np.random.default_rng(0)
    body = np.concatenate([np.full(1000, -1000.0), rng.uniform(-120, 200, 1000), rng.uniform(300, 1500, 200)])
    low, high = window(body)
    assert -120 < low < -90
    assert 190 < high < 240
    brain = np.concatenate([np.full(1000, -1000.0), rng.normal(30, 3, 1000)])
    low, high = window(brain)
    assert high - low == pytest.approx(NARROWEST)
    assert low < 5 < 55 < high
    mr = np.concatenate([np.zeros(5000), rng.uniform(100, 200, 5000), [9000]])
    low, high = window(mr)
    assert 99 < low < 103
    assert 198 < high < 201
    assert window(np.zeros(5)) == (0, 1)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    required = {"folder": tmp_path, "pair_id": "a pair", "fixed": "F", "moving": "M"}
    with pytest.raises(UnreadableFile, match="a pair") as unnamed:
        read_scene(ShownPair("a pair", 1, 1, (PredictedPair(**required),)))
    assert unnamed.value.path == tmp_path / "predict.json"
    with pytest.raises(MissingFile):
        read_scene(ShownPair("a pair", 1, 1, (PredictedPair(**required, fixed_path="a.nii", moving_path="b.nii"),)))
