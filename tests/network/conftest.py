"""A tiny random Llama on disk, sharded, and what builds a network around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmreg.network.config import LLMSettings, LoRASettings, NetworkSettings


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.fixture
def tiny_settings(tiny_llama: Path) -> Callable[..., NetworkSettings]:
    def make(llm: dict[str, Any] | None = None, **changes: Any) -> NetworkSettings:
        values = {"source": str(tiny_llama), "layers": (1, 2), "lora": LoRASettings(r=4, alpha=4), **(llm or {})}
        return NetworkSettings(**{"width": 4, "llm": LLMSettings(**values), **changes})

    return make
