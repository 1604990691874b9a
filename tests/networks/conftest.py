"""Tiny language models on disk, and what builds a network around one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_random_model

from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings
from llmreg.networks.llm_morph.plugin import LLMMorphSettings


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny model, which is made when it is first asked for."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            folders[family] = save_random_model(tmp_path_factory.mktemp(f"tiny_{family}"), family)
            assert (folders[family] / "model.safetensors.index.json").is_file()
        return folders[family]

    return make


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("llama")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A layer cache of this test's own."""
    folder = tmp_path / "llm_cache"
    monkeypatch.setenv("llmreg_llm", str(folder))
    return folder


@pytest.fixture
def tiny_settings(tiny_llama: Path) -> Callable[..., LLMMorphSettings]:
    def make(llm: dict[str, Any] | None = None, **changes: Any) -> LLMMorphSettings:
        values = {"source": str(tiny_llama), "layers": (1, 2), "lora": LoRASettings(r=4, alpha=4), **(llm or {})}
        return LLMMorphSettings(**{"width": 4, "token_width": 64, "llm": LLMSettings(**values), **changes})

    return make
