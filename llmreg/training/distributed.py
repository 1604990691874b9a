"""The processes that train together: one, or as many as torchrun started.

``accelerate.PartialState`` was tried and left. It is a singleton, so that two trainings in one Python process share the
first one's device, and its ``main_process_first`` leaves the other processes waiting when the first one fails.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
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
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and writes."""
        return self.rank == 0

    def gather(self, item: Item) -> list[Item]:
        """Return the item of each process, in the order of their ranks; every process must call it.

        PyTorch pickles the items between these processes; no pickle is written to or read from a file.
        """
        items: list[Item] = [item] * self.world
        if self.world > 1:
            distributed.all_gather_object(items, item)
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
    # The others wait so long for the first process, which may have to fetch a language model.
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    context = DistributedContext(distributed.get_rank(), distributed.get_world_size(), device)
    try:
        yield context
        # A thread of PyTorch releases the items of the last gather, for which it needs Python. A process that ended at
        # once could be gone by then, and would be aborted.
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
        # Also after an error: the others meet it themselves instead of waiting for ever.
        if context.first:
            context.wait()
