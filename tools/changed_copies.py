"""Copies of the repository in which tests run against changed code, and the file that keeps the results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LEFT_OUT = (".git", ".venv*", "build", ".*_cache", "__pycache__", "llmreg_demo")


def copy_repository(target: Path) -> Path:
    """Copy what tests need to a folder that does not exist yet, and return it."""
    return Path(shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*_LEFT_OUT)))


def find_mirrored_test(module: str) -> str:
    """The test file that mirrors a module; both are relative to the repository."""
    path = Path(module).relative_to("llmreg")
    return str(Path("tests") / path.parent / f"test_{path.name}")


@contextmanager
def change_module(copy: Path, module: str, source: str) -> Iterator[None]:
    """Give a module of a copy another source for the time of the block."""
    target = copy / module
    original = target.read_text(encoding="utf-8")
    target.write_text(source, encoding="utf-8")
    try:
        yield
    finally:
        target.write_text(original, encoding="utf-8")


def tests_pass(tests: Sequence[str], copy: Path, seconds: float) -> bool:
    """Whether tests pass in a copy of the repository; tests that run on for too long do not."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    return process.returncode == 0


@cache
def is_baseline_passing(tests: tuple[str, ...], copy: Path, seconds: float) -> bool:
    """Whether the tests pass in a copy whose code is not changed."""
    return tests_pass(tests, copy, seconds)


def judge(module: str, make_source: Callable[[str], str], tests: tuple[str, ...], copy: Path, seconds: float) -> str:
    """Whether tests notice a change of a module.

    Args:
        module: its path, relative to the repository.
        make_source: makes the changed source from the module's own.
        tests: what is run, relative to the repository.
        copy: of the repository.
        seconds: limit of a run; ten times as long without the change.

    Returns:
        ``noticed``, ``survived``, or why the tests cannot tell.
    """
    if not tests:
        return "survived"
    if not is_baseline_passing(tests, copy, 10 * seconds):
        return "untestable: the tests fail without the change"
    source = make_source((copy / module).read_text(encoding="utf-8"))
    with change_module(copy, module, source):
        return "survived" if tests_pass(tests, copy, seconds) else "noticed"


class Results:
    """Results by name, which a JSON file keeps, so that a second run continues with those that are missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.by_name: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, name: str, result: str) -> None:
        """Add a result."""
        self.by_name[name] = result
        self._path.write_text(json.dumps(self.by_name, indent=2) + "\n")

    def summarise(self, names: Sequence[str], kind: str) -> str:
        """List the survivors among names, and the share of the others in a last line."""
        survivors = [name for name in names if self.by_name.get(name) == "survived"]
        noticed = sum(self.by_name.get(name) == "noticed" for name in names)
        judged = noticed + len(survivors)
        share = f"{100 * noticed / judged:.1f} %" if judged else "no"
        return "\n".join([*survivors, f"{share} of {judged} {kind} were noticed ({len(names) - judged} are missing)."])
