"""Time the spiking simulation of a trained network against SpikingJelly, snnTorch and the machine's own limit.

    python benchmarks/simulation.py --json benchmark.json
    python benchmarks/simulation.py --weights trained.safetensors --data path/to/cifar-10-batches-py
    python benchmarks/simulation.py --no-peers --clips none 4 3 2 --delays 0 1 2 4

Each clip with each layer delay is a row: what is timed is what the stage `simulate` does, so every image runs until it
is settled, all T steps are recorded, and all net counts are compared with the integer network's. The other libraries
run T steps, and also only as many as they need: up to the step from which their accuracy is within 0.1 points of that
after T. All take turns within a round, and ratios are taken within a round, so that they hold on a machine whose speed
drifts; each round has images of its own. Ratios are images per second over the faster mode of another library, and SOPs
per second over the limit. Needs the extra `bench`, or --no-peers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from common import CPU, at_least, machine, new_parser, report, spread
from peers import Peer, check_installed, encode, make_peers
from quantspike.conversion.integer import IntegerNetwork
from quantspike.simulation.events import EventEngine
from quantspike.simulation.run import simulate
from quantspike.simulation.trace import Trace, concatenate
from row_limit import row_additions_per_second
from trained_networks import add_network_options, choose_images, load_images, load_network, simulate_settings

BATCH_SIZE = 50

Key = tuple[float | None, int]
"""Clip and layer delay of a row."""


@dataclass(frozen=True)
class Timing:
    """One row in one round: seconds per image of simulation and engine, the limit in SOPs per second, the trace."""

    whole: float
    engine: float
    limit: float
    trace: Trace


def main() -> None:
    parser = new_parser(__doc__)
    add_network_options(parser, images=500)
    parser.add_argument("--clips", nargs="+", type=clip, help="largest activations, or none (default: the network's)")
    parser.add_argument("--delays", nargs="+", type=at_least(0), default=[0, 1], help="layer delays (default: 0 1)")
    parser.add_argument("--peer-images", type=at_least(1), default=10, help="images of a round for other libraries")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="rounds that share them (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=100, help="steps T (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="only this project and the machine's limit")
    options = parser.parse_args()
    if options.images < options.rounds * (1 if options.no_peers else options.peer_images):
        parser.error("--images must be at least --rounds times --peer-images, or --rounds without peers")
    report(measure, options)


def clip(text: str) -> float | None:
    """Return a value of the option --clips."""
    return None if text == "none" else float(text)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return a row for each clip and layer delay, and one for each other library and number of steps."""
    if not options.no_peers:
        check_installed()
    network, dataset = load_network(options.weights, options.weight_bits), load_images(options.data)
    images, labels = choose_images(dataset, options.images)
    networks = {
        (clip, delay): replace(network, clip=clip)
        for clip, delay in product(options.clips or [network.clip], options.delays)
    }
    peers = {} if options.no_peers else prepare_peers(network, images, labels, options)
    for (_, delay), variant in networks.items():
        time_simulation(variant, images[:2], 1, delay)  # compiles the kernels
    timings: dict[Key, list[Timing]] = {key: [] for key in networks}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in peers}
    for index in trange(options.rounds, desc="rounds", leave=False, disable=None):
        part = images[index :: options.rounds]
        for key, variant in networks.items():
            timings[key].append(time_simulation(variant, part, options.steps, key[1]))
        for name, run in peers.items():
            times[name].append(run(part[: options.peer_images]))
    labels = torch.cat([labels[index :: options.rounds] for index in range(options.rounds)])
    return {
        "network": {"file": options.weights.name, "layers": network.architecture.text, "k": network.k},
        "weight_bits": network.weight_bits,
        "data": dataset.fingerprint["name"],
        "machine": machine(CPU),
        "n": {name: getattr(options, name) for name in ("images", "peer_images", "rounds", "steps")},
        "rows": [
            # The other libraries run the network with its own clip.
            {**describe(key, rounds, labels), **ratios(rounds, times if key[0] == network.clip else {})}
            for key, rounds in timings.items()
        ],
        "peers": [
            {"library": name, "steps": steps, "milliseconds_per_image": 1e3 * statistics.median(seconds)}
            for (name, steps), seconds in times.items()
        ],
    }


