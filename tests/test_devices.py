"""The choice of a device, on computers with and without a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from llmreg import devices
from llmreg.devices import (
    USABLE_SHARE,
    autocast,
    choose_device,
    detect_machine,
    has_bfloat16,
    peak_memory,
)
from llmreg.errors import DeviceUnavailable


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_processor_is_chosen_where_there_is_no_gpu(no_gpu: None) -> None:
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(DeviceUnavailable) as error:
        choose_device(name)
    assert error.value.device == name
    assert error.value.reason


def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # A device is tried out, which this computer need not have.
    monkeypatch.setattr(torch, "zeros", lambda size, device: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device(None) == choose_device("cuda") == torch.device("cuda:3")
    assert choose_device("cuda:1") == choose_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "in_hardware", "expected"),
    [("bfloat16", True, torch.bfloat16), ("bfloat16", False, torch.float32), ("float32", True, torch.float32)],
)
def test_bfloat16_is_used_only_where_the_hardware_has_it(
    precision: str, in_hardware: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: in_hardware)
    layer = torch.nn.Linear(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert layer(torch.ones(1, 2)).dtype == expected


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
def test_processors_say_that_they_have_bfloat16(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"avx512_bf16": False, "amx_bf16": False, "bf16": False, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert not has_bfloat16(torch.device("cpu"))
    capabilities[capability] = True
    assert has_bfloat16(torch.device("cpu"))
    assert not has_bfloat16(torch.device("meta"))


def test_the_gpus_memory_stands_beside_the_computers_where_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert peak_memory(torch.device("cpu")).keys() == {"peak_memory_gb"}
    peaks = peak_memory(torch.device("cuda"))
    assert peaks["peak_gpu_memory_gb"] == 3
    assert 0.01 < peaks["peak_memory_gb"] < 100


def test_most_of_the_memory_is_planned_for_unless_another_is_given(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few bytes more or less make no other plans.
    for ram, expected in ((32.0, 24), (32.0001, 24), (10.000004, round(USABLE_SHARE["cpu"] * 10)), (0.25, 1)):
        monkeypatch.setattr(devices, "ram_gb", lambda ram=ram: ram)
        assert detect_machine().memory_gb == expected
    assert detect_machine(7.5).memory_gb == 7.5
    assert detect_machine().device == "cpu"
    assert detect_machine().cores == len(os.sched_getaffinity(0))


def test_a_gpu_is_planned_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    machine = detect_machine()
    assert (machine.device, machine.memory_gb, machine.bfloat16) == ("cuda", USABLE_SHARE["cuda"] * 80, True)
    assert detect_machine(24).memory_gb == 24
