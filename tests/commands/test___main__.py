"""Commands that are run by their name, without an installed script."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmreg.commands", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_command_is_run_by_its_name_with_its_words() -> None:
    process = run("report")
    assert process.returncode == 2
    assert process.stderr.startswith("error: Name one folder, or a dataset with -d")
    process = run("fetch_llm", "--help")
    assert process.returncode == 0
    assert process.stdout.startswith("usage: llmreg_fetch_llm ")


@pytest.mark.parametrize("words", [("nonsense", "-d", "1"), ("shell",), ("__main__",), ()])
def test_an_unknown_name_is_refused_with_all_that_there_are(words: tuple[str, ...]) -> None:
    process = run(*words)
    assert process.returncode == 2
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"error: There is no command '{''.join(words[:1])}': choose ")
    names = line.removesuffix(".").partition("choose ")[2].split(", ")
    assert names == sorted(script.removeprefix("llmreg_") for script in SCRIPTS)
