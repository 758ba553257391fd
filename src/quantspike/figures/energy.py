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


_ARITHMETIC, _MEMORY = ("arithmetic",), ("on_chip", "dram")


@dataclass(frozen=True)
class _Bar:
    """One network: its estimates, one per seed; `face` fills its bar within an edge of its colour."""

    name: str
    color: str
    face: str
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
        # One unit for both panels, so that they can be compared.
        unit, word = unit_of(max(mean(bar.of(*kinds)) for bar in bars for kinds in (_ARITHMETIC, _MEMORY)))
        _draw(upper, bars, _ARITHMETIC, unit)
        _draw(lower, bars, _MEMORY, unit)
        for axes in (upper, lower):
            axes.set_ylabel(f"{_JOULES[word]} per image")
        upper.set_title("estimated energy: arithmetic", loc="left", fontsize=12)
        lower.set_title("estimated energy: memory traffic", loc="left", fontsize=12)
        upper.set_xticks([])
        lower.set_xticks(range(len(bars)), [bar.name for bar in bars])
        handles = [
            Patch(facecolor=GRAY, edgecolor=GRAY, label="on-chip memory"),
            Patch(facecolor=tint(GRAY), edgecolor=GRAY, hatch="//", label="weights from DRAM, once"),
            *error_bar_legend(comparison.spiking),
        ]
        lower.legend(handles=handles, loc="upper left", ncols=3)
        lower.set_ylim(0, 1.15 * lower.get_ylim()[1])  # room for it
        caption = fill(_caption(comparison.prices), int(10.5 * figure.get_figwidth()))
        figure.supxlabel(caption, fontsize=11.5)
    return figure


def _bars(comparison: Comparison) -> list[_Bar]:
    assert comparison.architecture is not None
    architecture, prices = comparison.architecture, comparison.prices
    weights, layers = comparison.series[0].runs[0].weights, len(architecture.layers)
    full = full_precision_ann(architecture, weights, prices)
    eight = integer_ann(architecture, weights, prices, 8, [8] * layers)
    bars = [
        _Bar("ANN\n32-bit floats", FULL_PRECISION, FULL_PRECISION, [full]),
        _Bar("ANN\n8-bit integers", FULL_PRECISION, FULL_PRECISION, [eight]),
    ]
    for series in comparison.spiking:
        own = [
            integer_ann(architecture, weights, prices, run.weight_bits, activation_bits(run.largest_counts))
            for run in series.runs
        ]
        spikes = [_of_spikes(comparison, run) for run in series.runs]
        bars.append(_Bar(f"ANN\n{_widths(series)}", series.color, "white", own))
        bars.append(_Bar(f"SNN\n{series.name}", series.color, series.color, spikes))
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


def _draw(axes: Axes, bars: Sequence[_Bar], kinds: Sequence[str], unit: float) -> None:
    for place, bar in enumerate(bars):
        bottom = 0.0
        for kind in kinds:
            height = mean(bar.of(kind)) / unit
            filled = bar.face if bar.face == "white" else tint(bar.color)
            hatch, face = ("//", filled) if kind == "dram" else ("", bar.face)
            axes.bar(place, height, BAR_WIDTH, bottom=bottom, color=face, edgecolor=bar.color, hatch=hatch)
            bottom += height
        deviation = spread(bar.of(*kinds)) / unit
        draw_spread(axes, place, bottom, deviation)
        write_above(axes, place, bottom + deviation, readable(bottom))
    axes.margins(y=0.14)


def _caption(prices: Energy) -> str:
    """At which prices, from which source; docs/figures.md says what is counted."""
    return (
        "Estimate from counted operations and accesses, at these prices in pJ (defaults: 45 nm, Horowitz, ISSCC 2014): "
        f"multiply-accumulate {prices.fp32_mac:g} in fp32, {prices.int8_mac:g} for 8 x 8 bits, else by the product of "
        f"the widths; 32-bit addition {prices.int32_add:g}; per 32 bits {prices.on_chip:g} on chip, {prices.dram:g} "
        "from DRAM. Nothing is reused from registers but sums of the ANN."
    )
