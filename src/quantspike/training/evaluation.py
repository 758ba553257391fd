"""Class scores and accuracy of a trained network, before conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantspike.data.dataset import Dataset
from quantspike.data.preparation import central_images
from quantspike.errors import QuantspikeError
from quantspike.files import load_tensors, reading, save_tensors
from quantspike.networks.architecture import macs
from quantspike.networks.cnn import QuantizedCNN

FORMAT = "quantspike-scores"
VERSION = 2

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

    def part(self, chosen: slice) -> Split:
        """Return some of the images."""
        return Split(self.images[chosen], self.labels[chosen])


def splits(dataset: Dataset, device: torch.device) -> tuple[Split, Split]:
    """Return training and test images of a data set on a device."""
    pairs = (dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels)
    training, test = (Split(*(torch.from_numpy(array).to(device) for array in pair)) for pair in pairs)
    return training, test


def predict(network: nn.Module, images: Tensor, crop: int) -> Tensor:
    """Return class scores of test images, with the network in evaluation mode.

    Args:
        network: left in the mode it was in.
        images: uint8 [N, C, H, W].
        crop: side of the central square, in pixels.

    Returns:
        float32 [N, classes].
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            batches = torch.split(images, _BATCH)
            return torch.cat([network(channels_last(central_images(part, crop))).float() for part in batches])
    finally:
        network.train(was_training)


def channels_last(images: Tensor) -> Tensor:
    """Return the same values in the memory order that convolutions run fastest on: twice as fast on a CPU."""
    return images.contiguous(memory_format=torch.channels_last)


def evaluation_report(network: QuantizedCNN, dataset: Dataset, scores: Tensor) -> dict[str, Any]:
    """Return the report for evaluate.json; the accuracy lies between 0 and 1, multiply-accumulates are per image.

    Args:
        network: the trained network.
        dataset: its test images were used.
        scores: float [N, classes] of all test images.
    """
    labels = torch.from_numpy(dataset.test_labels)
    correct = int((scores.argmax(1) == labels).sum())
    return {
        "images": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": functional.cross_entropy(scores.double(), labels).item(),
        "macs": macs(network.architecture),
        "neurons": network.architecture.neurons,
        "weights": network.weights,
        "data": dataset.fingerprint,
    }


def save_scores(path: Path, scores: Tensor) -> None:
    """Write class scores, float [N, classes], atomically."""
    save_tensors(path, FORMAT, VERSION, {}, {"scores": scores})


def load_scores(path: Path, images: int) -> Tensor:
    """Read class scores, float [N, classes].

    Args:
        path: the file.
        images: the expected N.

    Raises:
        QuantspikeError: the file is absent, damaged, of another format or of other images, or a score is not finite.
    """
    _, tensors = load_tensors(path, FORMAT, VERSION)
    with reading(path):
        scores = tensors["scores"]
        if scores.ndim != 2 or scores.numel() == 0 or not scores.is_floating_point():
            raise ValueError(f"its scores are {scores.dtype} {tuple(scores.shape)}, expected float [N, classes]")
        if len(scores) != images:
            raise QuantspikeError(f"{path} holds scores of {len(scores)} images, expected {images}: run dvc repro")
        if not bool(scores.isfinite().all()):
            raise QuantspikeError(
                f"{path} holds class scores that are not finite: delete it, train again, run dvc repro"
            )
    return scores
