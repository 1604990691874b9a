"""Preparing a dataset for training: its fingerprint, its plans and its preprocessed volumes.

Each step names the dataset by its id or whole name, reads it from the folder ``llmreg_raw`` and writes to the folder
``llmreg_preprocessed``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from llmreg import paths
from llmreg.data.dataset import Dataset, load_dataset
from llmreg.data.splits import SPLITS_FILE, check_splits, make_splits, read_splits, write_splits
from llmreg.data.verification import verify_dataset_integrity
from llmreg.devices import detect_machine
from llmreg.errors import NotPrepared, UserError
from llmreg.networks.registry import NetworkSettings, default_settings, plugin_of
from llmreg.plans.plans import find_plans, plans_path, write_plans
from llmreg.preprocessing import replanning
from llmreg.preprocessing.alignment_choice import choose_prealignment
from llmreg.preprocessing.fingerprint import (
    FINGERPRINT_FILE,
    extract_fingerprint,
    read_fingerprint,
    write_fingerprint,
)
from llmreg.preprocessing.plan_report import REPORT_FILE, write_report
from llmreg.preprocessing.planning.effort import Budget
from llmreg.preprocessing.planning.paper import paper_plans
from llmreg.preprocessing.planning.planner import PlannerOverrides, make_plans
from llmreg.preprocessing.preprocessed_volumes import volumes_folder, write_volumes

log = logging.getLogger(__name__)


def load_raw_dataset(dataset_id: str | int) -> Dataset:
    """Load a dataset of the folder ``llmreg_raw``."""
    return load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))


def verify_dataset(dataset_id: str, num_processes: int) -> None:
    """Check every file of a dataset. Raises UserError when there is a problem."""
    verify_dataset_integrity(load_raw_dataset(dataset_id), num_processes)


def fingerprint_dataset(dataset_id: str, num_processes: int, *, clean: bool = False) -> Path:
    """Write the fingerprint; unless ``clean``, only cases that changed since an earlier one are read."""
    dataset = load_raw_dataset(dataset_id)
    path = paths.preprocessed_dataset(dataset_id) / FINGERPRINT_FILE
    earlier = None
    if path.exists() and not clean:
        try:
            earlier = read_fingerprint(path)
        except UserError as error:
            log.info("All cases are read again: %s", error)
    write_fingerprint(path, extract_fingerprint(dataset, num_processes, earlier))
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
    if (folder / SPLITS_FILE).exists():
        splits = read_splits(folder / SPLITS_FILE)
    else:
        splits = make_splits(dataset)
        write_splits(folder / SPLITS_FILE, splits)
    inputs = replanning.digest_inputs(dataset, fingerprint, splits, machine, overrides)
    default, paper = plans_path(folder, "default"), plans_path(folder, "paper")
    existing = {
        path: plans
        for path in (default, paper)
        if (plans := replanning.read_existing(path, replace=overwrite)) is not None
    }
    if default in existing and not overwrite:
        changes = replanning.list_changes(existing[default], inputs)
        if not changes:
            log.info("%s is kept: nothing that it was planned from has changed.", default)
            if paper not in existing:
                write_plans(paper, replanning.complete_plans(paper, paper_plans(existing[default]), None, inputs))
            if not (folder / REPORT_FILE).exists():
                write_report(folder / REPORT_FILE, dataset, fingerprint, existing[default])
            return default
        replanning.check_unedited(existing, changes)
        log.info("%s is planned again, since this changed: %s.", default, changes)
    plans = make_plans(dataset, fingerprint, Budget(machine), overrides)
    plans = choose_prealignment(dataset, plans, num_processes, splits)
    # All plans are completed before the first is written: a configuration of the user may not fit to a new grid.
    completed = {
        path: replanning.complete_plans(path, content, existing.get(path), inputs)
        for path, content in ((default, plans), (paper, paper_plans(plans)))
    }
    for path, content in completed.items():
        write_plans(path, content)
    if overrides.spacing is not None and plans.spacing != overrides.spacing:
        log.warning("The spacing is not the requested one: %s", plans.reasons["grid"])
    for decision, reason in plans.reasons.items():
        log.info("%s: %s", decision, reason)
    log.info("The same with pictures: %s", write_report(folder / REPORT_FILE, dataset, fingerprint, plans))
    return default


def fetch_network(llm: str | None, layers: Sequence[str] | None) -> NetworkSettings:
    """The planner's network with the language model that a user names, whose layers are fetched.

    Raises:
        UserError: there is no such model or layer.
    """
    network = default_settings()
    if llm is None and layers is None:
        return network
    changed: NetworkSettings = plugin_of(network).with_language_model(network, llm, layers)
    return changed


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
