"""What a simulation costs: spikes and synaptic operations, in total and by layer."""

from __future__ import annotations

from statistics import mean
from textwrap import wrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quantspike.figures.comparison import Comparison, Series, spread
from quantspike.figures.style import (
    BAR_WIDTH,
    GRAY,
    bar_axes,
    draw_spread,
    error_bar_legend,
    legend_below,
    new_figure,
    plain_numbers,
    published_marker,
    published_marker_legend,
    readable,
    style,
    tint,
    unit_of,
    write_above,
)
from quantspike.operations import macs
from quantspike.palette import FULL_PRECISION

_LETTERS_PER_BAR = 14

ADDITIONS_PER_MAC = 3
"""Additions that the publication charges for one multiply-accumulate."""


def sparsity(comparison: Comparison) -> Figure:
    """Positive and negative spikes per image, every k of one network, beside its number of neurons."""
    spiking, neurons = comparison.spiking, 0 if comparison.architecture is None else comparison.architecture.neurons
    with style():
        figure, (axes,) = bar_axes(comparison, len(spiking))
        totals = [mean(series.finals("positive_spikes", "negative_spikes")) for series in spiking]
        unit, word = unit_of(max([neurons, *totals]))
        tops = [_draw_spikes(axes, place, series, unit) for place, series in enumerate(spiking)]
        for place, (top, total) in enumerate(zip(tops, totals, strict=True)):
            text = f"{total / neurons:.2f} spikes\nper neuron" if neurons else f"{readable(total / unit)}"
            write_above(axes, place, top, text)
        if neurons:
            axes.axhline(neurons / unit, color=FULL_PRECISION, linestyle="--", linewidth=1.5, zorder=3)
        axes.set_xticks(range(len(spiking)), [_tick(series) for series in spiking])
        axes.set_ylim(0, 1.2 * max([neurons / unit, *tops]) or 1.0)
        axes.set_ylabel(f"spikes per image{word}")
        handles = [*_sign_legend(), *_neuron_legend(neurons), *_published_legend(spiking), *error_bar_legend(spiking)]
        legend_below(figure, handles, columns=2 if len(handles) == 4 else 3)
    return figure


def sops(comparison: Comparison) -> Figure:
    """Synaptic operations per image, every k of one network, beside the operations of the network before conversion."""
    spiking = comparison.spiking
    bars = [
        (f"{_tick(series, 'SNN, ')}:\nsynaptic\noperations", series.finals("synops"), series.color)
        for series in spiking
    ]
    if comparison.architecture is not None:
        plain = macs(comparison.architecture)
        charged = ADDITIONS_PER_MAC * plain
        bars.append(("ANN:\nmultiply-\naccumulates", [plain], FULL_PRECISION))
        bars.append((f"ANN:\nadditions\n({ADDITIONS_PER_MAC} per MAC)", [charged], FULL_PRECISION))
    with style():
        figure, (axes,) = bar_axes(comparison, len(bars))
        unit, word = unit_of(max(mean(values) for _, values, _ in bars))
        for place, (_, values, color) in enumerate(bars):
            height, deviation = mean(values) / unit, spread(values) / unit
            axes.bar(place, height, BAR_WIDTH, color=color)
            draw_spread(axes, place, height, deviation)
            beside = _published_synops(spiking[place]) / unit if place < len(spiking) else 0.0
            published_marker(axes, place, beside)
            write_above(axes, place, max(height + deviation, beside), readable(height))
        axes.set_xticks(range(len(bars)), [name for name, _, _ in bars])
        axes.margins(y=0.12)
        axes.set_ylabel(f"operations per image{word}")
        legend_below(figure, [*_published_legend(spiking), *error_bar_legend(spiking)])
    return figure


