"""Where a training starts: anew, from another model's weights, or from its own latest checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from llmreg.errors import HoldsTraining, OtherPlans
from llmreg.training.checkpoints import TrainingState, checkpoint_path, load_checkpoint, read_state
from llmreg.training.finetuning import transfer_weights
from llmreg.training.options import TrainingOptions

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
            log.info("From %s: %s.", options.pretrained, transfer_weights(network, options.pretrained))
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
    epochs = max(options.epochs or stored.epochs, stored.epoch)
    return stored.model_copy(update={"epochs": epochs, "processes": initial.processes})


def remove_leftovers(folder: Path, state: TrainingState) -> None:
    """Remove files of an interrupted write, and the final checkpoint of a training that is to become longer.

    The old final checkpoint would be taken for the new one.
    """
    for pattern in (".partial-*", ".tmp*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if state.epoch < state.epochs:
        final = checkpoint_path(folder, "final")
        for path in (final, final.with_suffix(".json")):
            path.unlink(missing_ok=True)
