"""A step of the optimiser: forward, loss, backward, update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from llmreg.devices import autocast
from llmreg.networks.resolution import predict_flow
from llmreg.plans.plans import Plans
from llmreg.training.objective import Predicted, terms, total

# Of each logged value, over steps: its sum, and in how many it was known.
Sums = dict[str, tuple[float, int]]


class NotFinite(Exception):
    """A loss or its gradient is no number; the weights have not been touched by it.

    All processes that train together meet it in the same step.

    Attributes:
        batch: of this process, the first whose loss is no number, or else the last.
        values: its loss and terms.
    """

    def __init__(self, batch: dict[str, Tensor], values: Mapping[str, float]) -> None:
        super().__init__(f"the loss is {values['loss']}")
        self.batch, self.values = batch, values


class Learner:
    """What a training step needs, whatever it is called for.

    Args:
        plans: loss, optimiser's settings and precision.
        downsampling: from the images' grid to the network's.
        network: as it is called, that is, compiled or over several processes if it is to be.
        optimizer: of its trained parameters.
        device: where it lies.
    """

    def __init__(
        self,
        plans: Plans,
        downsampling: int,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self._loss, self._settings = plans.loss, plans.training
        self._downsampling, self._network, self._optimizer, self._device = downsampling, network, optimizer, device

    def step(self, batches: Iterator[dict[str, Tensor]], rate: float) -> Sums:
        """Change the weights after as many batches as the plans accumulate; the values of each are added up.

        Raises:
            NotFinite: a loss or the gradient is not.
        """
        self._network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        sums: Sums = {}
        suspect: NotFinite | None = None
        for part in range(self._settings.accumulate):
            with record_function("load"):
                batch = {key: value.to(self._device, non_blocking=True) for key, value in next(batches).items()}
            # Processes exchange gradients once a step, with the last batch.
            more = part + 1 < self._settings.accumulate
            waiting = isinstance(self._network, DistributedDataParallel) and more
            with self._network.no_sync() if waiting else nullcontext():  # type: ignore[operator]
                values = self._backward(batch)
            sums = added([sums, {name: (value, 1) for name, value in values.items()}])
            if suspect is None or math.isfinite(suspect.values["loss"]):
                suspect = NotFinite(batch, values)
        with record_function("update"):
            trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
            # Over all processes: where one has met a loss that is no number, the others stop too.
            norm = nn.utils.clip_grad_norm_(trained, self._settings.clip_gradient or math.inf)
            if suspect is not None and not torch.isfinite(norm):
                raise suspect
            self._optimizer.step()
        return sums

    def _backward(self, batch: dict[str, Tensor]) -> dict[str, float]:
        with record_function("forward"), autocast(self._device, self._settings.autocast):
            flow, full = predict_flow(self._network, batch["moving"], batch["fixed"], self._downsampling)
        with record_function("loss"):
            found = terms(Predicted(batch, flow, full, self._downsampling), self._loss)
            # Of several pairs that have no structure in common, smoothness of weight 0 leaves nothing.
            loss = total(found, self._loss) if found else torch.zeros((), device=self._device)
            # A field that is no number has no overlap, but its Dice is one: the sum of it tells.
            loss = loss + flow.sum() * 0.0
        with record_function("backward"):
            (loss / self._settings.accumulate).backward()
        return {"loss": loss.item()} | {f"loss_{name}": term.item() for name, term in found.items()}


def added(several: Sequence[Sums]) -> Sums:
    """Sums over more steps, or over those of several processes."""
    found: Sums = {}
    for sums in several:
        for name, (value, count) in sums.items():
            before, known = found.get(name, (0.0, 0))
            found[name] = before + value, known + count
    return found


def means(sums: Sums) -> dict[str, float]:
    """Of each value over the steps that have it: no pair need be annotated."""
    return {name: value / count for name, (value, count) in sorted(sums.items())}
