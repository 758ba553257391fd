"""What a network costs: spikes, synaptic operations, both by layer, and estimated energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quantspike.networks.architecture import macs
from quantspike.params import Energy
from quantspike.reporting.energy import Estimate, activation_bits, full_precision_ann, integer_ann, spiking
from quantspike.reporting.figures import style
from quantspike.reporting.figures.comparison import Comparison, Series, spread
from quantspike.reporting.palette import FULL_PRECISION
from quantspike.reporting.results import SpikingResult

ADDITIONS_PER_MAC = 3
"""Additions that the publication charges for one multiply-accumulate."""

_BAR_WIDTH = 0.62
_LETTERS_PER_BAR = 14

_SIGNS = ("positive spikes", "negative spikes")

_JOULES = {"": "picojoules", " (thousand)": "nanojoules", " (million)": "microjoules", " (billion)": "millijoules"}


@dataclass(frozen=True)
class _Bar:
    """A stacked bar of parts: values by seed, fill and hatch. `published` is 0 if there is no published value."""

    name: str
    color: str
    parts: Sequence[tuple[Sequence[float], str, str]]
    published: float = 0.0

    @property
    def sums(self) -> list[float]:
        """Height of the bar for each seed."""
        return [sum(values) for values in zip(*(values for values, _, _ in self.parts), strict=True)]


@style.paper()
def sparsity(comparison: Comparison) -> Figure:
    """Draw positive and negative spikes per image for every k, and the number of neurons as a line."""
    neurons = 0 if comparison.architecture is None else comparison.architecture.neurons
    bars = [_of_spikes(series) for series in comparison.series]
    unit, word = style.unit_of(max(neurons, *(mean(bar.sums) for bar in bars)))
    figure, (axes,) = _bar_figure(comparison, [bar.name for bar in bars])
    for place, bar in enumerate(bars):
        text = f"{mean(bar.sums) / neurons:.2f} spikes\nper neuron" if neurons else ""
        _draw_labelled(axes, place, bar, unit, text)
    handles = _fill_legend(*_SIGNS)
    if neurons:
        label = f"{neurons:,} neurons"
        handles.append(axes.axhline(neurons / unit, color=FULL_PRECISION, linestyle="--", linewidth=1.5, label=label))
    _leave_room(axes, 0.2)
    axes.set_ylabel(f"spikes per image{word}")
    style.legend_below(figure, [*handles, *_bar_legend(comparison)])
    return figure


@style.paper()
def sops(comparison: Comparison) -> Figure:
    """Draw synaptic operations per image for every k, and the operations of the network before conversion."""
    bars = [_of_synops(series) for series in comparison.series]
    if comparison.architecture is not None:
        plain = float(macs(comparison.architecture))
        additions = f"ANN:\nadditions\n({ADDITIONS_PER_MAC} per MAC)"
        for name, value in (("ANN:\nmultiply-\naccumulates", plain), (additions, ADDITIONS_PER_MAC * plain)):
            bars.append(_Bar(name, FULL_PRECISION, [([value], FULL_PRECISION, "")]))
    unit, word = style.unit_of(max(mean(bar.sums) for bar in bars))
    figure, (axes,) = _bar_figure(comparison, [bar.name for bar in bars])
    for place, bar in enumerate(bars):
        _draw_labelled(axes, place, bar, unit)
    _leave_room(axes, 0.12)
    axes.set_ylabel(f"operations per image{word}")
    style.legend_below(figure, _bar_legend(comparison))
    return figure


@style.paper()
def layers(comparison: Comparison) -> Figure:
    """Draw spikes per neuron and synaptic operations per image after the last step, by layer and k."""
    tokens = [layer.token for layer in comparison.baseline[0].architecture.layers]
    names = [f"{token}\n{number}" for number, token in enumerate(tokens, start=1)]
    figure, (upper, lower) = _bar_figure(comparison, names, rows=2, height=7.6, inches=1.15)
    bars = [_of_layers(series) for series in comparison.series]
    unit, word = style.unit_of(max(mean(operations.sums) for group in bars for _, operations in group))
    width = 0.84 / len(bars)
    for index, group in enumerate(bars):
        for layer, (spikes, operations) in enumerate(group):
            place = layer + width * (index - (len(bars) - 1) / 2)
            _draw_bar(upper, place, spikes, width=0.92 * width)
            _draw_bar(lower, place, operations, unit, width=0.92 * width)
    _leave_room(upper)
    _leave_room(lower)
    upper.set_ylabel("spikes per neuron")
    lower.set_ylabel(f"SOPs per image{word}")
    lower.set_xlabel("layer whose spikes are counted")
    handles: list[Line2D | Patch] = [Patch(color=series.color, label=series.name) for series in comparison.series]
    handles += [*_fill_legend(*_SIGNS)[1:], *style.seeds_legend(comparison, bars=True)]
    style.legend_below(figure, handles, columns=5)
    return figure


@style.paper()
def energy(comparison: Comparison) -> Figure:
    """Draw estimated energy per image: the ANN in floats, in 8 bits and at each k's own widths, and the SNN of each k.

    Arithmetic is in the upper panel; memory traffic, which is far more, in one of its own below.
    """
    assert comparison.prices is not None
    pairs = _of_energy(comparison, comparison.prices)
    figure, (upper, lower) = _bar_figure(comparison, [bar.name for bar, _ in pairs], rows=2, height=9.0)
    # One unit for both panels, so that they can be compared.
    unit, word = style.unit_of(max(mean(bar.sums) for pair in pairs for bar in pair))
    for place, pair in enumerate(pairs):
        for axes, bar in zip((upper, lower), pair, strict=True):
            _draw_labelled(axes, place, bar, unit)
    for axes, title in ((upper, "arithmetic"), (lower, "memory traffic")):
        axes.margins(y=0.14)
        axes.set_ylabel(f"{_JOULES[word]} per image")
        axes.set_title(f"estimated energy: {title}", loc="left", fontsize=12)
    handles = [*_fill_legend("on-chip memory", "weights from DRAM, once"), *style.seeds_legend(comparison, bars=True)]
    lower.legend(handles=handles, loc="upper left", ncols=3)
    lower.set_ylim(0, 1.15 * lower.get_ylim()[1])  # room for the legend
    figure.supxlabel(fill(_caption(comparison.prices), int(10.5 * figure.get_figwidth())), fontsize=11.5)
    return figure


def _bar_figure(
    comparison: Comparison, names: Sequence[str], rows: int = 1, height: float = 5.4, inches: float = 1.35
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many inches for each name, and its panels; a few bars keep their width, in the middle."""
    figure = style.new_figure(comparison, max(8.0, inches * len(names) + 1.5), height)
    panels: list[Axes] = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
    margin = max(0.0, (4 - len(names)) / 2)
    for axes in panels:
        axes.set_xlim(-0.6 - margin, len(names) - 0.4 + margin)
        axes.set_xticks(range(len(names)), names if axes is panels[-1] else [""] * len(names))
        axes.tick_params(axis="x", length=0)
        style.plain_numbers(axes.yaxis)
        axes.grid(axis="y")
    return figure, panels


