"""Measures the memory that a simulation takes, over batch sizes and numbers of steps T, each in a process of its own.

    python benchmarks/memory.py --json memory.json

What counts is the most memory that the process ever held (resident set, in Linux's kibibytes), Python, torch and all
training and test images included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.params import Simulate
from quantspike.simulation import simulate
from trained_networks import load_images, load_network, newest_full_width_network, some_test_images

KIBIBYTE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="trained network (default: the newest of full width under data/)")
    parser.add_argument("--data", type=Path, help="images.safetensors (default: the newest under data/)")
    parser.add_argument("--images", type=int, default=200, help="images to simulate (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[10, 50, 100], help="default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100], help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="where the result goes as well")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.alone:
            print(json.dumps(measure(options)))
            return
        rows = [measure_in_a_process(options, size, steps) for size in options.batch_sizes for steps in options.steps]
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(rows, indent=2))
    if options.json:
        write_json(options.json, rows)


def measure_in_a_process(options: argparse.Namespace, batch_size: int, steps: int) -> dict[str, Any]:
    """Runs this script once more for one setting, since a process never forgets its peak."""
    command = [sys.executable, __file__, "--alone", "--images", str(options.images)]
    command += ["--batch-sizes", str(batch_size), "--steps", str(steps)]
    for name in ("weights", "data"):
        command += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise QuantspikeError(done.stderr.strip().removeprefix("error: "))
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One simulation in this process, and its peak."""
    network = load_network(options.weights or newest_full_width_network())
    images, _ = some_test_images(load_images(options.data), options.images)
    before = peak_gigabytes()
    settings = Simulate(steps=options.steps[0], batch_size=options.batch_sizes[0], engine="events")
    simulate(network, images, settings, torch.device("cpu"))
    return {
        "images": len(images),
        "batch_size": settings.batch_size,
        "steps": settings.steps,
        "peak_gigabytes_before": before,
        "peak_gigabytes": peak_gigabytes(),
    }


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE / 1e9


if __name__ == "__main__":
    main()
