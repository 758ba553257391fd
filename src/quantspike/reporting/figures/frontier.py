"""Accuracy over synaptic operations: where to stop, for how much accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from quantspike.networks.architecture import macs
from quantspike.reporting.figures import accuracy, style
from quantspike.reporting.figures.comparison import Comparison, Series
from quantspike.reporting.figures.costs import ADDITIONS_PER_MAC
from quantspike.reporting.palette import FULL_PRECISION
from quantspike.reporting.tables import LOSSES, stopping_step

_MARKERS = (("o", "●", 6), ("s", "■", 10), ("^", "▲", 20))
"""For each of LOSSES, as matplotlib and as a letter, in sizes that show all marks of the same step."""

_LONGEST_NAME = 24
"""Letters of a name in the table, such as that of a folder of logs, which loses its middle otherwise."""


@style.paper()
def frontier(comparison: Comparison) -> Figure:
    """Draw accuracy over synaptic operations, a curve for each k with the step as parameter.

    Marks show from where on the accuracy stays within so many percentage points of its last value, or above, and the
    table at which step that is. Lines are means over seeds, bands one standard deviation of the accuracy (ddof 1).
    """
    rows = len(comparison.series)
    figure = style.new_figure(comparison, width=9.0, height=8.0 + 0.3 * rows)
    enlarged, whole, below = figure.subplots(3, 1, height_ratios=(1, 1.3, 0.28 + 0.14 * rows))
    enlarged.sharex(whole)
    enlarged.tick_params(axis="x", labelbottom=False)
    plain = 0 if comparison.architecture is None else macs(comparison.architecture)
    largest = max(ADDITIONS_PER_MAC * plain, *(mean(series.finals("synops")) for series in comparison.series))
    unit, word = style.unit_of(largest)
    for axes in (enlarged, whole):
        lines = [_draw_frontier(axes, series, unit) for series in comparison.series]
        lines += [*accuracy.draw_full_precision(axes, comparison), *_draw_operations(axes, plain / unit)]
    whole.set_xlabel(f"synaptic operations per image{word}{', logarithmic' if largest else ''}")
    if largest:  # a logarithmic axis has no place for zero
        _set_operations_axis(whole, comparison, unit, largest)
    accuracy.set_accuracy_axes(enlarged, whole, comparison)
    _draw_table(below, comparison.series, unit, word)
    style.legend_below(figure, [*lines, *accuracy.published_legend(comparison), *style.seeds_legend(comparison)])
    return figure


def _draw_frontier(axes: Axes, series: Series, unit: float) -> Line2D:
    """Draw the curve of one k, with a mark for each of LOSSES; return its line."""
    curve, synops = 100 * series.curve("accuracy"), series.curve("synops")["mean"] / unit
    if (published := series.published_curve) is not None:
        axes.plot(published["synops"] / unit, 100 * published["accuracy"], color=series.color, linewidth=0.9, alpha=0.8)
    look: dict[str, Any] = {"color": series.color, "markeredgecolor": "white", "zorder": 4, "clip_on": False}
    for (marker, _, size), step in reversed(list(zip(_MARKERS, _stops(series), strict=True))):
        axes.plot(synops[step], curve["mean"][step], marker, markersize=size, **look)
    return style.draw_curve(axes, synops, curve, series.color, series.style, series.name)


def _draw_operations(axes: Axes, plain: float) -> list[Line2D]:
    """Draw the operations of the network before conversion, if they are known; return their lines."""
    labels = (("-.", 1, "ANN: MACs"), (":", ADDITIONS_PER_MAC, f"ANN: {ADDITIONS_PER_MAC} additions per MAC"))
    look: dict[str, Any] = {"color": FULL_PRECISION, "linewidth": 1.2}
    return [axes.axvline(each * plain, linestyle=line, label=text, **look) for line, each, text in labels if plain]


def _stops(series: Series) -> list[int]:
    """Return for each of LOSSES the step at which the simulation may stop."""
    curve = series.curve("accuracy")["mean"]
    return [stopping_step(curve, loss) for loss in LOSSES]


def _set_operations_axis(axes: Axes, comparison: Comparison, unit: float, largest: float) -> None:
    """Make the axis logarithmic, from the first step with any operation on."""
    counts = [series.curve("synops")["mean"] for series in comparison.series]
    first = min((float(count[count > 0].min()) for count in counts if (count > 0).any()), default=largest / 10)
    axes.set_xscale("log")
    axes.set_xlim(0.9 * first / unit, 1.1 * largest / unit)
    style.label_log_axis(axes.xaxis)


def _draw_table(axes: Axes, series: Sequence[Series], unit: float, word: str) -> None:
    """Write where to stop, as text."""
    axes.axis("off")
    title = (
        f"where to stop: SOPs per image{word} up to the step from which the accuracy\n"
        "stays within so many percentage points of the final accuracy, or above"
    )
    axes.set_title(title, loc="left", fontsize=12)
    points = ["1 point" if loss == 0.01 else f"{100 * loss:g} points" for loss in LOSSES]
    head = ["", *(f"{mark} within {text}" for (_, mark, _), text in zip(_MARKERS, points, strict=True)), "last step"]
    cells = [_row(one, unit) for one in series]
    table = axes.table(cells, colLabels=head, bbox=Bbox.unit(), edges="open", cellLoc="left", colLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(11.5)
    table.auto_set_column_width(list(range(len(head))))
    for row, one in enumerate(series, start=1):
        table[row, 0].get_text().set(color=one.color, fontweight="bold")


def _row(series: Series, unit: float) -> list[str]:
    half = (_LONGEST_NAME - 1) // 2
    short = series.name if len(series.name) <= _LONGEST_NAME else f"{series.name[:half]}…{series.name[-half:]}"
    synops = series.curve("synops")["mean"] / unit
    stops = [f"{style.readable(synops[step])}, step {step}" for step in _stops(series)]
    return [short, *stops, style.readable(synops.iloc[-1])]
