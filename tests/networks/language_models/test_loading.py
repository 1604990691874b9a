"""Fetching: layers are read alone and pinned by their hash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llmreg.errors import BadArgument, BadLanguageModel, BadPlans, MissingLayers, UnknownName
from llmreg.networks.factory import build_network
from llmreg.networks.language_models import cache
from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings
from llmreg.networks.language_models.loading import fetch, find_layers, select_layers
from llmreg.networks.language_models.reading import read_layers
from llmreg.networks.llm_morph.plugin import LLMMorphSettings

Tiny = Callable[[str], Path]


def test_fetched_layers_are_pinned_and_the_source_is_needed_no_more(tiny_llama: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(tiny_llama, source)
    settings = LLMSettings(source=str(source), layers=(1, 3), lora=LoRASettings(r=4, alpha=4))
    stored = read_layers(str(source), (1, 3))
    pinned = fetch(settings, folder)
    assert pinned == settings.model_copy(update={"sha256": stored.sha256})
    shutil.rmtree(source)
    assert fetch(pinned, folder) == pinned
    assert find_layers(pinned, folder).sha256 == stored.sha256
    # Without a digest the name serves.
    assert fetch(settings, folder) == pinned
    for change, said in (({"source": str(tmp_path / "other")}, "source"), ({"weights": "random"}, "weights")):
        with pytest.raises(BadPlans, match=f"with {said} ") as refusal:
            fetch(pinned.model_copy(update=change), folder)
        assert refusal.value.key == "network.llm.sha256"


def test_random_weights_are_pinned(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), weights="random", lora=None)
    pinned = fetch(settings, tmp_path)
    assert pinned.sha256 == find_layers(pinned, tmp_path).sha256 != read_layers(str(tiny_llama), (1, 2)).sha256


@pytest.mark.parametrize("cached", [False, True])
def test_layers_that_cannot_be_run_so_are_not_fetched(tiny_llama: Path, tmp_path: Path, cached: bool) -> None:
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), lora=None)
    if cached:
        settings = fetch(settings, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    wrong = settings.model_copy(update={"lora": LoRASettings(targets=("query",))})
    with pytest.raises(UnknownName) as refusal:
        fetch(wrong, tmp_path)
    assert (refusal.value.kind, refusal.value.name) == ("LoRA target", "query")
    assert "q_proj" in refusal.value.known
    assert sorted(tmp_path.rglob("*")) == before


def test_other_layers_than_pinned_are_not_fetched(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LLMSettings(source=str(tiny_llama), layers=(1, 2), sha256="0" * 64, lora=None)
    with pytest.raises(BadLanguageModel, match="0" * 12) as refusal:
        fetch(settings, tmp_path)
    assert refusal.value.source == str(tiny_llama)
    assert cache.find("0" * 64, tmp_path) is None
    assert not any(tmp_path.rglob("layers.*"))


def test_a_network_is_built_from_the_layer_cache_alone(
    tiny_llama: Path, tmp_path: Path, cache_folder: Path, tiny_settings: Callable[..., LLMMorphSettings]
) -> None:
    source = tmp_path / "model"
    shutil.copytree(tiny_llama, source)
    settings = tiny_settings(llm={"source": str(source)})
    pinned = settings.model_copy(update={"llm": fetch(settings.llm, cache_folder)})
    expected = build_network(pinned, (16, 16, 32))
    shutil.rmtree(source)
    alone = build_network(pinned, (16, 16, 32))
    assert alone.llm_sha256 == pinned.llm.sha256
    frozen = {name: p for name, p in alone.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(torch.equal(p, frozen[name]) for name, p in expected.named_parameters() if name in frozen)
    shutil.rmtree(cache_folder)
    with pytest.raises(MissingLayers) as refusal:
        build_network(pinned, (16, 16, 32))
    assert (refusal.value.source, refusal.value.folder) == (pinned.llm.source, cache_folder)


def test_a_folder_is_pinned_by_its_whole_path(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_llama.parent)
    settings = LLMSettings(source=tiny_llama.name, layers=(1,), lora=None)
    assert fetch(settings, tmp_path).source == str(tiny_llama.resolve())


def test_layers_are_named_by_number_or_depth(tiny_llama: Path) -> None:
    source = str(tiny_llama)
    base_settings = LLMSettings(source="other", layers=(7, 8), dtype="float32", sha256="0" * 64, lora=None)
    for names, layers in ((["0", "3"], (0, 3)), (["2"], (2,)), (["middle"], (1, 2)), (["deep"], (2, 3))):
        expected = LLMSettings(source=source, layers=layers, dtype="float32", lora=None)
        assert select_layers(source, names, base_settings) == expected
        assert select_layers(source, names) == LLMSettings(source=source, layers=layers)


@pytest.mark.parametrize("names", [["1", "2", "3"], ["-1"], ["middle", "3"], ["shallow"]])
def test_what_names_no_layers_is_a_sentence(tiny_llama: Path, names: list[str]) -> None:
    with pytest.raises(BadArgument, match=" ".join(names)) as refusal:
        select_layers(str(tiny_llama), names)
    assert refusal.value.argument == "layers"


def test_nothing_but_the_chosen_layers_is_needed(tiny_llama: Path, tmp_path: Path) -> None:
    """Fetching works where only the files with these layers are left of the model, and reads only their bytes."""
    source = tmp_path / "model"
    shutil.copytree(tiny_llama, source)
    index = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith(("model.layers.1.", "model.layers.2."))}
    assert needed < set(index.values())
    for file in set(index.values()) - needed:
        (source / file).unlink()
    settings = LLMSettings(source=str(source), layers=(1, 2), lora=None)
    pinned = fetch(settings, tmp_path / "cache")
    assert pinned.sha256 == read_layers(str(tiny_llama), (1, 2)).sha256
