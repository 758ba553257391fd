"""From a trace to what is reported: hand-made traces, hand-made numbers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.params import Simulate
from quantspike.simulation.measures import (
    CURVE_COLUMNS,
    LAYER_COLUMNS,
    certificate,
    check_proved,
    curves,
    layer_curves,
    stable_step,
    totals,
    verdict,
    write_logs,
    write_measures,
    write_no_measures,
)
from quantspike.simulation.trace import Mismatch, Trace, concatenate

ARCHITECTURE = Architecture.parse("2C1-3", image_size=2, image_channels=1)
LABELS = np.array([1, 0, 2, 1, 0])
ANN = np.array([1, 0, 2, 2, 0])
"""The trained network is wrong in the fourth image."""


@pytest.fixture
def trace() -> Trace:
    """Five images, four steps, two layers; the fifth image settles after the last step, at step 6."""
    positive = np.array([[2, 0, 1, 3, 4], [4, 0, 2, 3, 6], [5, 0, 3, 3, 8], [5, 0, 3, 3, 9]])
    negative = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 1, 0, 2], [1, 0, 1, 0, 3]])
    return Trace(
        predictions=np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 2, 1, 1], [1, 0, 2, 1, 1]]),
        positive_spikes=positive,
        negative_spikes=negative,
        synops=3 * (positive + negative),
        layer_positive=np.array([[6, 4], [10, 5], [13, 6], [13, 7]]),
        layer_negative=np.array([[0, 0], [1, 1], [2, 2], [2, 3]]),
        layer_synops=np.array([[18, 12], [33, 18], [45, 24], [45, 30]]),
        layer_settled=np.array([[2, 2], [3, 2], [4, 4], [5, 4]]),
        settled_step=np.array([3, 1, 3, 1, 6]),
        final_predictions=np.array([1, 0, 2, 1, 0]),
        integer_predictions=np.array([1, 0, 2, 1, 0]),
        largest_counts=np.array([3, 1]),
        mismatching_images=0,
        first_mismatch=None,
    )


def test_curves_are_shares_and_averages_per_image(trace: Trace) -> None:
    assert curves(trace, LABELS) == {
        "step": [1, 2, 3, 4],
        # Right are images 2 and 5; 1 and 2; 1 to 4; 1 to 4.
        "accuracy": [2 / 5, 2 / 5, 4 / 5, 4 / 5],
        "positive_spikes": [10 / 5, 15 / 5, 19 / 5, 20 / 5],
        "negative_spikes": [0.0, 2 / 5, 4 / 5, 5 / 5],
        "net_spikes": [10 / 5, 13 / 5, 15 / 5, 15 / 5],
        "synops": [30 / 5, 51 / 5, 69 / 5, 75 / 5],
        "settled": [2 / 5, 2 / 5, 4 / 5, 4 / 5],
    }
    assert tuple(curves(trace, LABELS)) == CURVE_COLUMNS


def test_layer_curves_have_a_row_per_step_and_layer(trace: Trace) -> None:
    table = layer_curves(trace, ARCHITECTURE)
    assert tuple(table) == LAYER_COLUMNS
    assert table["step"] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert table["layer"] == [1, 2] * 4
    assert table["neurons"] == [8, 3] * 4
    assert table["positive_spikes"] == [n / 5 for n in (6, 4, 10, 5, 13, 6, 13, 7)]
    assert table["negative_spikes"] == [n / 5 for n in (0, 0, 1, 1, 2, 2, 2, 3)]
    assert table["net_spikes"] == [n / 5 for n in (6, 4, 9, 4, 11, 4, 11, 4)]
    assert table["synops"] == [n / 5 for n in (18, 12, 33, 18, 45, 24, 45, 30)]
    assert table["settled"] == [n / 5 for n in (2, 2, 3, 2, 4, 4, 5, 4)]


@pytest.mark.parametrize(
    ("accuracy", "step"),
    [
        ([0.5], 1),
        ([0.9] * 4, 1),
        ([0.1, 0.9, 0.9, 0.9], 2),
        ([0.9, 0.9, 0.9, 0.8], 4),
        ([0.9, 0.8, 0.9, 0.9], 3),  # what it was in between does not matter, nor that it was the same before
    ],
)
def test_the_stable_step_is_the_first_from_which_the_accuracy_stays(accuracy: list[float], step: int) -> None:
    assert stable_step(np.array(accuracy)) == step


def test_totals_are_the_values_at_the_last_step(trace: Trace) -> None:
    found = totals(trace, LABELS, ANN)
    expected = {
        "simulated": True,
        "images": 5,
        "steps": 4,
        "integer_accuracy": 1.0,
        "accuracy": 4 / 5,
        "ann_agreement": 4 / 5,
        "differing_predictions": 0,
        "stable_step": 3,
        "settled_step": None,
        "unsettled": 1,
        "largest_counts": [3, 1],
        "positive_spikes": 4.0,
        "negative_spikes": 1.0,
        "net_spikes": 3.0,
        "synops": 15.0,
    }
    assert {name: found[name] for name in expected} == expected


def test_the_settled_step_is_the_first_with_all_images_at_rest(trace: Trace) -> None:
    settled = replace(trace, settled_step=np.array([3, 1, 3, 1, 4]))
    found = totals(settled, LABELS, ANN)
    assert (found["settled_step"], found["unsettled"]) == (4, 0)
    assert settled.settled.all(axis=1).tolist() == [False, False, False, True]


def test_an_image_that_never_settled_is_never_settled(trace: Trace) -> None:
    never = replace(trace, settled_step=np.array([0, 0, 3, 0, 0]))
    assert never.settled.sum(axis=1).tolist() == [0, 0, 1, 1]
    found = totals(never, LABELS, ANN)
    assert (found["settled_step"], found["unsettled"]) == (None, 4)


def test_predictions_that_differ_from_the_integer_network_are_counted(trace: Trace) -> None:
    other = replace(trace, final_predictions=np.array([1, 2, 2, 1, 2]))
    assert totals(other, LABELS, ANN)["differing_predictions"] == 2


def test_a_certificate_counts_images_that_settle_after_the_last_step(trace: Trace) -> None:
    assert certificate(trace, ARCHITECTURE, 10) == {
        "images": 5,
        "layers": 2,
        "neurons": 11,
        "settle_limit": 10,
        "settled": 5,
        "unsettled_at_limit": 0,
        "first_settling_step": 1,
        "last_settling_step": 6,
        "equal": 5,
        "mismatches": 0,
        "first_mismatch": None,
    }
    assert verdict(trace) == "5 of 5 images came to rest by step 6, equal to the integer network in every net count"
    check_proved(trace)


def test_a_certificate_names_what_is_wrong(trace: Trace) -> None:
    first = Mismatch(image=2, layer=1, channel=0, y=1, x=0, spiking=3, integer=4)
    wrong = replace(trace, settled_step=np.array([3, 0, 3, 1, 0]), mismatching_images=2, first_mismatch=first)
    found = certificate(wrong, ARCHITECTURE, 10)
    assert {name: found[name] for name in ("settled", "unsettled_at_limit", "equal", "mismatches")} == {
        "settled": 3,
        "unsettled_at_limit": 2,
        "equal": 1,
        "mismatches": 2,
    }
    keys = ("image", "layer", "channel", "y", "x", "spiking", "integer")
    assert found["first_mismatch"] == dict(zip(keys, (2, 1, 0, 1, 0, 3, 4), strict=True))
    with pytest.raises(QuantspikeError, match=r"2 images .* first image 2, layer 1, channel 0, y 1, x 0: 3 as"):
        check_proved(wrong)


def test_a_certificate_without_any_settled_image_has_no_settling_steps(trace: Trace) -> None:
    never = replace(trace, settled_step=np.zeros(5, np.int64))
    found = certificate(never, ARCHITECTURE, 10)
    assert (found["settled"], found["equal"], found["unsettled_at_limit"]) == (0, 0, 5)
    assert (found["first_settling_step"], found["last_settling_step"]) == (None, None)
    assert verdict(never) == "5 of 5 images had not come to rest by the settling limit"


def logs(folder: Path) -> dict[str, list[int]]:
    return {file.name: [int(line) for line in file.read_text().splitlines()] for file in folder.iterdir()}


def test_logs_have_a_line_per_step_for_each_batch_in_turn_the_last_one_partial(tmp_path: Path, trace: Trace) -> None:
    write_logs(tmp_path, trace, LABELS, log_batch=2)
    # Batches of images 1 and 2, 3 and 4, and 5 alone; four steps each; every spike reaches three synapses.
    assert logs(tmp_path) == {
        "accuracy.txt": [*(1, 2, 2, 2), *(0, 0, 2, 2), *(1, 0, 0, 0)],
        "spike_num.txt": [*(2, 5, 6, 6), *(4, 5, 7, 7), *(4, 7, 10, 12)],
        "spike_collect.txt": [*(2, 3, 4, 4), *(4, 5, 5, 5), *(4, 5, 6, 6)],
        "sop_num.txt": [*(6, 15, 18, 18), *(12, 15, 21, 21), *(12, 21, 30, 36)],
    }
    assert (tmp_path / "accuracy.txt").read_text().endswith("0\n0\n")


def test_a_log_batch_may_hold_all_images_and_more(tmp_path: Path, trace: Trace) -> None:
    write_logs(tmp_path, trace, LABELS, log_batch=50)
    assert logs(tmp_path)["sop_num.txt"] == [30, 51, 69, 75]
    assert logs(tmp_path)["accuracy.txt"] == [2, 2, 4, 4]


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_everything_that_was_measured_is_written(tmp_path: Path, trace: Trace) -> None:
    write_measures(tmp_path, trace, ARCHITECTURE, LABELS, ANN, Simulate(steps=4, settle_limit=10))
    steps, layers = rows(tmp_path / "snn.csv"), rows(tmp_path / "layers.csv")
    assert ",".join(steps[0]) == "step,accuracy,positive_spikes,negative_spikes,net_spikes,synops,settled"
    assert steps[3] == ["3", "0.8", "3.8", "0.8", "3.0", "13.8", "0.8"]
    assert ",".join(layers[0]) == "step,layer,neurons,positive_spikes,negative_spikes,net_spikes,synops,settled"
    assert layers[-1] == ["4", "2", "3", "1.4", "0.6", "0.8", "6.0", "0.8"]
    assert (len(steps), len(layers)) == (1 + 4, 1 + 8)
    written: dict[str, Any] = json.loads((tmp_path / "snn.json").read_text())
    found = totals(trace, LABELS, ANN)
    assert {name: written[name] for name in found} == found
    assert written["largest_counts"] == [3, 1]
    assert json.loads((tmp_path / "certificate.json").read_text()) == certificate(trace, ARCHITECTURE, 10)
    # The trained network is right in 4 of 5 images; 4 positive and 1 negative spikes per image.
    headline = {"ann_accuracy": 0.8, "snn_accuracy": 0.8, "stable_step": 3, "spikes": 5.0, "synops": 15.0}
    assert json.loads((tmp_path / "metrics.json").read_text()) == headline


def test_a_network_without_spikes_gets_files_without_rows(tmp_path: Path) -> None:
    write_no_measures(tmp_path, 0.75)
    assert rows(tmp_path / "snn.csv") == [list(CURVE_COLUMNS)]
    assert rows(tmp_path / "layers.csv") == [list(LAYER_COLUMNS)]
    for name in ("snn.json", "certificate.json"):
        assert json.loads((tmp_path / name).read_text()) == {"simulated": False}
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"ann_accuracy": 0.75}


def test_traces_of_pieces_are_joined_in_order(trace: Trace) -> None:
    first = Mismatch(image=7, layer=1, channel=0, y=1, x=0, spiking=3, integer=4)
    wrong = replace(trace, mismatching_images=3, first_mismatch=first, largest_counts=np.array([2, 5]))
    joined = concatenate([trace, wrong, replace(wrong, first_mismatch=replace(first, image=12))])
    assert (joined.images, joined.steps, joined.mismatching_images) == (15, 4, 6)
    assert joined.first_mismatch == first
    # By layer: of (3, 1), (2, 5) and (2, 5).
    assert joined.largest_counts.tolist() == [3, 5]
    assert joined.predictions.tolist() == np.tile(trace.predictions, 3).tolist()
    assert joined.settled_step.tolist() == [3, 1, 3, 1, 6] * 3
    assert joined.layer_synops.tolist() == (3 * trace.layer_synops).tolist()
