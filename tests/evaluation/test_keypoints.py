from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from random_fields import random_field

from llmreg.errors import UserError
from llmreg.evaluation.keypoints import Keypoints, keypoint_errors, read_keypoints
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid

FIXED = Grid((12, 10, 9), (2.0, 1.5, 3.0), (5.0, -7.0, 11.0), (0, 1, 0, -1, 0, 0, 0, 0, 1))
MOVING = Grid((14, 11, 12), (1.0, 2.0, 2.5), (2.0, -9.0, 8.0))
SHIFT = np.array([3.0, -2.0, 4.0])


def points(seed: int, grid: Grid, count: int = 20) -> np.ndarray:
    """Off the voxels and away from the border."""
    return grid.index_to_physical(np.random.default_rng(seed).uniform(2, np.array(grid.size) - 3, (count, 3)))


def test_a_shift_that_is_right_leaves_nothing() -> None:
    fixed = points(0, FIXED)
    field = DisplacementField(np.broadcast_to(SHIFT, (*FIXED.shape, 3)).astype(np.float32), FIXED)
    initial = sitk.TranslationTransform(3, (SHIFT / 2).tolist())
    errors = keypoint_errors(Keypoints(fixed, fixed + SHIFT), field, MOVING, initial)
    whole = np.linalg.norm(SHIFT)
    for name, expected in (("initial_tre_mm", whole), ("prealigned_tre_mm", whole / 2), ("tre_mm", 0)):
        np.testing.assert_allclose(errors[name], expected, atol=1e-4)
    # From voxels to other voxels the steps grow across the image, and a spline bends them at its end.
    np.testing.assert_allclose(errors["tre_l2r"], 0, atol=0.05)
    assert "prealigned_tre_mm" not in keypoint_errors(Keypoints(fixed, fixed), field, MOVING)


def test_points_go_where_itk_takes_them() -> None:
    fixed, moving = points(1, FIXED), points(2, MOVING)
    field = random_field(FIXED, 3, 2.0)
    transform = field.to_transform()
    expected = [
        np.linalg.norm(np.subtract(transform.TransformPoint(p), q))
        for p, q in zip(fixed.tolist(), moving.tolist(), strict=True)
    ]
    errors = keypoint_errors(Keypoints(fixed, moving), field, MOVING)
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
        found = read_keypoints(tmp_path / "a.csv", tmp_path / "b.csv", convention, FIXED, MOVING)
        np.testing.assert_allclose(found.fixed, fixed)
        np.testing.assert_allclose(found.moving, moving)
    np.savetxt(tmp_path / "b.csv", moving[:3], delimiter=",")
    with pytest.raises(UserError, match=r"lists 4 points and .*b\.csv 3: list the same places"):
        read_keypoints(tmp_path / "a.csv", tmp_path / "b.csv", "lps", FIXED, MOVING)
