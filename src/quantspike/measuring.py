"""Images on the device that computes, and what a network makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantspike import augmentation
from quantspike.data import Dataset
from quantspike.errors import QuantspikeError

_BATCH = 250


@dataclass(frozen=True)
class Split:
    """Images and their labels on one device.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def part(self, chosen: slice) -> Split:
        """Some of the images."""
        return Split(self.images[chosen], self.labels[chosen])


def splits(dataset: Dataset, device: torch.device) -> tuple[Split, Split]:
    """Training and test images of a data set, put on a device once and for all."""
    training = Split(torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels))
    test = Split(torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels))
    return training.to(device), test.to(device)


def hold_out(images: Split, count: int, seed: int) -> tuple[Split, Split | None]:
    """Takes `count` images, drawn by the seed, out of the training images.

    Raises:
        QuantspikeError: fewer than two images would be left to train on.
    """
    if count == 0:
        return images, None
    if count > len(images) - 2:
        raise QuantspikeError(
            f"train.validation is {count}, but of {len(images)} training images at most {len(images) - 2} "
            "can be held out"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(images.labels.device)
    held, kept = order[:count], order[count:]
    return Split(images.images[kept], images.labels[kept]), Split(images.images[held], images.labels[held])


def measure(network: nn.Module, split: Split, crop: int) -> tuple[float, float]:
    """Accuracy, from 0 to 1, and mean cross-entropy of a network over images."""
    scores = predict(network, split.images, crop)
    labels = split.labels.to(scores.device)
    accuracy = (scores.argmax(1) == labels).double().mean().item()
    return accuracy, functional.cross_entropy(scores.double(), labels).item()


def predict(network: nn.Module, images: Tensor, crop: int, between: Callable[[], None] = lambda: None) -> Tensor:
    """Class scores of test images, as the network gives them in evaluation mode.

    Args:
        network: left in the mode it was in.
        images: uint8 [N, C, H, W].
        crop: side of the central square, in pixels.
        between: called before each batch; what it raises ends the work.

    Returns:
        float32 [N, classes].
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            scores = []
            for part in torch.split(images, _BATCH):
                between()
                scores.append(network(channels_last(augmentation.central_images(part, crop))).float())
            return torch.cat(scores)
    finally:
        network.train(was_training)


def channels_last(images: Tensor) -> Tensor:
    """The same values in the memory order that convolutions run fastest on: twice as fast on a CPU."""
    return images.contiguous(memory_format=torch.channels_last)
