"""The folds of a model, and how far they, or samples of one of them, lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmreg.devices import autocast
from llmreg.errors import UserError
from llmreg.inference.models import Model
from llmreg.networks.config import language_model
from llmreg.networks.factory import build_network, trainable_state
from llmreg.networks.language_models.layer import merge_lora
from llmreg.networks.registration_network import RegistrationNetwork
from llmreg.networks.resolution import predict_flow
from llmreg.plans.plans import PLANS_FILE, Plans
from llmreg.training import checkpoints as checkpoint

# Voxels by which LoRA that is merged into the frozen weights may change the field.
MERGED_CHANGE = 0.01
# Of a single fold, so many samples, in each of which this share of the features is left out.
SAMPLES, DROPPED = 8, 0.1


class Ensemble:
    """A model's folds, which share one network and its frozen weights.

    Args:
        model: from :mod:`llmreg.inference.models`.
        plans: its plans.
        device: where to compute.

    Attributes:
        velocity: whether the flows are velocities and not displacements.

    Raises:
        UserError: the checkpoints, plans and LLM weights do not belong together.
    """

    def __init__(self, model: Model, plans: Plans, device: torch.device) -> None:
        configuration = plans.configuration(model.configuration)
        self.velocity = plans.network.field == "velocity"
        self._autocast, self._device = plans.training.autocast, device
        self._downsampling = configuration.downsampling
        self._network = build_network(plans.network, configuration.network_shape[::-1], device).eval()
        self._states: list[dict[str, Tensor]] = []
        for path in model.folds.values():
            state = checkpoint.load(path, self._network)
            if state.plans_digest != plans.digest(model.configuration):
                raise UserError(f"{path} was trained with plans other than {PLANS_FILE} beside it: restore that file.")
            self._states.append({k: v.detach().clone() for k, v in trainable_state(self._network).items()})
        # Folds share the frozen weights, so that only those of a single one can take its LoRA in.
        llm = language_model(plans.network)
        self._may_merge = len(self._states) == 1 and llm is not None and llm.lora is not None

    def flows(self, moving: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """What each fold makes of a pair.

        Args:
            moving: (1, 1, z, y, x), of the configuration's padded size.
            fixed: the same.

        Yields:
            (1, 3, z, y, x), voxels, channels (x, y, z): displacements or velocities.
        """
        for state in self._states:
            if len(self._states) > 1:
                own = trainable_state(self._network)
                with torch.no_grad():
                    for name, value in state.items():
                        own[name].copy_(value)
            yield self._flow(moving, fixed)

    def samples(self, moving: Tensor, fixed: Tensor) -> Iterator[Tensor]:
        """As :meth:`flows`; of a single fold, what it makes of the pair with some of its features left out.

        Reference: Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016.
        """
        if len(self._states) > 1:
            yield from self.flows(moving, fixed)
            return
        seeded = torch.Generator(device=self._device).manual_seed(0)
        with _dropping(self._network, seeded):
            for _ in range(SAMPLES):
                yield self._flow(moving, fixed)

    def _flow(self, moving: Tensor, fixed: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self._device, self._autocast):
            _, flow = predict_flow(self._network.raw, moving, fixed, self._downsampling)
            if self._may_merge:
                # Rounded to the frozen weights' type, the sum may say less than its parts: the first pair tells.
                self._may_merge = False
                restore = merge_lora(self._network)
                _, merged = predict_flow(self._network.raw, moving, fixed, self._downsampling)
                if float((merged - flow).abs().max()) < MERGED_CHANGE:
                    flow = merged
                else:
                    restore()
        return flow


@contextmanager
def _dropping(network: RegistrationNetwork, seeded: torch.Generator) -> Iterator[None]:
    """Whole channels of what the network's feature modules give are left out at random, and the others scaled up."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept = torch.rand(output.shape[:2], generator=seeded, device=output.device) >= DROPPED
        return output * (kept / (1 - DROPPED)).to(output.dtype)[..., None, None, None]

    handles = [part.register_forward_hook(drop) for part in network.feature_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
