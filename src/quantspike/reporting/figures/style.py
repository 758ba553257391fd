"""Style sheet, files, axes, legends and numbers that all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import fill

import matplotlib.style
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from quantspike.files import atomic_path
from quantspike.reporting.figures.comparison import Comparison, LineStyle

BASELINE = "full-precision ANN"
PUBLISHED = "published (official CIFAR-10)"

paper = partial(matplotlib.style.context, "quantspike.reporting.figures.paper", after_reset=True)
"""Context, or decorator, in which figures are drawn and saved: the style sheet, whatever the caller's settings are."""

_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
_LETTERS_PER_INCH = 7.5


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png and `name`.svg; the same data gives the same bytes.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    # Files hold neither a date nor the version of matplotlib.
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        with paper(), atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)


def new_figure(comparison: Comparison, width: float = 8.0, height: float = 5.4) -> Figure:
    """Return an empty figure with a title, of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(fill(comparison.title, int(_LETTERS_PER_INCH * width)), fontsize=14)
    return figure


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """Add a legend below all panels, in so many columns or as many as there is room for."""
    for fewer in range(columns if handles else 0, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=fewer)
        if fewer == 1 or legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def seeds_legend(comparison: Comparison, bars: bool = False) -> list[Line2D | Patch]:
    """Return a handle of bands, or of error bars, if there are several seeds."""
    seeds = len(comparison.series[0].steps)
    label = f"± 1 standard deviation (n = {seeds})"
    bar = Line2D([], [], color="black", linestyle="", marker="|", markersize=14, label=label)
    band = Patch(color="gray", alpha=0.2, linewidth=0, label=label)
    return [bar if bars else band] if seeds > 1 else []


def draw_curve(axes: Axes, x: ArrayLike, y: pd.DataFrame, color: str, line: LineStyle, name: str) -> Line2D:
    """Draw the column `mean` of a table over seeds, with a band of one `std` if there are several; return the line."""
    (curve,) = axes.plot(x, y["mean"], color=color, linestyle=line, label=name)
    if y["std"].notna().all():
        axes.fill_between(x, y["mean"] - y["std"], y["mean"] + y["std"], color=color, alpha=0.2, linewidth=0)
    return curve


def set_step_axis(axes: Axes, comparison: Comparison) -> None:
    """Make the x axis logarithmic, since most happens in the early steps."""
    axes.set_xscale("log")
    axes.set_xlim(1, max(2, *(len(steps) for series in comparison.series for steps in series.steps)))
    label_log_axis(axes.xaxis)
    axes.set_xlabel("simulation step (logarithmic)")


def label_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis at powers of ten and, if there is room, 2 and 5 times as much, in plain numbers."""
    low, high = axis.get_view_interval()
    if high < 5 * low:  # nearly linear
        axis.set_major_locator(MaxNLocator(5, integer=low >= 1))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 2000 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    plain_numbers(axis)


def plain_numbers(axis: Axis) -> None:
    """Write the numbers of an axis with thousands separated and without powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def tint(color: str) -> str:
    """Return a colour mixed with twice as much white."""
    red, green, blue = to_rgb(color)
    return to_hex(((red + 2) / 3, (green + 2) / 3, (blue + 2) / 3))


def unit_of(largest: float) -> tuple[float, str]:
    """Return the unit in which the largest value is at least 10, and its name for an axis label."""
    for unit, name in _UNITS:
        if largest >= 10 * unit:
            return unit, f" ({name})"
    return 1.0, ""


def readable(value: float) -> str:
    """Return three significant digits, or all digits of a number from 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
