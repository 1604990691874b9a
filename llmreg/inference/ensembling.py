"""The folds of a model, and how far their predictions lie apart."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from llmreg.devices import autocast
from llmreg.errors import UserError
from llmreg.inference.models import Model
from llmreg.networks.factory import build_network, trainable_state
from llmreg.networks.resolution import GridNetwork
from llmreg.plans.plans import PLANS_FILE, Plans
from llmreg.training.checkpoints import load_checkpoint

# Voxels by which LoRA that is merged into the frozen weights may change the field.
MERGED_CHANGE = 0.01


class Ensemble:
    """A model's folds, which share one network and its frozen weights.

    Args:
        model: from :mod:`llmreg.inference.models`.
        plans: its plans.
        device: where to compute.
        merge_lora: whether LoRA of a single fold is merged into the frozen weights, which is faster, where that changes
            the field of a made-up pair by less than :data:`MERGED_CHANGE` voxels.

    Attributes:
        velocity: whether the flows are velocities and not displacements.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
    """

    def __init__(self, model: Model, plans: Plans, device: torch.device, *, merge_lora: bool = True) -> None:
        configuration = plans.configuration(model.configuration)
        self._autocast, self._device = plans.training.autocast, device
        network = build_network(plans.network, configuration.network_shape[::-1], device)
        self._network = GridNetwork(network, configuration.downsampling).eval()
        self.velocity = network.velocity
        self._states: list[dict[str, Tensor]] = []
        for path in model.folds.values():
            state = load_checkpoint(path, network)
            if state.plans_digest != plans.digest(model.configuration):
                raise UserError(f"{path} was trained with plans other than {PLANS_FILE} beside it: restore that file.")
            self._states.append({k: v.detach().clone() for k, v in trainable_state(network).items()})
        # Several folds share the frozen weights, which can hold the LoRA of one alone.
        if merge_lora and len(self._states) == 1:
            self._merge_lora()

    def flows(self, moving: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """The prediction of each fold for a pair.

        Args:
            moving: (1, 1, z, y, x), of the configuration's padded size.
            fixed: the same.

        Yields:
            (1, 3, z, y, x), voxels, channels (x, y, z): displacements or velocities.
        """
        for state in self._states:
            if len(self._states) > 1:
                weights = trainable_state(self._network.network)
                with torch.no_grad():
                    for name, value in state.items():
                        weights[name].copy_(value)
            yield self._flow(moving, fixed)

    def _flow(self, moving: Tensor, fixed: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self._device, self._autocast):
            return self._network.raw(moving, fixed)

    def _merge_lora(self) -> None:
        """Merge LoRA into the frozen weights, unless rounding the sum to their type changes the field too much."""
        undo = self._network.network.merge_lora()
        if undo is None:
            return
        moving, fixed = _made_up_pair(self._network.shape, self._device)
        merged = self._flow(moving, fixed)
        undo()
        if float((merged - self._flow(moving, fixed)).abs().max()) < MERGED_CHANGE:
            self._network.network.merge_lora()


def _made_up_pair(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Two smooth random images (1, 1, z, y, x) with values from 0 to 1, always the same ones."""
    coarse = torch.rand(2, 1, *(-(-size // 8) for size in shape), generator=torch.Generator().manual_seed(0))
    moving, fixed = functional.interpolate(coarse, size=tuple(shape), mode="trilinear").to(device).split(1)
    return moving, fixed


def deviation(flows: Sequence[NDArray[np.float32]], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Root of the mean squared distance of displacements from their mean, (z, y, x), mm.

    Args:
        flows: vectors (z, y, x, 3), mm, two or more.
        matrix: (3, 3), what happens to them afterwards.
    """
    mean = np.mean(flows, axis=0)
    away = [(flow - mean) @ matrix.T.astype(np.float32) for flow in flows]
    squares = sum((vectors**2).sum(axis=-1) for vectors in away)
    return np.sqrt(squares / (len(flows) - 1)).astype(np.float32)
