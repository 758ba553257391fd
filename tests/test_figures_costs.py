"""Spikes and synaptic operations: the bars are the tables, in total and by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from draw_figures import (
    bars_of,
    compare,
    comparison_of,
    error_bars_of,
    figure_of,
    legend_of,
    lines_of,
    make_results,
    points_of,
    results_of,
    tick_labels_of,
    written_in,
)
from quantspike.figures import sops, sparsity
from quantspike.figures.style import BAR_WIDTH, readable, tint, unit_of
from quantspike.operations import macs
from quantspike.palette import FULL_PRECISION, color_of
from quantspike.published import published

SIGNS = ("positive_spikes", "negative_spikes")


def last_steps(case: str, k: int) -> list[pd.Series]:
    """The last line of snn.csv, one for each seed."""
    results = [result for result in results_of(case) if result.chain.k == k]
    return [result.steps.iloc[-1] for result in results if result.steps is not None]


def last_layers(case: str, k: int) -> list[pd.DataFrame]:
    """The last lines of layers.csv, one for each layer, for each seed."""
    tables = [result.layers for result in results_of(case) if result.chain.k == k and result.layers is not None]
    return [table[table["step"] == table["step"].max()] for table in tables]


def diamonds_of(axes: Axes) -> list[tuple[float, float]]:
    return [point for line in lines_of(axes, marker="D") for point in points_of(line)]


# Spikes


def test_spikes_are_stacked_beside_the_number_of_neurons() -> None:
    figure = figure_of("sparsity", "published")
    (axes,) = figure.axes
    # k = 0: 160 thousand positive and 41 thousand negative on top
    positive, negative = bars_of(axes)[:2]
    assert (positive.get_height(), negative.get_y(), negative.get_height()) == (160, 160, 41)
    assert axes.get_ylabel() == "spikes per image (thousand)"
    (neurons,) = lines_of(axes, linestyle="--")
    assert (neurons.get_ydata()[0], to_hex(neurons.get_color())) == (336.128, FULL_PRECISION)
    assert legend_of(figure) == [
        "positive spikes",
        "negative spikes",
        "336,128 neurons",
        "published (official CIFAR-10)",
    ]
    # 201,000 / 336,128 = 0.598
    assert written_in(axes)[0] == "0.60 spikes\nper neuron"
    assert tick_labels_of(axes) == ["k = 0", "k = 1", "k = 2"]


def test_every_k_has_a_bar_of_its_own_numbers_and_colour() -> None:
    (axes,) = figure_of("sparsity", "many k").axes
    bars = bars_of(axes)
    assert len(bars) == 2 * 8
    for k in range(8):
        positive, negative = bars[2 * k : 2 * k + 2]
        middle = [mean(last[name] for last in last_steps("many k", k)) for name in SIGNS]
        assert (positive.get_height(), negative.get_height()) == pytest.approx([value / 1e6 for value in middle])
        assert negative.get_y() == positive.get_height()
        assert positive.get_x() + positive.get_width() / 2 == pytest.approx(k)
        assert (to_hex(positive.get_facecolor()), to_hex(negative.get_facecolor())) == (color_of(k), tint(color_of(k)))
        assert negative.get_hatch()


def test_a_name_below_a_bar_is_wrapped_after_14_letters() -> None:
    (series,) = comparison_of("one k").series
    comparison = replace(comparison_of("one k"), series=[replace(series, name="k = 1, metrics/demo/cnn1-1-0")])
    # The folder has 21 letters, of which 14 fit into a line.
    name = "k = 1\nmetrics/demo/c\nnn1-1-0"
    assert tick_labels_of(sparsity(comparison).axes[0]) == [name]
    assert tick_labels_of(sops(comparison).axes[0])[0] == f"SNN, {name}:\nsynaptic\noperations"
    # The word before a name counts too.
    unknown = replace(comparison, series=[replace(series, name="metrics/demo/cnn1")])
    assert tick_labels_of(sops(unknown).axes[0])[0] == "SNN, metrics/d\nemo/cnn1:\nsynaptic\noperations"


def test_published_spikes_are_diamonds_and_words_stand_above_them() -> None:
    (axes,) = figure_of("sparsity", "many k").axes
    # 160,087 + 41,371, 269,847 + 92,767 and 485,651 + 189,616 spikes, in millions; nothing for k from 3
    assert diamonds_of(axes) == [
        (0, pytest.approx(0.201458)),
        (1, pytest.approx(0.362614)),
        (2, pytest.approx(0.675267)),
    ]
    for text, (_, low, high) in zip(axes.texts, error_bars_of(axes), strict=True):
        assert isinstance(text, Annotation)
        place, height = text.xy
        assert height == pytest.approx(max(high, *(y for x, y in diamonds_of(axes) if x == place), 0.0))
        assert low < high


def test_words_stand_above_a_diamond_that_is_higher_than_its_bar(tmp_path: Path) -> None:
    # After 7 of 100 steps there is less than what was published: 675,267 spikes and 730,882,834 operations.
    comparison = compare(make_results(tmp_path, k=(2,), steps=7))
    for draw, height in ((sparsity, 675.267), (sops, 730.882834)):
        (axes,) = draw(comparison).axes
        text = axes.texts[0]
        assert isinstance(text, Annotation)
        assert text.xy == (0, pytest.approx(height))
        assert sum(bar.get_height() for bar in bars_of(axes) if bar.get_x() < 0) < 0.9 * height


def test_other_images_have_no_published_spikes_beside_them() -> None:
    for name in ("sparsity", "sops"):
        figure = figure_of(name, "seeds of digits")
        assert diamonds_of(figure.axes[0]) == []
        assert not any("published" in text for text in legend_of(figure))


def test_error_bars_are_one_standard_deviation_of_all_spikes() -> None:
    figure = figure_of("sparsity", "seeds of digits")
    (axes,) = figure.axes
    bars = error_bars_of(axes)
    assert [place for place, _, _ in bars] == [0, 1]
    for (_, low, high), k in zip(bars, (0, 2), strict=True):
        # 9,472 neurons: the unit is one.
        totals = [last["positive_spikes"] + last["negative_spikes"] for last in last_steps("seeds of digits", k)]
        unit = 1e3 if axes.get_ylabel().endswith("(thousand)") else 1.0
        ends = [mean(totals) - stdev(totals), mean(totals) + stdev(totals)]
        assert [low, high] == pytest.approx([end / unit for end in ends])
    assert legend_of(figure)[-1] == "± 1 standard deviation (n = 3)"


def test_one_seed_has_no_error_bars() -> None:
    for name in ("sparsity", "sops", "layers"):
        assert all(error_bars_of(axes) == [] for axes in figure_of(name, "published").axes)


# Synaptic operations


def test_operations_stand_beside_those_of_the_ann() -> None:
    (axes,) = figure_of("sops", "published").axes
    # 270 million SOPs for k = 0; 399,190,016 multiply-accumulates, and three additions for each: 1,197,570,048
    assert written_in(axes) == ["270", "443", "726", "399", "1,198"]
    assert [bar.get_height() for bar in bars_of(axes)][-2:] == pytest.approx([399.190016, 1197.570048])
    assert axes.get_ylabel() == "operations per image (million)"
    colors = [to_hex(bar.get_facecolor()) for bar in bars_of(axes)]
    assert colors == [color_of(0), color_of(1), color_of(2), FULL_PRECISION, FULL_PRECISION]
    assert tick_labels_of(axes)[1:4] == [
        "SNN, k = 1:\nsynaptic\noperations",
        "SNN, k = 2:\nsynaptic\noperations",
        "ANN:\nmultiply-\naccumulates",
    ]


def test_published_operations_are_diamonds() -> None:
    (axes,) = figure_of("sops", "many k").axes
    found = [published("cnn1", k) for k in (0, 1, 2)]
    heights = [row.synops / 1e6 for row in found if row is not None and row.synops is not None]
    assert heights == [270.161535, 414.151035, 730.882834]
    assert diamonds_of(axes) == [(k, pytest.approx(height)) for k, height in enumerate(heights)]
    assert legend_of(axes.figure) == ["published (official CIFAR-10)", "± 1 standard deviation (n = 3)"]


def test_error_bars_of_operations_are_one_standard_deviation() -> None:
    (axes,) = figure_of("sops", "many k").axes
    bars = error_bars_of(axes)
    assert [place for place, _, _ in bars] == list(range(8))  # what the ANN costs does not depend on the seed
    synops = [last["synops"] / 1e6 for last in last_steps("many k", 5)]
    # 2% more for each seed: 1, 1.02 and 1.04 times the same number, whose deviation is 0.02 of it
    assert bars[5][1:] == pytest.approx((synops[0] * (1.02 - 0.02), synops[0] * (1.02 + 0.02)))


def test_full_precision_alone_shows_what_the_ann_costs() -> None:
    figure = figure_of("sops", "fp32")
    assert [bar.get_height() for bar in bars_of(figure.axes[0])] == pytest.approx([399.190016, 1197.570048])
    assert legend_of(figure) == []
    (axes,) = figure_of("sparsity", "fp32").axes
    assert bars_of(axes) == []
    assert axes.get_ylim()[1] > 336.128


def test_a_small_network_is_counted_in_smaller_units() -> None:
    (axes,) = figure_of("sops", "seven steps of few layers").axes
    architecture = comparison_of("seven steps of few layers").architecture
    assert architecture is not None
    # 8C3-P2-16 at a quarter of the width sees 8 x 8 pixels: 2C3, P2 with 2 x 4 x 4 neurons of 2 x 2 x 2 inputs, 4
    # neurons of 2 x 4 x 4, 10 classes of 4: 256 + 128 + 40.
    assert macs(architecture) == 424
    assert written_in(axes)[-2:] == ["424", "1,272"]
    assert axes.get_ylabel() == "operations per image"
    (axes,) = figure_of("sops", "one k").axes
    assert axes.get_ylabel() == "operations per image (thousand)"


# By layer


def test_bars_of_layers_are_spikes_per_neuron_and_operations_per_image() -> None:
    upper, lower = figure_of("layers", "published").axes
    tokens = ["96C3", "256C3", "P2", "384C3", "P2", "384C3", "256C3", "P2", "1024", "1024"]
    assert tick_labels_of(lower) == [f"{token}\n{place}" for place, token in enumerate(tokens, start=1)]
    for k in (0, 1, 2):
        (table,) = last_layers("published", k)
        (positive, negative) = (
            [bar for bar in bars_of(upper) if to_hex(bar.get_facecolor()) == color]
            for color in (color_of(k), tint(color_of(k)))
        )
        operations = [bar for bar in bars_of(lower) if to_hex(bar.get_facecolor()) == color_of(k)]
        assert len(positive) == len(negative) == len(operations) == 10
        for bars, heights in (
            (positive, table["positive_spikes"] / table["neurons"]),
            (negative, table["negative_spikes"] / table["neurons"]),
            (operations, table["synops"] / 1e6),
        ):
            assert [bar.get_height() for bar in bars] == pytest.approx(list(heights))
        assert [bar.get_y() for bar in negative] == [bar.get_height() for bar in positive]
        assert all(bar.get_hatch() for bar in negative)
    # By hand: a tenth of 160,000 spikes over 55,296 neurons (96 x 24 x 24); a tenth of 270 million SOPs.
    assert bars_of(upper)[0].get_height() == pytest.approx(16_000 / 55_296, rel=1e-6)
    assert bars_of(lower)[0].get_height() == pytest.approx(27, rel=1e-6)
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("spikes per neuron", "SOPs per image (million)")


def test_bars_of_a_layer_stand_side_by_side_over_its_name() -> None:
    for case, n in (("published", 3), ("one k", 1), ("many k", 8)):
        lower = figure_of("layers", case).axes[1]
        bars = sorted(bars_of(lower), key=lambda bar: bar.get_x())
        for layer in range(10):
            group = bars[layer * n : (layer + 1) * n]
            middles = [bar.get_x() + bar.get_width() / 2 for bar in group]
            assert mean(middles) == pytest.approx(layer, abs=1e-9)
            assert [to_hex(bar.get_facecolor()) for bar in group] == [
                color_of(series.k) for series in comparison_of(case).spiking if series.k is not None
            ]
            ends = [bar.get_x() + bar.get_width() for bar in group]
            assert all(end <= bar.get_x() for end, bar in zip(ends, bars[layer * n + 1 :], strict=False))


def test_error_bars_of_layers_are_over_the_seeds() -> None:
    upper, lower = figure_of("layers", "seeds of digits").axes
    assert len(error_bars_of(upper)) == len(error_bars_of(lower)) == 2 * 10
    by_seed = [table.iloc[3] for table in last_layers("seeds of digits", 0)]
    both = [(layer["positive_spikes"] + layer["negative_spikes"]) / layer["neurons"] for layer in by_seed]
    # Of k = 0, the first of two bars, in the fourth layer
    assert error_bars_of(upper)[3][1:] == pytest.approx((mean(both) - stdev(both), mean(both) + stdev(both)))
    unit, _ = unit_of(max(table["synops"].max() for table in last_layers("seeds of digits", 2)))
    synops = [layer["synops"] / unit for layer in by_seed]
    assert error_bars_of(lower)[3][1:] == pytest.approx((mean(synops) - stdev(synops), mean(synops) + stdev(synops)))


def test_the_legend_of_layers_names_each_k_the_sign_and_the_seeds() -> None:
    assert legend_of(figure_of("layers", "published")) == ["k = 0", "k = 1", "k = 2", "negative spikes"]
    assert legend_of(figure_of("layers", "seeds of digits"))[-1] == "± 1 standard deviation (n = 3)"
    assert legend_of(figure_of("layers", "fp32")) == []


def test_every_layer_has_its_place_though_nothing_spikes() -> None:
    upper, lower = figure_of("layers", "fp32").axes
    assert len(tick_labels_of(lower)) == 10
    for axes in (upper, lower):
        low, high = axes.get_xlim()
        assert low < 0
        assert high > 9


def test_few_bars_keep_their_width_and_many_widen_the_figure() -> None:
    inches = {}
    for case in ("one k", "published", "many k"):
        figure = figure_of("sparsity", case)
        low, high = figure.axes[0].get_xlim()
        assert bars_of(figure.axes[0])[0].get_width() == pytest.approx(BAR_WIDTH)
        inches[case] = BAR_WIDTH / (high - low) * figure.get_figwidth()
    # A bar alone is as wide as three are, in the middle of its axis; eight bars have a figure of 1.35 x 8 + 1.5 inches.
    assert inches["one k"] == pytest.approx(inches["published"])
    assert inches["many k"] > 0.9
    assert sum(figure_of("sparsity", "one k").axes[0].get_xlim()) == pytest.approx(0)
    assert figure_of("sparsity", "many k").get_figwidth() == pytest.approx(12.3)


# Units and numbers


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (0.0, (1.0, "")),
        (9_999.0, (1.0, "")),
        (10_000.0, (1e3, " (thousand)")),
        (9_999_999.0, (1e3, " (thousand)")),
        (1e7, (1e6, " (million)")),
        (9.99e9, (1e6, " (million)")),
        (1e10, (1e9, " (billion)")),
        (1e14, (1e9, " (billion)")),
    ],
)
def test_the_unit_leaves_the_largest_value_two_digits_before_the_point(
    largest: float, expected: tuple[float, str]
) -> None:
    assert unit_of(largest) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0523, "0.0523"),
        (5.1234, "5.12"),
        (99.94, "99.9"),
        (99.96, "100"),
        (100.0, "100"),
        (1835.6, "1,836"),
        (1234567.0, "1,234,567"),
    ],
)
def test_a_value_is_written_with_three_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert readable(value) == text


def test_a_tint_is_two_thirds_white() -> None:
    # 0x30 = 48: (48 + 2 x 255) / 3 = 186 = 0xba
    assert (tint("#303030"), tint("#ffffff"), tint("#0000ff")) == ("#bababa", "#ffffff", "#aaaaff")
