"""An experiment: the choice of plans, a configuration and a fold, and the folder of its results."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from llmreg.data.dataset import Dataset, Pair, pairs_among
from llmreg.data.splits import SPLITS_FILE, Split, check_splits, parse_fold, read_splits, split_all
from llmreg.devices import detect_machine
from llmreg.errors import BadArgument, NotPrepared, OtherPlans
from llmreg.files import atomic_write
from llmreg.networks.network_registry import default_settings, plugin_of
from llmreg.paths import (
    ModelName,
    find_fold_folders,
    fold_folder,
    is_word,
    preprocessed_dataset,
    results_folder,
)
from llmreg.plans.plans import PLANS_FILE, Plans, find_plans, override, plans_path, read_plans, write_plans
from llmreg.preprocessing.common_frame import REFERENCE_FILE
from llmreg.preprocessing.dataset_alignment import ALL_CASES, TEMPLATES_FOLDER, name_template_set
from llmreg.preprocessing.fingerprint import FINGERPRINT_FILE
from llmreg.preprocessing.planning.sizes import Budget, replace_network
from llmreg.preprocessing.preparation import load_raw_dataset
from llmreg.preprocessing.preprocessed_volumes import volumes_folder
from llmreg.training.distributed import join_processes, main_process_first
from llmreg.training.loop import train
from llmreg.training.options import FoldData, TrainingOptions
from llmreg.training.resuming import find_checkpoint
from llmreg.training.training_errors import NothingToTrainOn


@dataclass(frozen=True)
class PlansChoice:
    """Which plans to train, and how to change them.

    Attributes:
        plans: name of the plans.
        changes: assignments ``key.path=value``.
        name: name of the changed plans; that of the ablation when None.
        ablation: name of a part of the network to leave out.
        network: name of another network than the plans', which gets its default settings.
    """

    plans: str = "default"
    changes: Sequence[str] = ()
    name: str | None = None
    ablation: str | None = None
    network: str | None = None


def choose_plans(folder: Path, choice: PlansChoice) -> Plans:
    """Read the chosen plans of a preprocessed dataset and change them; nothing is written.

    Plans with another network keep their name, because the network is part of the model folder's name.

    Raises:
        BadArgument: changes have no name, a name has no changes, or it cannot be part of a folder's name.
        OtherPlans: there are other plans of that name.
        UserError: there are no such plans, or the changes do not fit them.
    """
    plans, changes, name = find_plans(folder, choice.plans), list(choice.changes), choice.name
    if choice.network is not None and choice.network != plans.network.name:
        reasons = {key: reason for key, reason in plans.reasons.items() if not key.startswith("network.")}
        replaced = replace_network(plans, default_settings(choice.network), Budget(detect_machine(), plans.loss))
        plans = replaced.model_copy(update={"reasons": reasons})
    if choice.ablation is not None:
        name = name or (choice.ablation if choice.plans == "default" else f"{choice.plans}_{choice.ablation}")
        # The ablation depends on the changed plans, such as the number of their layers.
        network = override(plans, changes, name).network
        changes += plugin_of(network).ablation(network, choice.ablation).changes
    if bool(changes) != bool(name) and not (name and choice.network):
        raise BadArgument("name", "Changed plans need a name of their own, and only changed plans do.")
    if name is None:
        return plans
    if not is_word(name):
        raise BadArgument(
            "name", f"'{name}' cannot name plans: use letters and digits, with single '_', '-' or '.' between them."
        )
    changed = override(plans, changes, name)
    if (changed.network, changed.loss) != (plans.network, plans.loss):
        estimated = replace_network(changed, changed.network, Budget(detect_machine(), changed.loss))
        # A choice of memory or of gradient checkpointing stands above the estimate.
        changed = override(estimated, [change for change in changes if change.startswith("configurations.")], name)
    path = plans_path(folder, name)
    if path.exists() and read_plans(path).digest() != changed.digest():
        raise OtherPlans(path)
    return changed


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
    choice: PlansChoice | str | None = None,
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
        choice: the plans, or their name; the default ones when None.
        configuration: ``full``, ``half`` or another of the plans' configurations; the plans' default when None.
        device_name: such as ``cpu`` or ``cuda:1``; a GPU when None and there is one.

    Returns:
        The trained fold; None in all processes but the first.

    Raises:
        UserError: something is missing, or see :func:`llmreg.training.loop.train`.
        TrainingInterrupted: by a signal; the training can be resumed.
    """
    options = options or TrainingOptions()
    choice = PlansChoice(choice) if isinstance(choice, str) else choice or PlansChoice()
    if options.pretrained is not None:
        options = replace(options, pretrained=find_checkpoint(Path(options.pretrained)))
    folder = preprocessed_dataset(dataset_name)
    with join_processes(device_name) as context:
        with main_process_first(context):
            plans = choose_plans(folder, choice)
            dataset = load_raw_dataset(dataset_name)
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
    return ModelName(dataset_name, plans.network.name, plans.plans_name, configuration).below(results_folder())


def fetch_weights(plans: Plans) -> Plans:
    """Fetch the network's frozen weights, where it has some, and write their digest into the plans.

    Raises:
        UserError: the weights cannot be found, or are others than the plans say.
    """
    return plans.model_copy(update={"network": plugin_of(plans.network).fetch_weights(plans.network)})


def find_fold(folder: Path, fold_name: str, dataset: Dataset) -> tuple[str, Split]:
    """Find a fold of a preprocessed dataset: its bare name and its split. Raises UserError when there is none."""
    folds = read_splits(folder / SPLITS_FILE)
    check_splits(folder / SPLITS_FILE, folds, dataset)
    fold = parse_fold(fold_name, range(len(folds)))
    return str(fold), split_all(dataset) if fold == "all" else folds[int(fold)]


def usable_cases(split: Split, dataset: Dataset, plans: Plans) -> list[str]:
    """The cases that a fold is trained on with these plans: without an image term, only the labelled ones."""
    return [
        case
        for case in split.training_cases
        if plans.loss.uses_unlabelled_pairs or dataset.case(case).label is not None
    ]


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
        and any(any(fold_path.glob("checkpoint_*")) for fold_path in find_fold_folders(model).values())
    ):
        raise OtherPlans(model)
    write_plans(path, plans)
    # The record of a set of templates comes last, as it was written.
    template_sets = [
        sorted((fold.volumes / TEMPLATES_FOLDER / name).glob("*"), key=lambda file: file.suffix == ".json")
        for name in (ALL_CASES, name_template_set(fold.name))
    ]
    for source in chain(files, *template_sets):
        below = source.parent.relative_to(fold.volumes) if source.is_relative_to(fold.volumes) else Path()
        with atomic_write(model / below / source.name) as temporary:
            shutil.copyfile(source, temporary)
