from __future__ import annotations

import inspect
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from llmreg import errors
from llmreg.training import training_errors

MODULES = (errors, training_errors)
CLASSES = sorted(
    {
        kind
        for module in MODULES
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, errors.UserError)
    },
    key=lambda kind: kind.__name__,
)
# Something for each type that constructors ask for.
EXAMPLES: dict[str, Any] = {
    "Path": Path("a/b"),
    "str": "text",
    "int": 3,
    "float": 1.5,
    "bool": True,
    "Sequence": ("x", "y"),
}


def make_example(kind: type[errors.UserError]) -> errors.UserError:
    arguments = []
    if kind.__init__ is not Exception.__init__:
        for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]:
            annotation = re.sub(r"\w+\.", "", inspect.formatannotation(parameter.annotation)).strip("'")
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if annotation.startswith("Mapping"):
                arguments.append({"a": "b"})
                continue
            arguments.append(EXAMPLES[annotation.split("[")[0].split(" | ")[0]])
    return kind(*arguments)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_is_the_same_in_another_process(kind: type[errors.UserError]) -> None:
    """Processes that work for this one send it their errors."""
    error = make_example(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", CLASSES)
def test_messages_name_no_option_and_no_command(kind: type[errors.UserError]) -> None:
    message = str(make_example(kind))
    assert "--" not in message
    assert "llmreg_" not in message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_code_of_an_interruption_is_that_of_shells(number: signal.Signals, code: int) -> None:
    error = errors.Interrupted(number, "later")
    assert error.exit_code == code
    assert str(error).startswith(number.name)
