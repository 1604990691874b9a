"""MambaMorph in the registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from llmreg.networks.registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, register

if TYPE_CHECKING:
    import torch

    from llmreg.networks.registration_network import RegistrationNetwork

# With and without the feature extractor: parameters, memory (GiB) and seconds of one CPU core for a million voxels.
_COSTS = {True: (7_590_531, 0.0, 0.0), False: (7_305_459, 0.0, 0.0)}


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

    def build(self, settings: MambaMorphSettings, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        from llmreg.networks.mambamorph.network import MambaMorph

        return MambaMorph(settings, shape)

    def step_cost(self, settings: MambaMorphSettings, size: StepSize) -> StepCost:
        parameters, memory, seconds = _COSTS[settings.features]
        return StepCost(parameters, memory * size.megavoxels, seconds * size.megavoxels)

    def coarsest_stride(self, settings: MambaMorphSettings) -> int:
        return 16


register(MambaMorphPlugin())
