"""An experiment: plans, a configuration and a fold, and the folder of its results."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from llmreg import paths
from llmreg.data import splits
from llmreg.data.dataset import Dataset, Pair, load_dataset, pairs_among
from llmreg.data.splits import Split
from llmreg.errors import UserError
from llmreg.files import atomic_write
from llmreg.networks.config import language_model, network_settings
from llmreg.networks.language_models.fetching import fetch
from llmreg.networks.llm_morph.ablations import ablation
from llmreg.plans.plans import PLANS_FILE, Plans, override, read_plans, write_plans
from llmreg.preprocessing import dataset_steps as pipeline
from llmreg.preprocessing import planning
from llmreg.preprocessing.dataset_templates import EVERYONE, TEMPLATES_FOLDER, fold_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.preprocess import REFERENCE_FILE, volumes_folder
from llmreg.training.distributed import join_processes, main_process_first
from llmreg.training.run import Fold, Run, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedFold:
    """A fold that was trained, and the pairs to validate it on."""

    model: Path
    fold: str
    dataset: Dataset
    validation_pairs: tuple[Pair, ...]
    device: torch.device


def model_folder(dataset_name: str, plans: Plans, configuration: str) -> Path:
    return paths.results_folder() / dataset_name / f"{plans.network.name}__{plans.plans_name}__{configuration}"


def planned(
    folder: Path,
    plans_name: str,
    changes: list[str],
    name: str | None,
    ablation_name: str | None = None,
    network: str | None = None,
) -> Plans:
    """The plans to train: those called ``plans_name``, or a changed copy called ``name`` (or like its ablation).

    With another ``network`` than theirs the plans keep their name: the network is part of the model folder's.
    """
    plans = pipeline.find_plans(folder, plans_name)
    if network is not None and network != plans.network.name:
        reasons = {decision: why for decision, why in plans.reasons.items() if not decision.startswith("network.")}
        settings = planning.NETWORK if network == planning.NETWORK.name else network_settings(network)
        plans = plans.model_copy(update={"network": settings, "reasons": reasons})
    if ablation_name is not None:
        name = name or (ablation_name if plans_name == "default" else f"{plans_name}_{ablation_name}")
        # Of the changed plans: one block of other layers, say.
        changes = changes + ablation(ablation_name, override(plans, changes, name).network)
    if bool(changes) != bool(name) and not (name and network):
        raise UserError("--set and --as go together: --set changes the plans, --as names the changed plans.")
    if name is None:
        return plans
    if not re.fullmatch(r"[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*", name):
        raise UserError(
            f"'{name}' cannot name plans: use letters and digits, with single '_', '-' or '.' between them."
        )
    changed = override(plans, changes, name)
    path = pipeline.plans_path(folder, name)
    if path.exists() and read_plans(path).digest() != changed.digest():
        raise UserError(f"{path} holds other plans already: remove it, or choose another name for --as.")
    return changed


def with_layers(plans: Plans) -> Plans:
    """Cache the language model's layers and write their digest into the plans, where the network has them.

    Raises:
        UserError: the layers cannot be found, or are others than the plans say.
    """
    llm = language_model(plans.network)
    if llm is None:
        return plans
    fetched = fetch(llm, paths.llm_cache_folder())
    return plans.model_copy(update={"network": plans.network.model_copy(update={"llm": fetched})})


def run_fold(
    dataset_id: str,
    fold_text: str,
    run: Run,
    *,
    configuration: str | None = None,
    plans_name: str = "default",
    changes: list[str] | None = None,
    name: str | None = None,
    ablation_name: str | None = None,
    network: str | None = None,
    device_name: str | None = None,
) -> TrainedFold | None:
    """Train one fold between the three folders, with the processes that torchrun may have started.

    What is missing is found out before anything is written, but for the changed plans, which preprocessing may need.

    Returns:
        What was trained; None in all processes but the first.
    """
    with join_processes(device_name) as ranks:
        with main_process_first(ranks):
            folder = pipeline.preprocessed_dataset(dataset_id)
            asked = planned(folder, plans_name, changes or [], name, ablation_name, network)
            prepared = _prepared(dataset_id, fold_text, asked, asked.plans_name != plans_name, configuration)
        train(prepared.plans, prepared.configuration, prepared.fold, run, ranks)
        if not ranks.first:
            return None
        pairs = tuple(prepared.fold.validation_pairs)
        return TrainedFold(prepared.model, prepared.fold.name, prepared.dataset, pairs, ranks.device)


def fold_of(folder: Path, fold_text: str, dataset: Dataset) -> tuple[int | str, Split]:
    """The fold of a preprocessed dataset that a user names, and its split. Raises UserError when there is none."""
    folds = splits.read_splits(folder / pipeline.SPLITS_FILE)
    splits.check_splits(folder / pipeline.SPLITS_FILE, folds, dataset)
    fold = splits.parse_fold(fold_text, range(len(folds)))
    return fold, splits.split_all(dataset) if fold == "all" else folds[int(fold)]


def usable_cases(split: Split, dataset: Dataset, plans: Plans) -> list[str]:
    """The cases that a fold is trained on with these plans: without image similarity, the labelled ones."""
    unlabelled = plans.loss.similarity > 0
    return [case for case in split.training_cases if unlabelled or dataset.case(case).label is not None]


@dataclass(frozen=True)
class _Prepared:
    """A fold whose plans and other files lie in its model folder."""

    model: Path
    dataset: Dataset
    plans: Plans
    configuration: str
    fold: Fold


def _prepared(dataset_id: str, fold_text: str, asked: Plans, changed: bool, configuration: str | None) -> _Prepared:
    folder = pipeline.preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    configuration = configuration or asked.default_configuration
    asked.configuration(configuration)
    fold, split = fold_of(folder, fold_text, dataset)
    volumes = volumes_folder(folder, asked)
    usable = usable_cases(split, dataset, asked)
    missing = next((case for case in usable if not (volumes / f"{case}.json").exists()), None)
    model = model_folder(dataset.name, asked, configuration)
    place = Fold(str(fold), pairs_among(dataset, usable), split.validation_pairs, volumes, model / f"fold_{fold}")
    travelling: tuple[Path, ...] = (folder / FINGERPRINT_FILE, volumes / REFERENCE_FILE)
    missing = missing or next((path.name for path in travelling if not path.exists()), None)
    if not place.training_pairs:
        raise UserError(
            f"Fold {fold} of {dataset.name} has no pair of labelled cases to train on: add label maps to labelsTr, or "
            "train with image similarity (--set loss.similarity=1 --as NAME)."
        )
    if changed:
        write_plans(pipeline.plans_path(folder, asked.plans_name), asked)
    if missing is not None:
        raise UserError(
            f"{missing} is not preprocessed for the plans '{asked.plans_name}': run llmreg_preprocess -d {dataset_id} "
            f"-p {asked.plans_name}."
        )
    plans = with_layers(asked)
    own = model / PLANS_FILE
    if (
        own.exists()
        and read_plans(own).digest(configuration) != plans.digest(configuration)
        and any(model.glob("fold_*/checkpoint_*"))
    ):
        raise UserError(f"{model} holds a model of other plans: name these with --as, or remove the folder.")
    write_plans(own, plans)
    for one in (EVERYONE, fold_set(fold)):
        # With the record last, as they were written.
        travelling += tuple(sorted((volumes / TEMPLATES_FOLDER / one).glob("*"), key=lambda p: p.suffix == ".json"))
    for source in travelling:
        below = source.parent.relative_to(volumes) if source.is_relative_to(volumes) else Path()
        with atomic_write(model / below / source.name) as temporary:
            shutil.copyfile(source, temporary)
    return _Prepared(model, dataset, plans, configuration, place)
