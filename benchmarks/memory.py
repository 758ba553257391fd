"""Measure the memory that a simulation takes, over batch sizes and numbers of steps T.

    python benchmarks/memory.py --json memory.json

Printed is the largest resident set of a process of its own for each setting, before and after the simulation: Python,
torch and all images of the data set included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

from common import CPU, at_least, machine, new_parser, report
from quantspike.simulation.run import simulate
from trained_networks import add_network_options, choose_images, load_images, load_network, simulate_settings

KIBIBYTE = 1024


def main() -> None:
    parser = new_parser(__doc__)
    add_network_options(parser, images=200)
    parser.add_argument("--batch-sizes", type=at_least(1), nargs="+", default=[10, 50, 100])
    parser.add_argument("--steps", type=at_least(1), nargs="+", default=[10, 100], help="numbers of steps T")
    report(measure, parser.parse_args())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each setting in a new process, since a process never forgets its peak."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        settings = product(options.batch_sizes, options.steps)
        rows = [pool.submit(measure_one, options, batch_size, steps).result() for batch_size, steps in settings]
    return {"machine": machine(CPU), "images": options.images, "rows": rows}


def measure_one(options: argparse.Namespace, batch_size: int, steps: int) -> dict[str, Any]:
    """Simulate in this process; return its peak before and after."""
    network = load_network(options.weights, options.weight_bits)
    images, _ = choose_images(load_images(options.data), options.images)
    before = peak_gigabytes()
    simulate(network, images, simulate_settings(steps, batch_size), CPU)
    return {
        "batch_size": batch_size,
        "steps": steps,
        "peak_gigabytes_before": before,
        "peak_gigabytes": peak_gigabytes(),
    }


def peak_gigabytes() -> float:
    """Return the largest resident set so far; Linux counts it in kibibytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE / 1e9


if __name__ == "__main__":
    main()
