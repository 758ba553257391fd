"""Run by torchrun in test_distributed.py: simulates sets of images of several sizes, and writes what came of it.

torchrun --nproc-per-node N tests/share_simulations.py TRACES.pt
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from make_networks import integer_network, random_images, random_integer_network
from quantspike.distributed import Group, processes
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.params import Simulate
from quantspike.simulation import simulate_shared

CASES = {
    f"{n} images, {engine}": (
        random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=n, k=2),
        random_images(n, 8, n),
        engine,
    )
    for n in (1, 2, 7, 20)
    for engine in ("dense", "events")
}
"""Fewer images than processes, and numbers that two and three do not divide."""


def results(group: Group) -> dict[str, Any]:
    """Of every case the trace, of the last one the error; None in place of a trace where another process has it."""
    found: dict[str, Any] = {}
    for name, (network, images, engine) in CASES.items():
        trace = simulated(network, images, engine, group)
        found[name] = trace and asdict(trace)
    try:
        found["error"] = simulated(*overflowing(), "events", group)
    except QuantspikeError as error:
        found["error"] = str(error)
    return found


def simulated(network: IntegerNetwork, images: Tensor, engine: Any, group: Group) -> Any:
    settings = Simulate(steps=9, settle_limit=4096, batch_size=3, engine=engine)
    return simulate_shared(network, images, settings, torch.device("cpu"), group)


def overflowing() -> tuple[IntegerNetwork, Tensor]:
    """Only the last of five images is bright enough to take a membrane to 2^30 (see test_simulation.py)."""
    layers = [([[1, 0], [3, 0]], [0, 0], [2, 2]), ([[0, 0], [10, -6]], [0, 2**30 - 4], [2**20, 2**20])]
    network = integer_network("2C1-2", layers, [[1, 1], [0, 0]], channels=2)
    return network, torch.tensor([[50, 50]] * 4 + [[200, 100]], dtype=torch.uint8)[:, :, None, None]


if __name__ == "__main__":
    with processes() as group:
        found = results(group)
        if group.rank == 0:
            torch.save(found, Path(sys.argv[1]))
        else:
            assert all(value is None for value in found.values()), found
