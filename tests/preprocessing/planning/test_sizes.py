"""What is given up for memory, and in which order."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_studies import GPU, RAS, Study, abdomen, brain, ct, default, seen, study

from llmreg.devices import Machine
from llmreg.errors import NotEnoughMemory, UserError
from llmreg.geometry.grid import Grid
from llmreg.networks.llm_morph.plugin import LLMMorphPlugin
from llmreg.networks.llm_morph.settings import LLMMorphSettings
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.effort import Budget
from llmreg.preprocessing.planning.sizes import plan_configuration


@pytest.mark.parametrize(("mm", "chosen"), [(15.9, "full"), (16.1, "half")])
def test_structures_further_apart_than_half_a_token_need_half_resolution(mm: float, chosen: str) -> None:
    plans = abdomen(mm).plans(Machine("cuda", 80, 8, True))
    assert plans.default_configuration == chosen


def test_of_cases_that_are_not_aligned_the_common_shift_does_not_count() -> None:
    grids = [Grid((100, 100, 100), (1.0, 1.0, 1.0), (k, 0.0, 0), RAS) for k in range(4)]
    cases = [seen(f"A_000{k}_000{k % 2}", grid) for k, grid in enumerate(grids)]
    assert study(cases, (200.0, 7.0)).plans().default_configuration == "full"
    assert study(cases, (200.0, 9.0)).plans().default_configuration == "half"


def test_a_thin_volume_is_planned_at_full_resolution() -> None:
    grid = Grid((200, 180, 30), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    for apart in ((50.0, 50.0), None):
        plans = study([seen("A_0001_0000", grid), ct(grid=grid)], apart).plans()
        assert plans.default_configuration == "full"
        assert min(default(plans).token_grid) == 2


def ladder(planned: Study, device: str = "cuda") -> list[tuple[float, Plans]]:
    """Plans for less and less memory, until nothing fits."""
    found = []
    for memory in itertools.accumulate(itertools.repeat(0.97), lambda gb, factor: gb * factor, initial=30.0):
        try:
            found.append((memory, planned.plans(Machine(device, memory, 64, True))))
        except UserError:
            return found
    raise AssertionError


def test_less_memory_takes_resolution_then_time_then_width_then_the_grid() -> None:
    found = ladder(brain())
    given_up = [
        (
            plans.size != (176, 208, 192),
            plans.network.width < 16,
            plans.default_configuration == "half",
            default(plans).recompute,
        )
        for _, plans in found
    ]
    on_the_grid = [step for step in given_up if not step[0]]
    assert [step for step, _ in itertools.groupby(on_the_grid)] == [
        (False, False, False, False),
        (False, False, False, True),
        (False, False, True, False),
        (False, False, True, True),
        (False, True, True, True),
    ]
    # Then the grid gets coarser, with the narrowest networks.
    assert len(given_up) > len(on_the_grid) + 3
    assert all(coarser and narrower for coarser, narrower, _, _ in given_up[len(on_the_grid) :])
    assert found[-1][0] < 1.5
    with pytest.raises(NotEnoughMemory) as refused:
        brain().plans(Machine("cuda", 0.5, 8, True))
    assert refused.value.memory_gb == 0.5
    assert 0.5 < refused.value.needed_gb < 1.5


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
        once = plan_configuration(plans.size, 2, plans.network, Budget(replace(machine, memory_gb=1e3)))
        assert half.recompute == (once.memory_gb > memory)


def test_what_is_trained_fits_into_the_memory_however_thin_the_volume() -> None:
    grid = Grid((300, 280, 24), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    for memory, plans in ladder(study([seen("A_0001_0000", grid), ct(grid=grid)])):
        assert default(plans).memory_gb <= memory


@pytest.mark.parametrize(
    ("size", "downsampling", "tokens", "length"),
    [((192, 160, 192), 2, (6, 5, 6), 180), ((192, 208, 176), 1, (12, 13, 11), 1716), ((80, 96, 80), 2, (3, 3, 3), 27)],
)
def test_token_grids_of_the_paper(size, downsampling, tokens, length) -> None:
    made = plan_configuration(size, downsampling, LLMMorphSettings(), Budget(GPU))
    assert (made.token_grid, made.token_length) == (tokens, length)


@given(size=st.tuples(*[st.integers(1, 300)] * 3), downsampling=st.sampled_from([1, 2]))
def test_padding_is_the_least_that_divides(size, downsampling) -> None:
    made = plan_configuration(size, downsampling, LLMMorphSettings(), Budget(GPU))
    for wanted, padded, network, tokens in zip(
        size, made.padded_size, made.network_shape, made.token_grid, strict=True
    ):
        assert 0 <= padded - wanted < 16 * downsampling
        assert padded == network * downsampling == tokens * 16 * downsampling


@pytest.mark.parametrize("width", [4, 8, 20])
def test_the_width_that_is_requested_is_planned(width: int) -> None:
    plans = abdomen().plans(network=LLMMorphSettings(width=width, accumulate="sum"))
    assert plans.network == LLMMorphSettings(width=width, accumulate="sum")
    assert plans.reasons["network.width"].startswith(f"{width}")
    assert "does not fit" not in plans.reasons["network.width"]
