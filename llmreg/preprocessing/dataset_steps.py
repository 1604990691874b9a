"""The steps before training, by dataset id, between the three folders."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmreg import paths
from llmreg.data import splits
from llmreg.data.dataset import Dataset, load_dataset
from llmreg.data.verification import verify_dataset_integrity
from llmreg.devices import this_machine
from llmreg.errors import UserError
from llmreg.files import json_digest
from llmreg.networks.config import LLMMorphSettings
from llmreg.networks.llm_morph.costs import llm_size
from llmreg.plans.plans import Configuration, Planned, Plans, parse_plans, read_plans, write_plans
from llmreg.preprocessing import fingerprint as fingerprints
from llmreg.preprocessing import planning
from llmreg.preprocessing import preprocess as preprocessing
from llmreg.preprocessing.alignment_choice import choose_prealignment
from llmreg.preprocessing.plan_report import REPORT_FILE, write_report
from llmreg.version import __version__

log = logging.getLogger(__name__)

SPLITS_FILE = "splits.json"


def preprocessed_dataset(dataset_id: str | int) -> Path:
    """The dataset's folder under ``llmreg_preprocessed`` (which need not exist yet)."""
    return paths.preprocessed_folder() / paths.find_dataset_folder(dataset_id, paths.raw_folder()).name


def plans_path(folder: Path, name: str) -> Path:
    return folder / ("plans.json" if name == "default" else f"plans_{name}.json")


def find_plans(folder: Path, name: str) -> Plans:
    path = plans_path(folder, name)
    if not path.exists():
        raise UserError(f"There are no plans '{name}' ({path} is missing): run llmreg_plan_and_preprocess first.")
    plans = read_plans(path)
    if plans.plans_name != name:
        raise UserError(f"{path}: plans_name is '{plans.plans_name}': write '{name}', as in the file's name.")
    return plans


def verify(dataset_id: str, num_processes: int) -> None:
    verify_dataset_integrity(load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder())), num_processes)


def extract_fingerprint(dataset_id: str, num_processes: int, clean: bool = False) -> Path:
    """Write the fingerprint; unless ``clean``, only cases that changed since an earlier one are read."""
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    path = folder / fingerprints.FINGERPRINT_FILE
    known = None
    if path.exists() and not clean:
        try:
            known = fingerprints.read_fingerprint(path)
        except UserError as error:
            log.info("The fingerprint is made anew: %s", error)
    fingerprints.write_fingerprint(path, fingerprints.extract_fingerprint(dataset, num_processes, known))
    return path


def plan(
    dataset_id: str,
    num_processes: int,
    overwrite: bool = False,
    wishes: planning.PlannerOverrides | None = None,
    memory_gb: float | None = None,
) -> Path:
    """Write the default plans, the paper's, the report on them, and the splits. Splits that exist are kept.

    Plans that were made of the same things are kept as they are, edited or not. Of plans that must be made anew,
    configurations that the user added are kept.

    Args:
        dataset_id: id or whole name.
        num_processes: cases looked at at the same time.
        overwrite: replace plans that were edited.
        wishes: what the user decides instead of the planner.
        memory_gb: memory to plan for; most of what this machine has when None.

    Raises:
        UserError: plans that must be made anew were edited, and ``overwrite`` is not given.
    """
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    fingerprint_file = folder / fingerprints.FINGERPRINT_FILE
    if not fingerprint_file.exists():
        raise UserError(f"{fingerprint_file} is missing: run llmreg_extract_fingerprint -d {dataset_id} first.")
    fingerprint = fingerprints.read_fingerprint(fingerprint_file)
    wishes = wishes or planning.PlannerOverrides()
    network = wishes.network
    machine = this_machine(memory_gb)
    # Splits that exist are kept, so they are what templates will be learned by.
    kept = (folder / SPLITS_FILE).exists()
    folds = splits.read_splits(folder / SPLITS_FILE) if kept else splits.make_splits(dataset)
    inputs = {
        "the fingerprint": json_digest(fingerprint.model_dump(mode="json")),
        "dataset.json": json_digest(_facts(dataset)),
        "splits.json": json_digest([fold.to_dict() for fold in folds]),
        "the machine or --memory-gb": json_digest(machine.to_dict()),
        "the options": json_digest([network.model_dump(mode="json"), wishes.configuration, wishes.spacing]),
        "the version of llmreg": json_digest(__version__),
    }
    if not kept:
        splits.write_splits(folder / SPLITS_FILE, folds)
    default, paper = plans_path(folder, "default"), plans_path(folder, "paper")
    old = {path: plans for path in (default, paper) if (plans := _old_plans(path, overwrite)) is not None}
    if default in old and not overwrite:
        changed = _changed(old[default], inputs)
        if not changed:
            log.info("%s is kept: nothing that it was planned from has changed.", default)
            if paper not in old:
                write_plans(paper, _completed(paper, planning.paper_plans(old[default]), None, inputs))
            if not (folder / REPORT_FILE).exists():
                write_report(folder / REPORT_FILE, dataset, fingerprint, old[default])
            return default
        _refuse_edited(old, changed)
        log.info("%s is made anew, since %s changed.", default, changed)
    made = planning.make_plans(dataset, fingerprint, planning.Budget(machine, llm_size(network.llm)), wishes)
    made, reason = choose_prealignment(dataset, made, num_processes, folds)
    made = made.model_copy(update={"reasons": made.reasons | {"prealignment": reason}})
    new = {plans_path(folder, plans.plans_name): plans for plans in (made, planning.paper_plans(made))}
    # All of them before the first is written, since a user's configuration may not hold a new grid.
    whole = {path: _completed(path, plans, old.get(path), inputs) for path, plans in new.items()}
    for path, plans in whole.items():
        write_plans(path, plans)
    if wishes.spacing is not None and made.spacing != wishes.spacing:
        log.warning("The spacing is not the one asked for: %s", made.reasons["grid"])
    for decision, reason in made.reasons.items():
        log.info("%s: %s", decision, reason)
    report = write_report(folder / REPORT_FILE, dataset, fingerprint, made)
    log.info("The same with pictures: %s", report)
    return default


