"""Accuracy, loss and class scores of a network as it stands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import with_averages
from quantspike import augmentation
from quantspike.architecture import Architecture
from quantspike.data import Dataset
from quantspike.measuring import Split, channels_last, measure, predict, splits
from quantspike.networks import new_network

ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)


@pytest.fixture
def test(tiny_dataset: Dataset) -> Split:
    """20 test images of 6 x 6."""
    return splits(tiny_dataset, torch.device("cpu"))[1]


class Constant(nn.Module):
    """Gives every image the same scores."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.scores.expand(len(images), -1)


def test_accuracy_and_loss_are_means_over_the_images() -> None:
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 0, 1])
    accuracy, loss = measure(Constant(math.log(3), 0.0), Split(images, labels), 4)
    # Probabilities 3/4 and 1/4: the loss is (3 log 4/3 + log 4) / 4.
    assert accuracy == 0.75
    assert loss == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, rel=1e-6)


@pytest.mark.parametrize(("n", "batches"), [(1, [1]), (250, [250]), (251, [250, 1]), (600, [250, 250, 100])])
def test_predictions_cover_every_image_in_batches(n: int, batches: list[int]) -> None:
    network = Constant(1.0, 2.0)
    scores = predict(network, torch.zeros(n, 1, 4, 4, dtype=torch.uint8), 4)
    assert scores.tolist() == [[1.0, 2.0]] * n
    assert network.batches == batches


def test_predictions_are_those_of_the_central_crop_in_evaluation_mode(tiny_dataset: Dataset, test: Split) -> None:
    network = with_averages(new_network(ARCHITECTURE, 1, 1), tiny_dataset).eval()
    expected = torch.cat([network(augmentation.central_images(image[None], 4)) for image in test.images])
    assert len(expected.unique(dim=0)) > 8
    torch.testing.assert_close(predict(network.train(), test.images, 4), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_predicting_leaves_the_network_as_it_was(mode: bool, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0).train(mode)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scores = predict(network, test.images, 4)
    assert {module.training for module in network.modules()} == {mode}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not scores.requires_grad


def test_predicting_restores_the_mode_after_a_failure() -> None:
    network = new_network(ARCHITECTURE, 1, 0).train()
    with pytest.raises(RuntimeError):
        predict(network, torch.zeros(2, 3, 6, 6, dtype=torch.uint8), 4)  # three channels in place of one
    assert network.training


def test_between_is_called_before_each_batch_and_may_end_the_work() -> None:
    network = Constant(1.0, 2.0)
    done: list[int] = []
    images = torch.zeros(600, 1, 4, 4, dtype=torch.uint8)
    predict(network, images, 4, lambda: done.append(len(network.batches)))
    assert done == [0, 1, 2]

    def stop() -> None:
        if len(network.batches) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(network.train(), images, 4, stop)
    assert len(network.batches) == 4  # three of before, and one
    assert network.training


def test_scores_are_in_full_precision_even_from_a_network_that_computes_in_bf16(test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0).eval()
    with torch.autocast("cpu", torch.bfloat16):
        scores = predict(network, test.images, 4)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, scores.bfloat16().float())


def test_another_memory_order_keeps_every_value(test: Split) -> None:
    images = test.images.repeat(1, 3, 1, 1).float()
    ordered = channels_last(images)
    assert torch.equal(ordered, images)
    assert ordered.is_contiguous(memory_format=torch.channels_last)


def test_a_part_of_a_split_keeps_images_and_labels_together(test: Split) -> None:
    part = test.part(slice(3, 7))
    assert len(part) == 4
    assert torch.equal(part.images, test.images[3:7])
    assert torch.equal(part.labels, test.labels[3:7])
    assert len(test.part(slice(5, 5))) == 0
