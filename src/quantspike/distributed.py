"""Processes and devices: what `torchrun` started, and where the tensors live."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from quantspike.errors import QuantspikeError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that share one piece of work; a single process by default.

    Attributes:
        rank: number of this process, from 0; the first one writes results.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def shard(self, n: int) -> slice:
        """Return this process's part of n items, in order and as even as possible; it may be empty."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, part: T) -> list[T] | None:
        """Return the parts of all processes, by rank, in the first process and None in the others."""
        if self.size == 1:
            return [part]
        parts: list[T] | None = [part] * self.size if self.rank == 0 else None
        distributed.gather_object(part, parts)
        return parts

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, in each of them; the argument is left alone."""
        if self.size == 1:
            return values
        total = values.clone()
        distributed.all_reduce(total)
        return total

    def broadcast(self, values: Tensor) -> None:
        """Overwrite `values` with those of the first process."""
        if self.size > 1:
            distributed.broadcast(values, 0)

    def broadcast_object(self, value: T) -> T:
        """Return the first process's value in each of them."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def own_device(self, device: torch.device) -> torch.device:
        """Return the GPU of this process: one for each of several, or the numbered one for a single process.

        Raises:
            QuantspikeError: there are fewer GPUs than processes, or several would share the numbered one.
        """
        if device.type != "cuda" or (self.size == 1 and device.index is not None):
            return device
        count = torch.cuda.device_count()
        if device.index is not None or self.local_rank >= count:
            raise QuantspikeError(
                f"each process needs a GPU of its own, but device is {str(device)!r} and torch sees {count} GPUs here: "
                f"set device to auto, and --nproc-per-node of launch to {count} or less"
            )
        return torch.device("cuda", self.local_rank)


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the processes that `torchrun` started with this one; without torchrun, yield a group of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    # Tensors on a GPU are exchanged between GPUs, everything else through main memory.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # A process may wait for a slower one as long as it takes; if one dies, torchrun ends the others.
    distributed.init_process_group(backend, timeout=timedelta(days=365))
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """Return an existing device that computes in full fp32.

    Args:
        name: `device` in params.yaml: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        QuantspikeError: the GPU does not exist on this machine.
    """
    # By default torch lets GPUs round the inputs of convolutions to tf32.
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise QuantspikeError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs here; set device to auto or cpu"
        )
    return device
