"""Packages outside of llmreg, as a stranger would install them: a module and its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def write_package(folder: Path, module: str, source: str, group: str) -> None:
    """Write a module and what an installer writes beside it: it is installed where ``folder`` is on the path."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {module}\n")


def run_python(folder: Path, script: str) -> str:
    """Run a script in a new process in which the packages of a folder are installed; what it printed."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout
