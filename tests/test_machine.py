"""Cores and memory, against what the system itself says."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from llmreg.machine import available_cores, peak_memory_gb, process_peak_gb, ram_gb, usage_peak_gb

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def test_memory_is_that_of_the_computer_or_less_in_a_container(tmp_path, monkeypatch):
    pages = {"SC_PHYS_PAGES": 32 * 2**18, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    limit = tmp_path / "memory.max"
    assert ram_gb(limit) == 32
    for text, expected in (("max\n", 32), (f"{5 * 2**30}\n", 5), (f"{500 * 2**30}\n", 32)):
        limit.write_text(text)
        assert ram_gb(limit) == expected


@linux
def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


@linux
def test_the_peak_of_a_process_stays_when_its_memory_is_freed():
    before = peak_memory_gb()
    array = np.ones(2**25)  # 0.25 GiB
    assert array.sum() == 2**25
    del array
    after = peak_memory_gb()
    assert after >= before
    assert process_peak_gb(os.getpid()) == pytest.approx(after, abs=0.01)
    assert 0.2 < after < 100


@linux
def test_the_peak_of_a_child_does_not_count_its_parent():
    code = "import sys; from llmreg.machine import peak_memory_gb; sys.stdout.write(str(peak_memory_gb()))"
    array = np.ones(2**25)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 0.2 < peak_memory_gb()
    assert array[-1] == 1


def test_a_process_that_has_ended_has_no_peak():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert process_peak_gb(child.pid) is None


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_systems_count_memory_in_their_own_units(platform, unit, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    usage = resource.struct_rusage((0.0, 0.0, 3 * 2**30 // unit, *[0] * 13))
    assert usage_peak_gb(usage) == 3
