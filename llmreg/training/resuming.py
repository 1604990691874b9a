"""Where a training starts: anew, from another model's weights, or from its own latest checkpoint."""

import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from llmreg.errors import Ambiguous, MissingFile, OtherPlans
from llmreg.networks.factory import trainable_state
from llmreg.paths import find_fold_folders
from llmreg.training.checkpoints import TrainingState, checkpoint_path, load_checkpoint, read_state, read_tensors
from llmreg.training.options import TrainingOptions
from llmreg.training.training_errors import HoldsTraining

log = logging.getLogger(__name__)


def resume_or_start(
    folder: Path,
    initial: TrainingState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
) -> TrainingState:
    """Return the state from which the training goes on, and put the weights and moments of that state in place.

    Args:
        folder: the fold's folder.
        initial: the state of a training that starts.
        network: the network.
        optimizer: of its trained parameters.
        options: whether to resume, with how many epochs, and what to start from.

    Raises:
        HoldsTraining: there is a checkpoint, which should not be resumed.
        OtherPlans: there is one of other plans.
    """
    latest = checkpoint_path(folder, "latest")
    if not latest.exists():
        if options.resume:
            log.info("%s holds no checkpoint to resume from: training starts.", folder)
        if options.pretrained is not None:
            log.info("From %s: %s.", options.pretrained, transfer_weights(network, Path(options.pretrained)))
        return initial
    if not options.resume:
        raise HoldsTraining(folder)
    stored = read_state(latest)
    if stored.plans_digest != initial.plans_digest:
        raise OtherPlans(folder)
    if stored.processes != initial.processes:
        log.warning(
            "%s was trained by %d process(es), not %d: a step now sees another number of pairs, and some pairs are "
            "seen again.",
            latest,
            stored.processes,
            initial.processes,
        )
    if stored.pairs_sha256 not in (None, initial.pairs_sha256):
        log.warning("%s was trained on other pairs so far: the split or the dataset has changed since.", latest)
    load_checkpoint(latest, network, optimizer)
    # Without a new number, a training goes on to the one it was started with.
    return stored.model_copy(
        update={"epochs": max(options.epochs or stored.epochs, stored.epoch), "processes": initial.processes}
    )


def remove_leftovers(folder: Path, state: TrainingState) -> None:
    """Remove files of an interrupted write, and the final checkpoint of a training that is to become longer.

    The old final checkpoint would be taken for the new one.
    """
    final = ["checkpoint_final.*"] if state.epoch < state.epochs else []
    for path in chain.from_iterable(map(folder.glob, [".partial-*", ".tmp*", *final])):
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class TransferReport:
    """Which tensors of a network were taken over from a checkpoint.

    Attributes:
        same: names of tensors that were taken over.
        reshaped: names of tensors that start anew because they have another shape in the checkpoint, or because they
            adapt other frozen layers.
        missing: names of tensors that start anew because the checkpoint lacks them.
        unused: names of tensors of the checkpoint that this network lacks.
    """

    same: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.same) + len(self.reshaped) + len(self.missing)
        remarks = [
            f"{len(names)} {reason} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
            for names, reason in (
                (self.reshaped, "have another shape or other layers in the checkpoint"),
                (self.missing, "are not in the checkpoint"),
                (self.unused, "are only in the checkpoint"),
            )
            if names
        ]
        return "; ".join([f"{len(self.same)} of {total} tensors were taken over", *remarks])


def transfer_weights(network: nn.Module, path: Path) -> TransferReport:
    """Copy the tensors of a checkpoint that fit into a network; the others keep their initial values.

    A tensor of another shape starts anew: a position embedding belongs to a number of tokens, for example. So does what
    adapts other frozen layers, whatever its shape.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    other_layers = read_state(path).llm_sha256 != getattr(network, "llm_sha256", "")
    adaptation = getattr(network, "adaptation", "") if other_layers else ""
    stored, trained = read_tensors(path), trainable_state(network)
    shared = sorted(trained.keys() & stored.keys())
    transferable = [
        name for name in shared if trained[name].shape == stored[name].shape and not (adaptation and adaptation in name)
    ]
    with torch.no_grad():
        for name in transferable:
            trained[name].copy_(stored[name])
    return TransferReport(
        tuple(transferable),
        tuple(name for name in shared if name not in transferable),
        tuple(sorted(trained.keys() - stored.keys())),
        tuple(sorted(stored.keys() - trained.keys())),
    )


def find_checkpoint(location: Path) -> Path:
    """Find the checkpoint at a location: a checkpoint, a fold's folder, or a model folder with one trained fold.

    Raises:
        Ambiguous: the model folder holds several trained folds.
        MissingFile: there is no checkpoint.
    """
    if location.is_file():
        return location
    folders = (location, *find_fold_folders(location).values())
    checkpoints = [path for folder in folders if (path := checkpoint_path(folder, "final")).exists()]
    if len(checkpoints) > 1:
        raise Ambiguous("trained fold", [str(path.parent) for path in checkpoints])
    if not checkpoints:
        raise MissingFile(
            checkpoint_path(location, "final"), "give a model folder, a trained fold's folder or a checkpoint"
        )
    return checkpoints[0]
