"""A step of the optimiser: forward, loss, backward, update."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from llmreg.devices import autocast
from llmreg.plans.plan_settings import Training
from llmreg.similarity.loss_settings import LossSettings, compute_terms, sum_terms
from llmreg.similarity.term_registry import LossInputs

# Each logged value has its sum over steps and the number of steps in which it was known.
Sums = dict[str, tuple[float, int]]


class NonFiniteBatch(Exception):
    """A loss or its gradient is not finite; the weights have not been changed by it.

    All processes that train together raise it in the same step.

    Attributes:
        batch: the first batch of this process whose loss is not finite, or else the last.
        values: its loss and terms.
    """

    def __init__(self, batch: dict[str, Tensor], values: Mapping[str, float]) -> None:
        super().__init__(f"the loss is {values['loss']}")
        self.batch, self.values = batch, values


class Learner:
    """Takes training steps.

    Args:
        network: a :class:`llmreg.networks.registration_network.GridNetwork`, compiled or over several processes where
            that is asked for.
        optimizer: of its trained parameters.
        device: where the network lies.
        loss: what is minimised.
        settings: precision, accumulation and clipping of gradients.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        loss: LossSettings,
        settings: Training,
    ) -> None:
        self._network, self._optimizer, self._device = network, optimizer, device
        self._loss, self._settings = loss, settings

    def step(self, batches: Iterator[dict[str, Tensor]], rate: float) -> Sums:
        """Change the weights once, after as many batches as the settings accumulate.

        Args:
            batches: where the batches come from.
            rate: the learning rate.

        Returns:
            The sums over the batches of the loss (``loss``) and of its terms (``loss_<term>``).

        Raises:
            NonFiniteBatch: a loss or the gradient is not finite.
        """
        self._network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        sums: Sums = {}
        suspect: NonFiniteBatch | None = None
        for part in range(self._settings.accumulate):
            with record_function("load"):
                batch = {key: value.to(self._device, non_blocking=True) for key, value in next(batches).items()}
            # Processes exchange gradients once a step, with the last batch.
            is_last = part + 1 == self._settings.accumulate
            with nullcontext() if is_last else getattr(self._network, "no_sync", nullcontext)():
                values = self._backward(batch)
            sums = add_sums([sums, {name: (value, 1) for name, value in values.items()}])
            if suspect is None or math.isfinite(suspect.values["loss"]):
                suspect = NonFiniteBatch(batch, values)
        with record_function("update"):
            trained = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
            # The gradient is that of all processes: where one has a loss that is not finite, the others stop too.
            norm = nn.utils.clip_grad_norm_(trained, self._settings.clip_gradient or math.inf)
            if suspect is not None and not torch.isfinite(norm):
                raise suspect
            self._optimizer.step()
        return sums

    def _backward(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Add the gradient of a batch and return its loss and terms."""
        with record_function("forward"), autocast(self._device, self._settings.autocast):
            flow, full_flow = self._network(batch["moving"], batch["fixed"])
        with record_function("loss"):
            terms = compute_terms(LossInputs(batch, flow, full_flow), self._loss)
            # Several pairs without a structure in common have no Dice, and smoothness may have the weight 0.
            loss = sum_terms(terms, self._loss) if terms else torch.zeros((), device=self._device)
            # A NaN flow yields a finite Dice loss of 1; this sum makes the loss NaN, so the check fires.
            loss = loss + flow.sum() * 0.0
        with record_function("backward"):
            (loss / self._settings.accumulate).backward()
        return {"loss": loss.item()} | {f"loss_{name}": term.item() for name, term in terms.items()}


def add_sums(several: Sequence[Sums]) -> Sums:
    """Add the sums of several steps or processes."""
    totals: Sums = {}
    for sums in several:
        for name, (value, count) in sums.items():
            total, total_count = totals.get(name, (0.0, 0))
            totals[name] = total + value, total_count + count
    return totals


def mean_values(sums: Sums) -> dict[str, float]:
    """The mean of each value over the steps in which it was known; Dice is unknown without annotated structures."""
    return {name: value / count for name, (value, count) in sorted(sums.items())}
