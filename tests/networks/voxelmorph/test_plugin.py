"""VoxelMorph as the planner knows it, against the network that is built."""

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

from llmreg.networks.voxelmorph.plugin import VoxelMorphPlugin, VoxelMorphSettings

PUBLISHED, SMALL = (VoxelMorphSettings(name="voxelmorph", size=size) for size in ("published", "small"))


@pytest.mark.parametrize("settings", [PUBLISHED, SMALL])
def test_parameters_and_strides_are_those_of_the_network(settings: VoxelMorphSettings) -> None:
    assert cost_of(settings).trained_parameters == count_parameters(settings)
    assert VoxelMorphPlugin().coarsest_stride(settings) == count_coarsest_stride(settings)
    assert_any_shape_fits(settings)


@pytest.mark.parametrize("settings", [PUBLISHED, SMALL])
def test_cost_grows_with_voxels(settings: VoxelMorphSettings) -> None:
    assert_cost_grows_with_voxels(settings)


def test_the_small_network_costs_less() -> None:
    published, small = cost_of(PUBLISHED), cost_of(SMALL)
    assert small.activations_gb < published.activations_gb
    assert small.core_seconds < published.core_seconds


def test_variants_and_defaults_are_those_of_the_authors() -> None:
    plugin = VoxelMorphPlugin()
    assert plugin.default_settings() == PUBLISHED
    assert PUBLISHED.field == "velocity"
    assert plugin.variants["voxelmorph-small"].changes == ("network.size=small",)
    assert plugin.narrower(PUBLISHED) == []


@pytest.mark.parametrize("changes", [{"size": "huge"}, {"width": 8}, {"field": "flow"}, {"name": "transmorph"}])
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VoxelMorphSettings.model_validate({"name": "voxelmorph", **changes})
