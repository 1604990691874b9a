"""Cores and memory of this computer, without importing torch."""

import os
import resource
import sys
from pathlib import Path

# Linux writes the memory limit of a container to this file.
CGROUP_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")


def available_cores() -> int:
    """Number of CPU cores that this process may use; on a shared computer these may be fewer than it has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ram_gb(limit_file: Path = CGROUP_LIMIT_FILE) -> float:
    """Memory of the computer, or of the container that this process runs in, GiB.

    Args:
        limit_file: the container's limit in bytes, or ``max``; it may be missing.
    """
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = limit_file.read_text().strip() if limit_file.is_file() else "max"
    return min(ram, int(limit) if limit.isdecimal() else ram) / 2**30


def peak_memory_gb() -> float:
    """Peak memory of this process so far, GiB."""
    # On Linux, getrusage also counts the memory of the process that started this one.
    return process_peak_gb(os.getpid()) or usage_peak_gb(resource.getrusage(resource.RUSAGE_SELF))


def process_peak_gb(process: int) -> float | None:
    """Peak memory of a running process so far, GiB; None where the system does not tell (macOS)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) / 2**20 if lines else None


def usage_peak_gb(usage: resource.struct_rusage) -> float:
    """Peak memory of a process, GiB, from its resource usage."""
    # macOS counts bytes, Linux KiB.
    return usage.ru_maxrss / 2**30 if sys.platform == "darwin" else usage.ru_maxrss / 2**20
