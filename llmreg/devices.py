"""The device to compute on, its precision and its memory."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from llmreg.errors import DeviceUnavailable
from llmreg.machine import available_cores, peak_memory_gb, ram_gb

# Share of a device's memory to plan for. The system, the data loader and PyTorch's cache need the rest.
USABLE_SHARE = {"cpu": 0.75, "cuda": 0.9}


def choose_device(name: torch.device | str | None) -> torch.device:
    """The device of a name; CUDA where there is one, when the name is None. Processes of torchrun have a GPU each.

    Raises:
        DeviceUnavailable: PyTorch cannot use it.
    """
    if name in (None, "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        device = torch.device(name or "cpu")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceUnavailable(str(name), str(error).splitlines()[0]) from error
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bfloat16 where ``precision`` is ``bfloat16`` and the hardware computes in it; else disabled."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16" and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; elsewhere PyTorch emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, GiB: in RAM (``peak_memory_gb``) and, on a GPU, ``peak_gpu_memory_gb``."""
    peaks = {"peak_memory_gb": peak_memory_gb()}
    if device.type == "cuda":
        peaks["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {name: round(value, 3) for name, value in peaks.items()}


@dataclass(frozen=True)
class Machine:
    """The properties of a computer that limit a network's size and the length of its training.

    Attributes:
        device: the device on which training will run.
        memory_gb: the memory that training may use there, GiB.
        cores: number of CPU cores.
        bfloat16: whether the device computes in bfloat16.
    """

    device: Literal["cpu", "cuda"]
    memory_gb: float
    cores: int
    bfloat16: bool


def detect_machine(memory_gb: float | None = None) -> Machine:
    """This computer, with its GPU where it has one, else its processor.

    Args:
        memory_gb: the memory to plan for, GiB; most of the device's memory when None.
    """
    device = choose_device(None)
    kind: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    total = torch.cuda.get_device_properties(device).total_memory / 2**30 if kind == "cuda" else ram_gb()
    # Rounded, so that a machine that reports a few bytes more or less makes the same plans.
    memory = max(1, round(total * USABLE_SHARE[kind])) if memory_gb is None else memory_gb
    return Machine(kind, float(memory), available_cores(), has_bfloat16(device))
