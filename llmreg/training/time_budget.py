"""How many epochs fit into a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from llmreg.training.step import Learner

# The first step takes longer: memory is set aside, kernels are chosen.
_WARM_UP = 1
TRIAL_STEPS = 5


def measure_step_seconds(
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Tensor]],
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Measure the time of a training step without a trace: the learning rate is zero, the moments are forgotten.

    Args:
        learner: of a training that has not begun.
        optimizer: the learner's.
        batches: the batches of :data:`TRIAL_STEPS` steps.
        clock: returns seconds.
    """
    durations = []
    with torch.random.fork_rng():
        for _ in range(TRIAL_STEPS):
            start = clock()
            learner.step(batches, 0.0)
            durations.append(clock() - start)
    optimizer.state.clear()
    return median(durations[_WARM_UP:])


def count_epochs(minutes: float, step_seconds: float, steps_per_epoch: int) -> int:
    """The number of epochs that fit into the minutes, at least one; validation after each comes on top."""
    return max(1, int(60 * minutes / (step_seconds * steps_per_epoch)))
