"""Finding trained models among the results."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llmreg import paths
from llmreg.data.splits import fold_name
from llmreg.errors import UserError
from llmreg.plans.plans import PLANS_FILE
from llmreg.training.checkpoints import read_state

log = logging.getLogger(__name__)


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


def model_in(folder: Path, folds: list[str] | None = None) -> Model:
    """The model of a folder.

    Args:
        folder: a model folder.
        folds: names of the folds to use; all trained ones when None, except ``all`` beside others.

    Raises:
        UserError: the folder holds no model, or not that fold.
    """
    if not (folder / PLANS_FILE).exists():
        raise UserError(f"{folder} is not a model folder ({PLANS_FILE} is missing): give one that llmreg_train wrote.")
    trained: dict[str, Path] = {}
    for path in sorted(folder.glob("fold_*")):
        for which in ("final", "best", "latest"):
            checkpoint = path / f"checkpoint_{which}.safetensors"
            if checkpoint.exists():
                trained[fold_name(path.name)] = checkpoint
                break
    finished = {fold for fold, checkpoint in trained.items() if checkpoint.stem == "checkpoint_final"}
    if not trained:
        raise UserError(f"{folder} holds no trained fold: train one first (llmreg_train).")
    chosen = [fold_name(fold) for fold in folds or []]
    if not folds:
        # Half-trained folds would spoil the mean; they are used where there is nothing better, or when named.
        chosen = [fold for fold in trained if fold in finished] or list(trained)
        if len(chosen) > 1:
            chosen = [fold for fold in chosen if fold != "all"]
    missing = next((fold for fold in chosen if fold not in trained), None)
    if missing is not None:
        raise UserError(f"{folder} has no trained fold {missing}: choose among {', '.join(trained)}.")
    for fold in chosen:
        if fold not in finished:
            log.warning("Fold %s is not trained to its end: %s is used.", fold, trained[fold].name)
    return Model(folder, read_state(trained[chosen[0]]).configuration, {fold: trained[fold] for fold in chosen})


def find_model(
    dataset: str | None = None,
    configuration: str | None = None,
    plans: str | None = None,
    folds: list[str] | None = None,
    network: str | None = None,
) -> Model:
    """The trained model that fits; all of them are looked at when nothing is given.

    Raises:
        UserError: none or several fit; the message lists them.
    """
    root = paths.results_folder()
    checkpoints = root.glob("Dataset[0-9][0-9][0-9]_*/*__*__*/fold_*/checkpoint_*.safetensors")
    trained = sorted({path.parents[1] for path in checkpoints})
    fitting = [
        folder
        for folder in trained
        if (dataset is None or _is_called(folder.parent.name, dataset))
        and (configuration is None or folder.name.split("__")[-1] == configuration)
        and (plans is None or folder.name.split("__")[1] == plans)
        and (network is None or folder.name.split("__")[0] == network)
    ]
    if len(fitting) == 1:
        return model_in(fitting[0], folds)
    if not fitting:
        listed = ", ".join(f"{f.parent.name}/{f.name}" for f in trained) or "none"
        raise UserError(f"No trained model in {root} fits (trained: {listed}): train one first (llmreg_train).")
    listed = ", ".join(f"{f.parent.name}/{f.name}" for f in fitting)
    raise UserError(
        f"Several trained models fit ({listed}): choose with -d, -c, -p or --network, or give the folder with -m."
    )


def _is_called(folder: str, dataset: str) -> bool:
    """Whether a dataset's folder has that id or whole name."""
    return folder == dataset or (dataset.isdecimal() and int(folder[7:10]) == int(dataset))
