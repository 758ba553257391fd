"""Accuracy, and images at rest, over the steps of the simulation."""

from __future__ import annotations

from statistics import mean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from quantspike.figures.comparison import Comparison, Series, spread
from quantspike.figures.style import PUBLISHED, legend_below, new_figure, set_step_axis, spread_named, style

_ENLARGED = 20.0
"""Percentage points that the enlarged panel shows at most below the best network."""


def accuracy_speed(comparison: Comparison) -> Figure:
    """Accuracy over simulation steps: above the last few percent enlarged, below all of it.

    Lines are means over seeds, bands one standard deviation (ddof 1).
    """
    with style():
        figure = new_figure(comparison, height=7.0)
        enlarged, whole = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
        for axes in (enlarged, whole):
            for series in comparison.series:
                _draw_accuracy(axes, series)
        set_step_axis(whole, comparison.last_step)
        set_accuracy_axes(enlarged, whole, comparison)
        handles: list[Line2D | Patch] = [series_legend(series) for series in comparison.series]
        if any(series.ann_accuracies for series in comparison.spiking):
            handles.append(Line2D([], [], color="gray", linestyle=":", linewidth=1.3, label="ANN of the same k"))
        if comparison.spiking:
            handles.append(_dot_legend("stable from here on"))
        handles += band_legend(comparison)
        legend_below(figure, handles)
    return figure


def settling(comparison: Comparison) -> Figure:
    """Share of the test images in which every neuron is at rest, over simulation steps."""
    with style():
        figure = new_figure(comparison)
        axes = figure.subplots()
        dots = [_draw_settling(axes, series) for series in comparison.spiking]
        set_step_axis(axes, comparison.last_step)
        axes.set_ylim(0, 102)
        axes.grid(axis="y")
        axes.set_ylabel("images at rest (%)")
        handles: list[Line2D | Patch] = [series_legend(series) for series in comparison.spiking]
        if any(dots):
            handles.append(_dot_legend("all images at rest from here on"))
        if named := spread_named(comparison.spiking):
            handles.append(Patch(color="gray", alpha=0.2, linewidth=0, label=named))
        legend_below(figure, handles, columns=4 if len(handles) == 4 else 3)
    return figure


def set_accuracy_axes(enlarged: Axes, whole: Axes, comparison: Comparison) -> None:
    """The upper panel shows the last few percent of the lower one."""
    levels = [100 * level for series in comparison.series for level in series.ann_accuracies]
    levels += [100 * level for series in comparison.spiking for level in series.finals("accuracy")]
    # Room below for the last part of the climb; at least half a percent, were all levels the same.
    room = max(max(levels) - min(levels), 0.5)
    # A curve may rise above its last value on the way.
    highest = max([*levels, *(100 * series.curve("accuracy")["mean"].max() for series in comparison.spiking)])
    # Networks far apart would leave nothing to enlarge: then the panel is about the better ones.
    low = max(min(levels) - 2.0 * room, max(levels) - _ENLARGED, 0.0)
    high = min(highest + 0.5 * min(room, 2.0), 100.2)
    enlarged.set_ylim(low, high)
    enlarged.yaxis.set_major_locator(MaxNLocator(5))
    whole.set_ylim(0, 102)
    for axes in (enlarged, whole):
        axes.grid(axis="y")
        axes.set_ylabel("accuracy (%)")
    enlarged.set_title("the top of the lower panel, enlarged", loc="left", fontsize=12)


def series_legend(series: Series) -> Line2D:
    """The handle of one k."""
    return Line2D([], [], color=series.color, linestyle="--" if series.k == "fp32" else series.style, label=series.name)


def band_legend(comparison: Comparison) -> list[Line2D | Patch]:
    """Handles of what may stand behind the lines: published curves, and bands where there are several seeds."""
    handles: list[Line2D | Patch] = []
    if comparison.has_published:
        handles.append(Line2D([], [], color="gray", linewidth=0.9, alpha=0.8, label=f"thin: {PUBLISHED}"))
    if named := spread_named(comparison.series):
        handles.append(Patch(color="gray", alpha=0.2, linewidth=0, label=named))
    return handles


def draw_curve(axes: Axes, series: Series, column: str, places: pd.Series[float] | None = None) -> None:
    """Mean over the seeds in percent, by step or at these places, with a band of one standard deviation if several."""
    curve = 100 * series.curve(column)
    along = curve.index if places is None else places
    axes.plot(along, curve["mean"], color=series.color, linestyle=series.style)
    if len(series.runs) > 1:
        low, high = curve["mean"] - curve["std"], curve["mean"] + curve["std"]
        axes.fill_between(along, low, high, color=series.color, alpha=0.2, linewidth=0)


def _draw_accuracy(axes: Axes, series: Series) -> None:
    """The ANN's accuracy as a level, and, for a spiking network, its curve with a dot at the stable step."""
    _draw_level(axes, series)
    if not series.spiking:
        return
    if (published := series.published_curve) is not None:
        axes.plot(published["step"], 100 * published["accuracy"], color=series.color, linewidth=0.9, alpha=0.8)
    draw_curve(axes, series, "accuracy")
    # The mean over seeds is stable once the last of them is.
    stable = max(run.stable_step for run in series.runs if run.stable_step is not None)
    _draw_dot(axes, stable, 100 * mean(series.finals("accuracy")), series.color)


def _draw_level(axes: Axes, series: Series) -> None:
    if not series.ann_accuracies:
        return
    level, deviation = 100 * mean(series.ann_accuracies), 100 * spread(series.ann_accuracies)
    full = series.k == "fp32"
    axes.axhline(level, color=series.color, linestyle="--" if full else ":", linewidth=1.8 if full else 1.3)
    if full and deviation:
        axes.axhspan(level - deviation, level + deviation, color=series.color, alpha=0.12, linewidth=0)


def _draw_settling(axes: Axes, series: Series) -> bool:
    """The curve, with a dot where all images of all seeds are at rest; tells whether they ever are."""
    draw_curve(axes, series, "settled")
    at_rest = [steps["step"][steps["settled"] == 1.0] for steps in series.steps]
    settled = all(len(found) for found in at_rest)
    if settled:
        _draw_dot(axes, max(int(found.iloc[0]) for found in at_rest), 100.0, series.color)
    return settled


def _draw_dot(axes: Axes, step: float, height: float, color: str) -> None:
    # Not clipped, since that may be the very last step, on the edge.
    axes.plot(step, height, "o", color=color, markeredgecolor="white", markersize=9, clip_on=False, zorder=4)


def _dot_legend(label: str) -> Line2D:
    return Line2D([], [], color="gray", linestyle="", marker="o", markersize=9, label=label)
