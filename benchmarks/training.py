"""Time training against a plain PyTorch loop, and what an epoch spends outside forward and backward pass and optimizer.

    python benchmarks/training.py --data path/to/cifar-10-batches-py --json training.json

The plain loop is what a first script does: torchvision's transforms image by image, a DataLoader, fp32, the default
memory layout, Adam's default. Its transforms are the usual ones for crop, flip, brightness, contrast and
standardization: as much work as the protocol's, not the same values. Both train the same network, k = 1, on batches of
the same size in turns. Printed are images per second (medians), their ratio within a round, and the share of time
outside forward pass, backward pass and optimizer. The measurement of the test images after an epoch is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from common import at_least, machine, new_parser, report, spread
from quantspike.data.dataset import Dataset
from quantspike.distributed import resolve_device
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network
from quantspike.params import Recipe
from quantspike.training.evaluation import splits
from quantspike.training.loop import Callback, Settings, Training, use_bf16
from quantspike.training.optimizer import Optimizer
from trained_networks import add_data_option, load_images

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"

CROP = 24


def main() -> None:
    parser = new_parser(__doc__)
    add_training_options(parser, layers=CNN1, steps=3)
    parser.add_argument("--workers", type=at_least(0), default=0, help="of the DataLoader (default: %(default)s)")
    report(measure, parser.parse_args())


def add_training_options(parser: argparse.ArgumentParser, layers: str, steps: int) -> None:
    """Add the options that name images and network, and how long a round is."""
    add_data_option(parser)
    parser.add_argument("--layers", default=layers, help="layer string (default: %(default)s)")
    parser.add_argument("--batch", type=at_least(2), default=200, help="images per step (default: %(default)s)")
    parser.add_argument("--steps", type=at_least(1), default=steps, help="steps per epoch (default: %(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: %(default)s")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians over the rounds, and the ratios within a round."""
    device, dataset = resolve_device(options.device), load_images(options.data)
    ours, plain = OurLoop(dataset, device, options), PlainLoop(dataset, device, options)
    ours.run_epoch()
    plain.run_epoch()  # the first steps allocate and build what later ones use
    rounds = [(*ours.run_epoch(), plain.run_epoch()) for _ in range(options.rounds)]
    images = options.steps * options.batch
    return {
        "data": dataset.fingerprint["name"],
        "machine": machine(device),
        "n": {"rounds": options.rounds, "images_per_round": images, "batch": options.batch},
        "layers": options.layers,
        "arithmetic": "bf16" if ours.settings.bf16 else "fp32",
        "images_per_second": {
            "quantspike": images / statistics.median(own for own, _, _ in rounds),
            "plain_loop": images / statistics.median(other for _, _, other in rounds),
        },
        "ratio": spread([other / own for own, _, other in rounds]),
        "share_outside": spread([1 - inside / own for own, inside, _ in rounds]),
    }


class TimedOptimizer(Optimizer):
    """Adam with a callback after each step."""

    def __init__(self, network: QuantizedCNN, done: Callable[[], None]) -> None:
        super().__init__(network, "adam")
        self._done = done

    def step(self, learning_rate: float, *, bf16: bool = False) -> None:
        super().step(learning_rate, bf16=bf16)
        self._done()


class OurLoop(Callback):
    """The project's training loop, with a stopwatch around forward pass, backward pass and optimizer."""

    def __init__(self, dataset: Dataset, device: torch.device, options: argparse.Namespace) -> None:
        self.settings = Settings(
            phase=0,
            epochs=1,
            learning_rate=1e-3,
            seed=0,
            crop=CROP,
            recipe=Recipe(
                optimizer="adam",
                batch_size=options.batch,
                label_smoothing=0,
                shift=4,
                flip="random",
                brightness=63,
                contrast=0.8,
                clip=None,
                arithmetic="auto",
            ),
            activation_penalty=0.0,
            bf16=use_bf16("auto", device),
        )
        training, test = splits(dataset, device)
        self._images, self._test = training.part(_chosen(dataset, options)), test.part(slice(1))
        self._network = make_network(dataset, options).to(device)
        self._optimizer = TimedOptimizer(self._network, self._leave)
        self._network.register_forward_pre_hook(self._enter)
        self._device = device

    def run_epoch(self, callbacks: Sequence[Callback] = ()) -> tuple[float, float]:
        """Return the seconds of an epoch, and those of them inside forward pass, backward pass and optimizer."""
        training = Training(self._network, self._optimizer, self.settings, self._images, self._test)
        self._inside = 0.0
        start = _now(self._device)
        training.run([*callbacks, self])
        return self._end - start, self._inside

    def on_step_end(self, training: Training) -> None:
        """Take the time; that of the last step counts."""
        self._end = _now(self._device)

    def _enter(self, *_: object) -> None:
        self._entered = _now(self._device)

    def _leave(self) -> None:
        self._inside += _now(self._device) - self._entered


class PlainLoop:
    """A plain PyTorch loop on the same images."""

    def __init__(self, dataset: Dataset, device: torch.device, options: argparse.Namespace) -> None:
        chosen = _chosen(dataset, options)
        pixels = [Image.fromarray(image.transpose(1, 2, 0).squeeze()) for image in dataset.train_images[chosen]]
        samples: Any = list(zip(pixels, dataset.train_labels[chosen].tolist(), strict=True))
        self._loader: DataLoader[Any] = DataLoader(
            samples, options.batch, shuffle=True, num_workers=options.workers, collate_fn=transform
        )
        self._network = make_network(dataset, options).to(memory_format=torch.contiguous_format).to(device)
        self._adam = torch.optim.Adam(self._network.parameters(), lr=1e-3)
        self._device = device

    def run_epoch(self) -> float:
        """Return the seconds of an epoch."""
        start = _now(self._device)
        self._network.train()
        total = 0.0
        for images, labels in self._loader:
            scores = self._network(images.to(self._device))
            loss = functional.cross_entropy(scores, labels.to(self._device))
            self._adam.zero_grad()
            loss.backward()
            self._adam.step()
            total += loss.item()
        return _now(self._device) - start


TRANSFORM = v2.Compose(
    [
        v2.RandomCrop(CROP),
        v2.RandomHorizontalFlip(),
        v2.ColorJitter(brightness=0.25, contrast=0.8),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Lambda(lambda image: (image - image.mean()) / image.std().clamp(min=image.numel() ** -0.5)),
    ]
)


def transform(samples: list[tuple[Image.Image, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch of images, each transformed by itself, and their labels."""
    return torch.stack([TRANSFORM(image) for image, _ in samples]), torch.tensor([label for _, label in samples])


def make_network(dataset: Dataset, options: argparse.Namespace) -> QuantizedCNN:
    """Return the untrained network that both loops train."""
    architecture = Architecture.parse(
        options.layers, image_size=CROP, image_channels=dataset.channels, classes=dataset.classes
    )
    return new_network(architecture, 1, 0)


def _chosen(dataset: Dataset, options: argparse.Namespace) -> slice:
    """Return which training images an epoch has."""
    if options.steps * options.batch > len(dataset.train_images):
        raise QuantspikeError(
            f"{options.steps} steps of {options.batch} images are asked for, but there are only "
            f"{len(dataset.train_images)} training images"
        )
    return slice(options.steps * options.batch)


def _now(device: torch.device) -> float:
    """Return the time in seconds, after the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
