"""From a trace to what is reported: hand-made traces, hand-made numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from make_networks import simulate_settings
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.simulation.measures import (
    certificate,
    check_proved,
    curves,
    delay_curves,
    layer_curves,
    stable_step,
    totals,
    verdict,
    write_logs,
    write_measures,
)
from quantspike.simulation.trace import Mismatch, Trace

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
        least_synops=np.array([12, 0, 6, 9, 24]),
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


def test_delay_curves_have_a_row_per_delay_and_step_in_the_order_of_the_delays(trace: Trace) -> None:
    late = replace(trace, predictions=trace.predictions[[0, 0, 0, 2]], positive_spikes=trace.positive_spikes // 2)
    table, first, second = delay_curves({4: late, 0: trace}, LABELS), curves(late, LABELS), curves(trace, LABELS)
    assert list(table) == ["layer_delay", *first]
    assert table["layer_delay"] == [4, 4, 4, 4, 0, 0, 0, 0]
    assert table["step"] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert table["accuracy"] == [2 / 5, 2 / 5, 2 / 5, 4 / 5, 2 / 5, 2 / 5, 4 / 5, 4 / 5]
    assert all(table[name] == first[name] + second[name] for name in first)


def test_layer_curves_have_a_row_per_step_and_layer(trace: Trace) -> None:
    assert layer_curves(trace, ARCHITECTURE) == {
        "step": [1, 1, 2, 2, 3, 3, 4, 4],
        "layer": [1, 2] * 4,
        "neurons": [8, 3] * 4,
        "positive_spikes": [n / 5 for n in (6, 4, 10, 5, 13, 6, 13, 7)],
        "negative_spikes": [n / 5 for n in (0, 0, 1, 1, 2, 2, 2, 3)],
        "net_spikes": [n / 5 for n in (6, 4, 9, 4, 11, 4, 11, 4)],
        "synops": [n / 5 for n in (18, 12, 33, 18, 45, 24, 45, 30)],
        "settled": [n / 5 for n in (2, 2, 3, 2, 4, 4, 5, 4)],
    }


@pytest.mark.parametrize(
    ("accuracy", "step"),
    [
        ([0.5], 1),
        ([0.9] * 4, 1),
        ([0.1, 0.9, 0.9, 0.9], 2),
        ([0.9, 0.9, 0.9, 0.8], 4),
        ([0.9, 0.8, 0.9, 0.9], 3),  # neither its value in between matters, nor that it was the same before
    ],
)
def test_the_stable_step_is_the_first_after_which_the_accuracy_stays(accuracy: list[float], step: int) -> None:
    assert stable_step(np.array(accuracy)) == step


def test_totals_are_the_values_at_the_last_step(trace: Trace) -> None:
    assert totals(trace, LABELS, ANN, 7) == {
        "images": 5,
        "steps": 4,
        "layer_delay": 7,
        "integer_accuracy": 1.0,
        "accuracy": 4 / 5,
        "ann_agreement": 4 / 5,
        "differing_predictions": 0,
        # Image 5 settles at step 6: it may change the accuracy after the last step.
        "stable_step": None,
        "settled_step": None,
        "unsettled_at_T": 1,
        "largest_counts": [3, 1],
        "positive_spikes": 4.0,
        "negative_spikes": 1.0,
        "net_spikes": 3.0,
        "synops": 15.0,
        "least_synops": 51 / 5,
    }


@pytest.mark.parametrize(
    ("settled_step", "settled", "last", "stable", "unsettled"),
    [([3, 1, 3, 1, 4], [2, 2, 4, 5], 4, 3, 0), ([0, 0, 3, 0, 0], [0, 0, 1, 1], None, None, 4)],
)
def test_settled_and_stable_step_are_there_only_with_all_images_settled_at_T(
    trace: Trace, settled_step: list[int], settled: list[int], last: int | None, stable: int | None, unsettled: int
) -> None:
    other = replace(trace, settled_step=np.array(settled_step), final_predictions=np.array([1, 2, 2, 1, 2]))
    assert other.settled.sum(axis=1).tolist() == settled
    found = totals(other, LABELS, ANN, 0)
    assert (found["settled_step"], found["stable_step"]) == (last, stable)
    assert (found["unsettled_at_T"], found["differing_predictions"]) == (unsettled, 2)


def test_a_certificate_counts_images_that_settle_after_the_last_step(trace: Trace) -> None:
    assert certificate(trace, ARCHITECTURE, 10) == {
        "images": 5,
        "layers": 2,
        "neurons": 11,
        "settle_limit": 10,
        "settled_by_limit": 5,
        "unsettled_at_limit": 0,
        "first_settling_step": 1,
        "last_settling_step": 6,
        "equal": 5,
        "mismatches": 0,
        "first_mismatch": None,
    }
    equal = "5 of 5 images settled by step 6, equal to the integer network in every net count"
    assert verdict(trace) == f"{equal}; 1 not settled at T = 4: simulate.steps is too small for a stable step"
    assert verdict(replace(trace, settled_step=np.array([3, 1, 3, 1, 4]))) == equal.replace("6", "4")
    check_proved({0: trace})


def test_a_certificate_names_what_is_wrong(trace: Trace) -> None:
    first = Mismatch(image=2, layer=1, channel=0, y=1, x=0, spiking=3, integer=4)
    wrong = replace(trace, settled_step=np.array([3, 0, 3, 1, 0]), mismatching_images=2, first_mismatch=first)
    found = certificate(wrong, ARCHITECTURE, 10)
    assert [found[name] for name in ("settled_by_limit", "unsettled_at_limit", "equal", "mismatches")] == [3, 2, 1, 2]
    keys = ("image", "layer", "channel", "y", "x", "spiking", "integer")
    assert found["first_mismatch"] == dict(zip(keys, (2, 1, 0, 1, 0, 3, 4), strict=True))
    assert "; 2 not settled by settle_limit; 2 not settled at T = 4: " in verdict(wrong)
    with pytest.raises(QuantspikeError, match=r"2 images .* first image 2, layer 1, channel 0, y 1, x 0: 3 as"):
        check_proved({0: wrong})


def test_a_certificate_without_any_settled_image_has_no_settling_steps(trace: Trace) -> None:
    never = replace(trace, settled_step=np.zeros(5, np.int64))
    found = certificate(never, ARCHITECTURE, 10)
    assert (found["settled_by_limit"], found["equal"], found["unsettled_at_limit"]) == (0, 0, 5)
    assert (found["first_settling_step"], found["last_settling_step"]) == (None, None)
    assert verdict(never).startswith("0 of 5 images settled")
    assert "; 5 not settled by settle_limit; 5 not settled at T = 4: " in verdict(never)


@pytest.mark.parametrize(
    ("log_batch", "logs"),
    [
        # Batches of images 1 and 2, 3 and 4, and 5 alone; four steps each; every spike reaches three synapses.
        (
            2,
            {
                "accuracy.txt": [*(1, 2, 2, 2), *(0, 0, 2, 2), *(1, 0, 0, 0)],
                "spike_num.txt": [*(2, 5, 6, 6), *(4, 5, 7, 7), *(4, 7, 10, 12)],
                "spike_collect.txt": [*(2, 3, 4, 4), *(4, 5, 5, 5), *(4, 5, 6, 6)],
                "sop_num.txt": [*(6, 15, 18, 18), *(12, 15, 21, 21), *(12, 21, 30, 36)],
            },
        ),
        (50, {"accuracy.txt": [2, 2, 4, 4], "sop_num.txt": [30, 51, 69, 75]}),
    ],
)
def test_logs_have_a_line_per_step_for_each_batch_in_turn_the_last_one_partial(
    tmp_path: Path, trace: Trace, log_batch: int, logs: dict[str, list[int]]
) -> None:
    write_logs(tmp_path, trace, LABELS, log_batch)
    assert len(list(tmp_path.iterdir())) == 4
    for name, numbers in logs.items():
        assert (tmp_path / name).read_text() == "".join(f"{number}\n" for number in numbers)


def test_all_measures_are_written(tmp_path: Path, trace: Trace) -> None:
    traces = {2: trace, 0: replace(trace, synops=trace.synops + 5)}
    write_measures(tmp_path, traces, ARCHITECTURE, LABELS, ANN, simulate_settings(4, 10, layer_delay=[2, 0]))
    names = {"simulate.csv", "simulate_delays.csv", "simulate_layers.csv", "simulate.json", "certificate.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    steps, layers = ((tmp_path / name).read_text().splitlines() for name in ("simulate.csv", "simulate_layers.csv"))
    assert steps[0] == "step,accuracy,positive_spikes,negative_spikes,net_spikes,synops,settled"
    assert steps[3] == "3,0.8,3.8,0.8,3.0,13.8,0.8"
    assert layers[0] == "step,layer,neurons,positive_spikes,negative_spikes,net_spikes,synops,settled"
    assert layers[-1] == "4,2,3,1.4,0.6,0.8,6.0,0.8"
    assert (len(steps), len(layers)) == (1 + 4, 1 + 8)
    delays = (tmp_path / "simulate_delays.csv").read_text().splitlines()
    assert delays[:5] == [f"layer_delay,{steps[0]}", *(f"2,{line}" for line in steps[1:])]
    assert delays[7] == "0,3,0.8,3.8,0.8,3.0,18.8,0.8"
    assert len(delays) == 1 + 2 * 4
    assert json.loads((tmp_path / "simulate.json").read_text()) == totals(trace, LABELS, ANN, 2)
    assert json.loads((tmp_path / "certificate.json").read_text()) == certificate(trace, ARCHITECTURE, 10)
