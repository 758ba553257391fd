"""Times the spiking simulation of a trained network: seconds per image, synaptic operations per second.

    python benchmarks/simulation.py --json benchmark.json

Takes the newest integer network under data/ and its profile's test images; the first batch warms up and is not
counted. Every image is still compared with the integer network, so what is timed is what the workflow does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from quantspike.data import load_dataset
from quantspike.devices import resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.integer import IntegerNetwork, load_integer_network
from quantspike.params import Simulate
from quantspike.simulation import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, help="integer network (default: the newest under data/)")
    parser.add_argument("--data", type=Path, help="images.safetensors (default: that of the network's profile)")
    parser.add_argument("--images", type=int, default=200, help="images to time (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, help="images per batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps T (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where the result goes as well")
    options = parser.parse_args()
    try:
        path = options.network or newest_network()
        images = load_dataset(options.data or path.parents[2] / "images.safetensors").test_images
        result = measure(load_integer_network(path), torch.from_numpy(images), options)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    result |= {"network": str(path), "machine": machine()}
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def newest_network() -> Path:
    """The integer network that was written last.

    Raises:
        QuantspikeError: there is none.
    """
    found = sorted(Path("data").glob("*/*/integer/network.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise QuantspikeError("no integer network under data/: `make demo` or `dvc repro` makes one")
    return found[-1]


def measure(network: IntegerNetwork, images: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Median over batches of the seconds per image, and what was computed in them."""
    settings = Simulate(steps=options.steps, batch_size=options.batch_size)
    device = resolve_device(options.device)
    batches = torch.split(images[: options.images], options.batch_size)
    simulate(network, batches[0], settings, device)
    seconds, synops, settled, wrong = [], 0, 0, 0
    for batch in batches:
        start = time.perf_counter()
        trace = simulate(network, batch, settings, device)
        seconds.append((time.perf_counter() - start) / len(batch))
        synops += int(trace.synops[-1].sum())
        settled += int((trace.settled_step > 0).sum())
        wrong += trace.mismatching_images
    n = sum(map(len, batches))
    return {
        "layers": network.architecture.text,
        "k": network.k,
        "images": n,
        "batches": len(batches),
        "steps": options.steps,
        "seconds_per_image": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
        "synops_per_image": synops / n,
        "synops_per_second": synops / n / statistics.median(seconds),
        "settled": settled,
        "mismatches": wrong,
        "device": str(device),
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
