"""An experiment: plans, a configuration and a fold, and the folder of its results."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from llmreg import paths
from llmreg.dataset import Dataset, Pair, load_dataset, pairs_among
from llmreg.devices import choose_device
from llmreg.errors import UserError
from llmreg.files import written_whole
from llmreg.network.factory import load_llm
from llmreg.preprocessing import pipeline, splits
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.plans import PLANS_FILE, Plans, override, read_plans, write_plans
from llmreg.preprocessing.preprocess import REFERENCE_FILE, volumes_folder
from llmreg.training.trainer import Fold, train

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


def planned(folder: Path, plans_name: str, changes: list[str], name: str | None) -> Plans:
    """The plans to train: those called ``plans_name``, or a changed copy called ``name``."""
    if bool(changes) != bool(name):
        raise UserError("--set and --as go together: --set changes the plans, --as names the changed plans.")
    plans = pipeline.find_plans(folder, plans_name)
    if name is None:
        return plans
    if not re.fullmatch(r"[A-Za-z0-9]+([_.-][A-Za-z0-9]+)*", name):
        raise UserError(
            f"'{name}' cannot name plans: use letters and digits, with single '_', '-' or '.' between them."
        )
    changed = override(plans, changes, name)
    path = pipeline.plans_path(folder, name)
    if path.exists() and read_plans(path).digest() != changed.digest():
        raise UserError(f"{path} holds other plans already: choose another name for --as.")
    return changed


def run_fold(
    dataset_id: str,
    fold_text: str,
    *,
    configuration: str | None = None,
    plans_name: str = "default",
    changes: list[str] | None = None,
    name: str | None = None,
    epochs: int | None = None,
    go_on: bool = False,
    device_name: str | None = None,
    workers: int = 1,
) -> TrainedFold:
    """Train one fold between the three folders. Nothing is written before everything was found to be there."""
    folder = pipeline.preprocessed_dataset(dataset_id)
    dataset = load_dataset(paths.find_dataset_folder(dataset_id, paths.raw_folder()))
    plans = planned(folder, plans_name, changes or [], name)
    configuration = configuration or plans.default_configuration
    plans.configuration(configuration)
    folds = splits.read_splits(folder / pipeline.SPLITS_FILE)
    splits.check_splits(folder / pipeline.SPLITS_FILE, folds, dataset)
    fold = splits.parse_fold(fold_text, range(len(folds)))
    split = splits.split_all(dataset) if fold == "all" else folds[int(fold)]
    volumes = volumes_folder(folder, plans)
    usable = [case for case in split.training_cases if dataset.case(case).label is not None]
    missing = next((case for case in usable if not (volumes / f"{case}_seg.b2nd").exists()), None)
    device = choose_device(device_name)
    load_llm(plans.network.llm)
    model = model_folder(dataset.name, plans, configuration)
    own = model / PLANS_FILE
    if own.exists() and read_plans(own).digest() != plans.digest() and any(model.glob("fold_*/checkpoint_*")):
        raise UserError(f"{model} holds a model of other plans: name these with --as, or remove the folder.")
    if name is not None:
        write_plans(pipeline.plans_path(folder, name), plans)
    if missing is not None:
        raise UserError(
            f"{missing} is not preprocessed for the plans '{plans.plans_name}': run llmreg_preprocess -d {dataset_id} "
            f"-p {plans.plans_name}."
        )
    write_plans(own, plans)
    for source in (folder / FINGERPRINT_FILE, volumes / REFERENCE_FILE):
        with written_whole(model / source.name) as temporary:
            shutil.copyfile(source, temporary)
    place = Fold(str(fold), pairs_among(dataset, usable), split.validation_pairs, volumes, model / f"fold_{fold}")
    train(plans, configuration, place, device, epochs, go_on, workers)
    return TrainedFold(model, str(fold), dataset, split.validation_pairs, device)
