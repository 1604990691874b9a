"""The computer that plans are made for."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

# The rest is for the system, the data loader and what PyTorch does not give back.
USABLE = {"cpu": 0.75, "cuda": 0.9}
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Machine:
    """What decides how large a network may be, and how long it may train.

    Attributes:
        device: where training will run.
        memory_gb: memory for it there, GiB.
        cores: CPU cores.
        bfloat16: whether the device computes in bfloat16.
    """

    device: Literal["cpu", "cuda"]
    memory_gb: float
    cores: int
    bfloat16: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def this_machine(memory_gb: float | None = None) -> Machine:
    """This computer's GPU where it has one, else its processor.

    Args:
        memory_gb: the memory to plan for; most of what the device has when None.
    """
    import torch

    from llmreg.devices import choose_device, has_bfloat16

    device = choose_device(None)
    if device.type == "cuda":
        kind: Literal["cpu", "cuda"] = "cuda"
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
    else:
        kind, whole = "cpu", ram_gb()
    # Rounded, so that a machine that reports a few bytes more or less makes the same plans.
    memory = max(1, round(whole * USABLE[kind])) if memory_gb is None else memory_gb
    return Machine(kind, float(memory), available_cores(), has_bfloat16(device))


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
