"""Our Learn2Reg figures against the challenge's evaluation, written down again from its definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from random_fields import random_field
from scipy.ndimage import correlate, map_coordinates
from surface_oracles import plain_hd95_learn2reg

from llmreg.commands.evaluate import main
from llmreg.evaluation import learn2reg_scores
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.images.fields import write_field
from llmreg.images.image_files import write_image

GRID = Grid((9, 10, 8), (2.0, 1.5, 3.0), (5.0, -7.0, 11.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
IDS = [2, 3, 200]


def compute_challenge_scores(
    fixed: np.ndarray, moving: np.ndarray, steps: np.ndarray, points: list[np.ndarray]
) -> dict[str, list[float]]:
    """Score label maps (X, Y, Z), a displacement (X, Y, Z, 3) in voxels, and fixed and moving points in voxels."""
    warped = map_coordinates(moving, np.indices(fixed.shape) + np.moveaxis(steps, -1, 0), order=0)
    dice, hd95 = [], []
    for i in IDS:
        warped_mask, fixed_mask = warped == i, fixed == i
        if not fixed_mask.any() or not (moving == i).any():
            dice.append(np.nan)
            hd95.append(np.nan)
        else:
            dice.append(2 * (warped_mask & fixed_mask).sum() / (warped_mask.sum() + fixed_mask.sum()))
            hd95.append(plain_hd95_learn2reg(fixed_mask, warped_mask) if warped_mask.any() else np.inf)
    kernels = [np.array([-0.5, 0, 0.5]).reshape(np.roll((3, 1, 1), axis)) for axis in range(3)]
    gradient = np.array([[correlate(steps[..., k], kernel, mode="constant") for kernel in kernels] for k in range(3)])
    jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    inner = np.linalg.det(jacobian)[2:-2, 2:-2, 2:-2]
    moved = np.array([map_coordinates(steps[..., k], points[0].T) for k in range(3)]).T
    tre = np.linalg.norm((points[0] + moved - points[1]) * GRID.spacing, axis=1)
    return {"dice": dice, "hd95": hd95, "sdlogj": [np.log((inner + 3).clip(1e-9, 1e9)).std()], "tre": tre.tolist()}


def label_map(seed: int, ids: list[int]) -> np.ndarray:
    """Make a label map (z, y, x) with a box for each id, which may touch the border or be overwritten in part."""
    random = np.random.default_rng(seed)
    array = np.zeros(GRID.shape, np.uint8)
    for i in ids:
        start = random.integers(0, 4, 3)
        stop = start + random.integers(2, 6, 3)
        array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = i
    return array


@pytest.fixture
def cases(tmp_path: Path) -> dict[str, dict[str, list[float]]]:
    """Three pairs on disk, and what the challenge computes of them."""
    expected, pairs = {}, []
    for folder in ("labels", "points"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        fixed, moving = f"Abdomen_000{number}_0000", f"Abdomen_001{number}_0001"
        field = random_field(GRID, number, 3.0)
        if number == 1:
            # The field pushes everything out of sight.
            field = DisplacementField(field.vectors + np.float32(100), GRID)
        maps = [label_map(2 * number, IDS), label_map(2 * number + 1, IDS[: 3 - (number == 2)])]
        random = np.random.default_rng(number)
        # One landmark lies outside the image.
        points = [np.vstack((random.uniform(0, 7, (5, 3)), [[-3.0, 2, 2]])) for _ in range(2)]
        for name, array, places in zip((fixed, moving), maps, points, strict=True):
            write_image(array_to_image(array, GRID), tmp_path / "labels" / f"{name}.nii.gz")
            np.savetxt(tmp_path / "points" / f"{name}.csv", places, delimiter=",")
        write_field(field, tmp_path / f"disp{number}.nii.gz", "learn2reg", GRID)
        steps = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"disp{number}.nii.gz"))).transpose(3, 2, 1, 0)
        expected[f"000{number}_0000<--001{number}_0001"] = compute_challenge_scores(maps[0].T, maps[1].T, steps, points)
        pairs.append(
            {
                "pair_id": f"p{number}",
                "fixed": fixed,
                "moving": moving,
                "field": f"disp{number}.nii.gz",
                "format": "learn2reg",
                "seconds": 2.0 + number,
            }
        )
    (tmp_path / "predict.json").write_text(json.dumps({"pairs": pairs, "peak_memory_gb": 1.5}))
    return expected


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_results_are_the_challenges(cases: dict, tmp_path: Path, interpolation: str, capsys) -> None:
    arguments = ["-i", str(tmp_path), "-l", str(tmp_path / "labels"), "--num_processes", "1", "--landmarks"]
    arguments += [str(tmp_path / "points"), "--convention", "voxel", "--label_interpolation", interpolation]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "learn2reg.json").read_text())
    assert (results["name"], results["eval_version"]) == (tmp_path.name, "2.0")
    assert list(results["cases"]) == list(cases)
    means: dict[str, list[float]] = {}
    for key, case in cases.items():
        for metric, detailed in case.items():
            score = results["cases"][key][metric]
            np.testing.assert_allclose(np.atleast_1d(score["detailed"]), detailed, rtol=2e-4, atol=2e-4)
            assert score["mean"] == pytest.approx(np.nanmean(detailed), abs=2e-4)
            means.setdefault(metric, []).append(np.nanmean(detailed))
    assert np.isinf(means["hd95"][1])
    for metric, values in means.items():
        with np.errstate(invalid="ignore"):
            share = 0.7 if metric in ("sdlogj", "tre") else 0.3
            expected = [np.mean(values), np.std(values), np.quantile(values, share)]
        aggregate = results["aggregates"][metric]
        np.testing.assert_allclose([aggregate["mean"], aggregate["std"], aggregate["30"]], expected, atol=2e-4)

    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["dice_l2r"].tolist() == pytest.approx(
        [value for case in cases.values() for value in case["dice"]], abs=1e-6, nan_ok=True
    )
    printed = capsys.readouterr().out
    words = {"nearest": "nearest neighbours", "linear": "weighs most"}
    assert words[interpolation] in printed
    assert "3.0 +- 1.0 s a pair, 1.5 GiB of memory" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["label_interpolation"] == interpolation
    assert summary["metrics"]["hd95_l2r"]["mean"] is None
    assert summary["metrics"]["tre_l2r"]["mean"] == pytest.approx(np.mean(means["tre"]), abs=2e-4)


def test_cases_keep_whole_names_where_numbers_do_not_tell_them_apart() -> None:
    row = {"label": 1, "dice_l2r": 0.5, "hd95_l2r": 1.0, "sdlogj_learn2reg": 0.1}
    named = [{"fixed": f"{a}_0001_0000", "moving": f"{a}_0001_0001"} for a in ("A", "B")]
    table = pd.DataFrame([{"pair_id": str(k)} | names | row for k, names in enumerate(named)])
    assert list(learn2reg_scores.make_results(table, "x", {})["cases"]) == [
        "A_0001_0000<--A_0001_0001",
        "B_0001_0000<--B_0001_0001",
    ]
    assert list(learn2reg_scores.make_results(table[:1], "x", {})["cases"]) == ["0001_0000<--0001_0001"]


def test_labels_end_at_the_centres_of_the_outermost_voxels() -> None:
    moving = np.full(GRID.shape, 3, np.uint16)
    quarter = GRID.matrix @ np.array([-0.25, 0, 0])
    field = DisplacementField(np.broadcast_to(quarter, (*GRID.shape, 3)).astype(np.float32), GRID)
    warped = learn2reg_scores.warp_labels(moving, field, GRID)
    assert (warped[..., 0] == 0).all()
    assert (warped[..., 1:] == 3).all()
    assert warped.dtype == np.uint16
    identity = DisplacementField(np.zeros((*GRID.shape, 3), np.float32), GRID)
    np.testing.assert_array_equal(learn2reg_scores.warp_labels(moving, identity, GRID), moving)
