"""VoxelMorph in the registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from llmreg.networks.registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, Variant, register

if TYPE_CHECKING:
    import torch

    from llmreg.networks.registration_network import RegistrationNetwork

# Of each size: parameters, memory (GiB) and seconds of one CPU core for a million voxels in float32.
_COSTS = {"published": (327_331, 0.0, 0.0), "small": (92_179, 0.0, 0.0)}


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
    variants: ClassVar = {"voxelmorph-small": Variant("VoxelMorph (small)", ("network.size=small",))}

    def build(self, settings: VoxelMorphSettings, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        from llmreg.networks.voxelmorph.network import VoxelMorph

        return VoxelMorph(settings, shape)

    def step_cost(self, settings: VoxelMorphSettings, size: StepSize) -> StepCost:
        parameters, memory, seconds = _COSTS[settings.size]
        return StepCost(parameters, memory * size.megavoxels, seconds * size.megavoxels)

    def coarsest_stride(self, settings: VoxelMorphSettings) -> int:
        return 16


register(VoxelMorphPlugin())
