"""Work on many cases in several processes, with a progress bar and errors that stay readable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from typing import TypeVar

from tqdm import tqdm

from llmreg.errors import UserError
from llmreg.machine import available_cores, ram_gb

# What one case of 512 x 512 x 300 voxels takes at its most, with its label map.
GB_A_PROCESS = 2.5
# Slow to import, and without a thread that works on its own when they are.
PRELOADED = ("scipy.ndimage", "torch", "SimpleITK")
Item = TypeVar("Item")
Result = TypeVar("Result")


def default_processes() -> int:
    """One a core, but no more than the memory has room for."""
    return max(1, min(available_cores(), int(ram_gb() / GB_A_PROCESS)))


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], num_processes: int, title: str, unit: str = "case"
) -> Iterator[Result]:
    """``map`` over processes, in order; in this process when one is enough.

    Raises:
        UserError: whatever ``function`` raises of that kind, or a worker that was ended from outside.
    """
    processes = min(num_processes, len(items))
    if processes < 2:
        yield from tqdm(map(function, items), title, len(items), unit=unit)
        return
    try:
        with ProcessPoolExecutor(processes, _context(), initializer=single_threaded) as pool:
            yield from tqdm(pool.map(function, items), title, len(items), unit=unit)
    except BrokenProcessPool:
        raise UserError(
            f"A process was ended from outside during '{title}', perhaps for want of memory: try again with fewer "
            "processes (--num_processes)."
        ) from None


def _context() -> BaseContext:
    """How processes are started: never forked from this one, a lock of whose threads they could inherit.

    They are forked from an idle process that has imported what is slow to import, once for all calls; or, where there
    are no forks (Windows), each starts anew.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def single_threaded() -> None:
    """The processes share out the cores, so each keeps to one thread."""
    import blosc2
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    blosc2.set_nthreads(1)
