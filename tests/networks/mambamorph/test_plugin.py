"""MambaMorph as the planner knows it, against the network that is built."""

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

from llmreg.networks.mambamorph.plugin import MambaMorphPlugin, MambaMorphSettings

WITH_FEATURES, WITHOUT = (MambaMorphSettings(name="mambamorph", features=features) for features in (True, False))


@pytest.mark.parametrize("settings", [WITH_FEATURES, WITHOUT])
def test_parameters_and_strides_are_those_of_the_network(settings: MambaMorphSettings) -> None:
    assert cost_of(settings).trained_parameters == count_parameters(settings)
    assert MambaMorphPlugin().coarsest_stride(settings) == count_coarsest_stride(settings)
    assert_any_shape_fits(settings)


@pytest.mark.parametrize("settings", [WITH_FEATURES, WITHOUT])
def test_cost_grows_with_voxels(settings: MambaMorphSettings) -> None:
    assert_cost_grows_with_voxels(settings)


def test_features_cost_memory_and_time() -> None:
    with_features, without = cost_of(WITH_FEATURES), cost_of(WITHOUT)
    assert with_features.activations_gb > without.activations_gb
    assert with_features.core_seconds > without.core_seconds
    assert MambaMorphPlugin().default_settings() == WITH_FEATURES


def test_only_features_are_recomputed() -> None:
    once, twice = cost_of(WITH_FEATURES), cost_of(WITH_FEATURES, recompute=True)
    assert twice.activations_gb < once.activations_gb
    assert twice.core_seconds > once.core_seconds
    assert cost_of(WITHOUT, recompute=True) == cost_of(WITHOUT)


@pytest.mark.parametrize("changes", [{"features": "some"}, {"depth": 1}, {"field": "flow"}, {"name": "mamba"}])
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MambaMorphSettings.model_validate({"name": "mambamorph", **changes})
