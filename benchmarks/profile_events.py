"""Shows where the time of the engine `events` goes, on one thread: by phase, and by layer for the row additions.

python benchmarks/profile_events.py --weights trained.safetensors --data cifar10-jpeg.tar.gz
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.simulation import events
from quantspike.simulation.events import EventEngine
from row_limit import row_additions_per_second
from trained_networks import load_images, load_network, newest_full_width_network, some_test_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="trained network (default: the newest of full width under data/)")
    parser.add_argument("--data", type=Path, help="images: images.safetensors, or an archive or folder of images")
    parser.add_argument("--images", type=int, default=16, help="images of a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=9, help="runs, of which the medians count (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        network = load_network(options.weights or newest_full_width_network())
        images, _ = some_test_images(load_images(options.data), options.images)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    profile(network, images, options.runs)


def profile(network: IntegerNetwork, images: torch.Tensor, runs: int) -> None:
    """Prints a table of medians, in milliseconds per image."""
    engine = EventEngine(network, threads=1)
    settled: list[torch.Tensor] = []
    all_times: list[dict[str, float]] = []
    for _ in trange(runs + 1, leave=False, disable=None):
        times: dict[str, float] = defaultdict(float)
        current = timed(times, "input current", network.input_current, images)
        settled = timed(times, "integer network, for the proof", network.settled_counts, current)
        recording = timed_engine(times, engine, current)
        all_times.append(times)
    medians = {name: statistics.median(times[name] for times in all_times[1:]) for name in all_times[0]}
    synops = recording.synops.sum(axis=(0, 2)) / len(images)
    print(f"{len(images)} images, one thread, {float(synops.sum()) / 1e6:.1f} million SOPs per image, ms per image:")
    for name, value in medians.items():
        print(f"  {name:45s} {1000 * value / len(images):8.2f}")
    print("billion SOPs per second, layer by layer, gathering and firing included:")
    for index, layer in enumerate(network.layers[1:]):
        rate = float(synops[index]) * len(images) / medians[f"  layer {index + 2}"] / 1e9
        print(f"  layer {index + 2:2d} {layer.shape.token:8s} {rate:6.1f}")
    limit = row_additions_per_second(network, [int(count) for count in recording.synops.sum(axis=(0, 2))[:-1]], 1)
    print(f"  the same stream of row additions, nothing looked up: {limit / 1e9:.1f}")
    assert all(torch.equal(a, b) for a, b in zip(recording.net_spikes, settled, strict=True))


def timed_engine(times: dict[str, float], engine: EventEngine, current: torch.Tensor) -> Any:
    """Runs the engine with every kernel timed."""
    layer = 0

    def advance_layer(*arguments: Any) -> Any:
        nonlocal layer
        layer = layer % len(engine._layers) + 1
        start = time.perf_counter()
        result = timed(times, "advance_layer: gather, add, fire", kernels["advance_layer"], *arguments)
        times[f"  layer {layer}"] += time.perf_counter() - start
        return result

    def list_spikes(*arguments: Any) -> Any:
        return timed(times, "list_spikes: masks to lists, counts", kernels["list_spikes"], *arguments)

    kernels = {name: getattr(events, name) for name in ("advance_layer", "list_spikes")}
    events.advance_layer, events.list_spikes = advance_layer, list_spikes
    try:
        recording = timed(times, "engine, all of it", engine.run, current, 100, 1000)
    finally:
        events.advance_layer, events.list_spikes = kernels["advance_layer"], kernels["list_spikes"]
    return recording


def timed(times: dict[str, float], name: str, work: Any, *arguments: Any) -> Any:
    start = time.perf_counter()
    result = work(*arguments)
    times[name] += time.perf_counter() - start
    return result


if __name__ == "__main__":
    main()
