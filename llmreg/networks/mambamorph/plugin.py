"""MambaMorph in the registry of networks."""

from dataclasses import replace
from typing import Literal

from llmreg.networks.registry import MeasuredCost, NetworkPlugin, NetworkSettings, StepCost, StepSize, register

# Measured by benchmarks/training_memory.py at 64 and 96 voxels along each axis, in float32 and bfloat16; with and
# without the feature extractor.
_COSTS = {
    True: MeasuredCost(7_590_531, activations_gb=(3.12, 2.23), core_seconds=(19.9, 12.1), libraries_gb=0.2),
    False: MeasuredCost(7_305_459, activations_gb=(2.07, 1.77), core_seconds=(13.5, 8.5), libraries_gb=0.2),
}
# The share of activations that is left when the feature extractor is recomputed, and how many times the time is needed.
_RECOMPUTED_SHARE, _RECOMPUTED_TIME = 0.72, 1.15


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
        cost = _COSTS[settings.features].scale_to(size)
        if not (settings.features and size.recompute):
            return cost
        return replace(
            cost,
            activations_gb=cost.activations_gb * _RECOMPUTED_SHARE,
            core_seconds=cost.core_seconds * _RECOMPUTED_TIME,
        )


register(MambaMorphPlugin())
