"""Digests of plans decide which checkpoints are loaded: those of version 0.1.0 must not change."""

from __future__ import annotations

from typing import Any

import pytest

from llmreg.plans.plans import Plans

PLANS: dict[str, Any] = {
    "dataset_name": "Dataset001_Pinned",
    "plans_name": "default",
    "spacing": [2.0, 2.0, 2.0],
    "size": [60, 60, 60],
    "centre": [0.0, 0.0, 0.0],
    "fixed_modality": 0,
    "moving_modality": 1,
    "labels": {"1": "liver"},
    "normalization": {
        "0": {"modality": "MR", "scheme": "percentiles", "lower": 0.5, "upper": 99.5},
        "1": {"modality": "CT", "scheme": "window", "lower": -160, "upper": 240},
    },
    "prealignment": {"method": "identity", "reference_case": "Case_0001_0000"},
    "configurations": {
        "full": {
            "downsampling": 1,
            "padded_size": [64, 64, 64],
            "network_shape": [64, 64, 64],
            "token_grid": [4, 4, 4],
            "token_length": 64,
            "memory_gb": 1.5,
        },
        "half": {
            "downsampling": 2,
            "padded_size": [64, 64, 64],
            "network_shape": [32, 32, 32],
            "token_grid": [2, 2, 2],
            "token_length": 8,
            "memory_gb": 1.2,
        },
    },
    "default_configuration": "half",
    "reasons": {},
}
# Network, changes of its settings, and the start of the digests of the configuration "full" and of all, as version
# 0.1.0 computed them.
DIGESTS: list[tuple[str, dict[str, Any], str, str]] = [
    ("llm_morph", {}, "da65e10fbef0a4d3", "b2051aa2e3dbb5dd"),
    ("llm_morph", {"width": 8}, "5a9a02412c6736b4", "c0756e83ec8e601f"),
    (
        "llm_morph",
        {"cost_volume": 1, "llm": {"layers": [3, 4], "sha256": "0" * 64}},
        "db157e9b5b64ce82",
        "209b004d3b825720",
    ),
    ("llm_morph", {"blocks": "vit", "llm": {"lora": None}}, "a4c774529350f8e3", "ae2845fdf9d4aaef"),
    ("voxelmorph", {}, "f6e8e79ad5544f01", "06f94b6da079a793"),
    ("voxelmorph", {"size": "small", "field": "displacement"}, "b8bbefd8ebdd7ffc", "e395508521e1cbb9"),
    ("transmorph", {}, "4637c26e17fd78d8", "d97dc36c93b894da"),
    ("transmorph", {"stages": 3}, "0b8423c228c5a467", "607d91bc5d9b1f19"),
    ("mambamorph", {}, "3324f2ed42808c7a", "2c8dceb5da021c97"),
    ("mambamorph", {"features": False}, "c23b9b4a6406f643", "d26bf022d84bb158"),
    ("dual_pyramid", {}, "febf8c9ccf88fc18", "cd9e973a9bc96774"),
    ("dual_pyramid", {"width": 4}, "63ec64e409b24875", "e5b6d5e6f23d6f5b"),
]


@pytest.mark.parametrize(("name", "changes", "full_digest", "plans_digest"), DIGESTS)
def test_digests_are_those_of_the_first_version(
    name: str, changes: dict[str, Any], full_digest: str, plans_digest: str
) -> None:
    plans = Plans.model_validate(PLANS | {"network": {"name": name, **changes}})
    assert plans.digest("full")[:16] == full_digest
    assert plans.digest()[:16] == plans_digest
    assert Plans.model_validate(plans.model_dump(mode="json")).digest()[:16] == plans_digest


def test_plans_that_name_no_network_have_those_of_the_default_one() -> None:
    assert Plans.model_validate(PLANS | {"network": {"width": 8}}).digest("full")[:16] == "5a9a02412c6736b4"
    assert Plans.model_validate(PLANS).digest()[:16] == "b2051aa2e3dbb5dd"
