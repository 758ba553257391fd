"""Accuracy over synaptic operations: where to stop, for how much accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from quantspike.figures.accuracy import band_legend, draw_curve, series_legend, set_accuracy_axes
from quantspike.figures.comparison import Comparison, Series
from quantspike.figures.costs import ADDITIONS_PER_MAC
from quantspike.figures.style import legend_below, new_figure, plain_numbers, readable, shorten_middle, style, unit_of
from quantspike.operations import macs
from quantspike.palette import FULL_PRECISION
from quantspike.stopping_points import LOSSES, stopping_step

_MARKERS = (("o", "●", 6), ("s", "■", 10), ("^", "▲", 20))
"""For each of LOSSES, as matplotlib and as a letter, and so large that all show where several are at the same step."""


_LONGEST_NAME = 24


def frontier(comparison: Comparison) -> Figure:
    """Accuracy over synaptic operations, a curve for each k with the step as parameter.

    Marks stand where the accuracy comes within so many percentage points of its last value and stays there; the
    table says at which step that is, and after how many operations. Lines are means over seeds, bands
    one standard deviation of the accuracy (ddof 1).
    """
    rows = len(comparison.spiking)
    with style():
        figure = new_figure(comparison, width=9.0, height=7.8 + 0.3 * rows)
        ratios = (1, 1.3, 0.28 + 0.14 * rows)
        enlarged, whole, below = figure.subplots(3, 1, height_ratios=ratios)
        enlarged.sharex(whole)
        enlarged.tick_params(axis="x", labelbottom=False)
        plain = 0 if comparison.architecture is None else macs(comparison.architecture)
        largest = max([ADDITIONS_PER_MAC * plain, *(mean(series.finals("synops")) for series in comparison.spiking)])
        unit, word = unit_of(largest)
        for axes in (enlarged, whole):
            for series in comparison.spiking:
                _draw_frontier(axes, series, unit)
            _draw_ann(axes, comparison, plain / unit)
        _set_operations_axis(whole, comparison, unit, largest, word)
        set_accuracy_axes(enlarged, whole, comparison)
        _draw_table(below, comparison.spiking, unit, word)
        handles = [series_legend(series) for series in comparison.spiking]
        handles += _ann_legend(comparison, plain)
        legend_below(figure, [*handles, *band_legend(comparison)])
    return figure


def _draw_frontier(axes: Axes, series: Series, unit: float) -> None:
    accuracy, synops = series.curve("accuracy")["mean"], series.curve("synops")["mean"] / unit
    if (published := series.published_curve) is not None:
        axes.plot(published["synops"] / unit, 100 * published["accuracy"], color=series.color, linewidth=0.9, alpha=0.8)
    draw_curve(axes, series, "accuracy", synops)
    for (marker, _, size), loss in zip(_MARKERS[::-1], LOSSES[::-1], strict=True):
        step = stopping_step(accuracy, loss)
        axes.plot(
            synops[step],
            100 * accuracy[step],
            marker,
            color=series.color,
            markeredgecolor="white",
            markersize=size,
            zorder=4,
            clip_on=False,
        )


def _draw_ann(axes: Axes, comparison: Comparison, plain: float) -> None:
    """The network before conversion: its operations upright, the accuracy in full precision lying."""
    for series in comparison.series:
        if series.k == "fp32":
            axes.axhline(100 * mean(series.ann_accuracies), color=FULL_PRECISION, linestyle="--", linewidth=1.8)
    if plain:
        axes.axvline(plain, color=FULL_PRECISION, linestyle="-.", linewidth=1.2)
        axes.axvline(ADDITIONS_PER_MAC * plain, color=FULL_PRECISION, linestyle=":", linewidth=1.2)


def _set_operations_axis(axes: Axes, comparison: Comparison, unit: float, largest: float, word: str) -> None:
    """Logarithmic from the first step's operations on, with plain numbers; linear should there be no operation."""
    axes.set_xlabel(f"synaptic operations per image{word}{', logarithmic' if largest else ''}")
    if not largest:
        return
    counts = [series.curve("synops")["mean"] for series in comparison.spiking]
    # Steps without any operation have no place on a logarithmic axis.
    first = min((float(count[count > 0].min()) for count in counts if (count > 0).any()), default=largest / 10)
    low, high = first / unit * 0.9, largest / unit * 1.1
    begin = low * (high / low) ** 0.03  # a label at the very edge would run into that of the other axis
    ticks = _ticks(begin, high, (1, 2, 5))
    if len(ticks) > 10:
        ticks = _ticks(begin, high, (1,))
    if len(ticks) < 3:
        ticks = _ticks(begin, high, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    if len(ticks) < 3:  # less than from 3 to 5, where a logarithmic axis is nearly a linear one
        even = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3).tick_values(low, high)
        ticks = [float(tick) for tick in even if begin <= tick <= high]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.xaxis)


def _ticks(low: float, high: float, digits: Sequence[float]) -> list[float]:
    """Numbers with these first digits between two others."""
    return [digit * 10.0**power for power in range(-9, 10) for digit in digits if low <= digit * 10.0**power <= high]


def _draw_table(axes: Axes, spiking: Sequence[Series], unit: float, word: str) -> None:
    """Where to stop, as text."""
    axes.axis("off")
    if not spiking:
        return
    axes.set_title(f"where to stop: SOPs per image{word} and step", loc="left", fontsize=12)
    marks = [mark for _, mark, _ in _MARKERS]
    head = ["", *(f"{mark} within {_points(loss)}" for mark, loss in zip(marks, LOSSES, strict=True)), "last step"]
    cells = [head, *(_stops(series, unit) for series in spiking)]
    # Names of logs may be long.
    widest = min(max(len(series.name) for series in spiking), _LONGEST_NAME) * 0.013
    columns = (0.0, *(widest + (1 - widest) * share for share in (0.15, 0.43, 0.7, 1.0)))
    for row, line in enumerate(cells):
        for column, (place, text) in enumerate(zip(columns, line, strict=True)):
            axes.text(
                place,
                1 - (row + 0.5) / len(cells),
                text,
                transform=axes.transAxes,
                ha="left" if column == 0 else "right" if column == len(columns) - 1 else "center",
                va="center",
                fontsize=11.5,
                color=spiking[row - 1].color if row and column == 0 else "black",
                fontweight="bold" if row and column == 0 else "normal",
            )


def _stops(series: Series, unit: float) -> list[str]:
    accuracy, synops = series.curve("accuracy")["mean"], series.curve("synops")["mean"] / unit
    steps = [stopping_step(accuracy, loss) for loss in LOSSES]
    return [
        shorten_middle(series.name, _LONGEST_NAME),
        *(f"{readable(synops[step])}, step {step}" for step in steps),
        readable(synops.iloc[-1]),
    ]


def _points(loss: float) -> str:
    """A share as percentage points."""
    return "1 point" if loss == 0.01 else f"{100 * loss:g} points"


def _ann_legend(comparison: Comparison, plain: int) -> list[Line2D]:
    handles = [series_legend(series) for series in comparison.series if series.k == "fp32"]
    if plain:
        handles.append(Line2D([], [], color=FULL_PRECISION, linestyle="-.", linewidth=1.2, label="ANN: MACs"))
        label = f"ANN: {ADDITIONS_PER_MAC} additions per MAC"
        handles.append(Line2D([], [], color=FULL_PRECISION, linestyle=":", linewidth=1.2, label=label))
    return handles
