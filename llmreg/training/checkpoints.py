"""Checkpoints: tensors in safetensors, state as JSON in its header and, for people, in a file beside it."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmreg.errors import UserError
from llmreg.files import atomic_write, write_json
from llmreg.networks.factory import load_trainable_state, trainable_state

_NETWORK, _OPTIMIZER = "network.", "optimizer."


class State(BaseModel):
    """Where a training stands: all of it beside the tensors, since what is random follows from the number of the step.

    Attributes:
        plans_digest: hash of the plans it follows.
        llm_sha256: hash of the frozen layers it was trained with.
        epoch: epochs done.
        epochs: epochs planned; the learning rate's schedule depends on it.
        step: steps done of the epoch after these.
        sums: of each logged value over these steps, and in how many of them it was known.
        best_score: best validation score so far (see ``Validation.score``); None without validation pairs.
        processes: that trained together.
        pairs_sha256: hash of the pairs it was started on; None in checkpoints of earlier versions.
    """

    # Earlier versions wrote more.
    model_config = ConfigDict(extra="ignore", frozen=True)

    plans_digest: str
    llm_sha256: str
    configuration: str
    fold: str
    epoch: int = 0
    epochs: int
    step: int = 0
    sums: dict[str, tuple[float, int]] = {}
    best_score: float | None = None
    processes: int = 1
    pairs_sha256: str | None = None


def path_of(folder: Path, which: str) -> Path:
    return folder / f"checkpoint_{which}.safetensors"


def save(
    folder: Path, which: str, state: State, network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write ``checkpoint_<which>``; with the optimiser's moments when given, so that training can go on."""
    tensors = {_NETWORK + name: value.detach().cpu().contiguous() for name, value in trainable_state(network).items()}
    if optimizer is not None:
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"{_OPTIMIZER}{key}.{names[index]}"] = value.cpu().contiguous()
    write_tensors(path_of(folder, which), tensors, {"state": state.model_dump_json()})
    write_json(path_of(folder, which).with_suffix(".json"), state.model_dump())


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors so that they are on the disk when this returns, or nothing is.

    Raises:
        OSError: ENOSPC where the disk is full.
    """
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            if re.search(r"os error (27|28|122)\)", str(error)):
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
            raise
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())


def remove_debris(folder: Path) -> None:
    """Remove what a training that was killed while it wrote has left."""
    for pattern in (".partial-*", ".tmp*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def read_state(path: Path) -> State:
    """Raises UserError when the checkpoint is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path} does not exist: train this fold first (llmreg_train).")
    try:
        with safe_open(path, framework="pt") as file:
            return State.model_validate(json.loads((file.metadata() or {})["state"]))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): train again or copy it again.") from error


def load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> State:
    """Put a checkpoint's tensors into a network, and its moments into an optimiser.

    Raises:
        UserError: the checkpoint does not fit the network, or was trained with other LLM weights.
    """
    state = read_state(path)
    sha256 = getattr(network, "llm_sha256", state.llm_sha256)
    if sha256 != state.llm_sha256:
        raise UserError(
            f"{path} was trained with other LLM layers (sha256 {state.llm_sha256[:12]}, here {sha256[:12]}): "
            "use the weights it was trained with."
        )
    load_trainable_state(network, network_tensors(path))
    if optimizer is not None:
        trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        stored = _tensors_below(path, _OPTIMIZER)
        content: dict[str, Any] = optimizer.state_dict()
        # Moments lie in memory as their parameters do, which fused optimisers rely on.
        content["state"] = {
            index: {"step": stored[f"step.{name}"]}
            | {key: torch.empty_like(parameter).copy_(stored[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
            for index, (name, parameter) in enumerate(trained)
            if f"step.{name}" in stored
        }
        optimizer.load_state_dict(content)
    return state


def network_tensors(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors by their names in the network."""
    return _tensors_below(path, _NETWORK)


def _tensors_below(path: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
