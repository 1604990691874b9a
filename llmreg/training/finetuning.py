"""Starting a training from the weights of another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from llmreg.errors import Ambiguous, MissingFile
from llmreg.networks.factory import trainable_state
from llmreg.training.checkpoints import checkpoint_path, network_tensors, read_state


@dataclass(frozen=True)
class TransferReport:
    """Which tensors of a network were taken over from a checkpoint.

    Attributes:
        same: names of tensors that were taken over.
        reshaped: names of tensors that start anew because they have another shape in the checkpoint, or because they
            are LoRA of other layers.
        missing: names of tensors that start anew because the checkpoint lacks them.
        unused: names of tensors of the checkpoint that this network lacks.
    """

    same: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.same)} of {len(self.same) + len(self.reshaped) + len(self.missing)} tensors were taken over"
        for names, reason in (
            (self.reshaped, "have another shape or other layers in the checkpoint"),
            (self.missing, "are not in the checkpoint"),
            (self.unused, "are only in the checkpoint"),
        ):
            if names:
                shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
                text += f"; {len(names)} {reason} ({shown})"
        return text


def transfer_weights(network: nn.Module, path: Path) -> TransferReport:
    """Copy the tensors of a checkpoint that fit into a network; the others keep their initial values.

    A position embedding belongs to a number of tokens, and adapters to the width of a language model: they start anew
    where the plans differ in these. So does LoRA of other frozen layers, whatever its shape.

    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    other_layers = read_state(path).llm_sha256 != getattr(network, "llm_sha256", "")
    stored, trained = network_tensors(path), trainable_state(network)
    shared = sorted(trained.keys() & stored.keys())
    same = [
        name for name in shared if trained[name].shape == stored[name].shape and not (other_layers and "lora_" in name)
    ]
    with torch.no_grad():
        for name in same:
            trained[name].copy_(stored[name])
    return TransferReport(
        tuple(same),
        tuple(name for name in shared if name not in same),
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
    folders = [
        folder for folder in (location, *sorted(location.glob("fold_*"))) if checkpoint_path(folder, "final").exists()
    ]
    if len(folders) > 1:
        raise Ambiguous("trained fold", [str(folder) for folder in folders])
    if not folders:
        raise MissingFile(
            checkpoint_path(location, "final"), "give a model folder, a trained fold's folder or a checkpoint"
        )
    return checkpoint_path(folders[0], "final")
