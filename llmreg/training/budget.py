"""How many epochs fit into a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from llmreg.training.step import Learner

# The first step is longer: memory is set aside, kernels are chosen.
_WARM_UP = 1
TRIAL_STEPS = 5


def seconds_per_step(learner: Learner, optimizer: torch.optim.Optimizer, batches: Iterator[dict[str, Tensor]]) -> float:
    """Time of a training step, measured without leaving a trace: the learning rate is zero, the moments are forgotten.

    Args:
        learner: of a training that has not begun.
        optimizer: the learner's.
        batches: those of :data:`TRIAL_STEPS` steps.
    """
    taken = []
    with torch.random.fork_rng():
        for _ in range(TRIAL_STEPS):
            began = time.monotonic()
            learner.step(batches, 0.0)
            taken.append(time.monotonic() - began)
    optimizer.state.clear()
    return median(taken[_WARM_UP:])


def epochs_within(minutes: float, step_seconds: float, steps_per_epoch: int) -> int:
    """As many epochs as fit, at least one; validation after each comes on top."""
    return max(1, int(60 * minutes / (step_seconds * steps_per_epoch)))
