"""The network that others load classifies images as the stages do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import labelled, with_averages
from quantspike.architecture import Architecture
from quantspike.data import Dataset, build_dataset
from quantspike.measuring import predict
from quantspike.networks import QuantizedCNN, new_network
from quantspike.params import Precision
from quantspike.serving import ImageClassifier


def trained(k: Precision = 1, channels: int = 1, size: int = 9, crop: int = 6) -> tuple[QuantizedCNN, Dataset]:
    """A network that has seen some images, and these."""
    images = labelled(80, 1, channels, size), labelled(301, 2, channels, size)
    dataset = build_dataset(*images, ("top", "middle", "bottom"), kind="images", name="rows")
    architecture = Architecture.parse("6C3-P2-9", image_size=crop, image_channels=channels, classes=3)
    return with_averages(new_network(architecture, k, 0), dataset), dataset


@pytest.mark.parametrize(("channels", "size", "crop"), [(1, 8, 8), (3, 9, 6), (3, 9, 8)])
@pytest.mark.parametrize("k", ["fp32", 1])
def test_it_gives_the_scores_that_are_measured(k: Precision, channels: int, size: int, crop: int) -> None:
    network, dataset = trained(k, channels, size, crop)
    images = torch.from_numpy(dataset.test_images)
    expected = predict(network, images, crop)
    assert len(expected.argmax(1).unique()) > 1
    with torch.inference_mode():
        scores = ImageClassifier(network)(images)
    # Batches of 250 there, all 301 here.
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


def test_it_is_in_evaluation_mode_and_changes_no_average() -> None:
    network, dataset = trained()
    network.train()
    classifier = ImageClassifier(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    classifier(torch.from_numpy(dataset.test_images))
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_single_uniform_image_has_finite_scores() -> None:
    network, _ = trained()
    images = torch.from_numpy(np.full((1, 1, 9, 9), 200, dtype=np.uint8))
    with torch.inference_mode():
        assert torch.isfinite(ImageClassifier(network)(images)).all()
