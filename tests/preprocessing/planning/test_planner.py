"""Windows follow the structures; other contrasts are ranked."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_studies import (
    BONE,
    BRAIN,
    KIDNEY,
    LIVER,
    LUNG,
    RAS,
    VENTRICLE,
    Study,
    abdomen,
    brain,
    default,
    make_ct_case,
    make_mr_case,
    make_study,
    names_of,
)

from llmreg.devices import Machine
from llmreg.errors import UnknownName, UserError
from llmreg.geometry.grid import Grid
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import parse_plans
from llmreg.preprocessing.fingerprint import CaseFingerprint
from llmreg.preprocessing.planning.planner import paper_plans, plan_window
from llmreg.preprocessing.planning.sizes import FEWEST_EPOCHS, MOST_VOXELS


def test_a_window_follows_the_structures() -> None:
    def window(*structures: tuple[float, ...], cases: int = 3) -> tuple[float, float]:
        normalization, reason = plan_window([make_ct_case(structures=structures) for _ in range(cases)], "CT venous")
        assert normalization.scheme == "window"
        assert f"{normalization.lower:g} to {normalization.upper:g} HU" in reason
        return normalization.lower, normalization.upper

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
    # The window has a width even where all structures are alike.
    low, high = window((40.1, 40.1, 40.2, 40.3, 40.3))
    assert low < high
    # A single image does not decide.
    odd = [make_ct_case(structures=(BRAIN,)) for _ in range(30)] + [make_ct_case(structures=(BONE,))]
    assert plan_window(odd, "CT")[0].upper < 100


@pytest.mark.parametrize("name", ["CT", "MR", "PET"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.002, 0.99)])
def test_images_that_are_normalised_already_stay_as_they_are(name: str, low: float, high: float) -> None:
    normalization, reason = plan_window([make_mr_case(range=[low, high]), make_mr_case(range=[low, high])], name)
    assert (normalization.scheme, normalization.lower, normalization.upper) == ("window", round(low), round(high))
    assert "already" in reason


@pytest.mark.parametrize("ranges", [[[0.0, 0.3], [0.0, 1.0]], [[0.0, 1.0], [0.0, 40.0]], [[-0.4, 0.9]]])
def test_small_numbers_are_not_taken_to_be_normalised(ranges: list[list[float]]) -> None:
    normalization, _ = plan_window([make_mr_case(range=r) for r in ranges], "PET")
    assert (normalization.scheme, normalization.lower, normalization.upper) == ("percentiles", 0.5, 99.5)


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [("MR T1", 0, 95), ("FLAIR", 0, 95), ("PET", 0.5, 99.5), ("ultrasound", 0.5, 99.5), ("unheard of", 0.5, 99.5)],
)
def test_other_contrasts_are_ranked(name: str, lower: float, upper: float) -> None:
    normalization, reason = plan_window([make_mr_case(), make_mr_case()], name)
    assert (normalization.modality, normalization.scheme, normalization.lower, normalization.upper) == (
        name,
        "percentiles",
        lower,
        upper,
    )
    assert ("safe default" in reason) == (lower > 0)


@pytest.mark.parametrize("values", [[0.0, 4095.0], [3.0, 255.0], [-20.0, 60.0]])
def test_ct_without_hounsfield_units_is_ranked(values: list[float]) -> None:
    normalization, reason = plan_window([make_ct_case(structures=(BRAIN,), range=values)], "CT")
    assert (normalization.scheme, normalization.lower, normalization.upper) == ("percentiles", 0.5, 99.5)
    assert "Hounsfield" in reason


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


def test_the_abdomen_is_planned_as_in_the_paper() -> None:
    plans = abdomen().plans()
    assert (plans.spacing, plans.size) == ((2, 2, 2), (192, 160, 192))
    assert (plans.fixed_modality, plans.moving_modality) == (0, 1)
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


def test_what_is_held_out_shapes_no_decision() -> None:
    odd = Grid((40, 50, 60), (5.0, 5.0, 5.0), (9.0, 9, 9), RAS)
    cases = [
        *brain_cases(),
        make_mr_case("A_0008_0000", odd, mirror_overlap=0.1),
        make_ct_case("A_0008_0001", (BONE,), odd, mirror_overlap=0.1),
    ]
    study_with_held_out = make_study(cases, (4.0, 2.0), held_out=("A_0008_0000", "A_0008_0001"))
    assert study_with_held_out.plans() == make_study(brain_cases(), (4.0, 2.0)).plans()
    assert study_with_held_out.plans() != make_study(cases, (4.0, 2.0)).plans()


def brain_cases() -> list[CaseFingerprint]:
    return list(brain().fingerprint.cases)


@pytest.mark.parametrize("kind", ["abdomen", "brain", "lung without labels"])
def test_every_decision_has_its_reason(kind: str) -> None:
    lung = make_study([make_mr_case(), make_ct_case(structures=(LUNG,))], None, unlabelled=["A_0001_0001"])
    plans = {"abdomen": abdomen(), "brain": brain()}.get(kind, lung).plans()
    assert plans.reasons.keys() == DECISIONS | {"normalization.0", "normalization.1"}
    for decision, reason in plans.reasons.items():
        assert reason.endswith("."), decision
    assert plans.reasons["default_configuration"].startswith(f"{plans.default_configuration}:")
    assert plans.reasons["network.width"].startswith(f"{plans.network.width}")
    assert plans.reasons["training.batch_size"][:2] in ("1,", "1:")
    for modality, normalization in plans.normalization.items():
        assert f"{normalization.upper:g}" in plans.reasons[f"normalization.{modality}"]


def test_the_configuration_that_is_requested_is_planned() -> None:
    for name in ("full", "half"):
        for planned in (abdomen(), brain()):
            plans = planned.plans(configuration=name)
            assert (plans.default_configuration, plans.reasons["default_configuration"]) == (
                name,
                f"{name}: requested.",
            )


@st.composite
def studies(draw) -> Study:
    """Draw any dataset that could exist."""
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
            make_mr_case(
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
    separation = draw(st.none() | st.tuples(*[st.floats(0, 300)] * 2))
    return make_study(cases, separation, unlabelled, draw(st.sampled_from([[], everyone[-1:]])), names)


machines = st.builds(Machine, st.sampled_from(["cpu", "cuda"]), st.floats(0.5, 100), st.integers(1, 128), st.booleans())


@settings(max_examples=60, deadline=None)
@given(planned=studies(), machine=machines)
def test_any_dataset_gets_sound_plans_or_a_sentence(planned: Study, machine: Machine) -> None:
    try:
        plans = planned.plans(machine)
    except UserError:
        assert machine.memory_gb < 1.5
        return
    # The size is rounded up along each axis.
    assert np.prod(np.array(plans.size) - 1.0) <= MOST_VOXELS
    assert min(default(plans).token_grid) >= 1
    assert default(plans).memory_gb <= machine.memory_gb + 0.01
    assert FEWEST_EPOCHS <= plans.training.epochs <= Training().epochs
    for variant in (plans, paper_plans(plans)):
        assert parse_plans(json.loads(json.dumps(variant.model_dump(mode="json"))), "plans.json") == variant


def test_without_labels_images_alone_align() -> None:
    plans = brain(None, unlabelled=names_of(brain(), 0, 1)).plans()
    assert plans.default_configuration == "half"
    assert (plans.loss.dice, plans.loss.similarity) == (0, 1)
    assert "annotated" in plans.reasons["loss"]


@pytest.mark.parametrize("lacking", ["unlabelled", "partly"])
def test_with_some_labels_both_labels_and_images_align(lacking: str) -> None:
    plans = brain(**{lacking: names_of(brain(), 1)}).plans()
    assert (plans.loss.dice, plans.loss.similarity) == (1, 1)
    assert "50 %" in plans.reasons["loss"]
    # A held-out case is not trained on, so it may lack labels.
    study_with_held_out = brain(**{lacking: names_of(brain(), 1)[:1]}, held_out=names_of(brain(), 1)[:1])
    assert study_with_held_out.plans().loss.similarity == 0


@pytest.mark.parametrize(("overlap", "axes"), [(0.95, ("x",)), (0.6, ())])
def test_symmetric_anatomy_is_mirrored(overlap: float, axes: tuple[str, ...]) -> None:
    plans = make_study(
        [make_mr_case("A_0001_0000", mirror_overlap=overlap), make_ct_case(mirror_overlap=overlap)]
    ).plans()
    assert plans.augmentation.mirror_axes == axes
    assert f"{overlap:.2f}" in plans.reasons["augmentation.mirror_axes"]


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
    unaligned = make_study([make_mr_case("A_0001_0000", Grid((90, 90, 90), (1, 1, 1), (5, 5, 5))), make_ct_case()])
    assert paper_plans(unaligned.plans()).prealignment.method == "centre"
    unit = make_study([make_mr_case(range=[0.0, 1.0]), make_ct_case(range=[0.0, 1.0])])
    assert paper_plans(unit.plans()).normalization[1].upper == 1


def test_a_configuration_that_the_planner_does_not_make_is_refused() -> None:
    assert brain().plans(configuration="half").default_configuration == "half"
    with pytest.raises(UnknownName) as refusal:
        brain().plans(configuration="quarter")
    assert (refusal.value.name, refusal.value.known) == ("quarter", ("full", "half"))
