"""Hints name options and commands that exist, and reach every subclass of an error."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from llmreg import errors
from llmreg.commands import hints
from llmreg.commands.hints import hint

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def options() -> set[str]:
    """The options of all commands."""
    parsers = [import_module(module.split(":")[0]).build_parser() for module in SCRIPTS.values()]
    helps = [parser.format_help() for parser in parsers]
    choices = [action.choices for parser in parsers for action in parser._actions if isinstance(action.choices, dict)]
    helps += [parser.format_help() for choice in choices for parser in choice.values()]
    return set(re.findall(r"(?<![\w-])--?[a-z]\w*", " ".join(helps)))


def test_every_hint_names_options_and_commands_that_exist() -> None:
    text = (ROOT / "llmreg" / "commands" / "hints.py").read_text()
    named = set(re.findall(r"(?<![\w-])--?[a-z]\w*", text))
    assert {"--overwrite", "-d"} <= named <= options()
    assert set(re.findall(r"llmreg_[a-z_]+", text)) <= SCRIPTS.keys()
    assert "--overwrite" in hints.OUT_OF_MEMORY_HINT + hint(errors.WouldOverwrite(Path("a")))


def test_an_error_without_a_hint_of_its_own_has_that_of_its_base() -> None:
    class WouldOverwriteModel(errors.WouldOverwrite):
        pass

    assert hint(WouldOverwriteModel(Path("a"))) == hint(errors.WouldOverwrite(Path("a"))) != ""
    assert hint(errors.UserError("anything")) == hint(ValueError()) == ""


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("train", "llmreg_train 7 FOLD -p mine"),
        ("plan", "llmreg_plan_and_preprocess -d 7 -p mine"),
        ("fingerprint", "llmreg_extract_fingerprint -d 7 -p mine"),
    ],
)
def test_a_missing_step_is_a_command_to_type(step: str, words: str) -> None:
    assert words in hint(errors.NotPrepared("x", step, "7", "mine"))


def test_an_argument_is_an_option() -> None:
    assert "--spacing" in hint(errors.BadArgument("spacing", "too fine"))
    assert "--save" in hint(errors.BadArgument("outputs", "the field is missing"))


def test_a_field_of_another_format_is_converted_and_memory_is_saved_by_fewer_processes() -> None:
    assert {"llmreg_convert_field", "--from"} <= set(hint(errors.UnclearField("a.nii", "is unclear")).split())
    assert "--num_processes" in hint(errors.WorkerEnded("Preprocess"))
    assert "--device cpu" in hint(errors.DeviceUnavailable("cuda", "no driver"))
