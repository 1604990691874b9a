"""The layer cache: what goes in comes out, and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmreg.errors import BadLanguageModel, DamagedLayers, MissingLayers, UserError
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.cache import StoredLayers, StoredTensor
from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.language_models.loading import build_layers, find_layers, random_layers
from llmreg.networks.language_models.reading import read_layers


@pytest.fixture
def llama_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may take away."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "tiny_llama"))


def _in_gguf(stored: StoredLayers) -> StoredLayers:
    """The layers as a GGUF file would hold them: matrices in blocks of 32, one scale and 32 bytes each."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    def quantise(values: torch.Tensor) -> StoredTensor:
        kind = "Q8_0" if values.ndim == 2 else "F32"
        return StoredTensor(torch.from_numpy(np.array(quantize(values.numpy(), GGMLQuantizationType[kind]))), kind)

    tensors = {key: quantise(tensor.values) for key, tensor in stored.tensors.items()}
    return StoredLayers("model.gguf", None, stored.config, stored.layers, "gguf", tensors)


def _same(first: StoredLayers, second: StoredLayers) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for key, tensor in first.tensors.items():
        other = second.tensors[key]
        assert tensor.gguf_type == other.gguf_type
        assert tensor.values.dtype == other.values.dtype
        assert torch.equal(tensor.values, other.values)
    assert first.config == second.config
    for name in ("source", "revision", "layers", "rows", "sha256"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("container", ["safetensors", "gguf"])
def test_layers_come_back_as_they_were(tiny_llama: Path, tmp_path: Path, container: str) -> None:
    stored = read_layers(str(tiny_llama), (2, 1))
    stored = stored if container == "safetensors" else _in_gguf(stored)
    folder = cache.write(stored, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["layers.json", "layers.safetensors"]
    assert cache.find(stored.sha256, tmp_path) == folder
    assert cache.find("0" * 64, tmp_path) is None
    back = cache.read(folder)
    _same(stored, back)
    assert cache.read_layers_record(folder).dtypes == (("float32",) if container == "safetensors" else ("F32", "Q8_0"))
    for first, second in zip(*(build_layers(s, torch.float32).layers for s in (stored, back)), strict=True):
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_the_cache_holds_the_layers_and_little_else(tiny_llama: Path, tmp_path: Path) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    folder = cache.write(stored, tmp_path)
    needed = sum(tensor.values.nbytes for tensor in stored.tensors.values())
    assert needed < sum(path.stat().st_size for path in folder.iterdir()) < needed + 10_000
    assert json.loads((folder / "layers.json").read_text())["sha256"] == stored.sha256


def test_layers_that_are_there_are_not_written_again(tiny_llama: Path, tmp_path: Path) -> None:
    stored = read_layers(str(tiny_llama), (1,))
    folder = cache.write(stored, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cache.write(replace(stored, source="owner/name"), tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_records_of_earlier_versions_are_read(tiny_llama: Path, tmp_path: Path) -> None:
    stored = read_layers(str(tiny_llama), (1,))
    folder = cache.write(stored, tmp_path)
    content = json.loads((folder / "layers.json").read_text())
    (folder / "layers.json").write_text(json.dumps(content | {"input_rms": [2.5]}))
    _same(cache.read(folder), stored)


def test_layers_are_hashed_once_and_again_when_their_file_changes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache.write(read_layers(str(tiny_llama), (1, 2)), tmp_path)
    hashed_layers: list[StoredLayers] = []

    def record_hash(self: StoredLayers) -> str:
        hashed_layers.append(self)
        return digest(self)

    digest = StoredLayers.sha256.func
    monkeypatch.setattr(StoredLayers, "sha256", property(record_hash))
    for _ in range(3):
        cache.read(folder)
    assert len(hashed_layers) == 1
    path = folder / "layers.safetensors"
    before, record = path.stat(), (folder / "layers.json").read_text()
    # The record lists the layers in another order under the same hash.
    (folder / "layers.json").write_text(json.dumps(json.loads(record) | {"layers": [2, 1]}))
    with pytest.raises(DamagedLayers, match="does not hold"):
        cache.read(folder)
    (folder / "layers.json").write_text(record)
    cache.read(folder)
    # The file has other weights, and the same size and time.
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(DamagedLayers, match="does not hold"):
            cache.read(folder)


def test_a_cache_that_cannot_be_written_is_read(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    folder = cache.write(stored, tmp_path)

    def refuse(path: Path, content: object) -> None:
        raise UserError(f"Cannot write {path}")

    monkeypatch.setattr(cache, "write_json", refuse)
    for _ in range(2):
        _same(stored, cache.read(folder))
    assert not (folder / "checked.json").exists()


def test_writing_again_brings_the_configuration_up_to_date(tiny_llama: Path, tmp_path: Path) -> None:
    stored = read_layers(str(tiny_llama), (1,))
    folder = cache.write(replace(stored, config={**stored.config, "rope_parameters": None}), tmp_path)
    assert cache.write(stored, tmp_path) == folder
    assert cache.read(folder).config == json.loads(json.dumps(stored.config))


def test_the_hash_is_of_these_layers_in_this_order_type_and_shape(tiny_llama: Path) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))

    def digest(change: object) -> str:
        tensors = {key: StoredTensor(change(t.values)) for key, t in stored.tensors.items()}  # type: ignore[operator]
        return StoredLayers("", None, stored.config, (1, 2), "huggingface", tensors).sha256

    def nudge(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values.view(-1)[-1] += 1e-6
        return values

    other_hashes = [read_layers(str(tiny_llama), layers).sha256 for layers in ((2, 1), (1,), (1, 3))]
    changes = (torch.Tensor.half, torch.Tensor.bfloat16, lambda v: v[None], nudge)
    digests = {stored.sha256, *other_hashes, *map(digest, changes)}
    assert len(digests) == 1 + len(other_hashes) + len(changes)
    assert digest(torch.clone) == stored.sha256


def test_the_cache_is_enough_when_the_source_is_gone(llama_copy: Path, tmp_path: Path) -> None:
    stored = read_layers(str(llama_copy), (1, 2))
    folder = tmp_path / "cache"
    cache.write(stored, folder)
    shutil.rmtree(llama_copy)
    _same(find_layers(LLMSettings(source=str(llama_copy), layers=(1, 2), sha256=stored.sha256), folder), stored)


def test_the_source_is_enough_when_there_is_no_cache(tiny_llama: Path, tmp_path: Path) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2))
    for sha256 in (None, stored.sha256):
        _same(find_layers(settings.model_copy(update={"sha256": sha256}), tmp_path / "none"), stored)


def _refuse_other_weights(settings: LLMSettings, folder: Path) -> None:
    assert settings.sha256 is not None
    with pytest.raises(BadLanguageModel, match=settings.sha256[:12]) as raised:
        find_layers(settings, folder)
    assert raised.value.source == settings.source
    assert "\n" not in str(raised.value)


def test_layers_that_are_nowhere_are_a_sentence(llama_copy: Path, tmp_path: Path) -> None:
    sha256 = read_layers(str(llama_copy), (1, 2)).sha256
    shutil.rmtree(llama_copy)
    settings = LLMSettings(source=str(llama_copy), layers=(1, 2), sha256=sha256)
    with pytest.raises(MissingLayers) as raised:
        find_layers(settings, tmp_path / "cache")
    error = raised.value
    assert (error.source, error.layers, error.sha256) == (str(llama_copy), (1, 2), sha256)
    assert error.folder == tmp_path / "cache"
    assert "\n" not in str(error)


def test_other_weights_than_planned_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), sha256="0" * 64)
    _refuse_other_weights(settings, tmp_path)
    _refuse_other_weights(settings.model_copy(update={"weights": "random"}), tmp_path)


