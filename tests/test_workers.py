"""Work in several processes."""

from __future__ import annotations

import os
import signal

import blosc2
import pytest
import SimpleITK as sitk

from llmreg import workers
from llmreg.errors import UserError, WorkerEnded
from llmreg.workers import GB_PER_PROCESS, default_process_count, map_in_processes, use_single_thread


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def refuse(number: int) -> int:
    if number == 2:
        raise UserError("two is refused")
    return number


def end(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_the_order_of_the_items(processes: int) -> None:
    results = list(map_in_processes(double, range(5), processes, "Double"))
    assert [result for result, _ in results] == [0, 2, 4, 6, 8]
    is_this_process = {process == os.getpid() for _, process in results}
    assert is_this_process == {processes == 1}


def test_one_item_needs_no_other_process() -> None:
    assert list(map_in_processes(double, [3], 8, "Double")) == [(6, os.getpid())]
    assert list(map_in_processes(double, [], 8, "Double")) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_raised_here(processes: int) -> None:
    with pytest.raises(UserError, match="two is refused"):
        list(map_in_processes(refuse, range(4), processes, "Refuse"))


def test_a_process_that_is_ended_from_outside_is_told() -> None:
    with pytest.raises(WorkerEnded) as error:
        list(map_in_processes(end, range(4), 2, "End"))
    assert error.value.task == "End"


def test_processes_have_room_in_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, ram, expected in ((16, 32.0, int(32 / GB_PER_PROCESS)), (16, 1.0, 1), (2, 32.0, 2)):
        monkeypatch.setattr(workers, "available_cores", lambda cores=cores: cores)
        monkeypatch.setattr(workers, "ram_gb", lambda ram=ram: ram)
        assert default_process_count() == expected


def test_a_single_thread_is_used() -> None:
    itk, blosc = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), blosc2.nthreads
    try:
        use_single_thread()
        assert (sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), blosc2.nthreads) == (1, 1)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(itk)
        blosc2.set_nthreads(blosc)
