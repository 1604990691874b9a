"""Decisions on simulated fingerprints: those of the paper's two datasets, and what overrules them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmreg.data.dataset import Case, Dataset
from llmreg.devices import Machine
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.networks.config import LLMMorphSettings
from llmreg.networks.llm_morph.costs import BUILT_IN_SIZE, step_seconds, training_memory_gb
from llmreg.plans.plans import Configuration, Plans, Training, parse_plans
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint, PairFingerprint, summarised
from llmreg.preprocessing.planning import (
    FEWEST_EPOCHS,
    MOST_VOXELS,
    NIGHT_HOURS,
    WIDTHS,
    Budget,
    PlannerOverrides,
    aligned_grid,
    make_plans,
    paper_plans,
    plan_configuration,
    plan_grid,
    plan_window,
)

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
GPU = Machine("cuda", 24, 8, True)
DECISIONS = {
    "grid",
    "network.width",
    "default_configuration",
    "recompute",
    "training.batch_size",
    "training.epochs",
    "loss",
    "augmentation.mirror_axes",
    "prealignment",
}
# Percentiles 0.5, 5, 50, 95 and 99.5 of a structure, HU.
LIVER, KIDNEY, BRAIN, VENTRICLE = (
    (-10, 20, 60, 100, 130),
    (-20, 10, 120, 210, 250),
    (0, 18, 30, 45, 60),
    (-5, 2, 9, 20, 30),
)
BONE, LUNG = (-50, 50, 400, 1200, 1500), (-990, -940, -850, -500, 0)


def seen(name: str = "A_0001_0000", grid: Grid | None = None, **changes) -> CaseFingerprint:
    """A case as the fingerprint has it; by default an MR image of a cube."""
    grid = grid or Grid((100, 100, 100), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    content = dict(
        case=name,
        modality=int(name[-4:]),
        sources={},
        grid=grid.to_dict(),
        orientation="RAI",
        size=list(grid.size),
        spacing=list(grid.spacing),
        range=[0.0, 1500.0],
        intensities=[10.0, 50.0, 300.0, 900.0, 1200.0],
        structure_intensities={},
        foreground_centre=[0.0, 0.0, 0.0],
        foreground_extent=grid.extent.tolist(),
        label_volumes={},
        label_centroids={},
        mirror_overlap=0.95,
    )
    return CaseFingerprint.model_validate(content | changes)


def ct(name: str = "A_0001_0001", structures: Sequence[tuple[float, ...]] = (), grid: Grid | None = None, **changes):
    """A CT of a body, with structures of these percentiles."""
    content = dict(
        range=[-1024.0, 2000.0],
        intensities=[-950.0, -800.0, 20.0, 300.0, 900.0],
        structure_intensities=dict(enumerate(structures, start=1)),
    )
    return seen(name, grid, **(content | changes))


@dataclass(frozen=True)
class Study:
    """A dataset that exists on paper."""

    dataset: Dataset
    fingerprint: Fingerprint

    def plans(self, machine: Machine = GPU, **wishes) -> Plans:
        return make_plans(self.dataset, self.fingerprint, Budget(machine), PlannerOverrides(**wishes))


def study(
    cases: Sequence[CaseFingerprint],
    apart: tuple[float, float] | None = (10.0, 5.0),
    unlabelled: Sequence[str] = (),
    partly: Sequence[str] = (),
    names: dict[int, str] | None = None,
    held_out: Sequence[str] = (),
) -> Study:
    """A study of these cases.

    Args:
        cases: as the fingerprint has them.
        apart: displacement and deformation of every pair, mm.
        unlabelled: cases without a label map.
        partly: cases in whose label map only structure 1 was looked for.
        names: of the modalities.
        held_out: cases that must not be trained on.
    """
    names = names or {0: "MR", 1: "CT"}
    described = [
        Case(
            c.case,
            c.case.split("_")[1],
            c.modality,
            Path("i"),
            None if c.case in unlabelled else Path("l"),
            annotated_labels=(1,) if c.case in partly else None,
        )
        for c in cases
    ]
    dataset = Dataset(
        id=1,
        name="Dataset001_A",
        folder=Path("."),
        modalities=names,
        labels={1: "liver", 2: "spleen"},
        fixed_modality=0,
        moving_modality=max(names),
        pairing="unpaired",
        cases=tuple(described),
        held_out=frozenset(held_out),
    )
    displacement, deformation = apart or (None, None)
    pair = PairFingerprint(
        fixed=cases[0].case,
        moving=cases[-1].case,
        field_of_view_overlap=0.9,
        dice=apart and 0.25,
        displacement_mm=displacement,
        deformation_mm=deformation,
    )
    return Study(dataset, summarised(dataset, cases, [pair, pair]))


def aligned(
    size: tuple[int, ...], mm: float, apart: float | None, structures: Sequence[tuple[float, ...]], **more
) -> Study:
    """Four MR and four CT images on one grid."""
    grid = Grid(size, (mm, mm, mm), (3.0, -4.0, 5.0), RAS)
    cases = [seen(f"A_000{k}_0000", grid) for k in range(4)]
    cases += [ct(f"A_000{k}_0001", structures, grid) for k in range(4)]
    return study(cases, None if apart is None else (apart, apart / 3), **more)


def abdomen(apart: float | None = 30.0, **more) -> Study:
    return aligned((192, 160, 192), 2.0, apart, (LIVER, KIDNEY), **more)


def brain(apart: float | None = 4.0, **more) -> Study:
    return aligned((176, 208, 192), 1.0, apart, (BRAIN, VENTRICLE), **more)


def default(plans: Plans) -> Configuration:
    return plans.configuration(plans.default_configuration)


def test_the_abdomen_is_planned_as_in_the_paper() -> None:
    plans = abdomen().plans()
    assert (plans.spacing, plans.size) == ((2, 2, 2), (192, 160, 192))
    assert plans.default_configuration == "half"
    assert (default(plans).token_grid, default(plans).token_length) == ((6, 5, 6), 180)
    mr, hu = plans.normalization[0], plans.normalization[1]
    assert (mr.scheme, mr.lower, mr.upper) == ("percentiles", 0, 95)
    assert (hu.scheme, hu.lower, hu.upper) == ("window", -180, 400)
    assert (plans.network.width, plans.training.batch_size, plans.training.epochs) == (16, 1, Training().epochs)
    assert (plans.loss.dice, plans.loss.similarity) == (1, 0)
    assert "15.0 voxels apart" in plans.reasons["default_configuration"]


def test_the_brain_is_planned_as_in_the_paper() -> None:
    plans = brain().plans()
    assert (plans.spacing, plans.size) == ((1, 1, 1), (176, 208, 192))
    assert plans.default_configuration == "full"
    assert (default(plans).network_shape, default(plans).token_length) == ((176, 208, 192), 1716)
    assert plans.network.width == 16
    hu = plans.normalization[1]
    assert hu.scheme == "window"
    assert -50 <= hu.lower <= 0
    assert 50 <= hu.upper <= 100


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
    with pytest.raises(UserError, match=r"Not even the smallest network fits into 0\.5 GB .*--memory-gb"):
        brain().plans(Machine("cuda", 0.5, 8, True))


def test_nothing_is_given_up_that_fits() -> None:
    for memory, plans in ladder(brain()):
        machine = Machine("cuda", memory, 64, True)
        assert default(plans).memory_gb <= memory
        full, half = plans.configurations["full"], plans.configurations["half"]
        if plans.default_configuration == "half":
            assert full.memory_gb > memory
        wider = [width for width in WIDTHS if width > plans.network.width]
        for width in wider:
            network = plans.network.model_copy(update={"width": width})
            assert plan_configuration(plans.size, 2, network, Budget(machine)).memory_gb > memory
        if plans.size != (176, 208, 192):
            finer = [round(n * 1.09) for n in plans.size]
            network = plans.network.model_copy(update={"width": min(WIDTHS)})
            assert plan_configuration(finer, 2, network, Budget(machine)).memory_gb > 0.97 * memory
        once = plan_configuration(plans.size, 2, plans.network, Budget(replace(machine, memory_gb=1e3)))
        assert half.recompute == (once.memory_gb > memory)


def test_what_is_trained_fits_into_the_memory_however_thin_the_volume() -> None:
    grid = Grid((300, 280, 24), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    for memory, plans in ladder(study([seen("A_0001_0000", grid), ct(grid=grid)])):
        assert default(plans).memory_gb <= memory


def test_on_a_processor_a_night_must_do() -> None:
    slow, fast = (brain().plans(Machine("cpu", 64, *speed)) for speed in ((2, False), (64, True)))
    assert (slow.default_configuration, slow.training.epochs) == ("half", FEWEST_EPOCHS)
    assert "night" in slow.reasons["default_configuration"]
    assert (fast.default_configuration, fast.training.epochs) == ("full", Training().epochs)
    for cores in (6, 8, 12, 16):
        plans = abdomen().plans(Machine("cpu", 64, cores, False))
        seconds = step_seconds(plans.network, 96 * 80 * 96, False, Machine("cpu", 64, cores, False))
        hours = plans.training.epochs * plans.training.steps_per_epoch * seconds / 3600
        assert hours <= NIGHT_HOURS < hours * (1 + 1.01 / plans.training.epochs)
        assert str(plans.training.epochs) in plans.reasons["training.epochs"]


def names_of(planned: Study, *modalities: int) -> list[str]:
    return [case.name for case in planned.dataset.cases if case.modality in modalities]


def test_without_labels_images_alone_align() -> None:
    plans = brain(None, unlabelled=names_of(brain(), 0, 1)).plans()
    assert plans.default_configuration == "half"
    assert (plans.loss.dice, plans.loss.similarity) == (0, 1)
    assert "No case is annotated" in plans.reasons["loss"]


@pytest.mark.parametrize("lacking", ["unlabelled", "partly"])
def test_with_some_labels_both_labels_and_images_align(lacking: str) -> None:
    plans = brain(**{lacking: names_of(brain(), 1)}).plans()
    assert (plans.loss.dice, plans.loss.similarity) == (1, 1)
    assert "50 %" in plans.reasons["loss"]
    # What is held out is not trained on: it may lack labels.
    held = brain(**{lacking: names_of(brain(), 1)[:1]}, held_out=names_of(brain(), 1)[:1])
    assert held.plans().loss.similarity == 0


def test_a_window_follows_the_structures() -> None:
    def window(*structures: tuple[float, ...], cases: int = 3) -> tuple[float, float]:
        found, reason = plan_window([ct(structures=structures) for _ in range(cases)], "CT venous")
        assert found.scheme == "window"
        assert f"{found.lower:g} to {found.upper:g} HU" in reason
        return found.lower, found.upper

    assert window(LIVER, KIDNEY) == (-180, 400)
    assert window() == (-180, 400)  # Lungs and bones of bodies do not count.
    low, high = window(BONE, LIVER)
    assert low == -180
    assert 1000 < high <= 1200
    low, high = window(LUNG, LIVER)
    assert -940 <= low < -700
    assert high == 400
    low, high = window(BRAIN, VENTRICLE)
    assert low < 2
    assert high > 45
    assert high - low < 200
    # Of structures that are all alike, too, something is seen.
    low, high = window((40.1, 40.1, 40.2, 40.3, 40.3))
    assert low < high
    # A single image does not decide.
    odd = [ct(structures=(BRAIN,)) for _ in range(30)] + [ct(structures=(BONE,))]
    assert plan_window(odd, "CT")[0].upper < 100


@pytest.mark.parametrize("name", ["CT", "MR", "PET"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.002, 0.99)])
def test_images_that_are_normalised_already_stay_as_they_are(name: str, low: float, high: float) -> None:
    found, reason = plan_window([seen(range=[low, high]), seen(range=[low, high])], name)
    assert (found.scheme, found.lower, found.upper) == ("window", round(low), round(high))
    assert "already" in reason


@pytest.mark.parametrize("ranges", [[[0.0, 0.3], [0.0, 1.0]], [[0.0, 1.0], [0.0, 40.0]], [[-0.4, 0.9]]])
def test_small_numbers_are_not_taken_to_be_normalised(ranges: list[list[float]]) -> None:
    found, _ = plan_window([seen(range=r) for r in ranges], "PET")
    assert (found.scheme, found.lower, found.upper) == ("percentiles", 0.5, 99.5)


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [("MR T1", 0, 95), ("FLAIR", 0, 95), ("PET", 0.5, 99.5), ("ultrasound", 0.5, 99.5), ("unheard of", 0.5, 99.5)],
)
def test_other_contrasts_are_ranked(name: str, lower: float, upper: float) -> None:
    found, reason = plan_window([seen(), seen()], name)
    assert (found.modality, found.scheme, found.lower, found.upper) == (name, "percentiles", lower, upper)
    assert ("safe default" in reason) == (lower > 0)


@pytest.mark.parametrize("values", [[0.0, 4095.0], [3.0, 255.0], [-20.0, 60.0]])
def test_ct_without_hounsfield_units_is_ranked(values: list[float]) -> None:
    found, reason = plan_window([ct(structures=(BRAIN,), range=values)], "CT")
    assert (found.scheme, found.lower, found.upper) == ("percentiles", 0.5, 99.5)
    assert "no Hounsfield units" in reason


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


def test_a_aligned_grid_is_taken_over() -> None:
    grid = Grid((80, 96, 70), (2.0, 2.0, 2.5), (1, 2, 3), RAS)
    rounded = Grid(grid.size, (2.0, 2.0, 2.5 + 1e-5), (1.001, 2, 3), RAS)
    assert aligned_grid([seen(grid=grid), seen(grid=rounded)]) == grid
    assert plan_grid([seen(grid=grid), seen(grid=rounded)], shared=True)[:2] == (
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
    fingerprint = summarised(apart.dataset, cases, [pair, pair])
    plans = make_plans(apart.dataset, fingerprint, Budget(GPU))
    assert (plans.prealignment.aligned_grid is not None) is stays
    assert ("taken over" in plans.reasons["grid"]) is stays


@pytest.mark.parametrize("memory", [5.0, 10.0, 40.0])
def test_the_reason_for_one_pair_a_step_says_how_many_would_fit(memory: float) -> None:
    machine = Machine("cuda", memory, 8, True)
    plans = abdomen().plans(machine)
    found, reason = default(plans), plans.reasons["training.batch_size"]
    fitting = int(reason.split("; ")[1].split()[0]) if "would fit" in reason else 1
    voxels, grid = (int(np.prod(size)) for size in (found.network_shape, found.padded_size))
    needed = [
        training_memory_gb(plans.network, BUILT_IN_SIZE, voxels, grid, found.recompute, machine, plans.loss, pairs)
        for pairs in (fitting, fitting + 1)
    ]
    assert needed[0] <= memory < needed[1]
    assert plans.training.batch_size == 1


def test_an_oblique_grid_is_not_the_frame(oblique: Grid) -> None:
    assert aligned_grid([seen(grid=oblique), seen(grid=oblique)]) is None


def astuple(grid: Grid) -> tuple:
    return grid.size, grid.spacing, grid.origin, grid.direction


def test_other_grids_are_brought_near_isotropy_and_hold_the_bodies() -> None:
    thick = [
        seen(f"A_000{k}_0000", Grid((256, 200, n), (1.25, 1.25, 7.7), (n, 0, 0), RAS)) for k, n in enumerate((30, 40))
    ]
    spacing, size, reason = plan_grid(thick, shared=False)
    assert max(spacing) / min(spacing) <= 1.5**2 + 0.01
    assert np.all(np.array(spacing) * size >= np.array((320, 250, 7.7 * 39)))
    assert "coarsened" not in reason
    huge = [
        seen(f"A_000{k}_0000", Grid((900, 900, n), (0.3, 0.3, 0.3), (0, 0, 0), RAS)) for k, n in enumerate((900, 901))
    ]
    spacing, size, reason = plan_grid(huge, shared=False)
    assert np.prod(size) < 1.02 * MOST_VOXELS
    assert np.all(np.array(spacing) * size >= 270)
    assert "coarsened" in reason


def test_what_is_held_out_shapes_no_decision() -> None:
    odd = Grid((40, 50, 60), (5.0, 5.0, 5.0), (9.0, 9, 9), RAS)
    cases = [
        *brain_cases(),
        seen("A_0008_0000", odd, mirror_overlap=0.1),
        ct("A_0008_0001", (BONE,), odd, mirror_overlap=0.1),
    ]
    held = study(cases, (4.0, 2.0), held_out=("A_0008_0000", "A_0008_0001"))
    assert held.plans() == study(brain_cases(), (4.0, 2.0)).plans()
    assert held.plans() != study(cases, (4.0, 2.0)).plans()


def brain_cases() -> list[CaseFingerprint]:
    return list(brain().fingerprint.cases)


@pytest.mark.parametrize(("overlap", "axes"), [(0.95, ("x",)), (0.6, ())])
def test_symmetric_anatomy_is_mirrored(overlap: float, axes: tuple[str, ...]) -> None:
    plans = study([seen("A_0001_0000", mirror_overlap=overlap), ct(mirror_overlap=overlap)]).plans()
    assert plans.augmentation.mirror_axes == axes
    assert f"{overlap:.2f}" in plans.reasons["augmentation.mirror_axes"]


def test_the_reference_is_the_fixed_case_of_middling_size() -> None:
    extents = {1: 90, 2: 300, 3: 110, 4: 100, 5: 20}
    cases = [
        seen(f"A_000{k}_0000", Grid((400, 400, 400 + k), (1, 1, 1), (0, 0, 0)), foreground_extent=[mm] * 3)
        for k, mm in extents.items()
    ]
    plans = study([*cases, ct("A_0009_0001", foreground_extent=[100] * 3)]).plans()
    assert plans.prealignment.reference_case == "A_0004_0000"


@pytest.mark.parametrize("kind", ["abdomen", "brain", "lung without labels"])
def test_every_decision_has_its_reason(kind: str) -> None:
    lung = study([seen(), ct(structures=(LUNG,))], None, unlabelled=["A_0001_0001"])
    plans = {"abdomen": abdomen(), "brain": brain()}.get(kind, lung).plans()
    assert plans.reasons.keys() == DECISIONS | {"normalization.0", "normalization.1"}
    for decision, reason in plans.reasons.items():
        assert reason.endswith("."), decision
    assert plans.reasons["default_configuration"].startswith(f"{plans.default_configuration}:")
    assert plans.reasons["network.width"].startswith(f"{plans.network.width}")
    assert plans.reasons["training.batch_size"][:2] in ("1,", "1:")
    for modality, made in plans.normalization.items():
        assert f"{made.upper:g}" in plans.reasons[f"normalization.{modality}"]


def test_the_configuration_that_is_asked_for_is_planned() -> None:
    for name in ("full", "half"):
        for planned in (abdomen(), brain()):
            plans = planned.plans(configuration=name)
            assert (plans.default_configuration, plans.reasons["default_configuration"]) == (
                name,
                f"{name}: asked for.",
            )


@pytest.mark.parametrize("width", [4, 8, 20])
def test_the_width_that_is_asked_for_is_planned(width: int) -> None:
    plans = abdomen().plans(network=LLMMorphSettings(width=width, accumulate="sum"))
    assert plans.network == LLMMorphSettings(width=width, accumulate="sum")
    assert plans.reasons["network.width"].startswith(f"{width}")
    assert "does not fit" not in plans.reasons["network.width"]


def test_the_spacing_that_is_asked_for_is_planned() -> None:
    plans = abdomen().plans(spacing=(3.0, 4.0, 2.5))
    assert (plans.spacing, plans.size) == ((3.0, 4.0, 2.5), (128, 80, 154))
    assert "as asked for" in plans.reasons["grid"]
    # The frame is still where the cases lie.
    np.testing.assert_allclose(plans.frame.centre, abdomen().plans().frame.centre)
    apart = study([seen("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), ct()])
    assert apart.plans(spacing=(1.0, 1.0, 6.0)).spacing == (1, 1, 6)
    fine = abdomen().plans(Machine("cuda", 80, 8, True), spacing=(0.5, 0.5, 1.0))
    assert np.prod(fine.size) < 1.02 * MOST_VOXELS
    assert fine.spacing[2] == pytest.approx(2 * fine.spacing[0], rel=1e-3)
    assert "coarsened" in fine.reasons["grid"]


def test_the_papers_settings_are_those_of_the_paper() -> None:
    paper = paper_plans(brain().plans())
    assert (paper.plans_name, paper.prealignment.method) == ("paper", "identity")
    assert (brain().plans().network.cost_volume, paper.network.cost_volume) == (1, 0)
    assert (paper.loss.dice, paper.loss.similarity, paper.loss.smoothness) == (1, 0, 0.1)
    assert (paper.training.learning_rate, paper.training.schedule) == (1e-4, "constant")
    assert (paper.training.epochs, paper.training.steps_per_epoch) == (50, 1620)
    assert (paper.normalization[1].lower, paper.normalization[1].upper) == (-180, 400)
    assert paper.augmentation.mirror_axes == ()
    assert paper.reasons["paper"]
    apart = study([seen("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), ct()])
    assert paper_plans(apart.plans()).prealignment.method == "centre"
    unit = study([seen(range=[0.0, 1.0]), ct(range=[0.0, 1.0])])
    assert paper_plans(unit.plans()).normalization[1].upper == 1


@st.composite
def studies(draw) -> Study:
    """Any dataset that could be."""
    names = draw(
        st.sampled_from([{0: "MR", 1: "CT"}, {0: "T1", 1: "T2", 2: "PET"}, {0: "CT"}, {0: "ultrasound", 1: "CTA"}])
    )
    spacing = draw(st.tuples(*[st.floats(0.2, 8.0)] * 3))
    size = draw(st.tuples(*[st.integers(4, 600)] * 3))
    shared = draw(st.booleans())
    cases = []
    for modality, subject in itertools.product(names, range(draw(st.integers(1, 3)))):
        grid = Grid(
            size if shared else tuple(max(4, n + draw(st.integers(-40, 40))) for n in size),
            spacing if shared else tuple(s * draw(st.floats(0.5, 2.0)) for s in spacing),
            (0.0, 0.0, 0.0) if shared else tuple(draw(st.tuples(*[st.floats(-500, 500)] * 3))),
            RAS,
        )
        low, high = draw(st.sampled_from([(-1024, 3071), (0, 4095), (0, 1), (-1, 1), (-200, 300), (-32768, 32767)]))
        percentiles = st.lists(st.floats(low, high, width=32), min_size=5, max_size=5).map(sorted)
        cases.append(
            seen(
                f"A_000{subject}_000{modality}",
                grid,
                range=[low, high],
                intensities=draw(percentiles),
                structure_intensities=draw(st.dictionaries(st.sampled_from([1, 2]), percentiles)),
                foreground_extent=(grid.extent * draw(st.floats(0.2, 1.0))).tolist(),
                mirror_overlap=draw(st.floats(0, 1)),
            )
        )
    everyone = [case.case for case in cases]
    unlabelled = draw(st.sampled_from([[], everyone, everyone[:1]]))
    apart = draw(st.none() | st.tuples(*[st.floats(0, 300)] * 2))
    return study(cases, apart, unlabelled, draw(st.sampled_from([[], everyone[-1:]])), names)


machines = st.builds(Machine, st.sampled_from(["cpu", "cuda"]), st.floats(0.5, 100), st.integers(1, 128), st.booleans())


@settings(max_examples=60, deadline=None)
@given(planned=studies(), machine=machines)
def test_any_dataset_gets_sound_plans_or_a_sentence(planned: Study, machine: Machine) -> None:
    try:
        plans = planned.plans(machine)
    except UserError:
        assert machine.memory_gb < 1.5
        return
    # Rounded up along each axis.
    assert np.prod(np.array(plans.size) - 1.0) <= MOST_VOXELS
    assert min(default(plans).token_grid) >= 1
    assert default(plans).memory_gb <= machine.memory_gb + 0.01
    assert FEWEST_EPOCHS <= plans.training.epochs <= Training().epochs
    for made in (plans, paper_plans(plans)):
        assert parse_plans(json.loads(json.dumps(made.model_dump(mode="json"))), "plans.json") == made
