"""Measure held-out accuracy over CPU-hours: the full-precision network of `fast` next to that of `paper`.

    python benchmarks/accuracy.py --data path/to/cifar-10-batches-py --json accuracy.json

Both train CNN 1 from the same initial weights with the settings of params.yaml, but narrower and for fewer epochs, so
that three seeds take half an hour on two cores (one thread each). `fast` has all its epochs in one phase. `paper` gets
the CPU time that `fast` took, half of it for each of its two learning rates, as in the published 100 + 100 epochs.
Training images are held out and measured after every epoch; the test images are not looked at.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from common import CPU, at_least, machine, new_parser, report, spread
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import new_network
from quantspike.params import Profile, load_params
from quantspike.training.evaluation import hold_out, splits
from quantspike.training.loop import Callback, Epoch, Settings, Training, use_bf16
from quantspike.training.optimizer import Optimizer
from trained_networks import add_data_option, load_images
from training import CNN1

PARAMS = Path(__file__).parents[1] / "params.yaml"

Curve = list[tuple[float, float]]
"""CPU-hours and held-out accuracy after each epoch."""


def main() -> None:
    parser = new_parser(__doc__)
    add_data_option(parser)
    parser.add_argument("--layers", default=CNN1, help="layer string (default: %(default)s)")
    parser.add_argument("--width", type=float, default=0.25, help="factor on the channels (default: %(default)s)")
    parser.add_argument("--epochs", type=at_least(1), default=8, help="epochs of fast (default: %(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--held-out", type=at_least(1), default=5_000, help="images (default: %(default)s)")
    report(measure, parser.parse_args())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the final accuracies with their spread over the seeds, and every curve."""
    name = load_images(options.data).fingerprint["name"]  # names what is wrong with them before anything runs
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        runs = list(pool.map(partial(compare, options), range(options.seeds)))
    return {
        "data": name,
        "machine": machine(CPU) | {"threads": 1},
        "n": {"seeds": options.seeds, "held_out": options.held_out, "width": options.width},
        "held_out_accuracy": {profile: spread([run[profile][-1][1] for run in runs]) for profile in ("fast", "paper")},
        "cpu_hours": {profile: spread([run[profile][-1][0] for run in runs]) for profile in ("fast", "paper")},
        "curves": runs,
    }


def compare(options: argparse.Namespace, seed: int) -> dict[str, Curve]:
    """Return the curves of both profiles with one seed."""
    torch.set_num_threads(1)
    fast, paper = (Trainer(load_params(PARAMS).profiles[name], options, seed) for name in ("fast", "paper"))
    fast.train(fast.profile.baseline[0].learning_rate, options.epochs)
    budget = fast.curve[-1][0]
    for number, phase in enumerate(paper.profile.baseline, start=1):
        paper.train(phase.learning_rate, sys.maxsize, budget * number / len(paper.profile.baseline))
    return {"fast": fast.curve, "paper": paper.curve}


class TimeIsUp(Exception):
    """The granted CPU time is used up."""


class Trainer(Callback):
    """Trains the full-precision network of a profile, and notes its curve."""

    def __init__(self, profile: Profile, options: argparse.Namespace, seed: int) -> None:
        dataset = load_images(options.data)
        self.profile, self._seed, self.curve = profile, seed, list[tuple[float, float]]()
        self._images, self._held_out = hold_out(splits(dataset, CPU)[0], options.held_out, seed)
        architecture = Architecture.parse(
            options.layers,
            image_size=profile.data.crop,
            image_channels=dataset.channels,
            classes=dataset.classes,
            width=options.width,
        )
        self._network = new_network(architecture, "fp32", seed, profile.recipe.clip)
        self._optimizer = Optimizer(self._network, profile.recipe.optimizer)
        self._phases, self._hours = 0, 0.0

    def train(self, learning_rate: float, epochs: int, budget: float = math.inf) -> None:
        """Train one phase: so many epochs, or until the network has been trained for `budget` CPU-hours."""
        settings = Settings(
            phase=self._phases,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=self._seed,
            crop=self.profile.data.crop,
            recipe=self.profile.recipe,
            activation_penalty=0.0,
            bf16=use_bf16(self.profile.recipe.arithmetic, CPU),
        )
        self._phases, self._budget, self._start = self._phases + 1, budget, time.process_time()
        assert self._held_out is not None
        one_image = self._held_out.part(slice(1))  # in place of the test images
        training = Training(self._network, self._optimizer, settings, self._images, one_image, self._held_out)
        with suppress(TimeIsUp):
            training.run([self])

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        """Note time and accuracy, and stop when the time is up."""
        now = time.process_time()
        self._hours, self._start = self._hours + (now - self._start) / 3600, now
        self.curve.append((self._hours, epoch.validation_accuracy or 0.0))
        if self._hours >= self._budget:
            raise TimeIsUp


if __name__ == "__main__":
    main()
