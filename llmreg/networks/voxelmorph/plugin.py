"""VoxelMorph in the registry of networks."""

from typing import Any, ClassVar, Literal

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
_COSTS: dict[str, Any] = {
    "published": {"trained_parameters": 327_331, "activations_gb": (1.42, 0.97), "core_seconds": (9.3, 5.4)},
    "small": {"trained_parameters": 92_179, "activations_gb": (1.17, 1.05), "core_seconds": (5.0, 3.2)},
}


class VoxelMorphSettings(NetworkSettings):
    """VoxelMorph (:class:`llmreg.networks.voxelmorph.network.VoxelMorph`).

    Attributes:
        size: ``published``: the authors' default, 327,331 parameters; ``small``: the 92,179 of MambaMorph's scripts.
    """

    name: Literal["voxelmorph"]
    size: Literal["published", "small"] = "published"
    field: Literal["displacement", "velocity"] = "velocity"


class VoxelMorphPlugin(NetworkPlugin[VoxelMorphSettings]):
    """VoxelMorph as published, and the small one of MambaMorph's scripts."""

    name = "voxelmorph"
    title = "VoxelMorph"
    summary = "a U-Net (327 k parameters; 92 k with network.size=small)"
    settings_type = VoxelMorphSettings
    network = "llmreg.networks.voxelmorph.network:VoxelMorph"
    coarsest = 16
    variants: ClassVar = {"voxelmorph-small": Variant("VoxelMorph (small)", ("network.size=small",))}

    def step_cost(self, settings: VoxelMorphSettings, size: StepSize) -> StepCost:
        return scale_cost(size, **_COSTS[settings.size])


register(VoxelMorphPlugin())
