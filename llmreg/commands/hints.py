"""What to type after an error: the library's errors carry data, and the command line knows the options.

:func:`hint` is dispatched on the error's class. A class that has no hint of its own gets that of its base.
"""

from __future__ import annotations

from functools import singledispatch

from llmreg import errors


@singledispatch
def hint(error: Exception) -> str:
    """A sentence that names the options of the command which help; empty where none does."""
    return ""


@hint.register
def _(error: errors.WouldOverwrite) -> str:
    return "Choose another --output, or add --overwrite."


@hint.register
def _(error: errors.WouldReplaceInput) -> str:
    return "Choose another --output."


@hint.register
def _(error: errors.OtherPlans) -> str:
    return "Name the changed plans with --as."


@hint.register
def _(error: errors.DeviceUnavailable) -> str:
    return "Add --device cpu."


# The command that makes what is missing, by the step's name.
_COMMANDS = {
    "fingerprint": "llmreg_extract_fingerprint",
    "plan": "llmreg_plan_and_preprocess",
    "preprocess": "llmreg_preprocess",
    "train": "llmreg_train",
    "predict": "llmreg_predict",
    "evaluate": "llmreg_evaluate",
    "fetch_llm": "llmreg_fetch_llm",
}


@hint.register
def _(error: errors.NotPrepared) -> str:
    words = [_COMMANDS[error.step]]
    if error.dataset is not None:
        words.append(f"{error.dataset} FOLD" if error.step == "train" else f"-d {error.dataset}")
    if error.plans is not None:
        words.append(f"-p {error.plans}")
    return f"Type: {' '.join(words)}."
