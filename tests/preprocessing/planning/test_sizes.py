"""The frame is the grid that cases share, or one that holds most of their bodies."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_studies import GPU, RAS, Study, abdomen, brain, default, make_ct_case, make_mr_case, make_study

from llmreg.devices import Machine
from llmreg.errors import NotEnoughMemory, UserError
from llmreg.geometry.grid import Grid
from llmreg.networks.llm_morph.plugin import LLMMorphPlugin, LLMMorphSettings
from llmreg.networks.network_registry import StepSize, network_settings, step_seconds, training_memory_gb
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import summarize
from llmreg.preprocessing.planning.planner import PlannerOverrides, make_plans
from llmreg.preprocessing.planning.sizes import (
    FEWEST_EPOCHS,
    MOST_VOXELS,
    NIGHT_HOURS,
    Budget,
    aligned_grid,
    plan_configuration,
    plan_grid,
    replace_network,
)


def test_a_shared_grid_is_the_frame() -> None:
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    rounded = Grid(grid.size, (2.0, 2.0, 2.5 + 1e-5), (1.001, 2, 3), RAS)
    assert aligned_grid([make_mr_case(grid=grid), make_mr_case(grid=rounded)]) == grid
    assert plan_grid([make_mr_case(grid=grid), make_mr_case(grid=rounded)], aligned=True)[:2] == (
        pytest.approx((2.0, 2.0, 2.5), abs=1e-4),
        (80, 96, 70),
    )
    for other in (Grid((80, 96, 71), *astuple(grid)[1:]), Grid(grid.size, grid.spacing, (1, 2, 4), RAS)):
        assert aligned_grid([make_mr_case(grid=grid), make_mr_case(grid=other)]) is None
    plans = make_study([make_mr_case("A_0001_0000", grid), make_ct_case(grid=grid)]).plans()
    np.testing.assert_allclose(plans.frame.corners().min(axis=0), grid.corners().min(axis=0))
    np.testing.assert_allclose(plans.frame.corners().max(axis=0), grid.corners().max(axis=0))
    assert plans.prealignment.aligned_grid == grid.to_dict()


@pytest.mark.parametrize(("dice", "stays"), [(0.25, True), (0.04, False), (None, True)])
def test_a_shared_grid_on_which_nothing_overlaps_is_a_format_and_no_alignment(dice: float | None, stays: bool) -> None:
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    cases = [make_mr_case("A_0001_0000", grid), make_ct_case(grid=grid)]
    pair = make_study(cases).fingerprint.pairs[0].model_copy(update={"dice": dice})
    assert (aligned_grid(cases, [pair, pair]) == grid) is stays
    toy_study = make_study(cases)
    fingerprint = summarize(toy_study.dataset, cases, [pair, pair])
    plans = make_plans(toy_study.dataset, fingerprint, Budget(GPU), PlannerOverrides())
    assert (plans.prealignment.aligned_grid is not None) is stays
    assert ("one grid" in plans.reasons["grid"]) is stays


def test_an_oblique_grid_is_not_the_frame(oblique: Grid) -> None:
    assert aligned_grid([make_mr_case(grid=oblique), make_mr_case(grid=oblique)]) is None


def astuple(grid: Grid) -> tuple:
    return grid.size, grid.spacing, grid.origin, grid.direction


def test_other_grids_are_brought_near_isotropy_and_hold_the_bodies() -> None:
    thick = [
        make_mr_case(f"A_000{k}_0000", Grid((256, 200, n), (1.25, 1.25, 7.7), (n, 0, 0), RAS))
        for k, n in enumerate((30, 40))
    ]
    spacing, size, reason = plan_grid(thick, aligned=False)
    assert max(spacing) / min(spacing) <= 1.5**2 + 0.01
    assert np.all(np.array(spacing) * size >= np.array((320, 250, 7.7 * 39)))
    assert "coarsened" not in reason
    huge = [
        make_mr_case(f"A_000{k}_0000", Grid((900, 900, n), (0.3, 0.3, 0.3), (0, 0, 0), RAS))
        for k, n in enumerate((900, 901))
    ]
    spacing, size, reason = plan_grid(huge, aligned=False)
    assert np.prod(size) < 1.02 * MOST_VOXELS
    assert np.all(np.array(spacing) * size >= 270)
    assert "coarsened" in reason


def test_the_reference_is_the_fixed_case_of_middling_size() -> None:
    extents = {1: 90, 2: 300, 3: 110, 4: 100, 5: 20}
    cases = [
        make_mr_case(f"A_000{k}_0000", Grid((400, 400, 400 + k), (1, 1, 1), (0, 0, 0)), foreground_extent=[mm] * 3)
        for k, mm in extents.items()
    ]
    plans = make_study([*cases, make_ct_case("A_0009_0001", foreground_extent=[100] * 3)]).plans()
    assert plans.prealignment.reference_case == "A_0004_0000"


def test_the_spacing_that_is_requested_is_planned() -> None:
    plans = abdomen().plans(spacing=(3.0, 4.0, 2.5))
    assert (plans.spacing, plans.size) == ((3.0, 4.0, 2.5), (128, 80, 154))
    assert "requested" in plans.reasons["grid"]
    # The frame is still where the cases lie.
    np.testing.assert_allclose(plans.frame.centre, abdomen().plans().frame.centre)
    unaligned = make_study([make_mr_case("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), make_ct_case()])
    assert unaligned.plans(spacing=(1.0, 1.0, 6.0)).spacing == (1, 1, 6)
    fine = abdomen().plans(Machine("cuda", 80, 8, True), spacing=(0.5, 0.5, 1.0))
    assert np.prod(fine.size) < 1.02 * MOST_VOXELS
    assert fine.spacing[2] == pytest.approx(2 * fine.spacing[0], rel=1e-3)
    assert "coarsened" in fine.reasons["grid"]


def test_on_a_processor_a_night_must_do() -> None:
    slow, fast = (brain().plans(Machine("cpu", 64, *speed)) for speed in ((2, False), (64, True)))
    assert (slow.default_configuration, slow.training.epochs) == ("half", FEWEST_EPOCHS)
    assert "night" in slow.reasons["default_configuration"]
    assert (fast.default_configuration, fast.training.epochs) == ("full", Training().epochs)
    for cores in (6, 8, 12, 16):
        plans = abdomen().plans(Machine("cpu", 64, cores, False))
        seconds = step_seconds(plans.network, StepSize((96, 80, 96), 192 * 160 * 192, Machine("cpu", 64, cores, False)))
        hours = plans.training.epochs * plans.training.steps_per_epoch * seconds / 3600
        assert hours <= NIGHT_HOURS < hours * (1 + 1.01 / plans.training.epochs)
        assert str(plans.training.epochs) in plans.reasons["training.epochs"]


@pytest.mark.parametrize("memory", [5.0, 10.0, 40.0])
def test_the_reason_for_one_pair_a_step_says_how_many_would_fit(memory: float) -> None:
    machine = Machine("cuda", memory, 8, True)
    plans = abdomen().plans(machine)
    configuration, reason = default(plans), plans.reasons["training.batch_size"]
    fitting = int(reason.split("; ")[1].split()[0]) if "would fit" in reason else 1
    shape, grid = configuration.network_shape[::-1], int(np.prod(configuration.padded_size))
    needed = [
        training_memory_gb(
            plans.network, StepSize(shape, grid, machine, configuration.recompute, pairs, plans.loss.memory_gb)
        )
        for pairs in (fitting, fitting + 1)
    ]
    assert needed[0] <= memory < needed[1]
    assert plans.training.batch_size == 1


@pytest.mark.parametrize(("mm", "chosen"), [(15.9, "full"), (16.1, "half")])
def test_structures_further_apart_than_half_a_token_need_half_resolution(mm: float, chosen: str) -> None:
    plans = abdomen(mm).plans(Machine("cuda", 80, 8, True))
    assert plans.default_configuration == chosen


def test_of_cases_that_are_not_aligned_the_common_shift_does_not_count() -> None:
    grids = [Grid((100, 100, 100), (1.0, 1.0, 1.0), (k, 0.0, 0), RAS) for k in range(4)]
    cases = [make_mr_case(f"A_000{k}_000{k % 2}", grid) for k, grid in enumerate(grids)]
    assert make_study(cases, (200.0, 7.0)).plans().default_configuration == "full"
    assert make_study(cases, (200.0, 9.0)).plans().default_configuration == "half"


def test_a_thin_volume_is_planned_at_full_resolution() -> None:
    grid = Grid((200, 180, 30), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    for separation in ((50.0, 50.0), None):
        plans = make_study([make_mr_case("A_0001_0000", grid), make_ct_case(grid=grid)], separation).plans()
        assert plans.default_configuration == "full"
        assert min(default(plans).token_grid) == 2


def ladder(planned: Study, device: str = "cuda") -> list[tuple[float, Plans]]:
    """Make plans for less and less memory, until nothing fits."""
    steps = []
    for memory in itertools.accumulate(itertools.repeat(0.97), lambda gb, factor: gb * factor, initial=30.0):
        try:
            steps.append((memory, planned.plans(Machine(device, memory, 64, True))))
        except UserError:
            return steps
    raise AssertionError


def test_less_memory_takes_resolution_then_time_then_width_then_the_grid() -> None:
    steps = ladder(brain())
    concessions = [
        (
            plans.size != (176, 208, 192),
            plans.network.width < 16,
            plans.default_configuration == "half",
            default(plans).recompute,
        )
        for _, plans in steps
    ]
    on_the_grid = [step for step in concessions if not step[0]]
    assert [step for step, _ in itertools.groupby(on_the_grid)] == [
        (False, False, False, False),
        (False, False, False, True),
        (False, False, True, False),
        (False, False, True, True),
        (False, True, True, True),
    ]
    # Then the grid gets coarser, with the narrowest networks.
    assert len(concessions) > len(on_the_grid) + 3
    assert all(coarser and narrower for coarser, narrower, _, _ in concessions[len(on_the_grid) :])
    assert steps[-1][0] < 1.5
    with pytest.raises(NotEnoughMemory) as refusal:
        brain().plans(Machine("cuda", 0.5, 8, True))
    assert refusal.value.memory_gb == 0.5
    assert 0.5 < refusal.value.needed_gb < 1.5


def test_nothing_is_given_up_that_fits() -> None:
    for memory, plans in ladder(brain()):
        machine = Machine("cuda", memory, 64, True)
        assert default(plans).memory_gb <= memory
        full, half = plans.configurations["full"], plans.configurations["half"]
        if plans.default_configuration == "half":
            assert full.memory_gb > memory
        wider = [width for width in LLMMorphPlugin.sizes if width > plans.network.width]
        for width in wider:
            network = plans.network.model_copy(update={"width": width})
            assert plan_configuration(plans.size, 2, network, Budget(machine)).memory_gb > memory
        if plans.size != (176, 208, 192):
            finer = [round(n * 1.09) for n in plans.size]
            network = plans.network.model_copy(update={"width": min(LLMMorphPlugin.sizes)})
            assert plan_configuration(finer, 2, network, Budget(machine)).memory_gb > 0.97 * memory
        computed_once = plan_configuration(plans.size, 2, plans.network, Budget(replace(machine, memory_gb=1e3)))
        assert half.recompute == (computed_once.memory_gb > memory)


def test_what_is_trained_fits_into_the_memory_however_thin_the_volume() -> None:
    grid = Grid((300, 280, 24), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    for memory, plans in ladder(make_study([make_mr_case("A_0001_0000", grid), make_ct_case(grid=grid)])):
        assert default(plans).memory_gb <= memory


@pytest.mark.parametrize(
    ("size", "downsampling", "tokens", "length"),
    [((192, 160, 192), 2, (6, 5, 6), 180), ((192, 208, 176), 1, (12, 13, 11), 1716), ((80, 96, 80), 2, (3, 3, 3), 27)],
)
def test_token_grids_of_the_paper(size, downsampling, tokens, length) -> None:
    configuration = plan_configuration(size, downsampling, LLMMorphSettings(), Budget(GPU))
    assert (configuration.token_grid, configuration.token_length) == (tokens, length)


@given(size=st.tuples(*[st.integers(1, 300)] * 3), downsampling=st.sampled_from([1, 2]))
def test_padding_is_the_least_that_divides(size, downsampling) -> None:
    configuration = plan_configuration(size, downsampling, LLMMorphSettings(), Budget(GPU))
    for length, padded, network, tokens in zip(
        size, configuration.padded_size, configuration.network_shape, configuration.token_grid, strict=True
    ):
        assert 0 <= padded - length < 16 * downsampling
        assert padded == network * downsampling == tokens * 16 * downsampling


@pytest.mark.parametrize("width", [4, 8, 20])
def test_the_width_that_is_requested_is_planned(width: int) -> None:
    plans = abdomen().plans(network=LLMMorphSettings(width=width, accumulate="sum"))
    assert plans.network == LLMMorphSettings(width=width, accumulate="sum")
    assert plans.reasons["network.width"].startswith(f"{width}")
    assert "does not fit" not in plans.reasons["network.width"]


def test_another_network_keeps_shapes_that_it_takes_and_is_estimated_by_itself() -> None:
    plans, budget = brain().plans(GPU), Budget(GPU)
    replaced = replace_network(plans, network_settings("voxelmorph"), budget)
    assert replaced.network == network_settings("voxelmorph")
    for name, configuration in plans.configurations.items():
        replacement = replaced.configurations[name]
        assert replacement.padded_size == configuration.padded_size
        assert replacement.token_grid == configuration.token_grid
        assert (
            replacement.memory_gb
            == plan_configuration(replacement.padded_size, replacement.downsampling, replaced.network, budget).memory_gb
        )
        assert replacement.memory_gb != configuration.memory_gb
