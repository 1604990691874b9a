"""House rules that no linter checks."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmreg

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "llmreg").rglob("*.py"))


def _names_of_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_keeps_the_rules(path):
    tree = ast.parse(path.read_text())
    imported_names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    star_imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)
    ]
    from_modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    calls = set(_names_of_calls(tree))
    assert not star_imports
    assert not {"pickle", "joblib", "dill", "shelve"} & (imported_names | from_modules)
    assert not {"print", "torch.load", "torch.save", "np.save", "np.savez"} & calls
    assert not [name for name in calls if name.endswith(".cuda")]


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "llmreg.version.__version__"}
    assert re.fullmatch(r"\d+\.\d+.*", llmreg.__version__)


def test_every_dependency_is_named_once_and_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [d.split(">=")[0] for d in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pinned_names = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    assert len(set(requirements)) == len(requirements)
    assert {name.lower() for name in requirements} <= pinned_names