def test_a_cache_of_other_weights_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """The folder's name carries twelve digits of the hash; the whole of it counts."""
    stored = read_layers(str(tiny_llama), (1, 2))
    cache.write(stored, tmp_path)
    alike = stored.sha256[:12] + "0" * 52
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), sha256=alike)
    _refuse_other_weights(settings, tmp_path)


@pytest.mark.parametrize("kind", ["value", "missing", "cut", "record", "no record", "text"])
def test_a_tampered_cache_is_refused(tiny_llama: Path, tmp_path: Path, kind: str) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    folder = cache.write(stored, tmp_path)
    weights, record = folder / "layers.safetensors", folder / "layers.json"
    tensors = load_file(weights)
    match = "is damaged"
    if kind == "value":
        tensors["2.mlp.up_proj.weight"][3, 4] += 1e-3
        save_file(tensors, weights)
        match = "does not hold .*layers.json"
    elif kind == "missing":
        del tensors["2.mlp.up_proj.weight"]
        save_file(tensors, weights)
        match = "does not hold .*layers.json"
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif kind == "record":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"layers": "one"}))
    elif kind == "text":
        record.write_text("{")
        match = "layers.json"
    else:
        record.unlink()
        assert cache.find(stored.sha256, tmp_path) is None
        return
    with pytest.raises(UserError, match=match) as raised:
        find_layers(LLMSettings(source=str(tiny_llama), layers=(1, 2), sha256=stored.sha256), tmp_path)
    assert "\n" not in str(raised.value)


def test_random_weights_are_like_a_new_models_and_always_the_same(tiny_llama: Path) -> None:
    stored = read_layers(str(tiny_llama), (1, 2))
    first, second = (random_layers("random", stored.config, (1, 2)) for _ in range(2))
    assert first.sha256 == second.sha256 != stored.sha256
    for (index, name), tensor in first.tensors.items():
        assert tensor.values.shape == stored.tensors[index, name].values.shape
        if tensor.values.ndim == 1:
            assert torch.equal(tensor.values, torch.ones_like(tensor.values))
        else:
            # The tiny model's initializer_range.
            assert tensor.values.float().std().item() == pytest.approx(0.2, rel=0.05)
    assert not torch.equal(first.tensors[1, "mlp.up_proj.weight"].values, first.tensors[2, "mlp.up_proj.weight"].values)


def test_random_weights_are_found_by_their_own_hash(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), weights="random")
    random = find_layers(settings, tmp_path)
    assert random.weights == "random"
    _same(random, random_layers(settings.source, read_layers(str(tiny_llama), (1, 2)).config, (1, 2)))
    pinned = settings.model_copy(update={"sha256": random.sha256})
    _same(find_layers(pinned, tmp_path), random)


def test_layers_are_found_by_name_when_their_source_is_gone(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LLMSettings(source=str(tmp_path / "gone"), layers=(1, 2))
    stored = replace(read_layers(str(tiny_llama), (1, 2)), source=settings.source)
    cache.write(stored, tmp_path / "cache")
    _same(find_layers(settings, tmp_path / "cache"), stored)
    for other in ({"layers": (1, 3)}, {"weights": "random"}, {"source": str(tmp_path / "elsewhere")}):
        with pytest.raises(BadLanguageModel) as raised:
            find_layers(settings.model_copy(update=other), tmp_path / "cache")
        assert raised.value.source == other.get("source", settings.source)
