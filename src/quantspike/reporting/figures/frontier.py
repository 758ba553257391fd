"""Accuracy over synaptic operations, and what it costs to settle: which k, which layer delay, and where to stop."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from quantspike.networks.architecture import macs
from quantspike.reporting.figures import accuracy, style
from quantspike.reporting.figures.comparison import Comparison, Series, spread
from quantspike.reporting.figures.costs import ADDITIONS_PER_MAC
from quantspike.reporting.palette import FULL_PRECISION
from quantspike.reporting.tables import LOSSES, stopping_step

_MARKERS = (("o", "●", 6), ("s", "■", 10), ("^", "▲", 20))
"""For each of LOSSES, as matplotlib and as a letter, in sizes that show all marks of the same step."""

_LONGEST_NAME = 24
"""Letters of a name in the table, such as that of a folder of logs, which loses its middle otherwise."""

_DASHES = (0, (6, 3))
"""Of the least possible operations."""

_Costs = dict[int, list[tuple[int, float]]]
"""By layer delay: step after which all images are settled, and SOPs, of each seed; no seed if any did not settle."""


@style.paper()
def frontier(comparison: Comparison) -> Figure:
    """Draw accuracy over synaptic operations, a curve for each k with the step as parameter, of the first layer delay.

    Marks show from where on the accuracy stays within so many percentage points of its value after the last step, or
    above, and the table at which step that is; there is none before the first operation. Lines are means over seeds,
    bands one standard deviation of the accuracy (ddof 1). Of results, a panel to the right shows at which step all
    images are settled, and the operations up to then, for each layer delay.
    """
    rows, costs = len(comparison.series), [_costs_by_delay(series) for series in comparison.series]
    width = max(13.5, 8.5 + 1.5 * len(costs[0])) if costs[0] else 9.0
    figure = style.new_figure(comparison, width=width, height=8.0 + 0.3 * rows)
    grid = figure.add_gridspec(3, 2 if costs[0] else 1, height_ratios=(1, 1.3, 0.28 + 0.14 * rows))
    enlarged, whole, below = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[2, :]))
    enlarged.sharex(whole)
    enlarged.tick_params(axis="x", labelbottom=False)
    plain = 0 if comparison.architecture is None else macs(comparison.architecture)
    largest = max(ADDITIONS_PER_MAC * plain, *(mean(series.finals("synops")) for series in comparison.series))
    unit, word = style.unit_of(largest)
    for axes in (enlarged, whole):
        lines = [_draw_frontier(axes, series, unit) for series in comparison.series]
        lines += [*accuracy.draw_full_precision(axes, comparison), *_draw_operations(axes, plain / unit)]
    whole.set_xlabel(f"synaptic operations per image{word}{', logarithmic' if largest else ''}")
    if largest:
        _set_operations_axis(whole, comparison, unit, largest)
    else:
        whole.set_xlim(0, 1)
    accuracy.set_accuracy_axes(enlarged, whole, comparison)
    lines += accuracy.published_legend(comparison)
    if costs[0]:
        lines += _draw_settling(figure.add_subplot(grid[:2, 1]), comparison.series, costs, unit, word)
    below.set_title(fill(_title(comparison.series[0], costs[0], word), int(8 * width)), loc="left", fontsize=12)
    _draw_table(below, comparison.series, costs, unit)
    style.legend_below(figure, [*lines, *style.seeds_legend(comparison)], columns=5 if costs[0] else 4)
    return figure


def _costs_by_delay(series: Series) -> _Costs:
    """Return step and SOPs at which all images are settled, by layer delay and seed; of logs, nothing."""
    by_seed = [result.cost_by_delay for result in series.results]
    costs: _Costs = {}
    for delay in by_seed[0] if by_seed else ():
        settled = [(step, synops) for step, synops in (seed[delay] for seed in by_seed) if step is not None]
        # A mean over only those seeds that settled would be another quantity.
        costs[delay] = settled if len(settled) == len(by_seed) else []
    return costs


def _draw_settling(
    axes: Axes, all_series: Sequence[Series], all_costs: Sequence[_Costs], unit: float, word: str
) -> list[Line2D]:
    """Draw what it takes until all images are settled, a line for each k through its layer delays; return handles."""
    for series, costs in zip(all_series, all_costs, strict=True):
        _draw_settled(axes, series, costs, unit)
    axes.margins(0.1)
    published = any(_published_cost(series) for series in all_series)
    if not (published or any(any(costs.values()) for costs in all_costs)):  # nothing is drawn at any step
        axes.set_xlim(0, len(all_series[0].steps[0]))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True))
    axes.set(xlabel="simulation step", ylabel=f"SOPs per image{word}")
    axes.set_title("until all images are settled", loc="left", fontsize=12)
    style.plain_numbers(axes.yaxis)
    axes.grid(axis="y")
    low, high = axes.dataLim.intervaly
    if high > 20 * low > 0:  # a linear axis would have no room for the smaller ones
        axes.set(yscale="log", ylim=(low / 1.2, 1.2 * high), ylabel=f"SOPs per image{word}, logarithmic")
        style.label_log_axis(axes.yaxis)
    gray: dict[str, Any] = {"color": "gray", "markerfacecolor": "white"}
    handles = [
        Line2D([], [], marker="o", markersize=13, label="all images settled; number: layer delay D", **gray),
        Line2D([], [], linestyle=_DASHES, linewidth=1.2, label="least possible (net counts)", **gray),
        Line2D([], [], linestyle="", marker="D", markersize=9, label="published time steps", **gray),
    ]
    return handles if published else handles[:2]


def _draw_settled(axes: Axes, series: Series, costs: _Costs, unit: float) -> None:
    """Draw the line of one k, the least possible, and the published network."""
    edge: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": series.color}
    if published := _published_cost(series):
        axes.plot(published[0], published[1] / unit, "D", markersize=9, zorder=3, **edge)
    axes.axhline(_least(series) / unit, color=series.color, linestyle=_DASHES, linewidth=1.2)
    delays = sorted(delay for delay, seeds in costs.items() if seeds)
    steps = [[float(step) for step, _ in costs[delay]] for delay in delays]
    synops = [[count / unit for _, count in costs[delay]] for delay in delays]
    x, y = [mean(seeds) for seeds in steps], [mean(seeds) for seeds in synops]
    if len(series.results) > 1:
        deviations = [spread(seeds) for seeds in synops], [spread(seeds) for seeds in steps]
        axes.errorbar(x, y, *deviations, fmt="none", ecolor="black", elinewidth=1.5, capsize=5, zorder=4)
    axes.plot(x, y, "-o", color=series.color, markersize=17, zorder=4, **edge)
    for place in zip(x, y, map(str, delays), strict=True):
        axes.text(*place, ha="center", va="center_baseline", fontsize=11.5, zorder=5)


def _published_cost(series: Series) -> tuple[int, int] | None:
    """Return the published time steps and SOPs, where both are known."""
    known = series.published
    return None if known is None or not known.stable_step or not known.synops else (known.stable_step, known.synops)


def _least(series: Series) -> float:
    return mean(result.simulation.least_synops for result in series.results)


def _draw_frontier(axes: Axes, series: Series, unit: float) -> Line2D:
    """Draw the curve of one k, with a mark for each of LOSSES; return its line."""
    curve, synops = 100 * series.curve("accuracy"), series.curve("synops")["mean"] / unit
    if (published := series.published_curve) is not None:
        axes.plot(published["synops"] / unit, 100 * published["accuracy"], color=series.color, linewidth=0.9, alpha=0.8)
    look: dict[str, Any] = {"color": series.color, "markeredgecolor": "white", "zorder": 4, "clip_on": False}
    for (marker, _, size), step in reversed(list(zip(_MARKERS, _stops(series), strict=True))):
        if synops[step]:  # a logarithmic axis has no place for zero
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


def _title(series: Series, costs: _Costs, word: str) -> str:
    """Return what the numbers of the table are."""
    title = (
        f"where to stop: SOPs per image{word} up to the step from which the accuracy stays within so many percentage "
        f"points of that after step {len(series.steps[0])}, or above"
    )
    if not costs:
        return title
    return (
        f"{title} (layer delay {next(iter(costs))}), and up to the step after which all images are settled with layer "
        f"delay D (-: not by step {len(series.steps[0])}); least: if every neuron fired its net count only"
    )


def _draw_table(axes: Axes, series: Sequence[Series], all_costs: Sequence[_Costs], unit: float) -> None:
    """Write where to stop, as text."""
    axes.axis("off")
    points = ["1 point" if loss == 0.01 else f"{100 * loss:g} points" for loss in LOSSES]
    head = ["", *(f"{mark} {text}" for (_, mark, _), text in zip(_MARKERS, points, strict=True))]
    delays = [f"D = {delay}" for delay in all_costs[0]]
    head += [*delays, "least", "accuracy (%)"] if delays else ["last step"]
    cells = [_row(one, costs, unit) for one, costs in zip(series, all_costs, strict=True)]
    table = axes.table(cells, colLabels=head, bbox=Bbox.unit(), edges="open", cellLoc="left", colLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(11.5)
    table.auto_set_column_width(list(range(len(head))))
    for row, one in enumerate(series, start=1):
        table[row, 0].get_text().set(color=one.color, fontweight="bold")


def _row(series: Series, costs: _Costs, unit: float) -> list[str]:
    half = (_LONGEST_NAME - 1) // 2
    short = series.name if len(series.name) <= _LONGEST_NAME else f"{series.name[:half]}…{series.name[-half:]}"
    synops = series.curve("synops")["mean"] / unit
    row = [short, *(_cost(synops[step], step) for step in _stops(series))]
    if not costs:
        return [*row, style.readable(synops.iloc[-1])]
    for seeds in costs.values():
        steps, counts = zip(*seeds, strict=True) if seeds else ([], [])
        row.append(_cost(mean(counts) / unit, mean(steps)) if seeds else "-")
    return [*row, style.readable(_least(series) / unit), f"{100 * mean(series.finals('accuracy')):.2f}"]


def _cost(synops: float, step: float) -> str:
    return f"{style.readable(synops)}, step {step:.4g}"