def _leave_room(axes: Axes, share: float = 0.05) -> None:
    """Leave room above the bars; the axis begins at zero, also without any height."""
    axes.margins(y=share)
    axes.set_ylim(bottom=0)


def _draw_labelled(axes: Axes, place: float, bar: _Bar, unit: float, text: str = "") -> None:
    """Draw a bar with text above it, by default its height."""
    axes.annotate(
        text or style.readable(mean(bar.sums) / unit),
        (place, _draw_bar(axes, place, bar, unit)),
        xytext=(0, 7),  # more than half a diamond
        textcoords="offset points",
        ha="center",
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},  # a line may pass behind it
        zorder=5,
        fontsize=12,
    )


def _draw_bar(axes: Axes, place: float, bar: _Bar, unit: float = 1.0, width: float = _BAR_WIDTH) -> float:
    """Draw means over seeds, with an error bar and a diamond at the published value; return where the highest ends."""
    top = 0.0
    for values, face, hatch in bar.parts:
        height = mean(values) / unit
        if height or not top:  # of no height on top of another, it would take the margin above
            axes.bar(place, height, width, bottom=top, color=face, edgecolor=bar.color, hatch=hatch)
        top += height
    if deviation := spread(bar.sums) / unit:
        axes.errorbar(place, top, deviation, fmt="none", ecolor="black", elinewidth=1.5, capsize=5, zorder=4)
    if published := bar.published / unit:
        axes.plot(place, published, "D", color="white", markeredgecolor="black", markersize=8, zorder=6)
    return max(top + deviation, published)


def _signs(name: str, color: str, positive: Sequence[float], negative: Sequence[float], published: float = 0) -> _Bar:
    return _Bar(name, color, [(positive, color, ""), (negative, style.tint(color), "//")], published)


def _of_spikes(series: Series) -> _Bar:
    positive, negative = series.finals("positive_spikes"), series.finals("negative_spikes")
    known = series.published
    published = 0 if known is None else (known.positive_spikes or 0) + (known.negative_spikes or 0)
    return _signs(fill(series.name, _LETTERS_PER_BAR), series.color, positive, negative, published)


def _of_synops(series: Series) -> _Bar:
    name = f"{fill(f'SNN, {series.name}:', _LETTERS_PER_BAR)}\nsynaptic\noperations"
    published = 0 if series.published is None else series.published.synops or 0
    return _Bar(name, series.color, [(series.finals("synops"), series.color, "")], published)


