"""Time the spiking simulation of a trained network against SpikingJelly, snnTorch and the machine's own limit.

    python benchmarks/simulation.py --json benchmark.json
    python benchmarks/simulation.py --weights trained.safetensors --data path/to/cifar-10-batches-py

All take turns within a round, and ratios are taken within a round, so that they hold on a machine whose speed drifts;
each round has images of its own. What is timed of this project is what its workflow does: every image runs until it is
settled, all T steps are recorded, and all net counts are compared with the integer network's. Printed are the medians
of all figures, and the ratios with their ranges: images per second over the other libraries', SOPs per second over the
limit. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from common import CPU, at_least, machine, new_parser, report, spread
from peers import Peer, check_installed, encode, make_peers
from quantspike.conversion.integer import IntegerNetwork
from quantspike.simulation.events import EventEngine
from quantspike.simulation.run import simulate
from quantspike.simulation.trace import Trace
from row_limit import row_additions_per_second
from trained_networks import add_network_options, choose_images, load_images, load_network, simulate_settings

BATCH_SIZE = 50

Round = dict[str, float]
"""The figures of a round by name."""


def main() -> None:
    parser = new_parser(__doc__)
    add_network_options(parser, images=500)
    parser.add_argument("--peer-images", type=at_least(1), default=10, help="images of a round for other libraries")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="rounds that share them (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=100, help="steps T (default: %(default)s)")
    parser.add_argument("--no-peers", action="store_true", help="only this project and the machine's limit")
    options = parser.parse_args()
    if options.images < options.rounds * (1 if options.no_peers else options.peer_images):
        parser.error("--images must be at least --rounds times --peer-images, or --rounds without peers")
    report(measure, options)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians over the rounds of every figure, and of the ratios within a round."""
    if not options.no_peers:
        check_installed()
    network, dataset = load_network(options.weights), load_images(options.data)
    images = choose_images(dataset, options.images)
    peers = {} if options.no_peers else make_peers(network)
    warm_up(network, images[:2], peers)
    rounds, traces = [], []
    for index in trange(options.rounds, desc="rounds", leave=False, disable=None):
        part = images[index :: options.rounds]
        figures, trace = time_simulation(network, part, options.steps)
        inputs = encode(network, part[: options.peer_images])
        for name, peer in peers.items():
            figures[name] = seconds(partial(peer, inputs, options.steps)) / len(inputs)
        rounds.append(figures)
        traces.append(trace)
    return {
        "network": {"file": options.weights.name, "layers": network.architecture.text, "k": network.k},
        "data": dataset.fingerprint["name"],
        "machine": machine(CPU),
        "n": {name: getattr(options, name) for name in ("images", "peer_images", "rounds", "steps")},
        "settled": sum(int((trace.settled_step > 0).sum()) for trace in traces),
        "mismatches": sum(trace.mismatching_images for trace in traces),
        "medians": {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]},
        "ratios": {name: spread([ratios(figures)[name] for figures in rounds]) for name in ratios(rounds[0])},
    }


def warm_up(network: IntegerNetwork, images: Tensor, peers: dict[str, Peer]) -> None:
    """Compile the kernels and let every library allocate what it needs."""
    time_simulation(network, images, 1)
    for peer in peers.values():
        peer(encode(network, images), 2)


def time_simulation(network: IntegerNetwork, images: Tensor, steps: int) -> tuple[Round, Trace]:
    """Time the whole simulation, the engine alone, and the machine's limit with the same operations."""
    settings = simulate_settings(steps, BATCH_SIZE)
    start = time.perf_counter()
    trace = simulate(network, images, settings, CPU)[0]
    whole = time.perf_counter() - start
    engine = EventEngine(network)
    currents = [network.input_current(part) for part in torch.split(images, BATCH_SIZE)]
    alone = seconds(lambda: [engine.run(current, steps, settings.settle_limit) for current in currents])
    synops, threads = trace.layer_synops[-1], torch.get_num_threads()
    total = float(synops.sum())
    # The last layer's spikes reach the classifier, which has no rows to add.
    limit = row_additions_per_second(network, [int(count) // threads for count in synops[:-1]], threads)
    return {
        "seconds_per_image": whole / len(images),
        "engine_seconds_per_image": alone / len(images),
        "synops_per_image": total / len(images),
        "synops_per_second": total / whole,
        "engine_synops_per_second": total / alone,
        "row_additions_per_second": limit,
    }, trace


def ratios(figures: Round) -> dict[str, float]:
    """Return this project over the others: images per second over the peers', SOPs per second over the limit."""
    found = {
        "row_addition_limit": figures["engine_synops_per_second"] / figures["row_additions_per_second"],
        "row_addition_limit_with_proof": figures["synops_per_second"] / figures["row_additions_per_second"],
    }
    for library in ("spikingjelly", "snntorch"):
        if times := [figures[name] for name in figures if name.startswith(library)]:
            found[library] = min(times) / figures["seconds_per_image"]
    return found


def seconds(work: Callable[[], Any]) -> float:
    """Return how long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
