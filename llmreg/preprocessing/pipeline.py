"""The steps before training, by dataset id, between the three folders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from llmreg import paths
from llmreg.dataset import load_dataset
from llmreg.errors import UserError
from llmreg.network.config import NetworkSettings
from llmreg.preprocessing import fingerprint as fingerprints
from llmreg.preprocessing import planning, splits
from llmreg.preprocessing import preprocess as preprocessing
from llmreg.preprocessing.alignment_choice import choose_prealignment
from llmreg.preprocessing.plans import Plans, read_plans, write_plans
from llmreg.verification import verify_dataset_integrity

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


def extract_fingerprint(dataset_id: str, num_processes: int) -> Path:
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    path = folder / fingerprints.FINGERPRINT_FILE
    fingerprints.write_fingerprint(path, fingerprints.extract_fingerprint(dataset, num_processes))
    return path


def plan(
    dataset_id: str,
    num_processes: int,
    overwrite: bool = False,
    network: NetworkSettings | None = None,
) -> Path:
    """Write the default plans, the paper's, and the splits. Splits that exist are kept.

    Args:
        dataset_id: id or whole name.
        num_processes: cases looked at at the same time.
        overwrite: replace plans that differ.
        network: what goes into the plans, from :func:`chosen_network`; the default when None.

    Raises:
        UserError: there are other plans already, perhaps edited by hand, and ``overwrite`` is not given.
    """
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    fingerprint = folder / fingerprints.FINGERPRINT_FILE
    if not fingerprint.exists():
        raise UserError(f"{fingerprint} is missing: run llmreg_extract_fingerprint -d {dataset_id} first.")
    folds = splits.make_splits(dataset)
    made = planning.make_plans(dataset, fingerprints.read_fingerprint(fingerprint))
    # Splits that exist are kept, so they are what templates will be learned by.
    kept = splits.read_splits(folder / SPLITS_FILE) if (folder / SPLITS_FILE).exists() else folds
    made, reason = choose_prealignment(dataset, made, num_processes, kept)
    made = made.model_copy(
        update={"reasons": made.reasons | {"prealignment": reason}, "network": network or NetworkSettings()}
    )
    both = (made, planning.paper_plans(made))
    for plans in both:
        path = plans_path(folder, plans.plans_name)
        if path.exists() and not overwrite and read_plans(path) != plans:
            raise UserError(
                f"{path} differs from what would be planned now (it was edited, or the dataset or llmreg changed): "
                "keep it and run llmreg_preprocess, or plan again with --overwrite."
            )
    for plans in both:
        write_plans(plans_path(folder, plans.plans_name), plans)
    if not (folder / SPLITS_FILE).exists():
        splits.write_splits(folder / SPLITS_FILE, folds)
    for decision, reason in made.reasons.items():
        log.info("%s: %s", decision, reason)
    return plans_path(folder, "default")


def chosen_network(llm: str | None, layers: Sequence[str] | None) -> NetworkSettings:
    """The network's settings with the language model that a user names, whose layers are fetched.

    Raises:
        UserError: there is no such model or layer.
    """
    settings = NetworkSettings()
    if llm is None and layers is None:
        return settings
    # Inside, since transformers takes seconds to import.
    from llmreg.network.llm.fetching import fetch, named_layers

    fetched = fetch(named_layers(llm, layers, settings.llm), paths.llm_cache_folder())
    return settings.model_copy(update={"llm": fetched})


def preprocess(dataset_id: str, plans_name: str, num_processes: int) -> Path:
    folder = preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    plans = find_plans(folder, plans_name)
    folds = splits.read_splits(folder / SPLITS_FILE)
    splits.check_splits(folder / SPLITS_FILE, folds, dataset)
    return preprocessing.preprocess(dataset, plans, folder, num_processes, folds)
