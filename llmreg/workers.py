"""Work on many cases in several processes, with a progress bar and errors that stay readable."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

from llmreg.errors import WorkerEnded
from llmreg.machine import available_cores, ram_gb

# Peak memory, GiB, for a case of 512 x 512 x 300 voxels with its label map.
GB_PER_PROCESS = 2.5
# Modules that are slow to import and start no thread when they are imported.
PRELOADED_MODULES = ["scipy.ndimage", "torch", "SimpleITK"]
Item = TypeVar("Item")
Result = TypeVar("Result")


def default_process_count() -> int:
    """A process for each core, but no more than the memory has room for."""
    return max(1, min(available_cores(), int(ram_gb() / GB_PER_PROCESS)))


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_processes: int, title: str, unit: str = "case"
) -> Iterator[Result]:
    """Apply a function to items in several processes, in order, with a progress bar; in this process when one suffices.

    Args:
        function: a function that can be pickled; its errors are raised here.
        items: its arguments.
        num_processes: the largest number of processes.
        title: the name of the work, for the progress bar and errors.
        unit: the name of an item, for the progress bar.

    Raises:
        WorkerEnded: a process was ended from outside, for example because memory ran out.
    """
    processes = min(num_processes, len(items))
    if processes < 2:
        yield from tqdm(map(function, items), title, len(items), unit=unit)
        return
    # A fork of this process could inherit a lock that one of its threads holds. Processes are therefore forked from an
    # idle server process, which has imported the modules that are slow to import.
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    try:
        with ProcessPoolExecutor(processes, context, initializer=use_single_thread) as pool:
            yield from tqdm(pool.map(function, items), title, len(items), unit=unit)
    except BrokenProcessPool:
        raise WorkerEnded(title) from None


def use_single_thread() -> None:
    """Restrict SimpleITK and blosc2 to one thread in this process, since the processes share the cores."""
    import blosc2
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    blosc2.set_nthreads(1)
