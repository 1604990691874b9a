"""Hints name options and commands that exist, and reach every subclass of an error."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from llmreg import errors
from llmreg.commands import hints, predict
from llmreg.commands.hints import hint

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

OPTION = r"(?<![\w-])--?[a-z]\w*"


@cache
def options() -> set[str]:
    """The options of all commands."""
    parsers = [import_module(module.split(":")[0]).build_parser() for module in SCRIPTS.values()]
    helps = [parser.format_help() for parser in parsers]
    choices = [action.choices for parser in parsers for action in parser._actions if isinstance(action.choices, dict)]
    helps += [parser.format_help() for choice in choices for parser in choice.values()]
    return set(re.findall(OPTION, " ".join(helps)))


def test_every_hint_names_options_and_commands_that_exist() -> None:
    text = (ROOT / "llmreg" / "commands" / "hints.py").read_text()
    named = set(re.findall(OPTION, text))
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


def refused_arguments() -> set[tuple[str, str]]:
    """Each name that the package gives to BadArgument, and the room of the module that does."""
    return {
        (node.args[0].value, path.relative_to(ROOT / "llmreg").parts[0])
        for path in (ROOT / "llmreg").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BadArgument"
        if isinstance(node.args[0], ast.Constant)
    }


@cache
def accepted_arguments(room: str) -> set[str]:
    """The parameters of a room's public functions and methods, and the fields of its public classes."""
    paths = [*(ROOT / "llmreg" / room).rglob("*.py"), ROOT / "llmreg" / "api.py"]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    fields = {ast.unparse(line.target) for kind in classes for line in kind.body if isinstance(line, ast.AnnAssign)}
    return fields | {
        argument.arg for function in functions for argument in (*function.args.args, *function.args.kwonlyargs)
    }


@pytest.mark.parametrize(("argument", "room"), sorted(refused_arguments()))
def test_a_refused_argument_is_a_parameter_and_an_option(argument: str, room: str) -> None:
    assert argument in accepted_arguments(room)
    named = set(re.findall(OPTION, hint(errors.BadArgument(argument, "does not fit"))))
    assert named
    assert named <= options()


def test_predictions_without_an_output_are_made_again_with_it() -> None:
    words = hint(errors.MissingOutput(Path("out"), "A_B", "field")).rstrip(".").split()
    save = next(action for action in predict.build_parser()._actions if "--save" in action.option_strings)
    assert words[-2] == "--save"
    assert words[-1] in (save.choices or ())


@pytest.mark.parametrize(
    ("source", "helps"),
    [
        ("preprocessed/Dataset001_A/plans.json", True),
        ("results/Dataset001_A/llm_morph__default__full/plans.json", False),
        ("The changed plans", False),
    ],
)
def test_only_plans_of_a_dataset_can_be_planned_again(source: str, helps: bool) -> None:
    for name in (source, Path(source)):
        assert ("--overwrite" in hint(errors.BadPlans(name, "loss.dice", "it is negative"))) is helps


def test_a_folder_without_a_variable_and_a_choice_of_models_are_named_once() -> None:
    assert "export llmreg_raw=" in hint(errors.MissingFolder("llmreg_raw", "llmreg_home"))
    error = errors.Ambiguous("trained model", ["A", "B"])
    assert "-m" in hint(error)
    assert f"{error} {hint(error)}".lower().count("choose") == 1


def test_a_field_of_another_format_is_converted_and_memory_is_saved_by_fewer_processes() -> None:
    assert {"llmreg_convert_field", "--from"} <= set(hint(errors.UnclearField("a.nii", "is unclear")).split())
    assert "--num_processes" in hint(errors.WorkerEnded("Preprocess"))
    assert "--device cpu" in hint(errors.DeviceUnavailable("cuda", "no driver"))
