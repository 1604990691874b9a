"""TransMorph in the registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from llmreg.networks.registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, Variant, register

if TYPE_CHECKING:
    import torch

    from llmreg.networks.registration_network import RegistrationNetwork

# Of each number of stages: parameters, memory (GiB) and seconds of one CPU core for a million voxels in float32.
_COSTS = {4: (46_771_251, 0.0, 0.0), 3: (14_287_299, 0.0, 0.0)}


class TransMorphSettings(NetworkSettings):
    """TransMorph (:class:`llmreg.networks.transmorph.network.TransMorph`).

    Attributes:
        stages: of the Swin transformer: 4 as published, or the 3 of MambaMorph's copy.
        drop_path: probability with which a training step skips the last block; it rises to that from 0 over the blocks.
    """

    name: Literal["transmorph"]
    stages: Literal[3, 4] = 4
    drop_path: float = Field(default=0.3, ge=0.0, lt=1.0)


class TransMorphPlugin(NetworkPlugin[TransMorphSettings]):
    """TransMorph in three or four stages."""

    name = "transmorph"
    title = "TransMorph"
    summary = "a Swin transformer and a convolutional decoder (46.8 M; 14.3 M with network.stages=3)"
    settings_type = TransMorphSettings
    variants: ClassVar = {"transmorph-3": Variant("TransMorph (3 stages)", ("network.stages=3",), in_tables=False)}

    def build(self, settings: TransMorphSettings, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        from llmreg.networks.transmorph.network import TransMorph

        return TransMorph(settings, shape)

    def step_cost(self, settings: TransMorphSettings, size: StepSize) -> StepCost:
        parameters, memory, seconds = _COSTS[settings.stages]
        return StepCost(parameters, memory * size.megavoxels, seconds * size.megavoxels)

    def coarsest_stride(self, settings: TransMorphSettings) -> int:
        return 2 ** (settings.stages + 1)


register(TransMorphPlugin())
