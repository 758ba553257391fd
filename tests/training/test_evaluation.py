"""Splits of the images, class scores of a network, and the report on a trained one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import with_averages
from quantspike.data.dataset import Dataset
from quantspike.data.preparation import central_images
from quantspike.errors import QuantspikeError
from quantspike.files import save_tensors
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import new_network
from quantspike.training.evaluation import (
    FORMAT,
    VERSION,
    Split,
    channels_last,
    evaluation_report,
    load_scores,
    predict,
    save_scores,
    splits,
)

ARCHITECTURE = Architecture.parse("4C3-P2-5", image_size=4, image_channels=1, classes=3)


@pytest.fixture
def split(tiny_dataset: Dataset) -> Split:
    """40 training images of 6 x 6."""
    return splits(tiny_dataset, torch.device("cpu"))[0]


@pytest.fixture
def test(tiny_dataset: Dataset) -> Split:
    """20 test images."""
    return splits(tiny_dataset, torch.device("cpu"))[1]


# Splits


def test_a_part_of_a_split_keeps_images_and_labels_together(test: Split) -> None:
    part = test.part(slice(3, 7))
    assert len(part) == 4
    assert torch.equal(part.images, test.images[3:7])
    assert torch.equal(part.labels, test.labels[3:7])
    assert len(test.part(slice(5, 5))) == 0


# Class scores


class Constant(nn.Module):
    """Gives every image the same scores."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = torch.tensor(scores)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.scores.expand(len(images), -1)


@pytest.mark.parametrize(("n", "batches"), [(1, [1]), (250, [250]), (251, [250, 1]), (600, [250, 250, 100])])
def test_predictions_cover_every_image_in_batches(n: int, batches: list[int]) -> None:
    network = Constant(1.0, 2.0)
    scores = predict(network, torch.zeros(n, 1, 4, 4, dtype=torch.uint8), 4)
    assert scores.tolist() == [[1.0, 2.0]] * n
    assert network.batches == batches


@pytest.mark.parametrize("mode", [True, False])
def test_predictions_are_those_of_the_central_crop_in_evaluation_mode(
    mode: bool, tiny_dataset: Dataset, test: Split
) -> None:
    network = with_averages(new_network(ARCHITECTURE, 1, 0), tiny_dataset).eval()
    expected = torch.cat([network(central_images(image[None], 4)) for image in test.images]).detach()
    assert len(expected.unique(dim=0)) > 8
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scores = predict(network.train(mode), test.images, 4)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert not scores.requires_grad
    assert {module.training for module in network.modules()} == {mode}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_predicting_restores_the_mode_after_a_failure() -> None:
    network = new_network(ARCHITECTURE, 1, 0).train()
    with pytest.raises(RuntimeError):
        predict(network, torch.zeros(2, 3, 6, 6, dtype=torch.uint8), 4)  # three channels in place of one
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


# The report


def test_the_report_equals_that_of_a_loop_over_the_test_images(tiny_dataset: Dataset, test: Split) -> None:
    network = with_averages(new_network(ARCHITECTURE, 1, 0), tiny_dataset).eval()
    scores = predict(network, test.images, 4)
    report = evaluation_report(network, tiny_dataset, scores)
    correct, loss = 0, 0.0
    for image, label, given in zip(tiny_dataset.test_images, tiny_dataset.test_labels, scores, strict=True):
        expected = network(central_images(torch.from_numpy(image)[None], 4))[0]
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
        correct += int(expected.argmax()) == label
        exponentials = [math.exp(value) for value in given.tolist()]
        loss -= math.log(exponentials[label] / sum(exponentials)) / 20
    assert (report["images"], report["correct"], report["accuracy"]) == (20, correct, correct / 20)
    assert report["loss"] == pytest.approx(loss, rel=1e-9)
    assert (scores.dtype, scores.shape, scores.device.type) == (torch.float32, (20, 3), "cpu")


def test_the_report_holds_the_costs_and_the_data_and_fits_into_json(tiny_dataset: Dataset) -> None:
    report = evaluation_report(new_network(ARCHITECTURE, "fp32", 0), tiny_dataset, torch.zeros(20, 3))
    # Maps 4 x 4 x 4, 4 x 2 x 2 and 5: 64 + 16 + 5 neurons.
    assert report["neurons"] == 85
    # 1 x 4 x 3 x 3 + 4 x 4 x 2 x 2 + 4 x 5 x 2 x 2 + 5 x 3
    assert report["weights"] == 36 + 64 + 80 + 15
    # The encoding layer left out: 16 neurons x 16 inputs + 5 x 16 + 3 x 5
    assert report["macs"] == 256 + 80 + 15
    assert report["data"] == tiny_dataset.fingerprint
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    "scores",
    [
        torch.zeros(7),
        torch.zeros(7, 0),
        torch.zeros(7, 3, 1),
        torch.tensor(1.0),
        torch.zeros(7, 3, dtype=torch.int32),
        torch.zeros(7, 3).to(torch.float8_e4m3fn),
        None,
    ],
)
def test_a_file_without_a_score_per_image_and_class_is_damaged(scores: Tensor | None, tmp_path: Path) -> None:
    save_tensors(tmp_path / "scores", FORMAT, VERSION, {}, {} if scores is None else {"scores": scores})
    with pytest.raises(
        QuantspikeError, match=r"scores is damaged \(.*(scores|isfinite).*\): delete it and run dvc repro"
    ):
        load_scores(tmp_path / "scores", 7)


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    save_scores(tmp_path / "scores", scores)
    assert torch.equal(load_scores(tmp_path / "scores", 7), scores)
    with pytest.raises(QuantspikeError, match="holds scores of 7 images, expected 8: run dvc repro"):
        load_scores(tmp_path / "scores", 8)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    scores = torch.zeros(7, 3)
    scores[4, 1] = value
    save_scores(tmp_path / "scores", scores)
    with pytest.raises(QuantspikeError, match="scores holds class scores that are not finite: delete it, train again"):
        load_scores(tmp_path / "scores", 7)
