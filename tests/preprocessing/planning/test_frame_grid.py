"""The frame is the grid that cases share, or one that holds most of their bodies."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import GPU, RAS, abdomen, ct, seen, study

from llmreg.devices import Machine
from llmreg.geometry.grid import Grid
from llmreg.preprocessing.fingerprint import summarize
from llmreg.preprocessing.planning.effort import Budget
from llmreg.preprocessing.planning.frame_grid import MOST_VOXELS, aligned_grid, plan_grid
from llmreg.preprocessing.planning.planner import make_plans


def test_a_shared_grid_is_the_frame() -> None:
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    rounded = Grid(grid.size, (2.0, 2.0, 2.5 + 1e-5), (1.001, 2, 3), RAS)
    assert aligned_grid([seen(grid=grid), seen(grid=rounded)]) == grid
    assert plan_grid([seen(grid=grid), seen(grid=rounded)], aligned=True)[:2] == (
        pytest.approx((2.0, 2.0, 2.5), abs=1e-4),
        (80, 96, 70),
    )
    for other in (Grid((80, 96, 71), *astuple(grid)[1:]), Grid(grid.size, grid.spacing, (1, 2, 4), RAS)):
        assert aligned_grid([seen(grid=grid), seen(grid=other)]) is None
    plans = study([seen("A_0001_0000", grid), ct(grid=grid)]).plans()
    np.testing.assert_allclose(plans.frame.corners().min(axis=0), grid.corners().min(axis=0))
    np.testing.assert_allclose(plans.frame.corners().max(axis=0), grid.corners().max(axis=0))
    assert plans.prealignment.aligned_grid == grid.to_dict()


@pytest.mark.parametrize(("dice", "stays"), [(0.25, True), (0.04, False), (None, True)])
def test_a_shared_grid_on_which_nothing_overlaps_is_a_format_and_no_alignment(dice: float | None, stays: bool) -> None:
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    cases = [seen("A_0001_0000", grid), ct(grid=grid)]
    pair = study(cases).fingerprint.pairs[0].model_copy(update={"dice": dice})
    assert (aligned_grid(cases, [pair, pair]) == grid) is stays
    apart = study(cases)
    fingerprint = summarize(apart.dataset, cases, [pair, pair])
    plans = make_plans(apart.dataset, fingerprint, Budget(GPU))
    assert (plans.prealignment.aligned_grid is not None) is stays
    assert ("All cases lie on one grid" in plans.reasons["grid"]) is stays


def test_an_oblique_grid_is_not_the_frame(oblique: Grid) -> None:
    assert aligned_grid([seen(grid=oblique), seen(grid=oblique)]) is None


def astuple(grid: Grid) -> tuple:
    return grid.size, grid.spacing, grid.origin, grid.direction


def test_other_grids_are_brought_near_isotropy_and_hold_the_bodies() -> None:
    thick = [
        seen(f"A_000{k}_0000", Grid((256, 200, n), (1.25, 1.25, 7.7), (n, 0, 0), RAS)) for k, n in enumerate((30, 40))
    ]
    spacing, size, reason = plan_grid(thick, aligned=False)
    assert max(spacing) / min(spacing) <= 1.5**2 + 0.01
    assert np.all(np.array(spacing) * size >= np.array((320, 250, 7.7 * 39)))
    assert "coarsened" not in reason
    huge = [
        seen(f"A_000{k}_0000", Grid((900, 900, n), (0.3, 0.3, 0.3), (0, 0, 0), RAS)) for k, n in enumerate((900, 901))
    ]
    spacing, size, reason = plan_grid(huge, aligned=False)
    assert np.prod(size) < 1.02 * MOST_VOXELS
    assert np.all(np.array(spacing) * size >= 270)
    assert "coarsened" in reason


def test_the_reference_is_the_fixed_case_of_middling_size() -> None:
    extents = {1: 90, 2: 300, 3: 110, 4: 100, 5: 20}
    cases = [
        seen(f"A_000{k}_0000", Grid((400, 400, 400 + k), (1, 1, 1), (0, 0, 0)), foreground_extent=[mm] * 3)
        for k, mm in extents.items()
    ]
    plans = study([*cases, ct("A_0009_0001", foreground_extent=[100] * 3)]).plans()
    assert plans.prealignment.reference_case == "A_0004_0000"


def test_the_spacing_that_is_requested_is_planned() -> None:
    plans = abdomen().plans(spacing=(3.0, 4.0, 2.5))
    assert (plans.spacing, plans.size) == ((3.0, 4.0, 2.5), (128, 80, 154))
    assert "requested" in plans.reasons["grid"]
    # The frame is still where the cases lie.
    np.testing.assert_allclose(plans.frame.centre, abdomen().plans().frame.centre)
    apart = study([seen("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), ct()])
    assert apart.plans(spacing=(1.0, 1.0, 6.0)).spacing == (1, 1, 6)
    fine = abdomen().plans(Machine("cuda", 80, 8, True), spacing=(0.5, 0.5, 1.0))
    assert np.prod(fine.size) < 1.02 * MOST_VOXELS
    assert fine.spacing[2] == pytest.approx(2 * fine.spacing[0], rel=1e-3)
    assert "coarsened" in fine.reasons["grid"]
