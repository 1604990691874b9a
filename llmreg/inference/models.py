"""Finding trained models among the results."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmreg import paths
from llmreg.errors import Ambiguous, NotPrepared, UnknownName, UnreadableFile, UserError
from llmreg.paths import ModelName, find_fold_folders, find_model_folders, fold_name
from llmreg.plans.plans import PLANS_FILE, Plans
from llmreg.training.checkpoints import TrainingState, checkpoint_path, read_state

log = logging.getLogger(__name__)

# Where a fold has several checkpoints, the last of these names is used.
_CHECKPOINTS = ("latest", "best", "final")


@dataclass(frozen=True)
class Model:
    """A model folder and the checkpoints of its folds.

    Attributes:
        folder: ``<results>/Dataset001_Name/<network>__<plans>__<configuration>``.
        configuration: ``full`` or ``half``.
        folds: fold name -> checkpoint.
    """

    folder: Path
    configuration: str
    folds: dict[str, Path]


def load_model(folder: Path, folds: Sequence[str | int] | None = None) -> Model:
    """Look up the checkpoints of a model folder.

    Args:
        folder: a model folder.
        folds: names or numbers of the folds to use; all trained ones when None, except ``all`` beside others.

    Raises:
        UnreadableFile: the folder is none of a model.
        NotPrepared: it holds no trained fold.
        UnknownName: it does not hold that fold.
    """
    if not (folder / PLANS_FILE).exists():
        raise UnreadableFile(folder, f"is not a model folder ({PLANS_FILE} is missing)", "give one that training wrote")
    trained = {
        fold: checkpoint_path(path, name)
        for fold, path in find_fold_folders(folder).items()
        for name in _CHECKPOINTS
        if checkpoint_path(path, name).exists()
    }
    if not trained:
        raise NotPrepared(f"A trained fold in {folder}", "train")
    finished = [
        fold for fold, checkpoint in trained.items() if checkpoint == checkpoint_path(checkpoint.parent, "final")
    ]
    # Folds whose training was interrupted would spoil the mean; they are used when there is no other, or by name.
    usable = finished or list(trained)
    chosen = [fold_name(str(fold)) for fold in folds or []] or [fold for fold in usable if fold != "all"] or usable
    for fold in chosen:
        if fold not in trained:
            raise UnknownName(f"trained fold in {folder} called", fold, list(trained))
        if fold not in finished:
            log.warning("Fold %s is not trained to its end: %s is used.", fold, trained[fold].name)
    return Model(folder, read_state(trained[chosen[0]]).configuration, {fold: trained[fold] for fold in chosen})


def read_own_state(checkpoint: Path, plans: Plans, configuration: str) -> TrainingState:
    """Read the state of a checkpoint. Raises UserError unless it was trained with these plans."""
    state = read_state(checkpoint)
    if state.configuration != configuration or state.plans_digest != plans.digest(configuration):
        raise UserError(f"{checkpoint} was trained with plans other than {PLANS_FILE}: restore that file.")
    return state


def find_model(
    dataset: str | None = None,
    configuration: str | None = None,
    plans: str | None = None,
    folds: Sequence[str] | None = None,
    network: str | None = None,
) -> Model:
    """Find the only trained model among the results that fits; arguments that are None fit every model.

    Raises:
        NotPrepared: no model fits.
        Ambiguous: several do.
    """
    root = paths.results_folder()
    trained = {
        folder: ModelName.of(folder)
        for dataset_folder in sorted(root.glob("Dataset[0-9][0-9][0-9]_*"))
        for folder in find_model_folders(dataset_folder)
        if any(any(fold.glob("checkpoint_*.safetensors")) for fold in find_fold_folders(folder).values())
    }
    dataset_id = int(dataset) if dataset is not None and dataset.isdecimal() else None
    fitting = {
        folder: name
        for folder, name in trained.items()
        if (dataset in (None, name.dataset) or dataset_id == int(name.dataset[7:10]))
        and configuration in (None, name.configuration)
        and plans in (None, name.plans)
        and network in (None, name.network)
    }
    if len(fitting) > 1:
        raise Ambiguous("trained model", [str(name) for name in fitting.values()])
    if not fitting:
        listed = ", ".join(map(str, trained.values())) or "none"
        raise NotPrepared(f"A trained model in {root} that fits (trained: {listed})", "train", dataset, plans)
    return load_model(next(iter(fitting)), folds)
