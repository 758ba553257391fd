"""What is measured on the trained network before it becomes spikes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import with_averages
from quantspike import augmentation
from quantspike.architecture import Architecture
from quantspike.data import Dataset
from quantspike.errors import QuantspikeError
from quantspike.evaluation import evaluate, load_scores, save_scores
from quantspike.networks import new_network

ARCHITECTURE = Architecture.parse("4C3-P2-5", image_size=4, image_channels=1, classes=3)


def test_the_report_is_that_of_a_loop_over_the_test_images(tiny_dataset: Dataset) -> None:
    network = with_averages(new_network(ARCHITECTURE, 1, 0), tiny_dataset).eval()
    scores, report = evaluate(network, tiny_dataset)
    assert len(scores.unique(dim=0)) > 8
    correct, loss = 0, 0.0
    for image, label, given in zip(tiny_dataset.test_images, tiny_dataset.test_labels, scores, strict=True):
        expected = network(augmentation.central_images(torch.from_numpy(image)[None], 4))[0]
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)
        correct += int(expected.argmax()) == label
        exponentials = [math.exp(value) for value in given.tolist()]
        loss -= math.log(exponentials[label] / sum(exponentials)) / 20
    assert (report["images"], report["correct"], report["accuracy"]) == (20, correct, correct / 20)
    assert report["loss"] == pytest.approx(loss, rel=1e-9)
    assert (scores.dtype, scores.shape, scores.device.type) == (torch.float32, (20, 3), "cpu")


def test_the_report_holds_the_costs_and_the_data_and_fits_into_json(tiny_dataset: Dataset) -> None:
    report = evaluate(new_network(ARCHITECTURE, "fp32", 0), tiny_dataset)[1]
    assert list(report) == ["images", "correct", "accuracy", "loss", "macs", "neurons", "weights", "data"]
    # Maps 4 x 4 x 4, 4 x 2 x 2 and 5: 64 + 16 + 5 neurons.
    assert report["neurons"] == 85
    # 1 x 4 x 3 x 3 + 4 x 4 x 2 x 2 + 4 x 5 x 2 x 2 + 5 x 3
    assert report["weights"] == 36 + 64 + 80 + 15
    # The encoding layer left out: 16 neurons x 16 inputs + 5 x 16 + 3 x 5
    assert report["macs"] == 256 + 80 + 15
    assert report["data"] == tiny_dataset.fingerprint
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_training_images_play_no_part(tiny_dataset: Dataset) -> None:
    network = with_averages(new_network(ARCHITECTURE, 1, 0), tiny_dataset)
    other = replace(tiny_dataset, train_images=255 - tiny_dataset.train_images)
    assert torch.equal(evaluate(network, tiny_dataset)[0], evaluate(network, other)[0])


def test_scores_come_back_as_they_were_written(tmp_path: Path) -> None:
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    save_scores(tmp_path / "scores", scores)
    assert torch.equal(load_scores(tmp_path / "scores", 7), scores)


def test_scores_of_other_images_are_refused(tmp_path: Path) -> None:
    save_scores(tmp_path / "scores", torch.zeros(7, 3))
    with pytest.raises(QuantspikeError, match="holds scores of 7 images, but there are 8: run dvc repro"):
        load_scores(tmp_path / "scores", 8)


def test_absent_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="scores is not there"):
        load_scores(tmp_path / "scores", 7)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    scores = torch.zeros(7, 3)
    scores[4, 1] = value
    save_scores(tmp_path / "scores", scores)
    with pytest.raises(QuantspikeError, match="scores holds class scores that are not finite: delete it, train again"):
        load_scores(tmp_path / "scores", 7)
