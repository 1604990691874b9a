"""How long training takes: the budget, the number of epochs and the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmreg.devices import Machine
from llmreg.networks.costs import step_seconds, training_memory_gb
from llmreg.networks.registry import NetworkSettings, StepSize
from llmreg.plans.plan_settings import Configuration, Training
from llmreg.similarity.loss_settings import LossSettings

# Training on a CPU should end within a night. Where a night gives full resolution fewer than FEWEST_EPOCHS, half
# resolution is trained.
NIGHT_HOURS = 10.0
FEWEST_EPOCHS = 20


@dataclass(frozen=True)
class Budget:
    """What decides the cost of a training beside the network: the machine and the loss."""

    machine: Machine
    loss: LossSettings = field(default_factory=LossSettings)

    def step_size(
        self, network_shape: Sequence[int], padded_size: Sequence[int], *, recompute: bool, pairs: int = 1
    ) -> StepSize:
        """The size of a training step; both shapes are (x, y, z)."""
        x, y, z = network_shape
        return StepSize((z, y, x), math.prod(padded_size), self.machine, recompute, pairs, self.loss.memory_gb)


def affordable_epochs(configuration: Configuration, network: NetworkSettings, budget: Budget) -> int | None:
    """The number of epochs that a night on the CPU allows; None on a GPU, for which there are no measurements."""
    if budget.machine.device != "cpu":
        return None
    shapes = configuration.network_shape, configuration.padded_size
    seconds = step_seconds(network, budget.step_size(*shapes, recompute=configuration.recompute))
    return int(NIGHT_HOURS * 3600 / (seconds * Training().steps_per_epoch))


def plan_epochs(configuration: Configuration, network: NetworkSettings, budget: Budget) -> tuple[int, str]:
    """Choose the default number of epochs, or on a CPU as many as a night allows, but not fewer than the least."""
    most = Training().epochs
    affordable = affordable_epochs(configuration, network, budget)
    if affordable is None or affordable >= most:
        return most, f"{most} epochs of {Training().steps_per_epoch} pairs."
    chosen = max(affordable, FEWEST_EPOCHS)
    return chosen, (
        f"{chosen} epochs of {Training().steps_per_epoch} pairs: what {budget.machine.cores} CPU cores train in about "
        f"{NIGHT_HOURS:g} hours, at least {FEWEST_EPOCHS}, at most {most}."
    )


def plan_batch_size(configuration: Configuration, network: NetworkSettings, budget: Budget) -> tuple[int, str]:
    """Choose the paper's batch size of 1; the reason says how many pairs would fit into the memory."""
    shapes = configuration.network_shape, configuration.padded_size
    with_one, with_two = (
        training_memory_gb(network, budget.step_size(*shapes, recompute=configuration.recompute, pairs=pairs))
        for pairs in (1, 2)
    )
    most = 1 + max(0, int((budget.machine.memory_gb - with_one) / (with_two - with_one)))
    return 1, (
        f"1, as in the paper: a step sees one pair; {most} would fit into {budget.machine.memory_gb:g} GB "
        "(training.batch_size), but whether they help was not measured."
        if most > 1
        else f"1: no second pair fits into {budget.machine.memory_gb:g} GB."
    )
