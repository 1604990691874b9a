"""Dual-PRNet in the registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from llmreg.networks.registry import NetworkPlugin, NetworkSettings, StepCost, StepSize, register

if TYPE_CHECKING:
    import torch

    from llmreg.networks.registration_network import RegistrationNetwork


class DualPyramidSettings(NetworkSettings):
    """Dual-PRNet's pyramid (:class:`llmreg.networks.dual_pyramid.network.DualPyramid`).

    Attributes:
        width: channels c at full resolution; the levels have c, 2c, 2c, 4c and 4c.
        field: the fields of the levels are composed, so they are displacements.
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
    size_setting = "width"
    sizes = (8, 4)

    def build(self, settings: DualPyramidSettings, shape: Sequence[int], device: torch.device) -> RegistrationNetwork:
        from llmreg.networks.dual_pyramid.network import DualPyramid

        return DualPyramid(settings, shape)

    def step_cost(self, settings: DualPyramidSettings, size: StepSize) -> StepCost:
        parameters = 200_455 * (settings.width / 8) ** 2
        return StepCost(parameters, 0.0 * size.megavoxels, 0.0 * size.megavoxels)

    def coarsest_stride(self, settings: DualPyramidSettings) -> int:
        return 16


register(DualPyramidPlugin())
