"""Dual-PRNet in the registry of networks."""

from typing import Literal

from pydantic import Field

from llmreg.networks.network_registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, register, scale_cost


class DualPyramidSettings(NetworkSettings):
    """Dual-PRNet's pyramid (:class:`llmreg.networks.dual_pyramid.network.DualPyramid`).

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 2c, 4c and 4c.
        field: always ``displacement``, since the flows of the levels are composed.
    """

    name: Literal["dual_pyramid"]
    width: int = Field(default=8, ge=1)
    field: Literal["displacement"] = "displacement"


class DualPyramidPlugin(NetworkPlugin[DualPyramidSettings]):
    """Dual-PRNet's pyramid."""

    name = "dual_pyramid"
    title = "Dual-PRNet"
    summary = "Dual-PRNet's pyramid of both images' features, compared level by level (200 k)"
    settings_type = DualPyramidSettings
    network = "llmreg.networks.dual_pyramid.network:DualPyramid"
    coarsest = 16
    size_setting = "width"
    sizes = (8, 4)

    def step_cost(self, settings: DualPyramidSettings, size: StepSize) -> StepCost:
        # The numbers are fitted to benchmarks/training_memory.py: widths 8 and 16, 64 and 96 voxels along each axis. In
        # both sums, the first one is the memory of the flows, the second that of the features.
        wider = settings.width / 8
        activations_gb = (0.48 + 0.74 * wider, 0.64 + 0.45 * wider)
        return scale_cost(size, 200_455 * wider**2, activations_gb, core_seconds=(12.0 * wider, 8.0 * wider))


register(DualPyramidPlugin())
