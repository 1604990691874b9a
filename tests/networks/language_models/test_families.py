"""Frozen layers equal those of the whole transformers model, family by family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, save_random_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

from llmreg.errors import BadLanguageModel, UnknownName
from llmreg.networks.language_models import families
from llmreg.networks.language_models.layer import FrozenLayer
from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings
from llmreg.networks.language_models.loading import build_layers
from llmreg.networks.language_models.reading import open_model, read_layers

Tiny = Callable[[str], Path]
FAMILIES = sorted(families.FAMILIES)
FUSED = {"phi3": "self_attn.qkv_proj", "gpt2": "attn.c_attn"}
LENGTH = 11


def _layer(folder: Path, index: int, **changes: object) -> FrozenLayer:
    """Build a frozen layer that runs as in the whole model, apart from changes of its settings."""
    loaded = build_layers(read_layers(str(folder), (index,)), torch.float32)
    values = {"rotary": "1d" if loaded.family.rotary else "none", "attention": "causal", "lora": None} | changes
    settings = LLMSettings(source=str(folder), layers=(index,), dtype="float32", **values)
    return FrozenLayer(loaded, 0, settings, (1, 1, LENGTH))


def _hidden_states(folder: Path) -> tuple[Tensor, ...]:
    """What enters each layer of the whole model; a last entry is behind the final norm."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, 100, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states: tuple[Tensor, ...] = model(ids, output_hidden_states=True).hidden_states
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_equal_those_of_the_whole_model(tiny_model: Tiny, family: str) -> None:
    folder = tiny_model(family)
    states = _hidden_states(folder)
    for index in range(3):
        layer = _layer(folder, index)
        with torch.no_grad():
            ours = layer(states[index])
        assert (states[index + 1] - states[index]).abs().max() > 0.1
        assert (ours - states[index + 1]).abs().max().item() == 0, index


@pytest.mark.parametrize("family", FAMILIES)
def test_training_drops_nothing_out(tmp_path: Path, family: str) -> None:
    names = ("attn_pdrop", "resid_pdrop") if family == "gpt2" else ("attention_dropout", "resid_pdrop")
    layer = _layer(save_random_model(tmp_path, family, **dict.fromkeys(names, 0.5)), 1)
    hidden = torch.randn(2, LENGTH, 64)
    with torch.no_grad():
        assert torch.equal(layer.train()(hidden), layer.eval()(hidden))


@pytest.mark.parametrize("family", FAMILIES)
def test_q_k_and_v_have_their_own_lora_and_an_untrained_one_changes_nothing(tiny_model: Tiny, family: str) -> None:
    folder = tiny_model(family)
    bare, adapted = _layer(folder, 1), _layer(folder, 1, lora=LoRASettings(r=4, alpha=4))
    hidden = torch.randn(2, LENGTH, 64)
    with torch.no_grad():
        difference = (bare(hidden) - adapted(hidden)).abs().max().item()
    assert difference <= (1e-5 if family in FUSED else 0)
    learning = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(learning) == 6
    for name in ("q_proj", "k_proj", "v_proj"):
        assert sum(f".{name}.lora_A." in key for key in learning) == 1
        assert sum(f".{name}.lora_B." in key for key in learning) == 1


