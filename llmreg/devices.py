"""Where to compute, and in which precision."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from llmreg.errors import UserError
from llmreg.machine import available_cores, peak_memory_gb, ram_gb

# The rest is for the system, the data loader and what PyTorch does not give back.
USABLE = {"cpu": 0.75, "cuda": 0.9}


def choose_device(name: str | None) -> torch.device:
    """The device of that name; CUDA where there is one, when None. Raises UserError when torch cannot use it."""
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The device '{chosen}' cannot be used ({reason}): try --device cpu.") from error
    return device


def local_device(name: str | None) -> str | None:
    """The name of the GPU that is this process's own among those that torchrun started here; else ``name``."""
    if "LOCAL_RANK" in os.environ and name in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def autocast(device: torch.device, wanted: str) -> torch.autocast:
    """bfloat16 where the plan wants it and the hardware computes in it; else off."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted == "bfloat16" and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; without, PyTorch emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return False


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, GiB: its own, and PyTorch's on a GPU."""
    found = {"peak_memory_gb": peak_memory_gb()}
    if device.type == "cuda":
        found["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {name: round(value, 3) for name, value in found.items()}


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
    device = choose_device(None)
    if device.type == "cuda":
        kind: Literal["cpu", "cuda"] = "cuda"
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
    else:
        kind, whole = "cpu", ram_gb()
    # Rounded, so that a machine that reports a few bytes more or less makes the same plans.
    memory = max(1, round(whole * USABLE[kind])) if memory_gb is None else memory_gb
    return Machine(kind, float(memory), available_cores(), has_bfloat16(device))
