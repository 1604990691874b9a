"""Plans of a tiny dataset with one configuration, which tests change as they need."""

from __future__ import annotations

from typing import Any

from llmreg.plans.plans import Plans


def make_configuration(shape: tuple[int, int, int]) -> dict[str, Any]:
    """A configuration at full resolution, whose shape holds a single token."""
    return {
        "downsampling": 1,
        "padded_size": shape,
        "network_shape": shape,
        "token_grid": (1, 1, 1),
        "token_length": 1,
        "memory_gb": 1,
    }


def make_plans(size: tuple[int, int, int], **changes: Any) -> Plans:
    """Plans of MR and CT on a frame of a size (x, y, z); ``changes`` replace whole keys."""
    contrast = {"scheme": "percentiles", "lower": 0, "upper": 95}
    content = {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "default",
        "spacing": (2, 2, 2),
        "size": size,
        "centre": (0, 0, 0),
        "fixed_modality": 0,
        "moving_modality": 1,
        "labels": {1: "liver"},
        "normalization": {0: {"modality": "MR"} | contrast, 1: {"modality": "CT"} | contrast},
        "prealignment": {"method": "identity", "reference_case": "Tiny_0001_0000"},
        "configurations": {"full": make_configuration((16, 16, 16))},
        "default_configuration": "full",
        "reasons": {},
    }
    return Plans.model_validate(content | changes)
