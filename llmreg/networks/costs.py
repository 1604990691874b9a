"""What a training step costs, in memory and time, before anything is built.

A network estimates its own share (:meth:`llmreg.networks.registry.NetworkPlugin.step_cost`); this module adds what
every network has in common. The constants are fitted to ``benchmarks/training_memory.py``.
"""

from __future__ import annotations

from llmreg.networks.registry import NetworkSettings, StepSize, plugin_of

# Bytes of a trained parameter: weight, gradient and Adam's two moments, in float32.
TRAINED_BYTES = 16
# Memory (GiB) of Python and PyTorch, or of a GPU's context.
BASE_GB = 0.5
# Memory (GiB) of warping and Dice for a million voxels of the grid.
GRID_GB = 0.045


def training_memory_gb(settings: NetworkSettings, size: StepSize) -> float:
    """Peak memory (GiB) of training."""
    cost = plugin_of(settings).step_cost(settings, size)
    loss = GRID_GB * size.grid_voxels / 1e6 + size.loss_gb * size.megavoxels
    weights = TRAINED_BYTES * cost.trained_parameters + cost.frozen_bytes
    return BASE_GB + cost.libraries_gb + weights / 2**30 + size.pairs * (cost.activations_gb + loss)


def step_seconds(settings: NetworkSettings, size: StepSize) -> float:
    """Rough time of a training step on the machine's CPU."""
    return size.pairs * plugin_of(settings).step_cost(settings, size).core_seconds / size.machine.cores
