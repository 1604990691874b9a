"""Tiny random language models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 100
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = ["sliding_attention", "full_attention"] * 2
# Sliding windows are shorter than the tests' sequences, and not in every layer where the family can mix.
TINY: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "mistral": _SIZES | {"head_dim": 24, "sliding_window": 4},
    "qwen2": _SIZES | {"use_sliding_window": True, "sliding_window": 4, "layer_types": _SLIDING},
    "qwen3": _SIZES | {"head_dim": 24},
    "phi3": _SIZES,
    "gemma2": _SIZES | {"head_dim": 16, "sliding_window": 4, "layer_types": _SLIDING},
    "gemma3_text": _SIZES | {"head_dim": 24, "sliding_window": 4, "layer_types": _SLIDING},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": VOCABULARY, "initializer_range": 0.2},
}


def save_random_model(folder: Path, family: str, max_shard_size: str = "100KB", **changes: Any) -> Path:
    """A language model with random weights as transformers saves it; norms and biases are random as well."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(TINY[family] | changes)))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
