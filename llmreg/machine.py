"""Cores and memory of this computer, without importing torch."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def available_cores() -> int:
    """CPU cores that this process may use, which on a shared computer may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_gb() -> float:
    """Of the computer, or of the container that this process runs in."""
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(ram, int(limit) if limit.isdecimal() else ram) / 2**30


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, GiB."""
    # Linux' getrusage counts what the process that started this one had held, too.
    return held_gb(os.getpid()) or peak_of(resource.getrusage(resource.RUSAGE_SELF))


def held_gb(process: int) -> float | None:
    """The most memory that a running process has held so far, GiB; None where the system does not tell (macOS)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) / 2**20 if lines else None


def peak_of(used: resource.struct_rusage) -> float:
    """The most memory that a process has held, GiB, by what the system says it used."""
    # macOS counts bytes, Linux KiB.
    return used.ru_maxrss / 2**30 if sys.platform == "darwin" else used.ru_maxrss / 2**20
