"""Scores of pairs of label maps and of landmarks whose field is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from labelled_boxes import SHIFT, SPACING, constant_field, label_image, plain_dice
from random_fields import random_field

from llmreg.errors import BadTable
from llmreg.evaluation.pair_scores import evaluate_pair, landmark_errors, read_landmark_pair
from llmreg.geometry.field import DisplacementField, jacobian_determinant
from llmreg.geometry.grid import Grid
from llmreg.geometry.resampling import resample_labels


@pytest.mark.parametrize("flipped", [False, True])
def test_right_translation_scores_perfectly(flipped: bool) -> None:
    fixed, moving = label_image(), label_image(SHIFT, flipped)
    rows = evaluate_pair(fixed, moving, constant_field(fixed, SHIFT), {1: "a", 4: "b"})
    assert [(row["label"], row["name"]) for row in rows] == [(1, "a"), (4, "b")]
    resampled = sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor)
    )
    for row in rows:
        expected = plain_dice(resampled, sitk.GetArrayFromImage(fixed), row["label"])
        assert row["initial_dice"] == pytest.approx(expected)
        assert row["dice"] == 1 > row["initial_dice"]
        assert row["hd95_mm"] == 0 < row["initial_hd95_mm"]
        assert row["folding_percent"] == 0
        assert row["sdlogj"] == pytest.approx(0, abs=1e-4) == row["sdlogj_learn2reg"]
        assert "prealigned_dice" not in row


def test_identity_field_changes_nothing_and_prealignment_counts() -> None:
    fixed, moving = label_image(), label_image(SHIFT)
    identity = constant_field(fixed, np.zeros(3))
    rows = evaluate_pair(fixed, moving, identity, initial=sitk.TranslationTransform(3, SHIFT.tolist()))
    assert [row["name"] for row in rows] == ["1", "4"]
    for row in rows:
        assert row["dice"] == row["initial_dice"]
        assert row["hd95_mm"] == row["initial_hd95_mm"]
        assert row["prealigned_dice"] == 1
        assert row["prealigned_hd95_mm"] == 0


def test_only_annotated_labels_count() -> None:
    fixed = label_image()
    field = constant_field(fixed, np.zeros(3))
    table = {1: "a", 4: "b", 7: "absent"}
    assert [r["label"] for r in evaluate_pair(fixed, fixed, field, table, annotated={4, 7})] == [4, 7]
    assert evaluate_pair(fixed, fixed, field, table, annotated=set()) == []
    last = evaluate_pair(fixed, fixed, field, table)[-1]
    assert np.isnan([last["dice"], last["initial_dice"], last["hd95_mm"]]).all()


def test_a_structure_that_the_field_loses_scores_zero_but_one_out_of_view_is_not_counted() -> None:
    fixed = label_image()
    away = constant_field(fixed, np.array([500.0, 0, 0]))
    rows = evaluate_pair(fixed, fixed, away)
    assert [row["dice"] for row in rows] == [0, 0]
    assert np.isnan([row["hd95_mm"] for row in rows]).all()
    partial = sitk.GetImageFromArray(np.where(sitk.GetArrayFromImage(fixed) == 4, 0, sitk.GetArrayFromImage(fixed)))
    partial.CopyInformation(fixed)
    rows = evaluate_pair(fixed, partial, constant_field(fixed, np.zeros(3)), {1: "a", 4: "b"})
    assert [row["dice"] for row in rows] == [1, pytest.approx(np.nan, nan_ok=True)]


def test_linear_interpolation_is_of_labels_alone() -> None:
    fixed = label_image()
    half = constant_field(fixed, np.array([0.4, 0.9, 0.45]))
    nearest, linear = (
        evaluate_pair(fixed, fixed, half, interpolation=interpolation) for interpolation in ("nearest", "linear")
    )
    warped = sitk.GetArrayFromImage(resample_labels(fixed, half.grid, half, "linear"))
    for nearest_row, linear_row in zip(nearest, linear, strict=True):
        assert linear_row["dice"] == pytest.approx(
            plain_dice(warped, sitk.GetArrayFromImage(fixed), nearest_row["label"])
        )
        assert linear_row["dice"] != nearest_row["dice"]
        assert {k: v for k, v in nearest_row.items() if "l2r" in k} == {
            k: v for k, v in linear_row.items() if "l2r" in k
        }


def test_folding_of_the_interior_leaves_out_two_layers() -> None:
    fixed = label_image()
    field = constant_field(fixed, np.zeros(3))
    # The layer at x = 1 is carried over its neighbours.
    field.vectors[..., 1, 0] += 2.1 * SPACING[0]
    row = evaluate_pair(fixed, fixed, field)[0]
    determinant = jacobian_determinant(field)
    for column, margin in (("folding_percent", 1), ("folding_interior_percent", 2)):
        inner = determinant[margin:-margin, margin:-margin, margin:-margin]
        assert row[column] == pytest.approx(100 * np.mean(inner <= 0))
    assert row["folding_percent"] != row["folding_interior_percent"]


def test_float_label_maps_are_rounded() -> None:
    fixed = label_image()
    noisy = sitk.Cast(fixed, sitk.sitkFloat32) - 1e-5
    assert [row["dice"] for row in evaluate_pair(noisy, fixed, constant_field(fixed, np.zeros(3)))] == [1, 1]


@pytest.mark.parametrize(
    ("matrix", "folded"),
    [
        (np.array([[1.1, 0.2, 0.0], [0.0, 0.9, -0.1], [0.05, 0.0, 1.2]]), 0.0),
        (np.diag([-1.0, 1.0, 1.0]), 100.0),
    ],
)
def test_affine_field(matrix: np.ndarray, folded: float) -> None:
    fixed = label_image(flipped=True)
    grid = Grid.from_image(fixed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1)[..., ::-1]
    points = grid.index_to_physical(index)
    centre = points.reshape(-1, 3).mean(0)
    vectors = (points - centre) @ (matrix - np.eye(3)).T
    field = DisplacementField(vectors.astype(np.float32), grid)
    inside = jacobian_determinant(field)[1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(inside, np.linalg.det(matrix), rtol=1e-4)
    row = evaluate_pair(fixed, fixed, field)[0]
    assert row["folding_percent"] == folded
    assert row["sdlogj"] == pytest.approx(0, abs=1e-3)


def test_another_grid_is_refused() -> None:
    fixed = label_image()
    with pytest.raises(ValueError, match="grid"):
        evaluate_pair(fixed, fixed, constant_field(label_image(SHIFT), np.zeros(3)))


FIXED = Grid((12, 10, 9), (2.0, 1.5, 3.0), (5.0, -7.0, 11.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
MOVING = Grid((14, 11, 12), (1.0, 2.0, 2.5), (2.0, -9.0, 8.0))
LANDMARK_SHIFT = np.array([3.0, -2.0, 4.0])


def points(seed: int, grid: Grid, count: int = 20) -> np.ndarray:
    """Draw points (mm) between voxels and away from the border."""
    return grid.index_to_physical(np.random.default_rng(seed).uniform(2, np.array(grid.size) - 3, (count, 3)))


def test_a_shift_that_is_right_leaves_nothing() -> None:
    fixed = points(0, FIXED)
    field = DisplacementField(np.broadcast_to(LANDMARK_SHIFT, (*FIXED.shape, 3)).astype(np.float32), FIXED)
    initial = sitk.TranslationTransform(3, (LANDMARK_SHIFT / 2).tolist())
    errors = landmark_errors(fixed, fixed + LANDMARK_SHIFT, field, MOVING, initial)
    distance = np.linalg.norm(LANDMARK_SHIFT)
    for name, expected in (("initial_tre_mm", distance), ("prealigned_tre_mm", distance / 2), ("tre_mm", 0)):
        np.testing.assert_allclose(errors[name], expected, atol=1e-4)
    # From voxels to other voxels the steps grow across the image, and a spline bends them at its end.
    np.testing.assert_allclose(errors["tre_l2r"], 0, atol=0.05)
    assert "prealigned_tre_mm" not in landmark_errors(fixed, fixed, field, MOVING)


def test_points_go_where_itk_takes_them() -> None:
    fixed, moving = points(1, FIXED), points(2, MOVING)
    field = random_field(FIXED, 3, 2.0)
    transform = field.to_transform()
    expected = [
        np.linalg.norm(np.subtract(transform.TransformPoint(p), q))
        for p, q in zip(fixed.tolist(), moving.tolist(), strict=True)
    ]
    errors = landmark_errors(fixed, moving, field, MOVING)
    np.testing.assert_allclose(errors["tre_mm"], expected, atol=1e-4)
    np.testing.assert_allclose(errors["initial_tre_mm"], np.linalg.norm(fixed - moving, axis=1))


def test_files_in_each_convention(tmp_path: Path) -> None:
    fixed, moving = points(1, FIXED, 4), points(2, MOVING, 4)
    flip = np.array([-1, -1, 1])
    for convention, a, b in (
        ("lps", fixed, moving),
        ("ras", fixed * flip, moving * flip),
        ("voxel", FIXED.physical_to_index(fixed), MOVING.physical_to_index(moving)),
    ):
        for name, places in (("a.csv", a), ("b.csv", b)):
            np.savetxt(tmp_path / name, places, delimiter=",")
        landmarks = read_landmark_pair(tmp_path / "a.csv", tmp_path / "b.csv", convention, FIXED, MOVING)
        np.testing.assert_allclose(landmarks[0], fixed)
        np.testing.assert_allclose(landmarks[1], moving)
    np.savetxt(tmp_path / "b.csv", moving[:3], delimiter=",")
    with pytest.raises(BadTable, match=r"4 .*b\.csv 3") as refusal:
        read_landmark_pair(tmp_path / "a.csv", tmp_path / "b.csv", "lps", FIXED, MOVING)
    assert refusal.value.path == tmp_path / "a.csv"
