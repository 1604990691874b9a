"""Descent by Adam that returns the best values it met and stops when it no longer makes progress."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Adam's learning rates: the first one, and the one below which the descent ends.
FIRST_RATE, LEAST_RATE = 0.4, 0.025
# The rate is halved when the objective has not fallen by the share GAIN for PATIENCE steps.
GAIN, PATIENCE = 1e-3, 2


def descend(objective: Callable[[Tensor], Tensor], start: Tensor, limit: int) -> tuple[Tensor, int]:
    """Minimise an objective.

    Args:
        objective: a scalar, which can be differentiated by the values.
        start: the first values.
        limit: the most steps to take.

    Returns:
        The values with the lowest objective among all that were met, and the number of steps that were taken.
    """
    values = start.clone().requires_grad_()
    adam = torch.optim.Adam([values], FIRST_RATE)
    rate = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=PATIENCE, threshold=GAIN)
    best, lowest = start, math.inf
    for step in range(limit + 1):
        value = objective(values)
        if value.item() < lowest:
            best, lowest = values.detach().clone(), value.item()
        rate.step(value.item())
        if step == limit or adam.param_groups[0]["lr"] < LEAST_RATE:
            break
        adam.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return best, step
