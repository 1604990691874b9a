"""The list of files that travels along, and the layers that a model needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from llmreg.networks.language_models import cache
from llmreg.networks.language_models.stored import StoredLayers, StoredTensor
from llmreg.sharing import manifest
from llmreg.sharing.manifest import NeededLayers, has_layers


def test_the_limits_leave_room_for_real_models() -> None:
    for name, size in {
        "fold_all/checkpoint_final.safetensors": 1.2e9,
        "reference.nii.gz": 3e8,
        "plans.json": 1e5,
        "dataset_fingerprint.json": 1e7,
        "templates/fold_4/template_0001.nii.gz": 1e6,
    }.items():
        limit = manifest.size_limit(name)
        assert limit is not None
        assert limit > size
    assert manifest.size_limit("manifest.json\n") is None


def test_caches_and_sources_that_hold_the_layers_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "cache"))
    tensors = {(1, "weight"): StoredTensor(torch.arange(4.0))}
    stored = StoredLayers("owner/name", "abc123", {}, (1,), "huggingface", tensors)
    llm = NeededLayers(source="owner/name", layers=(1,), weights="pretrained", sha256=stored.sha256, revision="abc123")
    assert not has_layers(llm)
    cache.write(stored, tmp_path / "cache")
    assert has_layers(llm)
    found = cache.find(stored.sha256, tmp_path / "cache")
    assert found is not None
    (found / "layers.safetensors").write_bytes(save({"1.weight": torch.zeros(4)}))
    assert not has_layers(llm)
