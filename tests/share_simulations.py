"""Run by torchrun in test_distributed.py: simulate sets of images of several sizes and write the traces.

torchrun --nproc-per-node N tests/share_simulations.py TRACES.pt
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from make_networks import integer_network, random_images, random_integer_network, simulate_settings
from quantspike.conversion.integer import IntegerNetwork
from quantspike.distributed import Group, process_group
from quantspike.errors import QuantspikeError
from quantspike.simulation.run import simulate_shared

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
    """Return the traces of every case and the error of the last; None where another process holds the traces."""
    found: dict[str, Any] = {}
    for name, (network, images, engine) in CASES.items():
        traces = simulated(network, images, engine, group)
        found[name] = traces and {delay: asdict(trace) for delay, trace in traces.items()}
    try:
        found["error"] = simulated(*overflowing(), "events", group)
    except QuantspikeError as error:
        found["error"] = str(error)
    return found


def simulated(network: IntegerNetwork, images: Tensor, engine: Any, group: Group) -> Any:
    settings = simulate_settings(9, engine=engine, batch_size=3, layer_delay=[1, 0])
    return simulate_shared(network, images, settings, torch.device("cpu"), group)


def overflowing() -> tuple[IntegerNetwork, Tensor]:
    """Return five images of which only the last is bright enough to take a membrane to 2^30 (see test_run.py)."""
    layers = [([[1, 0], [3, 0]], [0, 0], [2, 2]), ([[0, 0], [10, -6]], [0, 2**30 - 4], [2**20, 2**20])]
    network = integer_network("2C1-2", layers, [[1, 1], [0, 0]], channels=2)
    return network, torch.tensor([[50, 50]] * 4 + [[200, 100]], dtype=torch.uint8)[:, :, None, None]


if __name__ == "__main__":
    with process_group() as group:
        found = results(group)
        if group.rank == 0:
            torch.save(found, Path(sys.argv[1]))
        else:
            assert all(value is None for value in found.values()), found
