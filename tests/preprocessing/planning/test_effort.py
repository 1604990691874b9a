"""Training on a CPU ends within a night, and the reason for the batch size tells what would fit."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_studies import abdomen, brain, default

from llmreg.devices import Machine
from llmreg.networks.costs import step_seconds, training_memory_gb
from llmreg.networks.registry import StepSize
from llmreg.plans.plan_settings import Training
from llmreg.preprocessing.planning.effort import FEWEST_EPOCHS, NIGHT_HOURS


def test_on_a_processor_a_night_must_do() -> None:
    slow, fast = (brain().plans(Machine("cpu", 64, *speed)) for speed in ((2, False), (64, True)))
    assert (slow.default_configuration, slow.training.epochs) == ("half", FEWEST_EPOCHS)
    assert "night" in slow.reasons["default_configuration"]
    assert (fast.default_configuration, fast.training.epochs) == ("full", Training().epochs)
    for cores in (6, 8, 12, 16):
        plans = abdomen().plans(Machine("cpu", 64, cores, False))
        seconds = step_seconds(plans.network, StepSize((96, 80, 96), 192 * 160 * 192, Machine("cpu", 64, cores, False)))
        hours = plans.training.epochs * plans.training.steps_per_epoch * seconds / 3600
        assert hours <= NIGHT_HOURS < hours * (1 + 1.01 / plans.training.epochs)
        assert str(plans.training.epochs) in plans.reasons["training.epochs"]


@pytest.mark.parametrize("memory", [5.0, 10.0, 40.0])
def test_the_reason_for_one_pair_a_step_says_how_many_would_fit(memory: float) -> None:
    machine = Machine("cuda", memory, 8, True)
    plans = abdomen().plans(machine)
    found, reason = default(plans), plans.reasons["training.batch_size"]
    fitting = int(reason.split("; ")[1].split()[0]) if "would fit" in reason else 1
    shape, grid = found.network_shape[::-1], int(np.prod(found.padded_size))
    needed = [
        training_memory_gb(plans.network, StepSize(shape, grid, machine, found.recompute, pairs, plans.loss.memory_gb))
        for pairs in (fitting, fitting + 1)
    ]
    assert needed[0] <= memory < needed[1]
    assert plans.training.batch_size == 1
