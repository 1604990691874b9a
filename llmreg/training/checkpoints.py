"""Checkpoints: tensors in safetensors, the state as JSON in its header and, for people, in a file beside it."""

import errno
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmreg.errors import NotPrepared, UnreadableFile
from llmreg.files import atomic_write, write_json
from llmreg.networks.factory import load_trainable_state, trainable_state

# Prefixes of the names of tensors in a checkpoint: of the network's weights, and of the optimiser's moments.
WEIGHTS_PREFIX, _OPTIMIZER = "network.", "optimizer."


class TrainingState(BaseModel):
    """Where a training stands. Tensors aside this is all of it, since random numbers follow from the step's number.

    Attributes:
        plans_digest: hash of the plans it follows.
        llm_sha256: hash of the frozen layers it was trained with.
        configuration: name of the plans' configuration.
        fold: ``0`` ... or ``all``.
        epoch: epochs done.
        epochs: epochs planned; the learning rate's schedule depends on it.
        step: steps done of the epoch after these.
        sums: of each logged value, its sum over these steps and the number of steps in which it was known.
        best_score: best validation score so far (see ``Validation.score``); None without validation pairs.
        processes: number of processes that train together.
        pairs_sha256: hash of the pairs it was started on; None in checkpoints of earlier versions.
    """

    # Earlier versions wrote more keys.
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


class CheckpointWriter:
    """Writes the checkpoints of a run and knows when the next one is due.

    Args:
        folder: the fold's folder.
        network: the network whose trained weights are written.
        optimizer: its moments are written with the latest checkpoint.
        seconds: age of the last checkpoint at which another one is due.
        active: whether this process writes; several that train together count the time alike, and one writes.
        clock: returns seconds.
    """

    def __init__(
        self,
        folder: Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        seconds: float,
        *,
        active: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._network, self._optimizer, self._active = folder, network, optimizer, active
        self._seconds, self._clock, self._written_at = seconds, clock, clock()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is so old that another one should be written."""
        return self._clock() - self._written_at > self._seconds

    def write(self, state: TrainingState, *names: str) -> None:
        """Write the checkpoints of these names: ``best``, ``latest`` or ``final``."""
        for name in names if self._active else ():
            save_checkpoint(self._folder, name, state, self._network, self._optimizer if name == "latest" else None)
        self._written_at = self._clock()


def checkpoint_path(folder: Path, name: str) -> Path:
    """Path of a fold's ``best``, ``latest`` or ``final`` checkpoint."""
    return folder / f"checkpoint_{name}.safetensors"


def save_checkpoint(
    folder: Path, name: str, state: TrainingState, network: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write ``checkpoint_<name>``, with the moments of an optimiser when one is given, so that training can resume."""
    tensors = {
        WEIGHTS_PREFIX + name: value.detach().cpu().contiguous() for name, value in trainable_state(network).items()
    }
    if optimizer is not None:
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        tensors |= {
            f"{_OPTIMIZER}{key}.{names[index]}": value.cpu().contiguous()
            for index, moments in optimizer.state_dict()["state"].items()
            for key, value in moments.items()
        }
    write_tensors(checkpoint_path(folder, name), tensors, {"state": state.model_dump_json()})
    write_json(checkpoint_path(folder, name).with_suffix(".json"), state.model_dump())


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


def read_state(path: Path) -> TrainingState:
    """Read the state of a checkpoint.

    Raises:
        NotPrepared: the checkpoint does not exist.
        UnreadableFile: it is damaged.
    """
    if not path.exists():
        raise NotPrepared(path, "train")
    try:
        with safe_open(path, framework="pt") as file:
            return TrainingState.model_validate(json.loads((file.metadata() or {})["state"]))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UnreadableFile(path, f"is damaged ({error})", "train again or copy it again") from error


def load_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> TrainingState:
    """Put a checkpoint's tensors into a network, and its moments into an optimiser.

    Raises:
        NotPrepared: the checkpoint does not exist.
        UnreadableFile: it is damaged, does not fit the network, or was trained with other frozen layers than it has.
    """
    state = read_state(path)
    sha256 = getattr(network, "llm_sha256", state.llm_sha256)
    if sha256 != state.llm_sha256:
        raise UnreadableFile(
            path,
            f"was trained with other LLM layers (sha256 {state.llm_sha256[:12]}, here {sha256[:12]})",
            "use the weights it was trained with",
        )
    try:
        load_trainable_state(network, read_tensors(path))
    except ValueError as error:
        raise UnreadableFile(
            path,
            f"does not fit the network of these plans ({error})",
            "use the plans that it was trained with, or train again",
        ) from error
    if optimizer is not None:
        stored = read_tensors(path, _OPTIMIZER)
        trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
        # Fused optimisers rely on moments that lie in memory as their parameters do.
        moments = {
            index: {"step": stored[f"step.{name}"]}
            | {key: torch.empty_like(parameter).copy_(stored[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
            for index, (name, parameter) in enumerate(trained)
            if f"step.{name}" in stored
        }
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return state


def read_tensors(path: Path, prefix: str = WEIGHTS_PREFIX) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by their names without a prefix: the network's, or those of another prefix."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
