from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llmreg import machine, workers
from llmreg.devices import USABLE, this_machine
from llmreg.machine import ram_gb
from llmreg.workers import GB_A_PROCESS, default_processes


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a container's limit stands, on a computer of 32 GB without a GPU."""
    path = tmp_path / "memory.max"
    pages = {"SC_PHYS_PAGES": 32 * 2**18, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    monkeypatch.setattr(machine, "_CGROUP_LIMIT", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return path


def test_memory_is_that_of_the_computer_or_less_in_a_container(limit: Path) -> None:
    assert ram_gb() == 32
    for text, expected in (("max\n", 32), (f"{5 * 2**30}\n", 5), (f"{500 * 2**30}\n", 32)):
        limit.write_text(text)
        assert ram_gb() == expected


def test_most_of_the_memory_is_planned_for_unless_another_is_given(limit: Path) -> None:
    assert this_machine().memory_gb == USABLE["cpu"] * 32
    assert this_machine(7.5).memory_gb == 7.5
    limit.write_text(f"{10 * 2**30 + 4096}\n")
    # A few bytes more or less make no other plans.
    assert this_machine().memory_gb == round(this_machine().memory_gb) == round(USABLE["cpu"] * 10)
    limit.write_text(f"{2**28}\n")
    assert this_machine().memory_gb == 1
    assert this_machine().device == "cpu"
    assert this_machine().cores == len(os.sched_getaffinity(0))


def test_a_gpu_is_planned_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmreg.devices.choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr("llmreg.devices.has_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    found = this_machine()
    assert (found.device, found.memory_gb, found.bfloat16) == ("cuda", USABLE["cuda"] * 80, True)
    assert this_machine(24).memory_gb == 24


def test_processes_have_room_in_the_memory(limit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    assert default_processes() == min(16, int(32 / GB_A_PROCESS))
    limit.write_text(f"{2**30}\n")
    assert default_processes() == 1
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    limit.write_text("max\n")
    assert default_processes() == 2
