"""A record of what a training ran on, in which the reason of a later difference can be looked up."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from llmreg.devices import has_bfloat16
from llmreg.files import read_json, write_json
from llmreg.machine import available_cores, ram_gb
from llmreg.version import __version__


def write_debug(folder: Path, device: torch.device, content: dict[str, Any]) -> None:
    """Write ``debug.json``: ``content``, and for each start and resumption what it runs on.

    That is command, time, versions of llmreg and its dependencies, machine, device, and git revision if any.
    """
    path = folder / "debug.json"
    runs = read_json(path)["runs"] if path.exists() else []
    cuda = device.type == "cuda"
    run = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "llmreg": __version__,
        "git_revision": _git_revision(),
        "python": sys.version.split()[0],
        "packages": _packages(),
        "platform": platform.platform(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(ram_gb(), 1),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if cuda else None,
        "bfloat16": has_bfloat16(device),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "SLURM_JOB", "llmreg"))
        },
    }
    write_json(path, {"runs": [*runs, run]} | content)


def _packages() -> dict[str, str]:
    """The versions of llmreg's requirements; empty where it runs without having been installed."""
    try:
        required = metadata.requires("llmreg") or []
    except metadata.PackageNotFoundError:
        return {}
    names = {match[0] for text in required if "extra ==" not in text and (match := re.match(r"[\w.-]+", text))}
    return {name: metadata.version(name) for name in sorted(names)}


def _git_revision() -> str | None:
    """The revision of the checkout that this package lies in, with ``+`` where files were changed."""
    source = Path(__file__).parents[2]
    # The checkout is named, because git would also find one in which this package is only installed.
    command = [
        "git",
        f"--git-dir={source / '.git'}",
        f"--work-tree={source}",
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=40",
        "--dirty=+",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
