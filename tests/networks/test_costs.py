"""Estimates of memory against the peaks that ``benchmarks/training_memory.py`` measured (GiB)."""

from __future__ import annotations

from typing import Any

import pytest

from llmreg.devices import Machine
from llmreg.networks.costs import training_memory_gb
from llmreg.networks.registry import StepSize, network_settings

# Network, changes of its settings, gradient checkpointing, size of the grid along each axis, peaks in float32 and
# bfloat16 (None: not measured).
MEASURED: list[tuple[str, dict[str, Any], bool, int, tuple[float | None, float]]] = [
    ("voxelmorph", {}, False, 64, (0.76, 0.77)),
    ("voxelmorph", {}, False, 96, (1.80, 1.40)),
    ("voxelmorph", {"size": "small"}, False, 96, (1.57, 1.47)),
    ("transmorph", {}, False, 64, (2.03, 1.81)),
    ("transmorph", {}, False, 96, (2.93, 2.55)),
    ("transmorph", {"stages": 3}, False, 64, (1.44, 1.25)),
    ("transmorph", {"stages": 3}, False, 96, (None, 2.05)),
    ("mambamorph", {}, False, 96, (3.62, 2.83)),
    ("mambamorph", {}, True, 96, (2.93, 2.16)),
    ("mambamorph", {"features": False}, False, 96, (2.68, 2.41)),
    ("dual_pyramid", {}, False, 96, (1.63, 1.51)),
    ("dual_pyramid", {"width": 16}, False, 64, (None, 0.93)),
    ("dual_pyramid", {"width": 16}, False, 96, (2.29, 1.92)),
]


@pytest.mark.parametrize(("name", "changes", "recompute", "edge", "peaks"), MEASURED)
def test_memory_is_estimated_as_measured(
    name: str, changes: dict[str, Any], recompute: bool, edge: int, peaks: tuple[float | None, float]
) -> None:
    settings = network_settings(name, **changes)
    for bfloat16, peak in enumerate(peaks):
        if peak is not None:
            size = StepSize((edge,) * 3, edge**3, Machine("cpu", 64, 2, bool(bfloat16)), recompute)
            assert training_memory_gb(settings, size) == pytest.approx(peak, rel=0.2)


def test_trained_layers_of_a_vision_transformer_are_counted() -> None:
    """With tokens of 4,096 channels, two trained layers and their Adam states take 6 GiB."""
    size = StepSize((96, 80, 96), 96 * 80 * 96, Machine("cpu", 64, 2, True))
    measured = 10.18
    settings = network_settings("llm_morph", blocks="vit", token_width=4096, cost_volume=1)
    assert training_memory_gb(settings, size) == pytest.approx(measured, rel=0.15)
    adapters = network_settings("llm_morph", blocks="adapters", token_width=4096, cost_volume=1)
    assert training_memory_gb(settings, size) - training_memory_gb(adapters, size) == pytest.approx(6.0, abs=0.1)
