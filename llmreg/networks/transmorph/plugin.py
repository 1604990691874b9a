"""TransMorph in the registry of networks."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from llmreg.networks.network_registry import (
    NetworkPlugin,
    NetworkSettings,
    StepCost,
    StepSize,
    Variant,
    register,
    scale_cost,
)

# Arguments of :func:`scale_cost`, which benchmarks/training_memory.py measured at 64 and 96 voxels along each axis.
_COSTS: dict[int, Any] = {
    4: {"trained_parameters": 46_771_251, "activations_gb": (1.57, 1.14), "core_seconds": (15.0, 8.5)},
    3: {"trained_parameters": 14_287_299, "activations_gb": (1.57, 1.14), "core_seconds": (11.3, 6.9)},
}


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
    network = "llmreg.networks.transmorph.network:TransMorph"
    variants: ClassVar = {"transmorph-3": Variant("TransMorph (3 stages)", ("network.stages=3",), in_tables=False)}

    def step_cost(self, settings: TransMorphSettings, size: StepSize) -> StepCost:
        return scale_cost(size, **_COSTS[settings.stages], libraries_gb=0.3)

    def coarsest_stride(self, settings: TransMorphSettings) -> int:
        return 1 << (settings.stages + 1)


register(TransMorphPlugin())