def _of_layers(series: Series) -> list[tuple[_Bar, _Bar]]:
    """Return spikes per neuron and synaptic operations of each layer after the last step."""
    last = pd.concat(result.layers[result.layers["step"] == result.layers["step"].max()] for result in series.results)
    bars = []
    for _, seeds in last.groupby("layer"):
        positive, negative = (list(seeds[f"{sign}_spikes"] / seeds["neurons"]) for sign in ("positive", "negative"))
        operations = _Bar("", series.color, [(list(seeds["synops"]), series.color, "")])
        bars.append((_signs("", series.color, positive, negative), operations))
    return bars


def _of_energy(comparison: Comparison, prices: Energy) -> list[tuple[_Bar, _Bar]]:
    """Return arithmetic and memory traffic of each network."""
    first = comparison.baseline[0]
    architecture, weights = first.architecture, first.evaluation.weights
    full = full_precision_ann(architecture, weights, prices)
    eight = integer_ann(architecture, weights, prices, 8, [8] * len(architecture.layers))
    pairs = [
        _pair("ANN\n32-bit floats", FULL_PRECISION, FULL_PRECISION, [full]),
        _pair("ANN\n8-bit integers", FULL_PRECISION, FULL_PRECISION, [eight]),
    ]
    for series in comparison.series:
        ann, snn = zip(*(_estimates(result, prices) for result in series.results), strict=True)
        pairs.append(_pair(f"ANN\n{_widths(series)}", series.color, "white", ann))
        pairs.append(_pair(f"SNN\n{fill(series.name, _LETTERS_PER_BAR)}", series.color, series.color, snn))
    return pairs


def _pair(name: str, color: str, face: str, estimates: Sequence[Estimate]) -> tuple[_Bar, _Bar]:
    """Return the bars of one network, filled with `face` within an edge of `color`."""
    pale = face if face == "white" else style.tint(color)
    arithmetic, on_chip, dram = (
        [getattr(estimate, kind) for estimate in estimates] for kind in ("arithmetic", "on_chip", "dram")
    )
    return _Bar(name, color, [(arithmetic, face, "")]), _Bar(name, color, [(on_chip, face, ""), (dram, pale, "//")])


def _estimates(result: SpikingResult, prices: Energy) -> tuple[Estimate, Estimate]:
    """Return the energy of the integer network at its own widths, and of the spiking network."""
    simulation = result.simulation
    network = (result.architecture, result.evaluation.weights, prices, result.conversion.weight_bits)
    ann = integer_ann(*network, activation_bits(simulation.largest_counts))
    spikes = simulation.positive_spikes + simulation.negative_spikes
    # An image works in a step unless it was settled after the step before; in the first step every image does.
    steps_at_work = 1 + float((1 - result.steps["settled"].iloc[:-1]).sum())
    return ann, spiking(*network, synops=simulation.synops, spikes=spikes, steps_at_work=steps_at_work)


def _widths(series: Series) -> str:
    """Return the widths of weights and activations, such as `k = 1:` and `12 x 3-5 bits`."""
    bits = [width for result in series.results for width in activation_bits(result.simulation.largest_counts)]
    own = f"{min(bits)}" if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"
    return f"{fill(f'{series.name}:', _LETTERS_PER_BAR)}\n{series.results[0].conversion.weight_bits} x {own} bits"


def _caption(prices: Energy) -> str:
    """Return the prices and their source; docs/figures.md says what is counted."""
    return (
        "Estimate from counted operations and accesses, at these prices in pJ (defaults: 45 nm, Horowitz, ISSCC 2014): "
        f"multiply-accumulate {prices.fp32_mac:g} in fp32, {prices.int8_mac:g} for 8 x 8 bits, else by the product of "
        f"the widths; 32-bit addition {prices.int32_add:g}; per 32 bits {prices.on_chip:g} on chip, {prices.dram:g} "
        "from DRAM. Only the ANN's sums are kept in registers."
    )


def _fill_legend(plain: str, hatched: str) -> list[Line2D | Patch]:
    """Return handles of both parts of a bar."""
    pale = Patch(facecolor=style.tint("gray"), edgecolor="gray", hatch="//", label=hatched)
    return [Patch(facecolor="gray", edgecolor="gray", label=plain), pale]


def _bar_legend(comparison: Comparison) -> list[Line2D | Patch]:
    """Return handles of what is drawn on bars: published figures and error bars."""
    diamond = Line2D([], [], marker="D", markersize=8, markerfacecolor="white", markeredgecolor="black", linestyle="")
    diamond.set_label(style.PUBLISHED)
    published = [diamond] if any(series.published for series in comparison.series) else []
    return [*published, *style.seeds_legend(comparison, bars=True)]
