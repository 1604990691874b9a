"""Starting from what another training learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llmreg.errors import UserError
from llmreg.networks.factory import trainable_state
from llmreg.training.checkpoints import network_tensors, path_of, read_state


@dataclass(frozen=True)
class TransferReport:
    """What a network took over from a checkpoint.

    Attributes:
        same: names of tensors that were taken over.
        reshaped: of tensors that have another shape there, or are LoRA of other layers, and start anew.
        missing: of tensors that are not there and start anew.
        unused: of tensors there that this network has not.
    """

    same: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        said = f"{len(self.same)} of {len(self.same) + len(self.reshaped) + len(self.missing)} tensors were taken over"
        for names, why in (
            (self.reshaped, "of another shape or other layers there"),
            (self.missing, "not there"),
            (self.unused, "there but not here"),
        ):
            if names:
                shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
                said += f"; {len(names)} {why} ({shown})"
        return said


def transfer_weights(network: nn.Module, path: Path) -> TransferReport:
    """Put the tensors of a checkpoint that fit into a network; the others keep their start.

    A position embedding belongs to a number of tokens, and adapters to the width of a language model: these start anew
    where the datasets' plans differ in them. So does LoRA of other frozen layers, whatever its shape.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    other_layers = read_state(path).llm_sha256 != getattr(network, "llm_sha256", "")
    stored, own = network_tensors(path), trainable_state(network)
    shared = sorted(own.keys() & stored.keys())
    same = [name for name in shared if own[name].shape == stored[name].shape and not (other_layers and "lora_" in name)]
    with torch.no_grad():
        for name in same:
            own[name].copy_(stored[name])
    return TransferReport(
        tuple(same),
        tuple(name for name in shared if name not in same),
        tuple(sorted(own.keys() - stored.keys())),
        tuple(sorted(stored.keys() - own.keys())),
    )


def checkpoint_in(place: Path) -> Path:
    """The checkpoint that a user means by a checkpoint, a fold's folder, or a model folder with one trained fold.

    Raises:
        UserError: there is none, or more than one.
    """
    if place.is_file():
        return place
    found = [folder for folder in (place, *sorted(place.glob("fold_*"))) if path_of(folder, "final").exists()]
    if len(found) == 1:
        return path_of(found[0], "final")
    listed = ", ".join(folder.name for folder in found)
    raise UserError(
        f"{place} holds several trained folds ({listed}): give the folder of one."
        if found
        else f"{place} holds no trained fold: give a model folder, a fold's folder or a checkpoint."
    )
