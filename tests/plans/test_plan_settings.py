"""Settings refuse values that make no sense, with a word on what does."""

import pytest
from pydantic import ValidationError

from llmreg.plans.plan_settings import AugmentationSettings, Configuration, Normalization, Training

HALF = {
    "downsampling": 2,
    "padded_size": (96, 96, 128),
    "network_shape": (48, 48, 64),
    "token_grid": (3, 3, 4),
    "token_length": 36,
    "memory_gb": 2.5,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [("network_shape", (96, 96, 128)), ("token_length", 35), ("downsampling", 3), ("padded_size", (96, 96, 0))],
)
def test_a_configurations_shapes_belong_together(key, value):
    assert Configuration.model_validate(HALF).token_length == 36
    with pytest.raises(ValidationError):
        Configuration.model_validate(HALF | {key: value})


@pytest.mark.parametrize("limits", [(1, 1), (2, 1)])
@pytest.mark.parametrize("scheme", ["window", "percentiles"])
def test_a_window_has_a_width(scheme, limits):
    with pytest.raises(ValidationError):
        Normalization(modality="MR", scheme=scheme, lower=limits[0], upper=limits[1])


def test_percentiles_lie_between_0_and_100_and_windows_anywhere():
    with pytest.raises(ValidationError):
        Normalization(modality="MR", scheme="percentiles", lower=-1, upper=95)
    with pytest.raises(ValidationError):
        Normalization(modality="MR", scheme="percentiles", lower=0, upper=101)
    assert Normalization(modality="CT", scheme="window", lower=-180, upper=400).upper == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": (1.2, 0.8)},
        {"gamma": (0, 1)},
        {"noise": (0.1, 0.0)},
        {"spatial_probability": 1.5},
        {"mirror_axes": "w"},
    ],
)
def test_ranges_of_augmentation_are_in_order_and_factors_positive(changes):
    with pytest.raises(ValidationError):
        AugmentationSettings(**changes)
    assert AugmentationSettings(noise=(0, 0), scale=(1, 1)).noise == (0, 0)


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"learning_rate": 0}, {"batch_size": 0}, {"clip_gradient": 0}])
def test_training_takes_at_least_a_step(changes):
    with pytest.raises(ValidationError):
        Training(**changes)
    assert Training(clip_gradient=None).clip_gradient is None
