"""Measures what each choice of the recipe `strong` brings, on images held out of the training set.

    python benchmarks/ablation.py --data cifar10-jpeg.tar.gz --json ablation.json

Every variant is the recipe with one choice taken back, or the recipe `paper` as a whole; all train the same network
for the same number of images, on the same part of the training set, with the same seeds. The test set is not looked
at. A run that was interrupted goes on with the variants that FILE lacks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import central_images
from quantspike.data import Dataset
from quantspike.devices import multiplies_bf16, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.measuring import Split, channels_last, hold_out, splits
from quantspike.networks import QuantizedCNN, new_network
from quantspike.params import Profile
from quantspike.recipes import RECIPES
from quantspike.training import TRAIN, Training, phase_settings
from trained_networks import load_images

PAPER, STRONG = RECIPES["paper"]["train"], RECIPES["strong"]["train"]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "strong": STRONG,
    "strong, constant rate": {**STRONG, "schedule": "constant", "warmup": 0.0},
    "strong, no warm-up": {**STRONG, "warmup": 0.0},
    "strong, no weight decay": {**STRONG, "weight_decay": 0.0},
    "strong, no label smoothing": {**STRONG, "label_smoothing": 0.0},
    "strong, averaging 0.99": {**STRONG, "averaging": 0.99},
    "strong, no cutout": {**STRONG, "cutout": 0},
    "strong, no reflected borders": {**STRONG, "padding": 0},
    "strong, with changes of light": {**STRONG, "brightness": PAPER["brightness"], "contrast": PAPER["contrast"]},
    "paper, rate as in strong": {**PAPER, "schedule": STRONG["schedule"], "warmup": STRONG["warmup"]},
    "strong, penalty 0.1": {**STRONG, "activation_penalty": 0.1},
    "strong, penalty 0.5": {**STRONG, "activation_penalty": 0.5},
    "strong, 32 x 32": {**STRONG, "crop": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images: images.safetensors, an archive or a folder")
    parser.add_argument("--json", type=Path, required=True, help="where the runs go, and where those done are read")
    parser.add_argument("--layers", default="96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024", help="layer string")
    parser.add_argument("--width", type=float, default=0.125, help="factor on its channels (default: %(default)s)")
    parser.add_argument("--k", type=int, default=1, help="precision of the activations (default: %(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="images to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=10_000, help="images to measure (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=12, help="passes over them (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds per variant (default: %(default)s)")
    options = parser.parse_args()
    try:
        runs = measure(load_images(options.data), options)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(runs))


def measure(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per variant and seed, written as they come."""
    runs: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(run["variant"], run["seed"]) for run in runs}
    for seed in range(options.seeds):
        for variant, choices in VARIANTS.items():
            if (variant, seed) not in done:
                runs.append({"variant": variant, "seed": seed, **train(dataset, choices, seed, options)})
                write_json(options.json, runs)
                print(runs[-1], flush=True)
    return runs


def train(dataset: Dataset, choices: dict[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one network; gives its accuracy on the held-out images and the spikes its activations stand for."""
    device = resolve_device("auto")
    crop = choices.get("crop", 24)
    profile = Profile.model_validate(
        {
            "data": {"source": "given", "crop": crop},
            "width": options.width,
            "pretrain": {"epochs": 0},
            "train": {
                "epochs": options.epochs,
                "learning_rate": options.rate,
                "batch_size": 200,
                **{name: value for name, value in choices.items() if name != "crop"},
            },
            "finetune": {"epochs": 1, "learning_rate": options.rate},
            "convert": {},
            "simulate": {},
        }
    )
    settings = phase_settings(profile, TRAIN, seed, autocast=multiplies_bf16(device), compile=False)
    architecture = Architecture.parse(
        options.layers,
        image_size=crop,
        image_channels=dataset.channels,
        classes=dataset.classes,
        width=options.width,
    )
    network = new_network(architecture, options.k, seed).to(device)
    # The same images for every seed, so that only the training differs.
    rest, held = hold_out(splits(dataset, device)[0], options.held_out, seed=0)
    assert held is not None
    optimizer = make_adam(network, options.rate, settings.weight_decay)
    start = time.perf_counter()
    epochs = Training(network, optimizer, settings, rest.part(slice(options.images)), held).run()
    return {
        "accuracy": epochs[-1].test_accuracy,
        "train_accuracy": epochs[-1].train_accuracy,
        "spikes_per_neuron": spikes_per_neuron(network, held, crop),
        "seconds": time.perf_counter() - start,
    }


def spikes_per_neuron(network: QuantizedCNN, split: Split, crop: int) -> float:
    """Mean activation in steps of 2^-k, which is the net number of spikes, over images and neurons."""
    network.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        for part in torch.split(split.images, 250):
            images: Tensor = channels_last(central_images(part, crop))
            total += sum(layer.sum(dtype=torch.float64).cpu() for layer in network.activations(images))
    return total.item() * 2.0**network.k / len(split) / network.architecture.neurons


def table(runs: list[dict[str, Any]]) -> str:
    """Means over seeds, and the difference from `strong` seed by seed, in Markdown."""
    by_variant: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], {})[run["seed"]] = run
    strong = by_variant["strong"]
    lines = ["| variant | n | held-out accuracy | against strong | spikes per neuron |", "|---|---|---|---|---|"]
    for variant, seeds in by_variant.items():
        accuracies = [run["accuracy"] for run in seeds.values()]
        pairs = [f"{100 * (run['accuracy'] - strong[seed]['accuracy']):+.1f}" for seed, run in seeds.items()]
        spikes = statistics.mean(run["spikes_per_neuron"] for run in seeds.values())
        lines.append(
            f"| {variant} | {len(seeds)} | {statistics.mean(accuracies):.1%} | {', '.join(pairs)} | {spikes:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
