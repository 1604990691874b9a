"""Networks of other packages, whose words and settings are their own, in every place that asks the registry."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from outside_packages import run_python, write_package

import llmreg
from llmreg.networks.network_registry import NETWORKS, NetworkPlugin, NetworkSettings, register

# A network with a language model of its own settings, and another one with a setting that is called llm and is none.
OUTSIDE = """
from typing import Literal

from llmreg.networks.language_models.llm_settings import LLMSettings
from llmreg.networks.network_registry import NetworkPlugin, NetworkSettings, StepCost, Variant, register


class SpeakerSettings(NetworkSettings):
    name: Literal["speaker"]
    model: LLMSettings = LLMSettings()


class Speaker(NetworkPlugin[SpeakerSettings]):
    name = "speaker"
    title = "Speaker"
    summary = "speaks 100 % %(truth)s"
    settings_type = SpeakerSettings
    network = "nowhere:Speaker"
    ablations = {"mute": "leaves out 50 % of the words", "layers-I-J": "layers", "layers-I-J-mute": "mute layers"}
    llm_ablation = "mute"

    def step_cost(self, settings, size):
        return StepCost(1e3, size.megavoxels, size.megavoxels)

    def language_model(self, settings):
        return settings.model

    def language_model_changes(self, settings, source, layers):
        return (f"network.model.source={source}",)

    def ablation(self, settings, name):
        if name in self.ablations or name.startswith("layers-"):
            return Variant("mute", ("network.field=velocity",))
        return super().ablation(settings, name)


class LetterSettings(NetworkSettings):
    name: Literal["letter"]
    llm: str = "none at all"
    size: int = 3


class Letter(NetworkPlugin[LetterSettings]):
    name = "letter"
    title = "Letter"
    summary = "has no tokens"
    settings_type = LetterSettings
    network = "nowhere:Letter"
    size_setting = "size"
    sizes = (3, 2)

    def step_cost(self, settings, size):
        return StepCost(1e3, settings.size * size.megavoxels, size.megavoxels)

    def stride(self, settings):
        return 8


register(Speaker())
register(Letter())
"""
SCRIPT = """
import json
import logging

from llmreg.commands import benchmark, train
from llmreg.comparison import methods
from llmreg.comparison.methods import find_method, list_group
from llmreg.devices import Machine
from llmreg.networks.language_models import loading
from llmreg.networks.network_registry import network_settings
from llmreg.plans.plans import Plans
from llmreg.preprocessing.planning.planner import paper_plans
from llmreg.preprocessing.planning.sizes import Budget, Sizes, choose_configuration, plan_configuration
from llmreg.report.content import _describe_plans

methods.count_layers = lambda llm: 3
loading.select_layers = lambda source, layers, llm: llm
speaker, letter = network_settings("speaker"), network_settings("letter")
budget = Budget(Machine("cpu", 64, 2, False))
configurations = {name: plan_configuration((64, 64, 64), factor, letter, budget) for name, factor in
                  (("full", 1), ("half", 2))}
sizes = Sizes((1, 1, 1), (64, 64, 64), configurations, letter)
plans = Plans.model_validate(
    json.loads(PLANS) | {"network": letter, "configurations": configurations, "size": (64, 64, 64)}
)
paper = paper_plans(plans)
other = find_method("llm=/models/7B", speaker)
print(json.dumps({
    "help": [train.build_parser().format_help(), benchmark.build_parser().format_help()],
    "table1": list_group("table1", letter),
    "table2": list_group("table2", speaker),
    "table3": list_group("table3", speaker, ["a"]),
    "figure4": list_group("figure4", speaker),
    "other": [other.name, other.changes],
    "about": dict(_describe_plans(plans, "full")),
    "paper": paper.model_copy(update={"plans_name": "default", "reasons": {}}) == plans,
    "reasons": [choose_configuration(sizes, distance, budget)[1] for distance in (None, 1.0, 99.0)],
}))
"""
PLANS = {
    "dataset_name": "Dataset001_Toy",
    "plans_name": "default",
    "spacing": [1, 1, 1],
    "centre": [0, 0, 0],
    "fixed_modality": 0,
    "moving_modality": 1,
    "labels": {"1": "blob"},
    "normalization": {"1": {"modality": "CT", "scheme": "window", "lower": -30, "upper": 81}},
    "prealignment": {"method": "affine", "reference_case": "Toy_0001_0000"},
    "default_configuration": "half",
    "reasons": {},
}


def test_plans_tables_reports_and_help_ask_the_plug_in(tmp_path: Path) -> None:
    write_package(tmp_path, "outside_networks", OUTSIDE, "llmreg.networks")
    content = json.loads(run_python(tmp_path, f"PLANS = {json.dumps(PLANS)!r}\n{SCRIPT}"))
    help_text = " ".join(content["help"][0].split())
    assert "speaks 100 % %(truth)s" in help_text
    assert "leaves out 50 % of the words" in help_text
    assert content["table1"][-2:] == ["letter", "letter+refine"]
    assert {"speaker", "llm_morph"} < set(content["table1"])
    assert content["table2"] == ["initial", "mute", "layers-I-J", "layers-I-J-mute", "speaker"]
    assert content["table3"] == ["initial", "mute", "llm=a"]
    assert content["figure4"] == ["initial", "layers-0-1-mute", "layers-1-2-mute"]
    assert content["other"] == ["llm-7b-mute", ["network.model.source=/models/7B", "network.field=velocity"]]
    assert content["about"]["Network"] == "letter, size 3"
    assert content["about"]["Language model"] == ""
    assert content["about"]["Network's grid"] == "64 x 64 x 64"
    # Nobody knows a recipe of this network's paper: that of LLM-Morph is not taken for it.
    assert content["paper"]
    assert not re.search("token|attention|wide", " ".join(content["reasons"]))


class OddSettings(NetworkSettings):
    pass


class Whole(NetworkPlugin[OddSettings]):
    """What a plug-in needs at least."""

    name, title, summary, settings_type, network = "odd", "Odd", "an odd network", OddSettings, "nowhere:Odd"

    def step_cost(self, settings, size):
        raise NotImplementedError


@pytest.mark.parametrize("missing", ["name", "title", "summary", "settings_type", "network"])
def test_a_plug_in_that_lacks_something_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match=f"say its {missing}$"):
        register(type("Odd", (Whole,), {missing: None})())
    assert "odd" not in NETWORKS.names


@pytest.mark.parametrize("name", ["odd__net", "odd net", "", "../odd"])
def test_a_name_that_cannot_be_found_again_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        register(type("Odd", (Whole,), {"name": name})())
    assert name not in NETWORKS.names


def test_only_networks_know_their_settings() -> None:
    """The rest of the package names no setting of LLM-Morph: other networks have others."""
    root = Path(llmreg.__file__).parent
    # Low-rank adaptation is merged by a method that every network has.
    settings_of_llm_morph = re.compile(r"(?<!merge_)lora|network\.llm\b|network\.width")
    modules = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.py")}
    assert len(modules) > 100
    named = {
        name
        for name, text in modules.items()
        if not name.startswith("networks/") and settings_of_llm_morph.search(text)
    }
    assert named == set()
