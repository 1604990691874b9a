"""Dual-PRNet as the planner knows it, against the network that is built."""

from __future__ import annotations

from typing import Any

import pytest
from built_networks import (
    assert_any_shape_fits,
    assert_cost_grows_with_voxels,
    cost_of,
    count_coarsest_stride,
    count_parameters,
)
from pydantic import ValidationError

from llmreg.networks.dual_pyramid.plugin import DualPyramidPlugin, DualPyramidSettings


def make_settings(width: int) -> DualPyramidSettings:
    return DualPyramidSettings(name="dual_pyramid", width=width)


def test_parameters_are_those_of_the_network() -> None:
    default = DualPyramidPlugin().default_settings()
    assert default == make_settings(8)
    assert cost_of(default).trained_parameters == count_parameters(default)
    for width in (4, 16):
        settings = make_settings(width)
        assert cost_of(settings).trained_parameters == pytest.approx(count_parameters(settings), rel=0.1)


def test_strides_are_those_of_the_network() -> None:
    settings = make_settings(4)
    assert DualPyramidPlugin().coarsest_stride(settings) == count_coarsest_stride(settings)
    assert_any_shape_fits(settings)


@pytest.mark.parametrize("width", [4, 8, 16])
def test_cost_grows_with_voxels_and_width(width: int) -> None:
    settings, wider = make_settings(width), make_settings(width + 1)
    assert_cost_grows_with_voxels(settings)
    for bfloat16 in (False, True):
        cost, wider_cost = cost_of(settings, bfloat16=bfloat16), cost_of(wider, bfloat16=bfloat16)
        assert wider_cost.activations_gb > cost.activations_gb
        assert wider_cost.core_seconds > cost.core_seconds
        assert wider_cost.trained_parameters > cost.trained_parameters


def test_the_planner_may_halve_the_width() -> None:
    plugin = DualPyramidPlugin()
    assert plugin.narrower(make_settings(16)) == [make_settings(8), make_settings(4)]
    assert plugin.narrower(make_settings(4)) == []


@pytest.mark.parametrize("changes", [{"width": 0}, {"width": 2.5}, {"field": "velocity"}, {"depth": 3}])
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DualPyramidSettings.model_validate({"name": "dual_pyramid", **changes})
