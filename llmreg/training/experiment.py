"""An experiment: plans, a configuration and a fold, and the folder of its results."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llmreg import paths
from llmreg.data import splits
from llmreg.data.dataset import Dataset, Pair, load_dataset, pairs_among
from llmreg.data.splits import SPLITS_FILE, Split
from llmreg.errors import NothingToTrainOn, NotPrepared, OtherPlans
from llmreg.files import atomic_write
from llmreg.model_folder import ModelName, fold_folder
from llmreg.networks.registry import plugin_of
from llmreg.paths import preprocessed_dataset
from llmreg.plans.plans import PLANS_FILE, Plans, plans_path, read_plans, write_plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE
from llmreg.preprocessing.dataset_templates import EVERYONE, TEMPLATES_FOLDER, name_template_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.preprocessed_volumes import volumes_folder
from llmreg.training.distributed import join_processes, main_process_first
from llmreg.training.loop import train
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.plans_choice import PlansChoice, choose_plans


@dataclass(frozen=True)
class TrainedFold:
    """A fold that was trained, and what is needed to validate it.

    Attributes:
        model: the model folder.
        fold: ``0`` ... or ``all``.
        dataset: the raw dataset.
        validation_pairs: the fold's pairs that were not trained on.
        device: the device that it was trained on.
    """

    model: Path
    fold: str
    dataset: Dataset
    validation_pairs: tuple[Pair, ...]
    device: torch.device


def train_fold(
    dataset_name: str,
    fold_name: str,
    options: TrainingOptions | None = None,
    choice: PlansChoice | None = None,
    *,
    configuration: str | None = None,
    device_name: str | None = None,
) -> TrainedFold | None:
    """Train one fold of a preprocessed dataset, together with the processes that torchrun may have started.

    Missing files are noticed before anything is written, except for changed plans, which preprocessing may need.

    Args:
        dataset_name: the dataset's id or whole name.
        fold_name: ``0``, ``fold0``, ``fold_0`` ... or ``all``.
        options: how it is trained.
        choice: the plans; the default ones when None.
        configuration: ``full``, ``half`` or another of the plans' configurations; the plans' default when None.
        device_name: such as ``cpu`` or ``cuda:1``; a GPU when None and there is one.

    Returns:
        The trained fold; None in all processes but the first.

    Raises:
        UserError: something is missing, or see :func:`llmreg.training.loop.train`.
        TrainingInterrupted: by a signal; the training can be resumed.
    """
    options, choice = options or TrainingOptions(), choice or PlansChoice()
    folder = preprocessed_dataset(dataset_name)
    with join_processes(device_name) as context:
        with main_process_first(context):
            plans = choose_plans(folder, choice)
            dataset = load_dataset(paths.find_dataset_folder(dataset_name, paths.raw_folder()))
            configuration = configuration or plans.default_configuration
            plans.configuration(configuration)
            model = model_folder(dataset.name, plans, configuration)
            fold = collect_fold_data(folder, fold_name, dataset, plans, model)
            if plans.plans_name != choice.plans:
                write_plans(plans_path(folder, plans.plans_name), plans)
            travelling = [folder / FINGERPRINT_FILE, fold.volumes / REFERENCE_FILE]
            check_preprocessed(fold, travelling, dataset_name, plans.plans_name)
            plans = fetch_weights(plans)
            write_model_folder(model, plans, configuration, travelling, fold)
        train(plans, configuration, fold, options, context)
        if not context.first:
            return None
        return TrainedFold(model, fold.name, dataset, tuple(fold.validation_pairs), context.device)


def model_folder(dataset_name: str, plans: Plans, configuration: str) -> Path:
    """The folder of the model that is trained with these plans."""
    return ModelName(dataset_name, plans.network.name, plans.plans_name, configuration).below(paths.results_folder())


def fetch_weights(plans: Plans) -> Plans:
    """Fetch the network's frozen weights, where it has some, and write their digest into the plans.

    Raises:
        UserError: the weights cannot be found, or are others than the plans say.
    """
    return plans.model_copy(update={"network": plugin_of(plans.network).fetch_weights(plans.network)})


def find_fold(folder: Path, fold_name: str, dataset: Dataset) -> tuple[str, Split]:
    """Find a fold of a preprocessed dataset: its bare name and its split. Raises UserError when there is none."""
    folds = splits.read_splits(folder / SPLITS_FILE)
    splits.check_splits(folder / SPLITS_FILE, folds, dataset)
    fold = splits.parse_fold(fold_name, range(len(folds)))
    return str(fold), splits.split_all(dataset) if fold == "all" else folds[int(fold)]


def usable_cases(split: Split, dataset: Dataset, plans: Plans) -> list[str]:
    """The cases that a fold is trained on with these plans: without an image term, only the labelled ones."""
    unlabelled = plans.loss.uses_unlabelled_pairs
    return [case for case in split.training_cases if unlabelled or dataset.case(case).label is not None]


def collect_fold_data(folder: Path, fold_name: str, dataset: Dataset, plans: Plans, model: Path) -> FoldData:
    """Collect the pairs and folders of a fold.

    Raises:
        NothingToTrainOn: the fold has no pair of usable cases.
        UserError: there is no such fold.
    """
    fold, split = find_fold(folder, fold_name, dataset)
    pairs = pairs_among(dataset, usable_cases(split, dataset, plans))
    if not pairs:
        raise NothingToTrainOn(f"{fold} of {dataset.name}", "has no pair of labelled cases to train on")
    return FoldData(fold, pairs, split.validation_pairs, volumes_folder(folder, plans), fold_folder(model, fold))


def check_preprocessed(fold: FoldData, files: Sequence[Path], dataset_name: str, plans_name: str) -> None:
    """Check that the fold's training cases and the files exist. Raises NotPrepared when one does not."""
    cases = sorted({case for pair in fold.training_pairs for case in (pair.fixed, pair.moving)})
    for path in (*(fold.volumes / f"{case}.json" for case in cases), *files):
        if not path.exists():
            raise NotPrepared(path, "preprocess", dataset_name, plans_name)


def write_model_folder(model: Path, plans: Plans, configuration: str, files: Sequence[Path], fold: FoldData) -> None:
    """Write the plans into the model folder, with copies of all files that prediction needs.

    Raises:
        OtherPlans: the folder holds checkpoints of other plans.
    """
    path = model / PLANS_FILE
    if (
        path.exists()
        and read_plans(path).digest(configuration) != plans.digest(configuration)
        and any(model.glob("fold_*/checkpoint_*"))
    ):
        raise OtherPlans(model)
    write_plans(path, plans)
    templates = [fold.volumes / TEMPLATES_FOLDER / name for name in (EVERYONE, name_template_set(fold.name))]
    # The record of a set of templates comes last, as it was written.
    sets = [sorted(template.glob("*"), key=lambda file: file.suffix == ".json") for template in templates]
    for source in (*files, *(file for template_set in sets for file in template_set)):
        below = source.parent.relative_to(fold.volumes) if source.is_relative_to(fold.volumes) else Path()
        with atomic_write(model / below / source.name) as temporary:
            shutil.copyfile(source, temporary)
