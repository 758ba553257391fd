"""Times the spiking simulation of a trained network against SpikingJelly, snnTorch and this machine's own limit.

    python benchmarks/simulation.py --json benchmark.json
    python benchmarks/simulation.py --weights trained.safetensors --data cifar10-jpeg.tar.gz

Everything takes turns within one run, round by round, and ratios are taken within a round, so that they hold on a
machine whose speed drifts. What is timed of this project is what its workflow does: every image runs until it is at
rest, all T steps are recorded, and all net counts are compared with the integer network's. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from peers import SnnTorch, SpikingJelly, encoded
from quantspike.data import Dataset
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.integer import IntegerNetwork
from quantspike.params import Simulate
from quantspike.simulation import simulate
from quantspike.simulation.events import EventEngine
from row_limit import row_additions_per_second
from trained_networks import load_images, load_network, newest_full_width_network, some_test_images

CPU = torch.device("cpu")
PACKAGES = ("torch", "numba", "numpy", "spikingjelly", "snntorch")

Round = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="trained network (default: the newest of full width under data/)")
    parser.add_argument("--data", type=Path, help="images: images.safetensors, or an archive or folder of images")
    parser.add_argument("--images", type=int, default=500, help="images to simulate (default: %(default)s)")
    parser.add_argument("--peer-images", type=int, default=10, help="a round's images for peers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that share them (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps T (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="only this project and the machine's limit")
    parser.add_argument("--json", type=Path, help="where the result goes as well")
    options = parser.parse_args()
    if min(options.rounds, options.peer_images, options.steps) < 1 or options.images < options.rounds:
        parser.error("rounds, images, peer-images and steps must be 1 or more, and images at least as many as rounds")
    try:
        path = options.weights or newest_full_width_network()
        network = load_network(path)
        dataset = load_images(options.data)
        result = measure(network, dataset, options)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    result = {"network": path.name, "data": dataset.fingerprint["name"], "machine": machine(), **result}
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def measure(network: IntegerNetwork, dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds of every figure, and of the ratios within a round.

    Every round has images of its own, which come from the whole test set.
    """
    images, _ = some_test_images(dataset, options.images)
    parts = [images[index :: options.rounds] for index in range(options.rounds)]
    peers, peer_parts = {}, []
    if not options.no_peers:
        peers = load_peers(network)
        images, _ = some_test_images(dataset, options.rounds * options.peer_images, "--rounds times --peer-images")
        peer_parts = [encoded(network, images[index :: options.rounds]) for index in range(options.rounds)]
    warm_up(network, parts[0], peers, peer_parts)
    rounds, settled, wrong = [], 0, 0
    for index in trange(options.rounds, desc="rounds", leave=False, disable=None):
        figures, trace = time_simulation(network, parts[index], options.steps)
        settled, wrong = settled + int((trace.settled_step > 0).sum()), wrong + trace.mismatching_images
        for name, run in peers.items():
            inputs = peer_parts[index]
            figures[name] = seconds(lambda run=run, inputs=inputs: run(inputs, options.steps)) / len(inputs)
        rounds.append(figures)
    found = {name: [ratio(figures) for figures in rounds] for name, ratio in ratios(peers).items()}
    return {
        "layers": network.architecture.text,
        "k": network.k,
        "images": options.images,
        "peer_images": 0 if options.no_peers else options.peer_images * options.rounds,
        "rounds": options.rounds,
        "steps": options.steps,
        "seconds_for_all_images": sum(
            figures["seconds_per_image"] * len(part) for figures, part in zip(rounds, parts, strict=True)
        ),
        "settled": settled,
        "mismatches": wrong,
        "medians": {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]},
        "ratios": {name: statistics.median(values) for name, values in found.items()},
        "ratio_ranges": {name: [min(values), max(values)] for name, values in found.items()},
    }


def time_simulation(network: IntegerNetwork, images: Tensor, steps: int) -> tuple[Round, Any]:
    """A round of this project: the whole simulation, the engine alone, and the limit with the same operations."""
    settings = Simulate(steps=steps, settle_limit=max(1000, steps), engine="events")
    start = time.perf_counter()
    trace = simulate(network, images, settings, CPU)
    whole = time.perf_counter() - start
    engine = EventEngine(network)
    currents = [network.input_current(part) for part in torch.split(images, settings.batch_size)]
    alone = seconds(lambda: [engine.run(current, settings.steps, settings.settle_limit) for current in currents])
    synops, threads = trace.layer_synops[-1], torch.get_num_threads()
    # What the last layer's spikes reach is the classifier, which has no rows to add.
    limit = row_additions_per_second(network, [int(count) // threads for count in synops[:-1]], threads)
    total = float(synops.sum())
    return {
        "seconds_per_image": whole / len(images),
        "engine_seconds_per_image": alone / len(images),
        "synops_per_image": total / len(images),
        "engine_synops_per_second": total / alone,
        "synops_per_second_with_proof": total / whole,
        "row_additions_per_second": limit,
    }, trace


def load_peers(network: IntegerNetwork) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """What runs inputs for a number of steps, by name.

    Raises:
        QuantspikeError: the extra `bench` is not installed.
    """
    try:
        return {
            "spikingjelly single-step": SpikingJelly(network, "s").run,
            "spikingjelly multi-step": SpikingJelly(network, "m").run,
            "snntorch": SnnTorch(network).run,
        }
    except ImportError as error:
        raise QuantspikeError(
            f"the peers are not installed ({error}): pip install --constraint constraints.txt --editable '.[bench]', "
            "or leave them out with --no-peers"
        ) from error


def warm_up(network: IntegerNetwork, images: Tensor, peers: dict[str, Any], peer_parts: list[Tensor]) -> None:
    """Compiles the kernels and lets every library allocate what it needs."""
    time_simulation(network, images, 1)
    for run in peers.values():
        run(peer_parts[0][:2], 2)


def ratios(peers: dict[str, Any]) -> dict[str, Callable[[Round], float]]:
    """This project over the others: images per second over the peers', SOPs per second over the limit."""
    found: dict[str, Callable[[Round], float]] = {}
    if peers:
        modes = [name for name in peers if name.startswith("spikingjelly")]
        found["spikingjelly"] = lambda figures: min(figures[mode] for mode in modes) / figures["seconds_per_image"]
        found["snntorch"] = lambda figures: figures["snntorch"] / figures["seconds_per_image"]
    return found | {
        "row_addition_limit": lambda figures: figures["engine_synops_per_second"] / figures["row_additions_per_second"],
        "row_addition_limit_with_proof": lambda figures: (
            figures["synops_per_second_with_proof"] / figures["row_additions_per_second"]
        ),
    }


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
