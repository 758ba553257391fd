"""Spikes and synaptic operations: the bars are the tables, in total and by layer."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
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
    spiking_of,
    tick_labels_of,
    written_in,
)
from quantspike.networks.architecture import macs
from quantspike.reporting.figures.accuracy import accuracy_speed
from quantspike.reporting.figures.costs import sops, sparsity
from quantspike.reporting.figures.style import tint, unit_of
from quantspike.reporting.palette import FULL_PRECISION, color_of


def last_layers(case: str, k: int) -> list[pd.DataFrame]:
    """Return the last lines of simulate_layers.csv, one for each layer, for each seed."""
    tables = [result.layers for result in spiking_of(case, k)]
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
    names = ["positive spikes", "negative spikes", "336,128 neurons", "published (official CIFAR-10)"]
    assert legend_of(figure) == names
    # 201,000 / 336,128 = 0.598
    assert written_in(axes)[0] == "0.60 spikes\nper neuron"
    assert tick_labels_of(axes) == ["k = 0", "k = 1", "k = 2"]


def test_a_name_below_a_bar_is_wrapped_after_14_letters() -> None:
    (series,) = comparison_of("one k").series
    comparison = replace(comparison_of("one k"), series=[replace(series, name="k = 1, metrics/demo/cnn1-1-0")])
    assert tick_labels_of(sparsity(comparison).axes[0]) == ["k = 1, metrics\n/demo/cnn1-1-0"]


def test_published_figures_are_diamonds() -> None:
    (axes,) = figure_of("sparsity", "many k").axes
    # 160,087 + 41,371, 269,847 + 92,767 and 485,651 + 189,616 spikes, in millions; nothing for k from 3
    spikes = [(0, pytest.approx(0.201458)), (1, pytest.approx(0.362614)), (2, pytest.approx(0.675267))]
    assert diamonds_of(axes) == spikes
    synops = [(0, pytest.approx(270.161535)), (1, pytest.approx(414.151035)), (2, pytest.approx(730.882834))]
    assert diamonds_of(figure_of("sops", "many k").axes[0]) == synops


def test_words_stand_above_a_diamond_that_is_higher_than_its_bar_and_above_error_bars(tmp_path: Path) -> None:
    # After 7 of 100 steps there is less than what was published: 675,267 spikes and 730,882,834 operations.
    comparison = compare(make_results(tmp_path, k=(2,), simulate__steps=7))
    for draw, height in ((sparsity, 675.267), (sops, 730.882834)):
        (axes,) = draw(comparison).axes
        text = axes.texts[0]
        assert isinstance(text, Annotation)
        assert text.xy == (0, pytest.approx(height))
        assert sum(bar.get_height() for bar in bars_of(axes) if bar.get_x() < 0) < 0.9 * height
    # The published curve, of 100 steps, does not lengthen the axis.
    assert accuracy_speed(comparison).axes[1].get_xlim() == (1, 7)
    (axes,) = figure_of("sops", "seeds of digits").axes
    heights = [text.xy[1] for text in axes.texts if isinstance(text, Annotation)]
    assert heights[:2] == pytest.approx([high for _, _, high in error_bars_of(axes)])


def test_error_bars_are_one_standard_deviation_of_all_spikes() -> None:
    (axes,) = figure_of("sparsity", "seeds of digits").axes
    assert axes.get_ylabel() == "spikes per image (thousand)"
    for (place, low, high), k in zip(error_bars_of(axes), (0, 2), strict=True):
        found = [result.simulation for result in spiking_of("seeds of digits", k)]
        totals = [(one.positive_spikes + one.negative_spikes) / 1e3 for one in found]
        assert (low, high) == pytest.approx((mean(totals) - stdev(totals), mean(totals) + stdev(totals)))
        assert place == k / 2


# Synaptic operations


def test_operations_stand_beside_those_of_the_ann() -> None:
    (axes,) = figure_of("sops", "published").axes
    # 270 million SOPs for k = 0; 399,190,016 multiply-accumulates, and three additions for each: 1,197,570,048
    assert written_in(axes) == ["270", "443", "726", "399", "1,198"]
    assert [bar.get_height() for bar in bars_of(axes)][-2:] == pytest.approx([399.190016, 1197.570048])
    assert axes.get_ylabel() == "operations per image (million)"
    colors = [to_hex(bar.get_facecolor()) for bar in bars_of(axes)]
    assert colors == [color_of(0), color_of(1), color_of(2), FULL_PRECISION, FULL_PRECISION]
    assert tick_labels_of(axes)[2:] == [
        "SNN, k = 2:\nsynaptic\noperations",
        "ANN:\nmultiply-\naccumulates",
        "ANN:\nadditions\n(3 per MAC)",
    ]


def test_a_small_network_is_counted_in_smaller_units() -> None:
    (axes,) = figure_of("sops", "seven steps of few layers").axes
    architecture = comparison_of("seven steps of few layers").architecture
    assert architecture is not None
    # 8C3-P2-16 at a quarter of the width sees 8 x 8 pixels: 2C3, P2 with 2 x 4 x 4 neurons of 2 x 2 x 2 inputs, 4
    # neurons of 2 x 4 x 4, 10 classes of 4: 256 + 128 + 40.
    assert macs(architecture) == 424
    assert written_in(axes)[-2:] == ["424", "1,272"]
    assert axes.get_ylabel() == "operations per image"


# By layer


def test_bars_of_layers_are_spikes_per_neuron_and_operations_per_image() -> None:
    figure = figure_of("layers", "published")
    upper, lower = figure.axes
    tokens = ["96C3", "256C3", "P2", "384C3", "P2", "384C3", "256C3", "P2", "1024", "1024"]
    assert tick_labels_of(lower) == [f"{token}\n{number}" for number, token in enumerate(tokens, start=1)]
    for k in (0, 1, 2):
        (table,) = last_layers("published", k)
        for axes, color, heights in (
            (upper, color_of(k), table["positive_spikes"] / table["neurons"]),
            (upper, tint(color_of(k)), table["negative_spikes"] / table["neurons"]),
            (lower, color_of(k), table["synops"] / 1e6),
        ):
            found = [bar.get_height() for bar in bars_of(axes) if to_hex(bar.get_facecolor()) == color]
            assert found == pytest.approx(list(heights))
    # By hand: a tenth of 160,000 spikes over 55,296 neurons (96 x 24 x 24); a tenth of 270 million SOPs.
    assert bars_of(upper)[0].get_height() == pytest.approx(16_000 / 55_296, rel=1e-6)
    assert bars_of(lower)[0].get_height() == pytest.approx(27, rel=1e-6)
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("spikes per neuron", "SOPs per image (million)")
    assert legend_of(figure) == ["k = 0", "k = 1", "k = 2", "negative spikes"]


def test_bars_of_a_layer_stand_side_by_side_over_its_name() -> None:
    bars = sorted(bars_of(figure_of("layers", "many k").axes[1]), key=lambda bar: bar.get_x())
    for layer in range(10):
        group = bars[layer * 8 : (layer + 1) * 8]
        assert mean(bar.get_x() + bar.get_width() / 2 for bar in group) == pytest.approx(layer, abs=1e-9)
        assert [to_hex(bar.get_facecolor()) for bar in group] == [color_of(k) for k in range(8)]
    assert all(one.get_x() + one.get_width() <= other.get_x() for one, other in pairwise(bars))


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
