"""Estimates of what training costs, against what was measured and what is really built."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import save_random_model
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llmreg.devices import Machine
from llmreg.errors import UnknownName, UserError
from llmreg.networks.language_models.families import family_of
from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings
from llmreg.networks.language_models.loading import LoadedLayers
from llmreg.networks.llm_morph.network import LLMMorph
from llmreg.networks.llm_morph.plugin import (
    BUILT_IN_SIZE,
    LLMMorphSettings,
    llm_size,
    trained_parameters,
)
from llmreg.networks.network_registry import StepSize, plugin_of, step_seconds, training_memory_gb

PROCESSOR = Machine("cpu", 64, 2, False)
# benchmarks/training_memory.py on a CPU, float32, SmolLM2 layers, Dice alone: the grid, downsampling, width, whether
# the finest level is computed twice, and the peak in GiB.
MEASURED = [
    ((64, 64, 64), 1, 16, False, 1.64),
    ((64, 64, 64), 1, 16, True, 1.49),
    ((64, 64, 64), 1, 8, False, 1.19),
    ((96, 80, 96), 1, 8, False, 1.90),
    ((96, 80, 96), 1, 16, False, 2.45),
    ((96, 80, 96), 1, 16, True, 2.05),
    ((96, 80, 96), 1, 24, False, 3.45),
    ((192, 160, 192), 2, 16, False, 2.66),
    ((192, 160, 192), 2, 16, True, 2.24),
    ((96, 96, 96), 2, 16, False, 1.35),
    ((128, 112, 112), 1, 16, True, 3.35),
    ((128, 112, 112), 1, 8, True, 2.29),
    ((160, 160, 128), 1, 16, True, 5.00),
]
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
LLAMA3 = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}


def size(voxels: int, recompute: bool = False, machine: Machine = PROCESSOR, grid_voxels: int = 0) -> StepSize:
    return StepSize((1, 1, voxels), grid_voxels, machine, recompute)


@pytest.mark.parametrize(("grid", "downsampling", "width", "recompute", "peak"), MEASURED)
def test_memory_is_estimated_as_measured(grid, downsampling, width, recompute, peak) -> None:
    voxels = math.prod(grid)
    step = size(voxels // downsampling**3, recompute, grid_voxels=voxels)
    assert training_memory_gb(LLMMorphSettings(width=width), step) == pytest.approx(peak, rel=0.15)


def build_on_meta(settings: LLMMorphSettings, shape: tuple[int, ...], llm: dict[str, int]) -> LLMMorph:
    """Build the network as it is trained, without memory for its numbers."""
    config = LlamaConfig(num_hidden_layers=32, **llm)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        layers = [LlamaDecoderLayer(config, 0).requires_grad_(False) for _ in settings.llm.layers]
        family = family_of(config.to_dict(), "a language model")
        return LLMMorph(settings, shape, LoadedLayers(family, config, layers, settings.llm.layers))


LORA_SETTINGS = [None, LoRASettings(r=8), LoRASettings(r=64)]


@pytest.mark.parametrize("llm", [SMOLLM2, LLAMA3], ids=["SmolLM2", "LLaMA 3"])
@pytest.mark.parametrize("width", [8, 16, 24])
@pytest.mark.parametrize("lora", LORA_SETTINGS, ids=["no LoRA", "r = 8", "r = 64"])
def test_trained_parameters_are_those_of_the_network(llm, width, lora) -> None:
    settings = LLMMorphSettings(width=width, llm=LLMSettings(lora=lora))
    network = build_on_meta(settings, (96, 208, 160), llm)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    estimate = trained_parameters(settings, llm["hidden_size"], 6 * 13 * 10)
    assert estimate == pytest.approx(count_trained(network), rel=0.03)
    if llm is SMOLLM2:
        assert (llm["hidden_size"], frozen // 2) == BUILT_IN_SIZE


@pytest.mark.parametrize("blocks", ["vit", "adapters", "none"])
@pytest.mark.parametrize("layers", [(15,), (15, 16)], ids=["one block", "two blocks"])
@pytest.mark.parametrize("token_width", [576, 4096])
def test_parameters_of_other_blocks_are_counted(blocks, layers, token_width) -> None:
    settings = LLMMorphSettings(blocks=blocks, token_width=token_width, llm=LLMSettings(layers=layers))
    with torch.device("meta"):
        network = LLMMorph(settings, (96, 208, 160), None)
    assert trained_parameters(settings, token_width, 6 * 13 * 10) == pytest.approx(count_trained(network), rel=0.03)
    cost = plugin_of(settings).step_cost(settings, size(10**6))
    assert cost.frozen_bytes == 0
    assert cost.trained_parameters == pytest.approx(count_trained(network), rel=0.1)


def count_trained(network: LLMMorph) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_the_size_of_another_model_is_that_of_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("llmreg_llm", str(tmp_path / "cache"))
    folder = save_random_model(tmp_path / "model", "llama")
    size = llm_size(LLMSettings(source=str(folder), layers=(1, 2)))
    # Queries and outputs, keys and values of half as many heads, the three matrices of the perceptron.
    assert size == (64, 64 * (2 * 64 + 2 * 32 + 3 * 128))
    with pytest.raises(UserError):
        llm_size(LLMSettings(source=str(tmp_path / "gone"), layers=(1, 2)))


def test_the_built_in_model_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmreg.networks.language_models.loading.find_layers", lambda *_: pytest.fail("looked up"))
    assert llm_size(LLMSettings()) == BUILT_IN_SIZE


@given(
    width=st.sampled_from([8, 12, 16, 32]),
    voxels=st.integers(16**3, 10_000_000),
    more=st.integers(0, 5_000_000),
    bfloat16=st.booleans(),
)
def test_whatever_costs_more_is_estimated_to(width: int, voxels: int, more: int, bfloat16: bool) -> None:
    machine = Machine("cpu", 24, 8, bfloat16)
    settings, with_costs = LLMMorphSettings(width=width), LLMMorphSettings(width=width, cost_volume=1)
    wider = LLMMorphSettings(width=width + 1)
    step, twice = size(voxels, machine=machine), size(voxels, True, machine)
    memory, seconds = training_memory_gb(settings, step), step_seconds(settings, step)
    assert (
        training_memory_gb(settings, twice)
        < memory
        <= training_memory_gb(settings, size(voxels + more, False, machine))
    )
    assert memory < training_memory_gb(wider, step)
    assert memory < training_memory_gb(with_costs, step)
    assert seconds < step_seconds(settings, twice)
    assert seconds < step_seconds(with_costs, step)
    assert seconds == pytest.approx(step_seconds(settings, size(voxels, machine=replace(machine, cores=16))) * 2)


def test_ablations_name_their_layers_and_need_what_they_take_away() -> None:
    settings = LLMMorphSettings(llm=LLMSettings(layers=(3, 4)))
    plugin = plugin_of(settings)
    assert plugin.ablation(settings, "one-block").changes == ("network.llm.layers=[3]",)
    assert plugin.ablation(settings, "layers-05-12").changes == ("network.llm.layers=[5,12]",)
    assert plugin.ablation(settings, "layers-5-12").title == "layers 5/12"
    plain = plugin.ablation(settings, "layers-5-12-no-lora")
    assert plain.title == "layers 5/12, w/o LoRA"
    assert plain.changes == ("network.llm.layers=[5,12]", "network.llm.lora=null")
    with pytest.raises(UserError, match="no cost volumes"):
        plugin.ablation(settings, "no-cost-volume")
    with pytest.raises(UnknownName) as error:
        plugin.ablation(settings, "layers-5")
    assert {"vit", "one-block", "no-cost-volume"} <= set(error.value.known)


def test_other_layers_have_another_digest() -> None:
    settings = LLMMorphSettings(llm=LLMSettings(sha256="a" * 64))
    plugin = plugin_of(settings)
    for kept in ([], ["network.llm.attention=causal", "network.width=8"]):
        assert plugin.without_digests(settings, kept) == settings
    for change in plugin.language_model_changes(settings, "/models/7B", (1, 2)):
        assert plugin.without_digests(settings, ["network.width=8", change]) == LLMMorphSettings()


def test_settings_as_published_have_no_cost_volume() -> None:
    plugin = plugin_of(LLMMorphSettings())
    assert plugin.default_settings().cost_volume == 1
    assert plugin.as_published(plugin.default_settings()) == LLMMorphSettings()
    assert plugin.token_grid(LLMMorphSettings(), (32, 16, 48)) == (2, 1, 3)
