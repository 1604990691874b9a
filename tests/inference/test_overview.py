"""Figures of registrations, and what is said of many of them."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model_folder import make_image

from llmreg.engine.prealignment import CaseTransform
from llmreg.geometry.field import DisplacementField
from llmreg.geometry.grid import Grid, array_to_image
from llmreg.inference.overview import format_failures, format_pairs, measure
from llmreg.inference.registration import FADE, Registration
from llmreg.predictions import FailedPair, Placement, PredictedPair

FRAME = Grid.from_centre((8, 9, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
PADDED = Grid.from_centre((8 + 2 * FADE, 9 + 2 * FADE, 10 + 2 * FADE), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


def test_figures_are_of_the_frame_alone() -> None:
    vectors = np.zeros((*PADDED.shape, 3), np.float32)
    vectors[...] = (3.0, 4.0, 0.0)
    vectors[FADE + 4, FADE + 4, FADE + 4] = (3.0, 4.0, 12.0)
    # Outside the frame, longer ones fold.
    vectors[0] = (0.0, 0.0, 100.0)
    place = CaseTransform(np.eye(3), np.zeros(3), "centre")
    spread = array_to_image(np.full(FRAME.shape, 1.234, np.float32), FRAME)
    image = make_image(FRAME, 0)
    field = DisplacementField(vectors, PADDED)
    figures = measure(Registration(image, image, place, place, field, spread=spread, refined=(2.0, 1.0)))
    voxels = FRAME.shape[0] * FRAME.shape[1] * FRAME.shape[2]
    assert figures["mean_mm"] == pytest.approx((5 * (voxels - 1) + 13) / voxels, abs=0.01)
    assert figures["largest_mm"] == 13
    assert figures["folding_percent"] == pytest.approx(100 / voxels, abs=1e-4)
    assert figures["refined"] == {"before": 2.0, "after": 1.0}
    assert figures["uncertainty_mm"] == 1.23
    assert measure(Registration(image, image, place, place, field)).keys() == {
        "mean_mm",
        "largest_mm",
        "folding_percent",
    }


def test_columns_without_a_value_are_left_out() -> None:
    place = [Placement(matrix=[[1.0]], translation=[0.0], stage=stage) for stage in ("rigid", "centre")]
    pair = PredictedPair(
        pair_id="p",
        fixed="f",
        moving="m",
        fixed_transform=place[0],
        moving_transform=place[1],
        mean_mm=1.26,
        seconds=2.0,
    )
    head, _, row = format_pairs([pair]).splitlines()
    assert [cell.strip() for cell in head.split("  ") if cell.strip()] == ["pair", "placed by", "mean mm", "seconds"]
    assert [cell.strip() for cell in row.split("  ") if cell.strip()] == ["p", "rigid, centre", "1.3", "2.0"]


def test_failures_are_counted_and_the_first_ones_told() -> None:
    assert format_failures([], 4) == ""
    failed = [FailedPair(pair_id=f"p{number}", failed=f"reason {number}") for number in range(4)]
    assert format_failures(failed[:1], 4) == "reason 0"
    sentence = format_failures(failed, 9)
    assert "4 of 9" in sentence
    assert all(f"p{number}: reason {number}" in sentence for number in range(3))
    assert "reason 3" not in sentence
