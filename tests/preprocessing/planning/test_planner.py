"""Plans of simulated fingerprints: those of the paper's two datasets, and of any other."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_studies import BONE, LUNG, RAS, Study, abdomen, brain, ct, default, seen, study

from llmreg.devices import Machine
from llmreg.errors import UserError
from llmreg.geometry.grid import Grid
from llmreg.plans.plan_settings import Training
from llmreg.plans.plans import parse_plans
from llmreg.preprocessing.fingerprint import CaseFingerprint
from llmreg.preprocessing.planning.effort import FEWEST_EPOCHS
from llmreg.preprocessing.planning.frame_grid import MOST_VOXELS
from llmreg.preprocessing.planning.paper import paper_plans

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
        seen("A_0008_0000", odd, mirror_overlap=0.1),
        ct("A_0008_0001", (BONE,), odd, mirror_overlap=0.1),
    ]
    held = study(cases, (4.0, 2.0), held_out=("A_0008_0000", "A_0008_0001"))
    assert held.plans() == study(brain_cases(), (4.0, 2.0)).plans()
    assert held.plans() != study(cases, (4.0, 2.0)).plans()


def brain_cases() -> list[CaseFingerprint]:
    return list(brain().fingerprint.cases)


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
