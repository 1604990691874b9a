"""TransMorph as the planner knows it, against the network that is built."""

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

from llmreg.networks.transmorph.plugin import TransMorphPlugin, TransMorphSettings

FOUR, THREE = (TransMorphSettings(name="transmorph", stages=stages) for stages in (4, 3))


@pytest.mark.parametrize("settings", [FOUR, THREE])
def test_parameters_are_those_of_the_network(settings: TransMorphSettings) -> None:
    assert cost_of(settings).trained_parameters == count_parameters(settings)
    assert_any_shape_fits(settings)


def test_strides_are_those_of_the_network() -> None:
    """A stage more halves the tokens' grid once more."""
    plugin = TransMorphPlugin()
    assert plugin.coarsest_stride(THREE) == count_coarsest_stride(THREE)
    assert plugin.coarsest_stride(FOUR) == 2 * plugin.coarsest_stride(THREE)


@pytest.mark.parametrize("settings", [FOUR, THREE])
def test_cost_grows_with_voxels(settings: TransMorphSettings) -> None:
    assert_cost_grows_with_voxels(settings)
    assert cost_of(settings).libraries_gb > 0


def test_a_stage_less_takes_less_time() -> None:
    assert cost_of(THREE).core_seconds < cost_of(FOUR).core_seconds
    assert TransMorphPlugin().default_settings() == FOUR
    assert TransMorphPlugin().variants["transmorph-3"].changes == ("network.stages=3",)


@pytest.mark.parametrize(
    "changes", [{"stages": 5}, {"stages": 2}, {"drop_path": 1.0}, {"drop_path": -0.1}, {"width": 8}, {"field": "flow"}]
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TransMorphSettings.model_validate({"name": "transmorph", **changes})
