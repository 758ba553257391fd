"""What it brings that every k goes on from one pre-trained network, in place of its own initial weights.

    python benchmarks/pretraining.py --data cifar10-jpeg.tar.gz --json pretraining.json

Each k is trained for as many epochs either way: all of them its own, at a rate that rises and falls; or the first ones
in full precision and shared, at a rate that stays, the last ones its own, at a rate that falls. Accuracy is that of
training images that were held out; the test set is not looked at. A run that was interrupted goes on with what FILE
lacks.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from quantspike.adam import adam_tensors, make_adam, restore_adam
from quantspike.architecture import Architecture
from quantspike.data import Dataset
from quantspike.devices import multiplies_bf16, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.measuring import hold_out, splits
from quantspike.networks import QuantizedCNN, new_network, with_precision
from quantspike.params import Precision, Profile
from quantspike.training import PRETRAIN, TRAIN, Training, phase_settings
from trained_networks import load_images, precision
from training import machine

CROP = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images: images.safetensors, an archive or a folder")
    parser.add_argument("--json", type=Path, required=True, help="where the runs go, and where those done are read")
    parser.add_argument("--layers", default="96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024", help="layer string")
    parser.add_argument("--width", type=float, default=0.1875, help="factor on its channels (default: %(default)s)")
    parser.add_argument("--k", nargs="+", type=precision, default=["fp32", 0, 1], help="precisions (default: fp32 0 1)")
    parser.add_argument("--images", type=int, default=45_000, help="images to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=5_000, help="images to measure (default: %(default)s)")
    parser.add_argument("--shared", type=int, default=4, help="epochs that every k shares (default: %(default)s)")
    parser.add_argument("--own", type=int, default=2, help="epochs of each k after them (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=100, help="images per step (default: %(default)s)")
    options = parser.parse_args()
    try:
        runs = measure(load_images(options.data), options)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(runs))


def measure(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per k and way, written as they come."""
    chosen = {name: value for name, value in vars(options).items() if name not in ("data", "json", "k")}
    found: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    if found and found["options"] != chosen:
        raise QuantspikeError(f"{options.json} holds runs with {found['options']}, not {chosen}: name another file")
    runs: list[dict[str, Any]] = found.get("runs", [])
    done = {(run["k"], run["shared"]) for run in runs}
    trainer = Trainer(dataset, options)
    for shared in (options.shared, 0):
        for k in options.k:
            if (k, shared) not in done:
                runs.append({"k": k, "shared": shared, **trainer.train(k, shared)})
                write_json(options.json, {"machine": machine(trainer.device), "options": chosen, "runs": runs})
                print(runs[-1], flush=True)
    return runs


class Trainer:
    """Trains networks of one architecture on the same images, and pre-trains one of them when it is first needed."""

    def __init__(self, dataset: Dataset, options: argparse.Namespace) -> None:
        self._options, self.device = options, resolve_device("auto")
        self._architecture = Architecture.parse(
            options.layers,
            image_size=CROP,
            image_channels=dataset.channels,
            classes=dataset.classes,
            width=options.width,
        )
        rest, held = hold_out(splits(dataset, self.device)[0], options.held_out, seed=0)
        assert held is not None
        self._images, self._held_out = rest.part(slice(options.images)), held
        self._pretrained: tuple[QuantizedCNN, dict[str, torch.Tensor]] | None = None

    def train(self, k: Precision, shared: int) -> dict[str, Any]:
        """Trains a network of one k; gives the held-out accuracy after each of its own epochs, and what they took."""
        profile = self._profile(shared)
        if shared == 0:
            network = new_network(self._architecture, k, 0).to(self.device)
            optimizer = make_adam(network, self._options.rate, profile.train.weight_decay)
        else:
            pretrained, moments = self._pretrain(profile)
            network = with_precision(pretrained, k).to(self.device)
            optimizer = make_adam(network, self._options.rate, profile.train.weight_decay)
            restore_adam(network, optimizer, moments)
        start = time.perf_counter()
        accuracies = self._run(network, optimizer, profile, TRAIN)
        return {"accuracies": accuracies, "seconds": time.perf_counter() - start}

    def _pretrain(self, profile: Profile) -> tuple[QuantizedCNN, dict[str, torch.Tensor]]:
        if self._pretrained is None:
            network = new_network(self._architecture, "fp32", 0).to(self.device)
            optimizer = make_adam(network, self._options.rate, profile.train.weight_decay)
            self._run(network, optimizer, profile, PRETRAIN)
            self._pretrained = network, copy.deepcopy(adam_tensors(network, optimizer))
        return self._pretrained

    def _run(
        self, network: QuantizedCNN, optimizer: torch.optim.Optimizer, profile: Profile, phase: int
    ) -> list[float]:
        settings = phase_settings(profile, phase, 0, autocast=multiplies_bf16(self.device), compile=False)
        epochs = Training(network, optimizer, settings, self._images, self._held_out).run()
        return [epoch.test_accuracy for epoch in epochs]

    def _profile(self, shared: int) -> Profile:
        options = self._options
        train = {
            **{"recipe": "strong", "padding": 0, "cutout": 0, "batch_size": options.batch_size},
            **{"epochs": options.own + options.shared - shared, "learning_rate": options.rate},
        }
        return Profile.model_validate(
            {
                "data": {"source": "given", "crop": CROP},
                "width": options.width,
                "pretrain": {"epochs": shared, "learning_rate": options.rate},
                "train": train,
                "finetune": {"epochs": 1, "learning_rate": options.rate},
                "convert": {},
                "simulate": {},
            }
        )


def table(runs: list[dict[str, Any]]) -> str:
    """The last held-out accuracy of each k, both ways, in Markdown."""
    lines = ["| k | own epochs only | shared ones first |", "|---|---|---|"]
    for k in dict.fromkeys(run["k"] for run in runs):
        last = {run["shared"] > 0: f"{run['accuracies'][-1]:.1%}" for run in runs if run["k"] == k}
        lines.append(f"| {k} | {last.get(False, '')} | {last.get(True, '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
