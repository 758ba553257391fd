"""The published figures, and when they may be compared with the project's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from make_results import make_params, weights
from quantspike.networks.architecture import architecture_of
from quantspike.params import Params, Precision, load_params
from quantspike.paths import Run, find_run
from quantspike.reporting.published import (
    LAYERS,
    PUBLISHED,
    Published,
    is_published_network,
    protocol_differences,
    published_curve,
)


def run_of(params: Params, model: str = "cnn1") -> Run:
    return find_run(params, "paper", model, 0, 0, Path("."))


def test_a_published_row_is_read_with_all_its_figures() -> None:
    row = PUBLISHED.get(("cnn1", 1))
    assert row is not None
    assert (row.ann_accuracy, row.snn_accuracy, row.stable_step, row.synops) == (0.9277, 0.9277, 57, 414151035)
    assert (row.positive_spikes, row.negative_spikes) == (269847, 92767)


def test_what_was_not_published_is_none() -> None:
    spiking, full = PUBLISHED.get(("cnn2", 0)), PUBLISHED.get(("cnn2", "fp32"))
    assert spiking is not None
    assert full is not None
    assert spiking.ann_accuracy is None
    assert (full.ann_accuracy, full.snn_accuracy, full.stable_step, full.synops) == (0.932, None, None, None)
    assert set(PUBLISHED) == {(model, k) for model in LAYERS for k in ("fp32", 0, 1, 2)}
    assert PUBLISHED.get(("cnn1", 3)) is None


SPIKING = [row for row in PUBLISHED.values() if row.k != "fp32"]


@pytest.mark.parametrize("row", SPIKING, ids=[f"{row.model}-{row.k}" for row in SPIKING])
def test_a_published_curve_ends_on_the_published_row(row: Published) -> None:
    curve = published_curve(row.model, row.k)
    assert curve is not None
    assert list(curve["step"]) == list(range(1, 101))
    last = curve.iloc[-1]
    assert last["accuracy"] == row.snn_accuracy
    assert curve.loc[curve["accuracy"] != row.snn_accuracy, "step"].max() + 1 == row.stable_step
    # The table has whole numbers per image, the curve one or two decimal places.
    for name in ("synops", "positive_spikes", "negative_spikes"):
        assert abs(last[name] - getattr(row, name)) <= 0.5, name
        assert curve[name].is_monotonic_increasing, name


def test_a_published_curve_is_read_with_its_signs_apart() -> None:
    curve = published_curve("cnn1", 0)
    assert curve is not None
    # 127,889.38 spikes up to step 2, 94,500.15 of them net: (sum) / 2 = 111,194.765 and (difference) / 2 = 16,694.615.
    assert curve.iloc[1].tolist() == pytest.approx([2, 0.7696, 173567540.3, 111194.765, 16694.615], abs=1e-6)
    # All 81,062.88 spikes of the first step are net.
    assert curve.iloc[0].tolist() == pytest.approx([1, 0.2973, 111042071.7, 81062.88, 0], abs=1e-6)


def test_no_curve_was_published_of_full_precision_of_other_precisions_and_of_other_networks() -> None:
    unpublished: list[tuple[str, Precision]] = [("cnn1", "fp32"), ("cnn2", "fp32"), ("cnn1", 3), ("other", 1)]
    assert [published_curve(*key) for key in unpublished] == [None] * 4


@pytest.mark.parametrize(
    ("model", "neurons", "synapses"), [("cnn1", 336_128, 7_852_576), ("cnn2", 411_648, 18_522_496)]
)
def test_the_layer_strings_are_those_of_the_published_networks(model: str, neurons: int, synapses: int) -> None:
    architecture = architecture_of(run_of(make_params(), model))
    assert (architecture.neurons, weights(architecture)) == (neurons, synapses)


def test_the_published_network_is_recognized_by_layers_width_and_crop() -> None:
    run = run_of(make_params())
    assert is_published_network(run)
    assert not is_published_network(replace(run, layers=LAYERS["cnn2"]))
    assert not is_published_network(run_of(make_params(width=0.5)))
    assert not is_published_network(run_of(make_params(data__crop=32)))


def test_the_profile_paper_is_the_published_protocol() -> None:
    params = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
    assert protocol_differences(params.profiles["paper"]) == []
    assert {model: params.models[model].layers for model in LAYERS} == dict(LAYERS)
    assert is_published_network(run_of(params))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"recipe__optimizer": "muon"}, "recipe.optimizer muon (adam)"),
        ({"recipe__batch_size": 100}, "recipe.batch_size 100 (200)"),
        ({"recipe__label_smoothing": 0.1}, "recipe.label_smoothing 0.1 (0)"),
        ({"recipe__shift": 3}, "recipe.shift 3 (4)"),
        ({"recipe__flip": "alternating"}, "recipe.flip alternating (random)"),
        ({"recipe__brightness": 0}, "recipe.brightness 0 (63)"),
        ({"recipe__clip": 4.0}, "recipe.clip 4 (none)"),
        ({"finetune__integer_aware": True}, "finetune.integer_aware true (false)"),
        ({"train__activation_penalty": 1e-3}, "train.activation_penalty 0.001 (0)"),
        (
            {"baseline": [{"epochs": 6, "learning_rate": 2e-3}]},
            "baseline 6 epochs at 0.002 (100 epochs at 0.001 + 100 epochs at 0.0001)",
        ),
        ({"train__start": "baseline"}, "train.start baseline (scratch)"),
        ({"train__epochs": 2}, "train.epochs 2 (100)"),
        ({"finetune__learning_rate": 5e-5}, "finetune.learning_rate 5e-05 (0.0001)"),
        ({"simulate__steps": 80}, "simulate.steps 80 (100)"),
        ({"simulate__layer_delay": [4, 0]}, "simulate.layer_delay 4 (0)"),
    ],
)
def test_a_difference_from_the_protocol_is_named_with_both_values(changes: dict[str, Any], difference: str) -> None:
    assert protocol_differences(make_params(**changes).profiles["paper"]) == [difference]


def test_settings_that_were_not_published_are_no_differences() -> None:
    changes = {"recipe__arithmetic": "fp32", "simulate__batch_size": 10, "convert__weight_bits": 8}
    assert protocol_differences(make_params(**changes).profiles["paper"]) == []
