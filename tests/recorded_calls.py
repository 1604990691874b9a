"""Library functions in whose place a test records how a command calls them."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest


def record_calls(monkeypatch: pytest.MonkeyPatch, function: str, result: Any = None) -> list[dict[str, Any]]:
    """Replace a function, ``llmreg.module.name``, by one that lists the arguments of its calls by name."""
    module_name, _, name = function.rpartition(".")
    module = import_module(module_name)
    signature, calls = inspect.signature(getattr(module, name)), []

    def record(*arguments: Any, **keywords: Any) -> Any:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        calls.append(dict(bound.arguments))
        return result

    monkeypatch.setattr(module, name, record)
    return calls
