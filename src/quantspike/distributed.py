"""Several processes at one piece of work, as `torchrun` starts them, on one machine or many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes at work.

    Attributes:
        rank: number of this one, from 0; the first one writes results.
        size: how many there are.
        local_rank: number of this one on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def share(self, n: int) -> slice:
        """This process's part of n pieces, in order and as even as can be; it may be empty."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, part: T) -> list[T] | None:
        """Brings the parts of all processes to the first one, by rank; the others get None."""
        if self.size == 1:
            return [part]
        parts: list[T] | None = [part] * self.size if self.rank == 0 else None
        distributed.gather_object(part, parts)
        return parts

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them; the argument is left alone."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def maximum(self, value: int) -> int:
        """The largest of the numbers that the processes bring, in each of them."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def broadcast(self, values: Tensor) -> None:
        """Overwrites `values` with those of the first process."""
        if self.size > 1:
            distributed.broadcast(values, 0)

    def from_first(self, value: T) -> T:
        """What the first process brings, in each of them."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def own_device(self, device: torch.device) -> torch.device:
        """Where no GPU is named by number, each process of a machine takes one of its own."""
        if device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


@contextmanager
def processes() -> Iterator[Group]:
    """Joins the processes that `torchrun` has started with this one, if it has; else the group is this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    # What lies on a GPU is exchanged between GPUs, all else through main memory.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # A process may have to wait for a slower one as long as it takes; should one die, torchrun ends the others.
    distributed.init_process_group(backend, timeout=timedelta(days=365))
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()
