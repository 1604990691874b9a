"""Who sees whom in a block, and what of it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmreg.network.config import LLMSettings, LoRASettings
from llmreg.network.llm import loading, sources
from llmreg.network.llm_encoding_block import LLMEncodingBlock


def _block(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> LLMEncodingBlock:
    settings = LLMSettings(source=str(folder), layers=(1, 2), **changes)
    loaded = loading.load_layers(sources.resolve(str(folder)), [1], dtype)
    return LLMEncodingBlock(8, 16, loaded.layers[0], loaded.config, settings, final_norm=True)


@pytest.mark.parametrize("rotary", ["none", "1d"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_the_first_token_sees_later_ones_only_if_bidirectional(tiny_llama: Path, attention: str, rotary: str) -> None:
    block = _block(tiny_llama, attention=attention, rotary=rotary)
    hidden = torch.randn(1, 7, 64)
    changed = torch.cat([hidden[:, :1], torch.randn(1, 6, 64)], dim=1)
    with torch.no_grad():
        difference = (block.run_layer(hidden) - block.run_layer(changed))[:, 0].abs().max().item()
    assert (difference > 1e-3) == (attention == "bidirectional")


def test_without_rotary_the_order_of_tokens_means_nothing(tiny_llama: Path) -> None:
    hidden, order = torch.randn(1, 7, 64), torch.randperm(6) + 1
    shuffled = torch.cat([hidden[:, :1], hidden[:, order]], dim=1)
    with torch.no_grad():
        plain, rotary = (
            (block.run_layer(hidden) - block.run_layer(shuffled))[:, 0].abs().max().item()
            for block in (_block(tiny_llama, rotary="none"), _block(tiny_llama, rotary="1d"))
        )
    assert plain < 1e-4 < 1e-3 < rotary


def test_untrained_lora_changes_nothing_and_trained_lora_does(tiny_llama: Path) -> None:
    bare, adapted = _block(tiny_llama, lora=None), _block(tiny_llama, lora=LoRASettings(r=4, alpha=4))
    hidden = torch.randn(2, 5, 64)
    with torch.no_grad():
        assert torch.equal(bare.run_layer(hidden), adapted.run_layer(hidden))
        for name, parameter in adapted.layer.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        assert not torch.allclose(bare.run_layer(hidden), adapted.run_layer(hidden), atol=1e-2)


def test_lora_is_the_papers_wx_plus_bax(tiny_llama: Path) -> None:
    projection = _block(tiny_llama, lora=LoRASettings(r=4, alpha=8)).layer.self_attn.q_proj
    a, b = projection.lora_A["default"].weight, projection.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
        x = torch.randn(3, 64)
        expected = x @ (projection.base_layer.weight + (8 / 4) * b @ a).T
        torch.testing.assert_close(projection(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_frozen_weights_keep_type_and_get_no_gradient(tiny_llama: Path, autocast: bool) -> None:
    block = _block(tiny_llama, torch.bfloat16).train()
    before = {name: p.clone() for name, p in block.named_parameters()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = block(torch.randn(1, 6, 8))
    assert output.dtype == torch.float32
    output.square().sum().backward()
    assert not block.layer.training
    for name, parameter in block.named_parameters():
        frozen = name.startswith("layer.") and "lora_" not in name
        assert parameter.requires_grad != frozen, name
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
        assert (parameter.grad is None) == frozen, name
        assert torch.equal(parameter, before[name])
    learning = [p for name, p in block.named_parameters() if "lora_B" in name]
    assert len(learning) == 3
    assert all(p.grad.abs().sum() > 0 for p in learning)


def test_the_scale_of_tokens_is_taken_back(tiny_llama: Path) -> None:
    loaded = loading.load_layers(sources.resolve(str(tiny_llama)), [1], torch.float32)
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), token_rms=3.0, lora=None)
    block = LLMEncodingBlock(8, 16, loaded.layers[0], loaded.config, settings, final_norm=False)
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad():
        expected = block.run_layer(block.adapter(tokens) * 3.0) / 3.0
        torch.testing.assert_close(block(tokens), expected)
