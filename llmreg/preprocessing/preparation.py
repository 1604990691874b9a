"""Preparing a dataset for training: its fingerprint, its plans and its preprocessed volumes."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmreg import paths
from llmreg.data.dataset import Dataset, load_dataset
from llmreg.data.splits import SPLITS_FILE, Split, check_splits, make_splits, read_splits, write_splits
from llmreg.devices import Machine, detect_machine
from llmreg.errors import EditedPlans, NotPrepared, UserError
from llmreg.files import json_digest, write_json
from llmreg.networks.network_registry import NetworkSettings, default_settings, plugin_of
from llmreg.plans.plan_settings import Configuration
from llmreg.plans.plans import PlanningRecord, Plans, find_plans, parse_plans, plans_path, read_plans, write_plans
from llmreg.preprocessing.dataset_alignment import choose_prealignment
from llmreg.preprocessing.fingerprint import (
    FINGERPRINT_FILE,
    Fingerprint,
    extract_fingerprint,
    read_fingerprint,
)
from llmreg.preprocessing.plan_report import REPORT_FILE, write_report
from llmreg.preprocessing.planning.planner import CONFIGURATIONS, PlannerOverrides, make_plans, paper_plans
from llmreg.preprocessing.planning.sizes import Budget
from llmreg.preprocessing.preprocessed_volumes import volumes_folder, write_volumes
from llmreg.version import __version__

log = logging.getLogger(__name__)


def load_raw_dataset(dataset_id: str | int) -> Dataset:
    """Load a dataset of the folder ``llmreg_raw``."""
    return load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))


def fingerprint_dataset(dataset_id: str, num_processes: int, *, clean: bool = False) -> Path:
    """Write the fingerprint; unless ``clean``, only cases that changed since an earlier one are read."""
    path = paths.preprocessed_dataset(dataset_id) / FINGERPRINT_FILE
    earlier = None
    if path.exists() and not clean:
        try:
            earlier = read_fingerprint(path)
        except UserError as error:
            log.info("All cases are read again: %s", error)
    fingerprint = extract_fingerprint(load_raw_dataset(dataset_id), num_processes, earlier)
    write_json(path, fingerprint.model_dump(mode="json"))
    return path


def plan_dataset(
    dataset_id: str,
    num_processes: int,
    *,
    overwrite: bool = False,
    overrides: PlannerOverrides | None = None,
    memory_gb: float | None = None,
) -> Path:
    """Write the default plans, the paper's plans, a report on them, and the splits. Splits that exist are kept.

    Plans whose inputs are unchanged are kept as they are, edited or not. Where plans are replaced, configurations that
    the user added are kept.

    Args:
        dataset_id: id or whole name.
        num_processes: cases that are read at the same time.
        overwrite: replace plans that were edited.
        overrides: what the user decides instead of the planner.
        memory_gb: memory to plan for; most of this machine's when None.

    Returns:
        The file of the default plans.

    Raises:
        NotPrepared: there is no fingerprint.
        EditedPlans: plans whose inputs changed were edited, and ``overwrite`` is false.
    """
    folder = paths.preprocessed_dataset(dataset_id)
    dataset = load_raw_dataset(dataset_id)
    if not (folder / FINGERPRINT_FILE).exists():
        raise NotPrepared(folder / FINGERPRINT_FILE, "fingerprint", dataset_id)
    fingerprint = read_fingerprint(folder / FINGERPRINT_FILE)
    overrides = overrides or PlannerOverrides()
    machine = detect_machine(memory_gb)
    # Templates are learned by these splits, so plans depend on them.
    if not (folder / SPLITS_FILE).exists():
        write_splits(folder / SPLITS_FILE, make_splits(dataset))
    splits = read_splits(folder / SPLITS_FILE)
    inputs = digest_inputs(dataset, fingerprint, splits, machine, overrides)
    default, paper = plans_path(folder, "default"), plans_path(folder, "paper")
    existing = {
        path: plans for path in (default, paper) if (plans := read_existing(path, replace=overwrite)) is not None
    }
    if default in existing and not overwrite:
        changes = list_changes(existing[default], inputs)
        if not changes:
            log.info("%s is kept: nothing that it was planned from has changed.", default)
            if paper not in existing:
                write_plans(paper, complete_plans(paper, paper_plans(existing[default]), None, inputs))
            if not (folder / REPORT_FILE).exists():
                write_report(folder / REPORT_FILE, dataset, fingerprint, existing[default])
            return default
        check_unedited(existing, changes)
        log.info("%s is planned again, since this changed: %s.", default, changes)
    plans = make_plans(dataset, fingerprint, Budget(machine), overrides)
    plans = choose_prealignment(dataset, plans, num_processes, splits)
    # All plans are completed before the first is written: a configuration of the user may not fit to a new grid.
    completed = {
        path: complete_plans(path, content, existing.get(path), inputs)
        for path, content in ((default, plans), (paper, paper_plans(plans)))
    }
    for path, content in completed.items():
        write_plans(path, content)
    if overrides.spacing is not None and plans.spacing != overrides.spacing:
        log.warning("The spacing is not the requested one: %s", plans.reasons["grid"])
    for decision, reason in plans.reasons.items():
        log.info("%s: %s", decision, reason)
    log.info("These decisions with pictures: %s", write_report(folder / REPORT_FILE, dataset, fingerprint, plans))
    return default


def fetch_network(llm: str | None, layers: Sequence[str] | None) -> NetworkSettings:
    """The planner's network with the language model that a user names, whose layers are fetched.

    Raises:
        UserError: there is no such model or layer.
    """
    network = default_settings()
    return network if llm is None and layers is None else plugin_of(network).with_language_model(network, llm, layers)


def preprocess_dataset(dataset_id: str, plans_name: str, num_processes: int, *, clean: bool = False) -> Path:
    """Write the volumes of plans; unless ``clean``, only those of cases that changed. Returns their folder."""
    folder = paths.preprocessed_dataset(dataset_id)
    dataset = load_raw_dataset(dataset_id)
    plans = find_plans(folder, plans_name)
    splits = read_splits(folder / SPLITS_FILE)
    check_splits(folder / SPLITS_FILE, splits, dataset)
    if clean:
        shutil.rmtree(volumes_folder(folder, plans), ignore_errors=True)
    return write_volumes(dataset, plans, folder, num_processes, splits)


def digest_inputs(
    dataset: Dataset,
    fingerprint: Fingerprint,
    splits: Sequence[Split],
    machine: Machine,
    overrides: PlannerOverrides,
) -> dict[str, str]:
    """Digests of everything that plans depend on, by names for messages."""
    # Plans depend on these parts of dataset.json, besides those that the fingerprint holds.
    facts = [
        [dataset.fixed_modality, dataset.moving_modality, dataset.pairing],
        [[case.name, case.annotated_labels] for case in dataset.cases],
        [[pair.fixed, pair.moving] for pair in dataset.explicit_pairs],
        sorted(dataset.held_out),
    ]
    return {
        "the fingerprint": json_digest(fingerprint.model_dump(mode="json")),
        "dataset.json": json_digest(facts),
        "splits.json": json_digest([asdict(split) for split in splits]),
        "the memory to plan for": json_digest(asdict(machine)),
        "the options": json_digest(
            [overrides.network.model_dump(mode="json"), overrides.configuration, overrides.spacing]
        ),
        "the version of llmreg": json_digest(__version__),
    }


def read_existing(path: Path, *, replace: bool) -> Plans | None:
    """Read the plans of a file; None where there is none, or one that cannot be read and is to be replaced anyway."""
    try:
        return read_plans(path) if path.exists() else None
    except UserError:
        if not replace:
            raise
        return None


def list_changes(plans: Plans, inputs: Mapping[str, str]) -> str:
    """Name the inputs that changed since plans were made; empty when none did."""
    # Digests are compared without their names, which earlier versions spelled otherwise.
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
    added = {} if existing is None else _list_added_configurations(existing)
    content = plans.model_dump() | {
        "planned": PlanningRecord(inputs=inputs, result=_digest_decisions(plans)),
        "configurations": plans.configurations | added,
    }
    return parse_plans(content, f"{path} with the configurations that were added to it")


def _list_added_configurations(plans: Plans) -> dict[str, Configuration]:
    return {name: settings for name, settings in plans.configurations.items() if name not in CONFIGURATIONS}


def _digest_decisions(plans: Plans) -> str:
    left_out: Any = {"planned": True, "configurations": set(_list_added_configurations(plans))}
    # Defaults are left out too: keys that a later version adds are no edits.
    content = plans.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    # In plans that were written by earlier versions it is a list.
    return json_digest([content])
