"""The processes that train together: one, or as many as torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from llmreg.devices import choose_device, local_device

Item = TypeVar("Item")
# How long processes wait for each other: the first one may have to fetch a language model.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
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
        """What each process has, in the order of their ranks; every process must call it."""
        if self.world == 1:
            return [item]
        found: list[Item] = [item] * self.world
        distributed.all_gather_object(found, item)
        return found

    def largest(self, *numbers: int) -> list[int]:
        """The largest of each number over the processes; every process must call it."""
        if self.world == 1:
            return list(numbers)
        found = torch.tensor(numbers, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        values: list[int] = found.tolist()
        return values

    def wait(self) -> None:
        """Until every process has called it."""
        if self.world > 1:
            distributed.barrier()

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes in every backward pass.

        Every process has built the same network from the same seed or checkpoint, so nothing is sent at the start, and
        frozen layers never are.
        """
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
        )


@contextmanager
def join_processes(device_name: str | None) -> Iterator[DistributedContext]:
    """This process among those that torchrun started with it; alone without torchrun.

    Args:
        device_name: of the device; a GPU for each process when None and there are GPUs.

    Raises:
        UserError: the device cannot be used.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield DistributedContext(0, 1, choose_device(device_name))
        return
    device = choose_device(local_device(device_name))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield DistributedContext(distributed.get_rank(), world, device)
    finally:
        distributed.destroy_process_group()


@contextmanager
def main_process_first(ranks: DistributedContext) -> Iterator[None]:
    """The first process goes through the block, then the others do, who find done what it did."""
    try:
        if not ranks.first:
            ranks.wait()
        yield
    finally:
        # Also after an error: the others meet it themselves instead of waiting for ever.
        if ranks.first:
            ranks.wait()
