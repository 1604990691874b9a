"""Every console script answers --help, and does so without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = ("torch", "SimpleITK", "matplotlib", "pandas", "monai", "transformers", "peft", "scipy", "blosc2")


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_ends_with_examples_that_name_the_command(script):
    module, function = SCRIPTS[script].split(":")
    assert function == "main"
    assert module == "llmreg.commands." + script.removeprefix("llmreg_")
    process = _python("-m", "llmreg.commands", script.removeprefix("llmreg_"), "--help")
    assert process.returncode == 0, process.stderr
    _, heading, examples = process.stdout.partition("examples:")
    assert heading
    assert script in examples


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_is_imported_without_heavy_libraries(script):
    module = SCRIPTS[script].split(":")[0]
    process = _python("-c", f"import sys, {module}; sys.exit(', '.join(set({HEAVY}) & set(sys.modules)) or 0)")
    assert process.returncode == 0, process.stderr