def layers(comparison: Comparison) -> Figure:
    """Spikes per neuron, and synaptic operations per image, by layer and k after the last step."""
    assert comparison.architecture is not None
    tokens = [layer.token for layer in comparison.architecture.layers]
    with style():
        figure = new_figure(comparison, max(8.0, 1.15 * len(tokens) + 1.5), 7.6)
        upper, lower = figure.subplots(2, 1, sharex=True)
        tables = [_by_layer(series) for series in comparison.spiking]
        unit, word = unit_of(max((table["synops"].max() for table in tables), default=1.0))
        width = 0.84 / max(len(tables), 1)
        for number, (series, table) in enumerate(zip(comparison.spiking, tables, strict=True)):
            places = table.index - 1 + width * (number - (len(tables) - 1) / 2)
            _draw_layer_spikes(upper, places, width, series, table)
            lower.bar(places, table["synops"] / unit, 0.92 * width, color=series.color)
            for place, height, deviation in zip(places, table["synops"], table["synops_std"], strict=True):
                draw_spread(lower, place, height / unit, deviation / unit)
        lower.set_xticks(range(len(tokens)), [f"{token}\n{place}" for place, token in enumerate(tokens, start=1)])
        lower.set_xlim(-0.6, len(tokens) - 0.4)
        lower.set_xlabel("layer whose spikes are counted")
        lower.tick_params(axis="x", length=0)
        upper.tick_params(axis="x", length=0)
        upper.set_ylabel("spikes per neuron")
        lower.set_ylabel(f"SOPs per image{word}")
        for axes in (upper, lower):
            axes.grid(axis="y")
            plain_numbers(axes.yaxis)
        handles = [Patch(color=series.color, label=series.name) for series in comparison.spiking]
        if handles:
            legend_below(figure, [*handles, *_sign_legend()[1:], *error_bar_legend(comparison.spiking)], columns=5)
    return figure


def _tick(series: Series, before: str = "") -> str:
    """The name in lines that a bar has room for."""
    first, *others = series.name.split(", ")
    return "\n".join(line for piece in (before + first, *others) for line in wrap(piece, _LETTERS_PER_BAR))


def _draw_spikes(axes: Axes, place: int, series: Series, unit: float) -> float:
    """Stacks negative on positive spikes; gives the height where text may begin, in units of the axis."""
    positive, negative = (mean(series.finals(name)) / unit for name in ("positive_spikes", "negative_spikes"))
    axes.bar(place, positive, BAR_WIDTH, color=series.color, edgecolor=series.color)
    axes.bar(place, negative, BAR_WIDTH, bottom=positive, color=tint(series.color), edgecolor=series.color, hatch="//")
    deviation = spread(series.finals("positive_spikes", "negative_spikes")) / unit
    draw_spread(axes, place, positive + negative, deviation)
    beside = series.published
    if beside is None or beside.positive_spikes is None or beside.negative_spikes is None:
        return positive + negative + deviation
    height = (beside.positive_spikes + beside.negative_spikes) / unit
    published_marker(axes, place, height)
    return max(positive + negative + deviation, height)


def _published_synops(series: Series) -> float:
    """Published synaptic operations per image, 0 if there are none."""
    return float((series.published and series.published.synops) or 0)


def _by_layer(series: Series) -> pd.DataFrame:
    """Means over the seeds after the last step, by layer: spikes per neuron by sign, synops per image."""
    last = [run.layers[run.layers["step"] == run.layers["step"].max()] for run in series.runs if run.layers is not None]
    table = pd.concat(last)
    for sign in ("positive", "negative"):
        table[sign] = table[f"{sign}_spikes"] / table["neurons"]
    table["both"] = table["positive"] + table["negative"]
    grouped = table.groupby("layer")[["positive", "negative", "both", "synops"]]
    means: pd.DataFrame = grouped.mean()
    return means.join(grouped.std().fillna(0.0).add_suffix("_std"))


def _draw_layer_spikes(axes: Axes, places: pd.Index[float], width: float, series: Series, table: pd.DataFrame) -> None:
    axes.bar(places, table["positive"], 0.92 * width, color=series.color, edgecolor=series.color, linewidth=0.5)
    axes.bar(
        places,
        table["negative"],
        0.92 * width,
        bottom=table["positive"],
        color=tint(series.color),
        edgecolor=series.color,
        linewidth=0.5,
        hatch="///",
    )
    for place, height, deviation in zip(places, table["both"], table["both_std"], strict=True):
        draw_spread(axes, place, height, deviation)


def _sign_legend() -> list[Patch]:
    return [
        Patch(facecolor=GRAY, edgecolor=GRAY, label="positive spikes"),
        Patch(facecolor=tint(GRAY), edgecolor=GRAY, hatch="//", label="negative spikes"),
    ]


def _neuron_legend(neurons: int) -> list[Line2D]:
    label = f"{neurons:,} neurons"
    return [Line2D([], [], color=FULL_PRECISION, linestyle="--", linewidth=1.5, label=label)] if neurons else []


def _published_legend(spiking: list[Series]) -> list[Line2D]:
    return [published_marker_legend()] if any(series.published for series in spiking) else []
