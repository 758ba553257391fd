"""Times training against the plain way, and what an epoch spends outside forward, backward and optimizer.

    python benchmarks/training.py --data cifar10-jpeg.tar.gz --json training.json

The plain way is what a first script does: torchvision's transforms image by image, a DataLoader, fp32, the default
memory layout, Adam as it comes. Its transforms are the usual ones for crop, flip, brightness, contrast and
standardization: as much work as the protocol's, not the same values. Both train the same network on batches of the
same size in turns, within one run, and ratios are taken within a round. On a GPU, the share of the machine's bf16
matrix rate is measured too.
"""

from __future__ import annotations

import argparse
import contextlib
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
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import Augmentation
from quantspike.data import Dataset
from quantspike.devices import multiplies_bf16, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.measuring import Split, splits
from quantspike.networks import QuantizedCNN, new_network
from quantspike.operations import macs
from quantspike.training import TRAIN, Observer, Settings, Training
from trained_networks import load_images

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="images: images.safetensors, or an archive or folder of images")
    parser.add_argument("--layers", default=CNN1, help="layer string (default: CNN 1)")
    parser.add_argument("--crop", type=int, default=24, help="side the network sees, pixels (default: %(default)s)")
    parser.add_argument("--k", type=int, default=1, help="precision of the activations (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=200, help="images per step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps per round and way (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: what there is)")
    parser.add_argument("--compile", action="store_true", help="build forward and backward pass by torch.compile")
    parser.add_argument("--json", type=Path, help="where the result goes as well")
    options = parser.parse_args()
    if min(options.steps, options.rounds) < 1 or options.batch < 2 or options.workers < 0:
        parser.error("steps and rounds must be 1 or more, batch 2 or more, workers 0 or more")
    try:
        device = resolve_device(options.device)
        dataset = load_images(options.data)
        if len(dataset.train_images) < options.steps * options.batch:
            raise QuantspikeError(
                f"{options.steps} steps of {options.batch} images are asked for, but there are only "
                f"{len(dataset.train_images)} training images"
            )
        result = measure(dataset, device, options)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    result = {"data": dataset.fingerprint["name"], "machine": machine(device), **result}
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def measure(dataset: Dataset, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, ratios within a round."""
    ours, plain = Ours(dataset, device, options), Plain(dataset, device, options)
    ours.round()
    plain.round()  # the first steps of either build what later ones find
    rounds = []
    for _ in range(options.rounds):
        times, parts = ours.round()
        rounds.append({"ours": times, "plain": plain.round(), **parts})
    ratios = [entry["plain"] / entry["ours"] for entry in rounds]
    overheads = [entry["overhead"] / entry["ours"] for entry in rounds]
    images = options.steps * options.batch
    # Forward pass once, backward pass twice, but for the first layer, whose input needs no gradient.
    multiplied = 3 * macs(ours.network.architecture) + 2 * encoding_macs(ours.network)
    speed = images / statistics.median(entry["ours"] for entry in rounds)
    result: dict[str, Any] = {
        "n": {"rounds": options.rounds, "images_per_round": images, "batch": options.batch},
        "network": {"layers": options.layers, "crop": options.crop, "k": options.k},
        "arithmetic": "bf16" if ours.settings.autocast else "fp32",
        "images_per_second": {
            "quantspike": speed,
            "plain_loop": images / statistics.median(entry["plain"] for entry in rounds),
        },
        "ratios": {"plain_loop": statistics.median(ratios)},
        "ratio_ranges": {"plain_loop": [min(ratios), max(ratios)]},
        "overhead_share": statistics.median(overheads),
        "overhead_range": [min(overheads), max(overheads)],
        # A multiply-accumulate is two operations.
        "operations_per_second": 2 * multiplied * speed,
    }
    rate = matrix_rate(device, torch.bfloat16 if ours.settings.autocast else torch.float32)
    return {**result, "matrix_rate": rate, "share_of_matrix_rate": result["operations_per_second"] / rate}


class Ours:
    """Training as the stages do it, with a stopwatch around forward, backward and optimizer."""

    def __init__(self, dataset: Dataset, device: torch.device, options: argparse.Namespace) -> None:
        self.settings = Settings(
            phase=TRAIN,
            epochs=10**6,
            learning_rate=1e-3,
            batch_size=options.batch,
            seed=0,
            augmentation=Augmentation(options.crop),
            autocast=multiplies_bf16(device),
            compile=options.compile,
        )
        self.network = new_network(architecture_of(dataset, options), options.k, 0).to(device)
        training, test = splits(dataset, device)
        chosen = slice(options.steps * options.batch)
        # One image to measure: what measuring costs depends on how many there are, not on how training is done.
        self._training = Training(
            self.network,
            _timed(make_adam(self.network, 1e-3), device, self),
            self.settings,
            training.part(chosen),
            Split(test.images[:1], test.labels[:1]),
        )
        self.inside = 0.0
        self._entered = 0.0
        self._training.objective.register_forward_pre_hook(lambda *_: self.enter(device))

    def enter(self, device: torch.device) -> None:
        """Before the forward pass."""
        _wait(device)
        self._entered = time.perf_counter()

    def leave(self, device: torch.device) -> None:
        """After the optimizer."""
        _wait(device)
        self.inside += time.perf_counter() - self._entered

    def round(self) -> tuple[float, dict[str, float]]:
        """Seconds for an epoch of the chosen images, and those of them outside the stopwatch."""
        self.inside = 0.0
        end = _EndOfEpoch()
        with contextlib.suppress(_EpochEnded):
            self._training.run(end)
        return end.seconds, {"overhead": end.seconds - self.inside}


class _EpochEnded(Exception):
    """One epoch is over."""


class _EndOfEpoch:
    """Ends a training after one epoch's last step."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds = 0.0

    def stepped(self, training: Training, images: int) -> None:
        """Takes the time when the last batch is done."""
        if images and training.step == training.steps:
            _wait(training.device)
            self.seconds = time.perf_counter() - self._start

    def measured(self, training: Training, epoch: object) -> None:
        """Ends the training."""
        raise _EpochEnded


def _timed(adam: torch.optim.Optimizer, device: torch.device, stopwatch: Ours) -> torch.optim.Optimizer:
    adam.register_step_post_hook(lambda *_: stopwatch.leave(device))
    return adam


class Plain:
    """The plain way, on the same number of images."""

    def __init__(self, dataset: Dataset, device: torch.device, options: argparse.Namespace) -> None:
        self._device = device
        architecture = architecture_of(dataset, options)
        self._network = new_network(architecture, options.k, 0).to(memory_format=torch.contiguous_format).to(device)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=1e-3)
        transform = v2.Compose(
            [
                v2.RandomCrop(options.crop),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.25, contrast=0.8),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Lambda(lambda image: (image - image.mean()) / image.std().clamp(min=image.numel() ** -0.5)),
            ]
        )
        images = [
            Image.fromarray(image.transpose(1, 2, 0).squeeze())
            for image in dataset.train_images[: options.steps * options.batch]
        ]
        pairs = list(zip(images, dataset.train_labels.tolist(), strict=False))
        self._loader: DataLoader[Any] = DataLoader(
            _Transformed(pairs, transform), options.batch, shuffle=True, num_workers=options.workers
        )

    def round(self) -> float:
        """Seconds for an epoch of the chosen images."""
        start = time.perf_counter()
        self._network.train()
        total = 0.0
        for images, labels in self._loader:
            scores = self._network(images.to(self._device))
            loss = functional.cross_entropy(scores, labels.to(self._device))
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()
            total += loss.item()
        _wait(self._device)
        return time.perf_counter() - start


class _Transformed(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, pairs: list[tuple[Image.Image, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self._pairs, self._transform = pairs, transform

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._pairs[index]
        return self._transform(image), label


def architecture_of(dataset: Dataset, options: argparse.Namespace) -> Architecture:
    """The network that both ways train."""
    return Architecture.parse(
        options.layers, image_size=options.crop, image_channels=dataset.channels, classes=dataset.classes
    )


def encoding_macs(network: QuantizedCNN) -> int:
    """Multiply-accumulates of the first layer, which `macs` leaves out as published."""
    first = network.architecture.layers[0]
    return first.neurons * first.in_channels * first.kernel**2


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, rounds: int = 5) -> float:
    """Operations per second of a matrix product, the best of several: what the hardware gives to anyone."""
    if device.type == "cpu":
        size = 2048
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(20 if device.type == "cuda" else 1):
            torch.mm(first, second)
        _wait(device)
        fastest = min(fastest, (time.perf_counter() - start) / (20 if device.type == "cuda" else 1))
    return 2 * size**3 / fastest


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(capabilities.get("cpu_name")),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "multiplies_bf16": multiplies_bf16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_: type[Observer] = _EndOfEpoch

if __name__ == "__main__":
    main()