def prepare_peers(
    network: IntegerNetwork, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> dict[tuple[str, int], Callable[[Tensor], float]]:
    """Return what times each other library, in seconds per image, for T steps and for as many as it needs."""
    parts = [slice(index, None, options.rounds) for index in range(options.rounds)]
    images, labels = (torch.cat([values[part][: options.peer_images] for part in parts]) for values in (images, labels))
    largest = network.largest_count or int(simulate_all(network, images, 1, 0).largest_counts.max())
    peers = make_peers(network, largest)
    enough: dict[str, int] = {}
    for name in ("spikingjelly multi-step", "snntorch"):
        scores = peers[name](encode(network, largest, images), options.steps)
        enough[name.split()[0]] = steps_needed((scores.argmax(dim=2) == labels).double().mean(dim=1))

    def seconds_per_image(peer: Peer, steps: int, part: Tensor) -> float:
        inputs = encode(network, largest, part)
        return seconds(lambda: peer(inputs, steps)) / len(part)

    return {
        (name, steps): partial(seconds_per_image, peer, steps)
        for name, peer in peers.items()
        for steps in sorted({options.steps, enough[name.split()[0]]})
    }


def steps_needed(accuracy: Tensor) -> int:
    """Return the first step from which an accuracy by step, float [T], is within 0.1 points of the last one."""
    far = (accuracy - accuracy[-1]).abs() > 0.001
    return 1 + int(far.nonzero().max()) + 1 if bool(far.any()) else 1


def simulate_all(network: IntegerNetwork, images: Tensor, steps: int, delay: int) -> Trace:
    """Return the trace of images that all run until they are settled, and are compared with the integer network."""
    settings = simulate_settings(steps, BATCH_SIZE).model_copy(update={"layer_delay": [delay]})
    return simulate(network, images, settings, CPU)[delay]


def time_simulation(network: IntegerNetwork, images: Tensor, steps: int, delay: int) -> Timing:
    """Time the whole simulation, the engine alone, and the machine's limit with the same operations."""
    start = time.perf_counter()
    trace = simulate_all(network, images, steps, delay)
    whole = time.perf_counter() - start
    engine, limit = EventEngine(network), simulate_settings(steps, BATCH_SIZE).settle_limit
    currents = [network.input_current(part) for part in torch.split(images, BATCH_SIZE)]
    alone = seconds(lambda: [engine.run(current, steps, limit, delay) for current in currents])
    threads = torch.get_num_threads()
    # The last layer's spikes reach the classifier, which has no rows to add.
    synops = [int(count) // threads for count in trace.layer_synops[-1, :-1]]
    return Timing(whole / len(images), alone / len(images), row_additions_per_second(network, synops, threads), trace)


def describe(key: Key, timings: Sequence[Timing], labels: Tensor) -> dict[str, Any]:
    """Return what a row's images cost, all rounds together, and the medians of its times."""
    trace = concatenate([timing.trace for timing in timings])
    settled = trace.settled_step[trace.settled_step > 0]
    return {
        **{"clip": key[0], "layer_delay": key[1]},
        "accuracy": float((trace.final_predictions == labels.numpy()).mean()),
        **{"settled": len(settled), "mismatches": trace.mismatching_images},
        "settled_step": {
            "last": int(settled.max(initial=0)),
            "median": float(np.median(settled)) if len(settled) else None,
        },
        **{f"{sign}_spikes": float(getattr(trace, f"{sign}_spikes")[-1].mean()) for sign in ("positive", "negative")},
        **{"synops": float(trace.synops[-1].mean()), "least_synops": float(trace.least_synops.mean())},
        "milliseconds_per_image": 1e3 * statistics.median(timing.whole for timing in timings),
        "engine_milliseconds_per_image": 1e3 * statistics.median(timing.engine for timing in timings),
    }


def ratios(timings: Sequence[Timing], times: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    """Return a row's engine and whole simulation over the limit, and over each other library's better mode."""
    synops = [timing.trace.synops[-1].mean() for timing in timings]
    found = {
        "engine_over_limit": [count / t.engine / t.limit for count, t in zip(synops, timings, strict=True)],
        "simulation_over_limit": [count / t.whole / t.limit for count, t in zip(synops, timings, strict=True)],
    }
    for library, steps in sorted({(name.split()[0], steps) for name, steps in times}):
        modes = [values for (name, count), values in times.items() if name.startswith(library) and count == steps]
        best = [min(values) for values in zip(*modes, strict=True)]
        found[f"over_{library}_T{steps}"] = [other / t.whole for other, t in zip(best, timings, strict=True)]
    return {name: spread(values) for name, values in found.items()}


def seconds(work: Callable[[], Any]) -> float:
    """Return how long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
