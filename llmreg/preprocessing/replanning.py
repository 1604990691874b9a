"""Planning again: which existing plans are kept, which are replaced, and when replacing them is refused.

Plans record digests of what they were planned from, and of what was decided. Plans whose inputs are the same are kept,
edited or not; plans whose inputs changed are replaced unless they were edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmreg.data.dataset import Dataset
from llmreg.data.splits import Split
from llmreg.devices import Machine
from llmreg.errors import EditedPlans, UserError
from llmreg.files import json_digest
from llmreg.plans.plan_settings import Configuration
from llmreg.plans.plans import Planned, Plans, parse_plans, read_plans
from llmreg.preprocessing.fingerprint import Fingerprint
from llmreg.preprocessing.planning.planner import CONFIGURATIONS, PlannerOverrides
from llmreg.version import __version__


def digest_inputs(
    dataset: Dataset,
    fingerprint: Fingerprint,
    splits: Sequence[Split],
    machine: Machine,
    overrides: PlannerOverrides,
) -> dict[str, str]:
    """Digests of everything that plans depend on, by names for messages."""
    options = [overrides.network.model_dump(mode="json"), overrides.configuration, overrides.spacing]
    return {
        "the fingerprint": json_digest(fingerprint.model_dump(mode="json")),
        "dataset.json": json_digest(_facts(dataset)),
        "splits.json": json_digest([split.to_dict() for split in splits]),
        "the memory to plan for": json_digest(machine.to_dict()),
        "the options": json_digest(options),
        "the version of llmreg": json_digest(__version__),
    }


def read_existing(path: Path, *, replace: bool) -> Plans | None:
    """Read the plans of a file; None where there is none, or one that cannot be read and is to be replaced anyway."""
    if not path.exists():
        return None
    try:
        return read_plans(path)
    except UserError:
        if not replace:
            raise
        return None


def list_changes(plans: Plans, inputs: Mapping[str, str]) -> str:
    """Name the inputs that changed since plans were made; empty when none did."""
    # Digests are compared whatever their names, which earlier versions spelled otherwise.
    before = set() if plans.planned is None else set(plans.planned.inputs.values())
    return ", ".join(name for name, digest in inputs.items() if digest not in before)


def check_unedited(existing: Mapping[Path, Plans], changes: str) -> None:
    """Raise EditedPlans when a file was edited since it was planned."""
    for path, plans in existing.items():
        if plans.planned is None or plans.planned.result != _digest_decisions(plans):
            raise EditedPlans(path, changes)


def complete_plans(path: Path, plans: Plans, existing: Plans | None, inputs: dict[str, str]) -> Plans:
    """Add the configurations that the user had added, and the record of what the plans were planned from.

    Raises:
        BadPlans: a configuration of the user does not fit to the new grid.
    """
    added = {} if existing is None else _added_configurations(existing)
    planned = Planned(inputs=inputs, result=_digest_decisions(plans))
    content = plans.model_dump() | {"planned": planned, "configurations": plans.configurations | added}
    return parse_plans(content, f"{path} with the configurations that were added to it")


def _added_configurations(plans: Plans) -> dict[str, Configuration]:
    return {name: settings for name, settings in plans.configurations.items() if name not in CONFIGURATIONS}


def _digest_decisions(plans: Plans) -> str:
    """A digest of what the planner decides."""
    # Defaults are left out: keys that a later version adds are no edits.
    content = plans.model_dump(mode="json", exclude={"planned"}, exclude_defaults=True)
    for name in _added_configurations(plans):
        del content["configurations"][name]
    # It is a list in the plans that were written by earlier versions.
    return json_digest([content])


def _facts(dataset: Dataset) -> list[Any]:
    """What plans depend on in ``dataset.json`` beside what the fingerprint holds."""
    direction = [dataset.fixed_modality, dataset.moving_modality, dataset.pairing]
    cases = [[case.name, case.annotated_labels] for case in dataset.cases]
    pairs = [[pair.fixed, pair.moving] for pair in dataset.explicit_pairs]
    return [direction, cases, pairs, sorted(dataset.held_out)]
