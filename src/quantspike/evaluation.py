"""What the trained network scores as it is, before it becomes spikes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quantspike.data import Dataset
from quantspike.errors import QuantspikeError
from quantspike.measuring import predict
from quantspike.networks import QuantizedCNN
from quantspike.operations import macs
from quantspike.tensors import load_tensors, save_tensors

FORMAT = "quantspike-scores"
VERSION = 1


def evaluate(network: QuantizedCNN, dataset: Dataset) -> tuple[Tensor, dict[str, Any]]:
    """Class scores of all test images and the report for ann.json.

    Args:
        network: on the device that it is to run on.
        dataset: its test images are used.

    Returns:
        float32 [N, classes] on the CPU, and the report; the accuracy lies between 0 and 1, the
        multiply-accumulates are per image.
    """
    device = network.classifier.weight.device
    images = torch.from_numpy(dataset.test_images).to(device)
    scores = predict(network, images, network.architecture.image_size).cpu()
    labels = torch.from_numpy(dataset.test_labels)
    correct = int((scores.argmax(1) == labels).sum())
    report = {
        "images": len(labels),
        "correct": correct,
        "accuracy": correct / len(labels),
        "loss": functional.cross_entropy(scores.double(), labels).item(),
        "macs": macs(network.architecture),
        "neurons": network.architecture.neurons,
        "weights": network.weights,
        "data": dataset.fingerprint,
    }
    return scores, report


def save_scores(path: Path, scores: Tensor) -> None:
    """Writes class scores, float32 [N, classes], atomically."""
    save_tensors(path, FORMAT, VERSION, {}, {"scores": scores})


def load_scores(path: Path, images: int) -> Tensor:
    """Reads class scores, float32 [N, classes].

    Args:
        path: the file.
        images: the N there must be.

    Raises:
        QuantspikeError: the file is absent, damaged, of another format or of other images, or a score is not finite.
    """
    scores = load_tensors(path, FORMAT, VERSION)[1]["scores"]
    if len(scores) != images:
        raise QuantspikeError(f"{path} holds scores of {len(scores)} images, but there are {images}: run dvc repro")
    if not bool(scores.isfinite().all()):
        raise QuantspikeError(f"{path} holds class scores that are not finite: delete it, train again, run dvc repro")
    return scores
