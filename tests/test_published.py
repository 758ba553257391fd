"""The published figures, and when they may stand beside the project's own."""

from __future__ import annotations

import pandas as pd
import pytest

from make_results import CIFAR10, make_params
from quantspike.params import Precision
from quantspike.published import (
    LAYERS,
    PUBLISHED,
    Published,
    departures,
    is_published_data,
    is_published_network,
    published,
    published_curve,
)
from quantspike.recipes import RECIPES
from quantspike.simulation.measures import stable_step

PAPER = {"epochs": 100, "learning_rate": 1e-3, "batch_size": 200}


def test_a_published_row_is_read_with_all_its_figures() -> None:
    row = published("cnn1", 1)
    assert row is not None
    assert (row.ann_accuracy, row.snn_accuracy, row.stable_step, row.synops) == (0.9277, 0.9277, 57, 414151035)
    assert (row.positive_spikes, row.negative_spikes) == (269847, 92767)


def test_what_was_not_published_is_none() -> None:
    spiking, full = published("cnn2", 0), published("cnn2", "fp32")
    assert spiking is not None
    assert full is not None
    assert spiking.ann_accuracy is None
    assert (full.ann_accuracy, full.snn_accuracy, full.stable_step, full.synops) == (0.932, None, None, None)


def test_both_networks_are_there_with_four_precisions_each() -> None:
    precisions: list[Precision] = ["fp32", 0, 1, 2]
    assert set(PUBLISHED) == {(model, k) for model in ("cnn1", "cnn2") for k in precisions}
    assert published("cnn1", 3) is None
    assert published("other", 1) is None


SPIKING = [row for row in PUBLISHED.values() if row.k != "fp32"]


@pytest.mark.parametrize("row", SPIKING, ids=[f"{row.model}-{row.k}" for row in SPIKING])
def test_a_published_curve_ends_on_the_published_row(row: Published) -> None:
    curve = published_curve(row.model, row.k)
    assert curve is not None
    assert list(curve["step"]) == list(range(1, 101))
    last = curve.iloc[-1]
    assert last["accuracy"] == row.snn_accuracy
    assert stable_step(curve["accuracy"].to_numpy()) == row.stable_step
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


def test_whoever_changes_a_published_curve_changes_only_his_own() -> None:
    first = published_curve("cnn1", 1)
    assert first is not None
    before = first.copy()
    first.loc[:, "accuracy"] = 0.0
    again = published_curve("cnn1", 1)
    assert again is not None
    pd.testing.assert_frame_equal(again, before)


@pytest.mark.parametrize(("model", "neurons", "weights"), [("cnn1", 336_128, 7_852_576), ("cnn2", 411_648, 18_522_496)])
def test_the_layer_strings_are_those_of_the_published_networks(model: str, neurons: int, weights: int) -> None:
    architecture = make_params().architecture("paper", model)
    inputs = [3, *(layer.out_channels for layer in architecture.layers[:-1])]
    kernels = sum(
        i * layer.out_channels * layer.kernel**2 for i, layer in zip(inputs, architecture.layers, strict=True)
    )
    assert architecture.neurons == neurons
    # The classifier has one weight per class and channel of the last layer.
    assert kernels + 10 * architecture.layers[-1].out_channels == weights


def test_the_published_network_is_told_by_layers_width_and_crop() -> None:
    assert is_published_network(make_params(), "paper", "cnn1")
    assert not is_published_network(make_params(width=0.5), "paper", "cnn1")
    assert not is_published_network(make_params(data={"source": "cifar10", "crop": 32}), "paper", "cnn1")


def test_another_network_under_a_published_name_is_not_compared() -> None:
    params = make_params()
    swapped = dict.fromkeys(LAYERS, params.models["cnn2"])
    assert not is_published_network(params.model_copy(update={"models": swapped}), "paper", "cnn1")


def test_the_data_must_be_all_of_cifar10() -> None:
    assert is_published_data("cifar10", CIFAR10, 50_000, 10_000)
    assert is_published_data("images", CIFAR10[::-1], 50_000, 10_000)
    assert not is_published_data("images", CIFAR10, 50_000, 9_999)
    assert not is_published_data("images", [*CIFAR10[:9], "lorry"], 50_000, 10_000)
    assert not is_published_data("digits", CIFAR10, 50_000, 10_000)


def test_the_published_protocol_has_no_departures() -> None:
    assert departures(make_params().profiles["paper"]) == []


def test_every_departure_from_the_protocol_is_named_with_both_values() -> None:
    train = PAPER | {"epochs": 2, "validation": 5000, "flip": False}
    params = make_params(train=train, finetune={"epochs": 1, "learning_rate": 5e-5}, steps=80)
    assert departures(params.profiles["paper"]) == [
        "train.epochs 2 (100)",
        "train.validation 5000 (0)",
        "train.flip false (true)",
        "finetune.epochs 1 (100)",
        "finetune.learning_rate 5e-05 (0.0001)",
        "simulate.steps 80 (100)",
    ]


def test_pretraining_departs_from_the_protocol() -> None:
    assert departures(make_params(pretrain={"epochs": 16}).profiles["paper"]) == ["pretrain.epochs 16 (0)"]


def test_the_recipe_is_named_with_everything_it_changes() -> None:
    params = make_params(train=PAPER | {"recipe": "strong"})
    assert departures(params.profiles["paper"]) == [
        "train.recipe strong (paper)",
        "train.padding 4 (0)",
        "train.brightness 0 (63)",
        "train.contrast 0 (0.8)",
        "train.cutout 8 (0)",
        "train.schedule cosine (constant)",
        "train.warmup 0.2 (0)",
        "train.weight_decay 0.05 (0)",
        "train.label_smoothing 0.1 (0)",
        "finetune.schedule cosine (constant)",
    ]


def test_another_recipe_with_all_published_settings_departs_by_its_name_alone() -> None:
    train = PAPER | {"recipe": "strong"} | RECIPES["paper"]["train"]
    params = make_params(train=train, finetune={"epochs": 100, "learning_rate": 1e-4, "schedule": "constant"})
    assert departures(params.profiles["paper"]) == ["train.recipe strong (paper)"]


def test_a_setting_that_departs_under_the_published_recipe_is_named_too() -> None:
    train = PAPER | {"label_smoothing": 0.05, "activation_penalty": 1e-3}
    finetune = {"epochs": 100, "learning_rate": 1e-4, "schedule": "linear"}
    assert departures(make_params(train=train, finetune=finetune).profiles["paper"]) == [
        "train.label_smoothing 0.05 (0)",
        "train.activation_penalty 0.001 (0)",
        "finetune.schedule linear (constant)",
    ]
