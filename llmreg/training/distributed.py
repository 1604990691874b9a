"""The processes that train together: one, or as many as torchrun started.

``accelerate.PartialState`` was tried and left. It is a singleton, so that two trainings in one Python process share the
first one's device, and its ``main_process_first`` leaves the other processes waiting when the first one fails.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
from torch import distributed, nn

from llmreg.devices import choose_device

Item = TypeVar("Item")


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: the number of processes.
        device: where it computes.
        store: what the processes share; None for a process that is alone.
    """

    rank: int
    world: int
    device: torch.device
    store: distributed.Store | None = field(default=None, compare=False, repr=False)
    _numbers: Iterator[int] = field(default_factory=count, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """Return the item of each process, in the order of their ranks; every process must call it.

        Items of other processes arrive as JSON, with lists for tuples. ``torch.distributed.all_gather_object`` is not
        used: a thread of its own needs Python to release the last items, and a process that ends meanwhile is aborted.
        """
        if self.store is None:
            return [item]
        number = next(self._numbers)
        self.store.set(f"{number}/{self.rank}", json.dumps(item))
        items = [json.loads(self.store.get(f"{number}/{rank}")) for rank in range(self.world)]
        # Every process sent its item after it had read the items of the previous call, which can therefore be removed.
        self.store.delete_key(f"{number - 1}/{self.rank}")
        return items

    def reduce_max(self, *numbers: int) -> list[int]:
        """Return the largest of each number over the processes; every process must call it."""
        return [max(values) for values in zip(*self.gather(numbers), strict=True)]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            distributed.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the network so that its gradients are averaged over the processes in every backward pass.

        Every process has built the same network from the same seed or checkpoint, so nothing is sent at the start, and
        frozen layers never are.
        """
        if self.world == 1:
            return network
        return nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            init_sync=False,
            gradient_as_bucket_view=True,
        )


@contextmanager
def join_processes(device_name: str | None) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started with this one; without torchrun it is alone.

    Args:
        device_name: name of the device; a GPU for each process when None and there are GPUs.

    Raises:
        UserError: the device cannot be used.
    """
    device = choose_device(device_name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield DistributedContext(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The other processes wait this long for the first one, which may have to fetch a language model.
    timeout = timedelta(hours=2)
    store, rank, world = next(distributed.rendezvous("env://", timeout=timeout))
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
    context = DistributedContext(rank, world, device, distributed.PrefixStore("llmreg", store))
    try:
        yield context
        # The first process may hold the store, which the others still read until they arrive here.
        context.wait()
    finally:
        distributed.destroy_process_group()


@contextmanager
def main_process_first(context: DistributedContext) -> Iterator[None]:
    """Run the block in the first process, then in the others, which can use what the first one wrote."""
    try:
        if not context.first:
            context.wait()
        yield
    finally:
        # This happens after an error too, so that the others meet the error themselves instead of waiting for ever.
        if context.first:
            context.wait()
