"""A dataset that was planned, and a fold that was trained, once for all tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_study import training
from transformers import LlamaConfig, LlamaForCausalLM

from llmreg.commands import plan_and_preprocess, train
from llmreg.data.synthetic import write_demo_dataset


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder with raw, preprocessed and results in which fold 0 was trained for two epochs of two steps."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    LlamaForCausalLM(config).save_pretrained(home / "llm")
    write_demo_dataset(home / "raw", subjects=6, seed=3, held_out=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("llmreg_home", str(home))
        assert plan_and_preprocess.main(["-d", "999", "-c", "half", "-np", "1", "--verify_dataset_integrity"]) == 0
        assert train.main([*training("0", "tiny", home), "--epochs", "2"]) == 0
    return home


@pytest.fixture
def environment(home, monkeypatch) -> Path:
    monkeypatch.setenv("llmreg_home", str(home))
    return home
