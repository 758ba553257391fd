"""Accuracy, and settled images, over the steps of the simulation."""

from __future__ import annotations

from statistics import mean

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from quantspike.reporting.figures import style
from quantspike.reporting.figures.comparison import Comparison, Series, accuracies, spread
from quantspike.reporting.palette import FULL_PRECISION

_ENLARGED = 20.0
"""Percentage points below the best network that the enlarged panel shows at most."""


@style.paper()
def accuracy_speed(comparison: Comparison) -> Figure:
    """Draw accuracy over simulation steps: above the last few percent enlarged, below all of it.

    Lines are means over seeds, bands one standard deviation (ddof 1).
    """
    figure = style.new_figure(comparison, height=7.0)
    enlarged, whole = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
    set_accuracy_axes(enlarged, whole, comparison)
    for axes in (enlarged, whole):
        lines = [_draw_accuracy(axes, series) for series in comparison.series]
        lines += draw_full_precision(axes, comparison)
    style.set_step_axis(whole, comparison)
    if comparison.baseline:
        lines.append(Line2D([], [], color="gray", linestyle=":", linewidth=1.3, label="ANN of the same k"))
    stable = [series.stable_step is not None for series in comparison.series]
    label = "stable from here on" if all(stable) else "stable from here on (no dot: T too small)"
    lines += [_dot_legend(label), *published_legend(comparison)]
    style.legend_below(figure, [*lines, *style.seeds_legend(comparison)])
    return figure


@style.paper()
def settling(comparison: Comparison) -> Figure:
    """Draw the share of images in which every neuron is settled over simulation steps."""
    figure = style.new_figure(comparison)
    axes = figure.subplots()
    axes.set_ylim(0, 102)
    handles: list[Artist] = [_draw_settling(axes, series) for series in comparison.series]
    style.set_step_axis(axes, comparison)
    axes.grid(axis="y")
    axes.set_ylabel("settled images (%)")
    if len(axes.lines) > len(handles):
        handles.append(_dot_legend("all images settled from here on"))
    style.legend_below(figure, [*handles, *style.seeds_legend(comparison)])
    return figure


def set_accuracy_axes(enlarged: Axes, whole: Axes, comparison: Comparison) -> None:
    """Show the last few percent of the lower panel in the upper one."""
    networks = [comparison.baseline, *(series.results for series in comparison.series)]
    levels = [100 * value for results in networks for value in accuracies(results)]
    levels += [100 * value for series in comparison.series for value in series.finals("accuracy")]
    # A curve may rise above its last value on the way.
    highest = max([*levels, *(100 * series.curve("accuracy")["mean"].max() for series in comparison.series)])
    # Leave room below for the last part of the climb: half a percent, should all levels be the same.
    room = max(max(levels) - min(levels), 0.5)
    # Networks far apart would leave nothing to enlarge: then the panel shows the better ones.
    low = max(min(levels) - 2.0 * room, max(levels) - _ENLARGED, 0.0)
    enlarged.set_ylim(low, min(highest + 0.5 * min(room, 2.0), 100.2))
    enlarged.yaxis.set_major_locator(MaxNLocator(5))
    whole.set_ylim(0, 102)
    for axes in (enlarged, whole):
        axes.grid(axis="y")
        axes.set_ylabel("accuracy (%)")
    enlarged.set_title("the top of the lower panel, enlarged", loc="left", fontsize=12)


def draw_full_precision(axes: Axes, comparison: Comparison) -> list[Line2D]:
    """Draw the accuracy of the full-precision network, and the published one, as levels; return their lines."""
    lines = []
    if levels := accuracies(comparison.baseline):
        level, deviation = 100 * mean(levels), 100 * spread(levels)
        lines.append(axes.axhline(level, color=FULL_PRECISION, linestyle="--", linewidth=1.8, label=style.BASELINE))
        if deviation:
            axes.axhspan(level - deviation, level + deviation, color=FULL_PRECISION, alpha=0.12, linewidth=0)
    if comparison.published and (published := comparison.published.ann_accuracy):
        label = "published full precision"
        lines.append(axes.axhline(100 * published, color="gray", linestyle="--", linewidth=0.9, label=label))
    return lines


def published_legend(comparison: Comparison) -> list[Line2D]:
    """Return the handle of published curves, if there are any."""
    handle = Line2D([], [], color="gray", linewidth=0.9, alpha=0.8, label=f"thin: {style.PUBLISHED}")
    return [handle] if any(series.published_curve is not None for series in comparison.series) else []


def _draw_accuracy(axes: Axes, series: Series) -> Line2D:
    """Draw the ANN's accuracy as a level, and the curve of the spiking network with a dot at the stable step."""
    if levels := accuracies(series.results):
        axes.axhline(100 * mean(levels), color=series.color, linestyle=":", linewidth=1.3)
    if (published := series.published_curve) is not None:
        axes.plot(published["step"], 100 * published["accuracy"], color=series.color, linewidth=0.9, alpha=0.8)
    curve = 100 * series.curve("accuracy")
    if series.stable_step is not None:
        _draw_dot(axes, series.stable_step, curve["mean"].iloc[-1], series.color)
    return style.draw_curve(axes, curve.index, curve, series.color, series.style, series.name)


def _draw_settling(axes: Axes, series: Series) -> Line2D:
    """Draw the curve, with a dot where all images of all seeds are settled, if they ever are."""
    curve = 100 * series.curve("settled")
    step = 1 + max(int((steps["settled"] < 1).sum()) for steps in series.steps)
    if step <= len(curve):
        _draw_dot(axes, step, 100.0, series.color)
    return style.draw_curve(axes, curve.index, curve, series.color, series.style, series.name)


def _draw_dot(axes: Axes, step: float, height: float, color: str) -> None:
    """Draw a dot, unless it lies below the axes."""
    if height < axes.get_ylim()[0]:
        return
    # Not clipped, since the very last step lies on the edge.
    axes.plot(step, height, "o", color=color, markeredgecolor="white", markersize=9, clip_on=False, zorder=4)


def _dot_legend(label: str) -> Line2D:
    return Line2D([], [], color="gray", linestyle="", marker="o", markersize=9, label=label)
