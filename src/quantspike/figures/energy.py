"""Estimated energy per image, arithmetic and memory traffic apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from quantspike.energy import Estimate, activation_bits, full_precision_ann, integer_ann, spiking
from quantspike.figures.comparison import Comparison, Run, Series, spread
from quantspike.figures.style import (
    BAR_WIDTH,
    GRAY,
    bar_axes,
    draw_spread,
    error_bar_legend,
    readable,
    style,
    tint,
    unit_of,
    write_above,
)
from quantspike.palette import FULL_PRECISION
from quantspike.params import Energy

_JOULES = {"": "picojoules", " (thousand)": "nanojoules", " (million)": "microjoules", " (billion)": "millijoules"}


@dataclass(frozen=True)
class _Bar:
    """One network: its estimates, one per seed."""

    name: str
    color: str
    estimates: Sequence[Estimate]

    def of(self, *kinds: str) -> list[float]:
        return [sum(getattr(estimate, kind) for kind in kinds) for estimate in self.estimates]


def energy(comparison: Comparison) -> Figure:
    """Picojoules per image of the spiking networks, beside the ANN at 32 bits, at 8 bits and at each k's own widths.

    Arithmetic stands above; memory traffic, which is far more, has a panel of its own below.
    """
    bars = _bars(comparison)
    with style():
        figure, (upper, lower) = bar_axes(comparison, len(bars), rows=2, height=9.0)
        _draw(upper, bars, "arithmetic")
        _draw(lower, bars, "on_chip", "dram")
        upper.set_title("arithmetic", loc="left", fontsize=12)
        lower.set_title("memory traffic", loc="left", fontsize=12)
        upper.set_xticks([])
        lower.set_xticks(range(len(bars)), [bar.name for bar in bars])
        handles = [
            Patch(facecolor=GRAY, edgecolor=GRAY, label="on-chip memory"),
            Patch(facecolor=tint(GRAY), edgecolor=GRAY, hatch="//", label="weights from DRAM, once"),
            *error_bar_legend(comparison.spiking),
        ]
        lower.legend(handles=handles, loc="upper left", ncols=3)
        lower.set_ylim(0, 1.15 * lower.get_ylim()[1])  # room for it
        caption = fill(_caption(comparison.prices), int(12 * figure.get_figwidth()))
        figure.supxlabel(caption, fontsize=9.5, color="#444444")
    return figure


def _bars(comparison: Comparison) -> list[_Bar]:
    assert comparison.architecture is not None
    architecture, prices = comparison.architecture, comparison.prices
    weights, layers = comparison.series[0].runs[0].weights, len(architecture.layers)
    full = full_precision_ann(architecture, weights, prices)
    eight = integer_ann(architecture, weights, prices, 8, [8] * layers)
    bars = [_Bar("ANN\n32-bit floats", FULL_PRECISION, [full]), _Bar("ANN\n8-bit integers", FULL_PRECISION, [eight])]
    for series in comparison.spiking:
        own = [
            integer_ann(architecture, weights, prices, run.weight_bits, activation_bits(run.largest_counts))
            for run in series.runs
        ]
        bars.append(_Bar(f"ANN\n{_widths(series)}", tint(series.color), own))
        bars.append(_Bar(f"SNN\n{series.name}", series.color, [_of_spikes(comparison, run) for run in series.runs]))
    return bars


def _of_spikes(comparison: Comparison, run: Run) -> Estimate:
    assert comparison.architecture is not None
    assert run.steps is not None
    last = run.steps.iloc[-1]
    # An image works in step t if it is not at rest after step t - 1; before the first step none is.
    steps_at_work = 1 + float((1 - run.steps["settled"].iloc[:-1]).sum())
    return spiking(
        comparison.architecture,
        run.weights,
        comparison.prices,
        run.weight_bits,
        synops=float(last["synops"]),
        spikes=float(last["positive_spikes"] + last["negative_spikes"]),
        steps_at_work=steps_at_work,
    )


def _widths(series: Series) -> str:
    """Widths of weights and activations, such as `12 x 3-5 bits`."""
    bits = [width for run in series.runs for width in activation_bits(run.largest_counts)]
    own = f"{min(bits)}" if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"
    return f"{series.name}:\n{series.runs[0].weight_bits} x {own} bits"


def _draw(axes: Axes, bars: Sequence[_Bar], *kinds: str) -> None:
    unit, word = unit_of(max(mean(bar.of(*kinds)) for bar in bars))
    for place, bar in enumerate(bars):
        bottom = 0.0
        for kind in kinds:
            height = mean(bar.of(kind)) / unit
            hatch, face = ("//", tint(bar.color)) if kind == "dram" else ("", bar.color)
            axes.bar(place, height, BAR_WIDTH, bottom=bottom, color=face, edgecolor=bar.color, hatch=hatch)
            bottom += height
        deviation = spread(bar.of(*kinds)) / unit
        draw_spread(axes, place, bottom, deviation)
        write_above(axes, place, bottom + deviation, readable(bottom))
    axes.margins(y=0.14)
    axes.set_ylabel(f"{_JOULES[word]} per image")


def _caption(prices: Energy) -> str:
    """What was counted, at which prices, from which source."""
    return (
        "Estimates from counted operations and accesses, encoding layer left out. Prices in pJ at 45 nm (defaults "
        f"after Horowitz, ISSCC 2014): multiply-accumulate {prices.fp32_mac:g} (fp32), {prices.int8_mac:g} "
        f"(8 x 8 bits; other widths by their product), 32-bit addition {prices.int32_add:g}; per 32 bits "
        f"{prices.on_chip:g} on chip, {prices.dram:g} DRAM. ANN: each multiply-accumulate reads weight and activation, "
        "each neuron writes once. "
        "SNN: each synaptic operation adds, reads a weight, reads and writes the membrane; each spike is written and "
        "read; each neuron is compared in every step until the image is at rest. No weight is reused from a register."
    )
