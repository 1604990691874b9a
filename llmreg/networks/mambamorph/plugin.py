"""MambaMorph in the registry of networks."""

from dataclasses import replace
from typing import Any, Literal

from llmreg.networks.network_registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, register, scale_cost

# Arguments of :func:`scale_cost`, which benchmarks/training_memory.py measured at 64 and 96 voxels along each axis,
# with and without the feature extractor.
_COSTS: dict[bool, Any] = {
    True: {"trained_parameters": 7_590_531, "activations_gb": (3.12, 2.23), "core_seconds": (19.9, 12.1)},
    False: {"trained_parameters": 7_305_459, "activations_gb": (2.07, 1.77), "core_seconds": (13.5, 8.5)},
}


class MambaMorphSettings(NetworkSettings):
    """MambaMorph (:class:`llmreg.networks.mambamorph.network.MambaMorph`).

    Attributes:
        features: whether both images pass through a shared feature extractor first.
    """

    name: Literal["mambamorph"]
    features: bool = True
    field: Literal["displacement", "velocity"] = "velocity"


class MambaMorphPlugin(NetworkPlugin[MambaMorphSettings]):
    """MambaMorph with or without its feature extractor."""

    name = "mambamorph"
    title = "MambaMorph"
    summary = "Mamba layers and a convolutional decoder (7.6 M; 7.3 M with network.features=false)"
    settings_type = MambaMorphSettings
    network = "llmreg.networks.mambamorph.network:MambaMorph"
    coarsest = 16

    def step_cost(self, settings: MambaMorphSettings, size: StepSize) -> StepCost:
        cost = scale_cost(size, **_COSTS[settings.features], libraries_gb=0.2)
        # A step needs less memory and more time where the feature extractor is recomputed.
        memory, time = (0.72, 1.15) if settings.features and size.recompute else (1.0, 1.0)
        return replace(cost, activations_gb=cost.activations_gb * memory, core_seconds=cost.core_seconds * time)


register(MambaMorphPlugin())