def _old_plans(path: Path, overwrite: bool) -> Plans | None:
    """The plans in a file; None without it, and where it cannot be read but is to be replaced anyway."""
    if not path.exists():
        return None
    try:
        return read_plans(path)
    except UserError:
        if not overwrite:
            raise
        return None


def _changed(plans: Plans, inputs: Mapping[str, str]) -> str:
    """Which of the things that plans were made of are others now."""
    before = {} if plans.planned is None else plans.planned.inputs
    return ", ".join(name for name, digest in inputs.items() if before.get(name) != digest)


def _refuse_edited(old: Mapping[Path, Plans], changed: str) -> None:
    for path, plans in old.items():
        if plans.planned is None or plans.planned.result != _result(plans):
            raise UserError(
                f"{path} was edited, and what it was planned from has changed since ({changed}): keep it and run "
                "llmreg_preprocess, or plan again with --overwrite."
            )


def _completed(path: Path, plans: Plans, old: Plans | None, inputs: dict[str, str]) -> Plans:
    """Plans with the configurations that the user had added, and with what they were made of."""
    mine = {} if old is None else _users_configurations(old)
    planned = Planned(inputs=inputs, result=_result(plans))
    content = plans.model_dump() | {"planned": planned, "configurations": plans.configurations | mine}
    return parse_plans(content, f"{path} with the configurations that were added to it")


def _users_configurations(plans: Plans) -> dict[str, Configuration]:
    return {name: own for name, own in plans.configurations.items() if name not in planning.CONFIGURATIONS}


def _result(plans: Plans) -> str:
    """A digest of what the planner decides."""
    # Without defaults: keys that a later version adds are no edits.
    content = plans.model_dump(mode="json", exclude={"planned"}, exclude_defaults=True)
    for name in _users_configurations(plans):
        del content["configurations"][name]
    # A list, as in the plans that there are.
    return json_digest([content])


def _facts(dataset: Dataset) -> list[Any]:
    """What plans depend on in ``dataset.json`` beside what the fingerprint holds."""
    direction = [dataset.fixed_modality, dataset.moving_modality, dataset.pairing]
    cases = [[case.name, case.annotated_labels] for case in dataset.cases]
    pairs = [[pair.fixed, pair.moving] for pair in dataset.explicit_pairs]
    return [direction, cases, pairs, sorted(dataset.held_out)]


def chosen_network(llm: str | None, layers: Sequence[str] | None) -> LLMMorphSettings:
    """The network's settings with the language model that a user names, whose layers are fetched.

    Raises:
        UserError: there is no such model or layer.
    """
    settings = planning.NETWORK
    if llm is None and layers is None:
        return settings
    # Inside, since transformers takes seconds to import.
    from llmreg.networks.language_models.fetching import fetch, named_layers

    fetched = fetch(named_layers(llm, layers, settings.llm), paths.llm_cache_folder())
    # What takes the layers' place in ablations has their width.
    return settings.model_copy(update={"llm": fetched, "token_width": llm_size(fetched).hidden})


def preprocess(dataset_id: str, plans_name: str, num_processes: int, clean: bool = False) -> Path:
    """Write the volumes of plans; unless ``clean``, only those of cases that changed since."""
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    plans = find_plans(folder, plans_name)
    folds = splits.read_splits(folder / SPLITS_FILE)
    splits.check_splits(folder / SPLITS_FILE, folds, dataset)
    if clean:
        shutil.rmtree(preprocessing.volumes_folder(folder, plans), ignore_errors=True)
    return preprocessing.preprocess(dataset, plans, folder, num_processes, folds)