@pytest.mark.parametrize("family", FUSED)
def test_a_fused_projection_becomes_three_without_a_copy(tiny_model: Tiny, family: str) -> None:
    layer = build_layers(read_layers(str(tiny_model(family)), (1,)), torch.float32)
    fused = layer.layers[0].get_submodule(FUSED[family])
    plain = (fused.weight if isinstance(fused, nn.Linear) else fused.weight.T).detach()
    memory = fused.weight.untyped_storage().data_ptr()
    frozen = FrozenLayer(layer, 0, LLMSettings(dtype="float32", lora=LoRASettings(r=4, alpha=8)), (1, 1, LENGTH))
    split = frozen.layer.get_submodule(FUSED[family])
    parts = [split.q_proj, split.k_proj, split.v_proj]
    # phi3 has two key and value heads for four query heads, of 16 channels each.
    assert [part.out_features for part in parts] == ([64, 32, 32] if family == "phi3" else [64, 64, 64])
    assert all(part.base_layer.weight.untyped_storage().data_ptr() == memory for part in parts)
    hidden = torch.randn(3, 64)
    with torch.no_grad():
        low_rank = []
        for part in parts:
            part.lora_B["default"].weight.normal_()
            low_rank.append(part.lora_B["default"].weight @ part.lora_A["default"].weight)
        expected = hidden @ (plain + 8 / 4 * torch.cat(low_rank)).T
        if fused.bias is not None:
            expected = expected + fused.bias
        torch.testing.assert_close(split(hidden), expected, rtol=1e-4, atol=1e-4)


def test_phi3_vision_is_run_as_phi3(tmp_path: Path) -> None:
    half = 8
    long_rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.1 * i for i in range(half)],
        "long_factor": [4.0] * half,
        "original_max_position_embeddings": 64,
        "partial_rotary_factor": 1.0,
    }
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": 64}
    folder = save_random_model(tmp_path / "text", "phi3", rope_parameters=long_rope, **sizes)
    states = _hidden_states(folder)
    vision = tmp_path / "vision"
    shutil.copytree(folder, vision)
    # As microsoft/Phi-3-vision-128k-instruct writes it.
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {
        "model_type": "phi3_v",
        "architectures": ["Phi3VForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
        "img_processor": {"name": "clip_vision_model", "image_dim_out": 1024},
        "rope_scaling": {key: long_rope[key] for key in ("short_factor", "long_factor")} | {"type": "su"},
        "rope_theta": 10000.0,
    }
    (vision / "config.json").write_text(json.dumps(config))
    layer = _layer(vision, 1)
    assert type(layer.layer).__name__ == "Phi3DecoderLayer"
    with torch.no_grad():
        assert (layer(states[1]) - states[2]).abs().max().item() == 0


def test_the_text_layers_of_gemma3_with_its_vision_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = Gemma3Config(text_config=TINY["gemma3_text"], vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    with torch.no_grad():
        states = model.model.language_model(torch.arange(LENGTH)[None], output_hidden_states=True).hidden_states
        for index in (0, 1):
            assert (_layer(tmp_path, index)(states[index]) - states[index + 1]).abs().max().item() == 0


def test_an_unknown_family_is_a_sentence_with_the_known_ones(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt_next"}))
    with pytest.raises(BadLanguageModel, match="'gpt_next'") as raised:
        open_model(str(tmp_path))
    assert raised.value.source == str(tmp_path)
    assert "gemma2, gemma3, gemma3_text, gpt2, llama, mistral, phi3, phi3_v, qwen2, qwen3" in raised.value.remedy


def test_what_a_family_cannot_do_is_a_sentence(tiny_model: Callable[[str], Path]) -> None:
    configs = {name: dict(read_layers(str(tiny_model(name)), (0,)).config) for name in ("llama", "phi3", "gpt2")}
    for rotary in ("1d", "3d"):
        with pytest.raises(BadLanguageModel, match=r"'gpt2'.*network\.llm\.rotary"):
            families.check_runnable(configs["gpt2"], LLMSettings(rotary=rotary, lora=None))
    wrong = LLMSettings(lora=LoRASettings(targets=("q_proj", "query")))
    for name, projections in (
        ("llama", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"),
        ("phi3", "down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj"),
        ("gpt2", "k_proj, q_proj, v_proj"),
    ):
        with pytest.raises(UnknownName) as unknown:
            families.check_runnable(configs[name], wrong)
        assert (unknown.value.name, unknown.value.known) == ("query", tuple(projections.split(", ")))
        families.check_runnable(configs[name], LLMSettings())
    with pytest.raises(BadLanguageModel, match="'gpt_next'"):
        families.check_runnable(configs["llama"] | {"model_type": "gpt_next"}, LLMSettings())
