"""Fingerprints of datasets that were never scanned, for tests of the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg.data.dataset import Case, Dataset
from llmreg.devices import Machine
from llmreg.geometry.grid import Grid
from llmreg.plans.plan_settings import Configuration
from llmreg.plans.plans import Plans
from llmreg.preprocessing.fingerprint import CaseFingerprint, Fingerprint, PairFingerprint, summarize
from llmreg.preprocessing.planning.planner import PlannerOverrides, make_plans
from llmreg.preprocessing.planning.sizes import Budget

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


GPU = Machine("cuda", 24, 8, True)


# Percentiles 0.5, 5, 50, 95 and 99.5 of a structure, HU.
LIVER, KIDNEY, BRAIN, VENTRICLE = (
    (-10, 20, 60, 100, 130),
    (-20, 10, 120, 210, 250),
    (0, 18, 30, 45, 60),
    (-5, 2, 9, 20, 30),
)


BONE, LUNG = (-50, 50, 400, 1200, 1500), (-990, -940, -850, -500, 0)


def make_mr_case(name: str = "A_0001_0000", grid: Grid | None = None, **changes) -> CaseFingerprint:
    """A case as the fingerprint has it; by default an MR image of a cube."""
    grid = grid or Grid((100, 100, 100), (1.0, 1.0, 1.0), (0.0, 0, 0), RAS)
    content = {
        "case": name,
        "modality": int(name[-4:]),
        "sources": {},
        "grid": grid.to_dict(),
        "orientation": "RAI",
        "size": list(grid.size),
        "spacing": list(grid.spacing),
        "range": [0.0, 1500.0],
        "intensities": [10.0, 50.0, 300.0, 900.0, 1200.0],
        "structure_intensities": {},
        "foreground_centre": [0.0, 0.0, 0.0],
        "foreground_extent": grid.extent.tolist(),
        "label_volumes": {},
        "label_centroids": {},
        "mirror_overlap": 0.95,
    }
    return CaseFingerprint.model_validate(content | changes)


def make_ct_case(
    name: str = "A_0001_0001", structures: Sequence[tuple[float, ...]] = (), grid: Grid | None = None, **changes
):
    """A CT of a body, with structures of these percentiles."""
    content = {
        "range": [-1024.0, 2000.0],
        "intensities": [-950.0, -800.0, 20.0, 300.0, 900.0],
        "structure_intensities": dict(enumerate(structures, start=1)),
    }
    return make_mr_case(name, grid, **(content | changes))


@dataclass(frozen=True)
class Study:
    """A dataset that exists on paper."""

    dataset: Dataset
    fingerprint: Fingerprint

    def plans(self, machine: Machine = GPU, **overrides) -> Plans:
        return make_plans(self.dataset, self.fingerprint, Budget(machine), PlannerOverrides(**overrides))


def make_study(
    cases: Sequence[CaseFingerprint],
    separation: tuple[float, float] | None = (10.0, 5.0),
    unlabelled: Sequence[str] = (),
    partly: Sequence[str] = (),
    names: dict[int, str] | None = None,
    held_out: Sequence[str] = (),
) -> Study:
    """A study of these cases.

    Args:
        cases: as the fingerprint has them.
        separation: displacement and deformation of every pair, mm.
        unlabelled: cases without a label map.
        partly: cases in whose label map only structure 1 was looked for.
        names: of the modalities.
        held_out: cases that must not be trained on.
    """
    names = names or {0: "MR", 1: "CT"}
    dataset_cases = [
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
        name="Dataset001_A",
        folder=Path("."),
        modalities=names,
        labels={1: "liver", 2: "spleen"},
        fixed_modality=0,
        moving_modality=max(names),
        pairing="unpaired",
        cases=tuple(dataset_cases),
        held_out=frozenset(held_out),
    )
    displacement, deformation = separation or (None, None)
    pair = PairFingerprint(
        fixed=cases[0].case,
        moving=cases[-1].case,
        field_of_view_overlap=0.9,
        dice=separation and 0.25,
        displacement_mm=displacement,
        deformation_mm=deformation,
    )
    return Study(dataset, summarize(dataset, cases, [pair, pair]))


def make_aligned_study(
    size: tuple[int, ...], mm: float, separation: float | None, structures: Sequence[tuple[float, ...]], **more
) -> Study:
    """Four MR and four CT images on one grid."""
    grid = Grid(size, (mm, mm, mm), (3.0, -4.0, 5.0), RAS)
    cases = [make_mr_case(f"A_000{k}_0000", grid) for k in range(4)]
    cases += [make_ct_case(f"A_000{k}_0001", structures, grid) for k in range(4)]
    return make_study(cases, None if separation is None else (separation, separation / 3), **more)


def abdomen(separation: float | None = 30.0, **more) -> Study:
    return make_aligned_study((192, 160, 192), 2.0, separation, (LIVER, KIDNEY), **more)


def brain(separation: float | None = 4.0, **more) -> Study:
    return make_aligned_study((176, 208, 192), 1.0, separation, (BRAIN, VENTRICLE), **more)


def default(plans: Plans) -> Configuration:
    return plans.configuration(plans.default_configuration)


def names_of(planned: Study, *modalities: int) -> list[str]:
    return [case.name for case in planned.dataset.cases if case.modality in modalities]
