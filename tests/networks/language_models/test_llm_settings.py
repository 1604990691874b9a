"""Settings of language-model layers: what they hold by default, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llmreg.networks.language_models.llm_settings import LLMSettings, LoRASettings


def test_defaults_are_the_papers_layers_and_lora() -> None:
    settings = LLMSettings()
    assert settings.layers == (15, 16)
    assert settings.lora == LoRASettings(r=64, alpha=64, targets=("q_proj", "k_proj", "v_proj"))
    assert (settings.weights, settings.attention, settings.rotary) == ("pretrained", "bidirectional", "none")
    assert settings.sha256 is None


def test_settings_are_the_same_after_a_file() -> None:
    settings = LLMSettings(source="some/model", layers=(3,), sha256="ab", lora=LoRASettings(r=2, targets=("o_proj",)))
    assert LLMSettings.model_validate_json(settings.model_dump_json()) == settings
    assert LLMSettings.model_validate({"lora": None}).lora is None


@pytest.mark.parametrize(
    ("content", "key", "kind"),
    [
        ({"layers": [-1, 2]}, ("layers",), "value_error"),
        ({"layers": []}, ("layers",), "too_short"),
        ({"layers": [1, 2, 3]}, ("layers",), "too_long"),
        ({"layers": ["first"]}, ("layers", 0), "int_parsing"),
        ({"dtype": "int8"}, ("dtype",), "literal_error"),
        ({"rotary": "2d"}, ("rotary",), "literal_error"),
        ({"weights": "none"}, ("weights",), "literal_error"),
        ({"attention": "full"}, ("attention",), "literal_error"),
        ({"calibrate": True}, ("calibrate",), "value_error"),
        ({"lora": {"r": 0}}, ("lora", "r"), "greater_than_equal"),
        ({"lora": {"alpha": 0}}, ("lora", "alpha"), "greater_than_equal"),
        ({"lora": {"targets": []}}, ("lora", "targets"), "too_short"),
        ({"lora": {"rank": 8}}, ("lora", "rank"), "extra_forbidden"),
        ({"layer": 15}, ("layer",), "extra_forbidden"),
    ],
)
def test_nonsense_is_refused_with_its_key(content: dict[str, Any], key: tuple[str | int, ...], kind: str) -> None:
    with pytest.raises(ValidationError) as error:
        LLMSettings.model_validate(content)
    problem = error.value.errors()[0]
    assert (problem["loc"], problem["type"]) == (key, kind)


def test_plans_of_earlier_versions_say_that_layers_are_not_calibrated() -> None:
    assert LLMSettings.model_validate({"calibrate": False}) == LLMSettings()
