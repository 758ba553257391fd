"""What all figures share: the style sheet, the files, axes of steps and bars, and words about seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
from matplotlib import rc_params_from_file
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from quantspike.figures.comparison import Comparison, Series
from quantspike.files import atomic_path

GRAY = "#777777"
"""For legends about all k."""

BAR_WIDTH = 0.62

PUBLISHED = "published (official CIFAR-10)"

_FORMATS: Mapping[str, dict[str, Any]] = MappingProxyType(
    # No date and no version of matplotlib: the same data gives the same bytes.
    {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
)

_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
_INCHES_PER_BAR = 1.35
_LETTERS_PER_INCH = 8
_LONGEST_WORD = 40


@contextmanager
def style() -> Iterator[None]:
    """Holds while a figure is drawn or saved; neither takes over nor changes settings of the caller."""
    with resources.as_file(resources.files("quantspike.figures").joinpath("paper.mplstyle")) as path:
        sheet = rc_params_from_file(path, use_default_template=False)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sheet)
        yield


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes `name`.png and `name`.svg into a folder; the same data gives the same bytes.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    for kind, metadata in _FORMATS.items():
        with style(), atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)


def new_figure(comparison: Comparison, width: float = 8.0, height: float = 5.4) -> Figure:
    """An empty figure, in inches, under the title of what is compared."""
    figure = Figure(figsize=(width, height), layout="constrained")
    # A data set may bear the name of a file of any length.
    words = [shorten_middle(word, _LONGEST_WORD) for word in comparison.title.split(" ")]
    title = fill(" ".join(words), int(_LETTERS_PER_INCH * width))
    if not comparison.spiking:
        title += "\n(only full precision was run: nothing to spike)"
    figure.suptitle(title, fontsize=14)
    return figure


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 3) -> None:
    """A legend of all panels, if there is anything to name, in so many columns or as many as the width has room for."""
    for fewer in range(columns if handles else 0, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=fewer)
        if fewer == 1 or legend.get_window_extent().width < figure.bbox.width:
            return
        legend.remove()


def shorten_middle(text: str, longest: int) -> str:
    """The text, without its middle where it is longer."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def set_step_axis(axes: Axes, last_step: int) -> None:
    """Logarithmic, so that the early steps, where everything happens, get their room; with plain numbers."""
    last = max(last_step, 2)
    round_steps = (digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5))
    # The last step is always labelled; a round number close before it would run into its label.
    ticks = [step for step in round_steps if step * 1.3 < last] + [last] if last_step > 1 else [1]
    axes.set_xscale("log")
    axes.set_xlim(1, last)
    axes.set_xticks(ticks, [str(step) for step in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("simulation step (logarithmic)")


def bar_axes(comparison: Comparison, bars: int, rows: int = 1, height: float = 5.4) -> tuple[Figure, list[Axes]]:
    """A figure as wide as its bars need; few bars stand in the middle and keep their width."""
    figure = new_figure(comparison, max(8.0, _INCHES_PER_BAR * bars + 1.5), height)
    panels: list[Axes] = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
    beside = max(0.0, (4 - bars) / 2)
    for axes in panels:
        axes.set_xlim(-0.6 - beside, bars - 0.4 + beside)
        axes.tick_params(axis="x", length=0)
        plain_numbers(axes.yaxis)
        axes.grid(axis="y")
    return figure, panels


def plain_numbers(axis: Axis) -> None:
    """Thousands separated, no powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def draw_spread(axes: Axes, place: float, height: float, deviation: float) -> None:
    """An error bar, if there is a deviation."""
    if deviation:
        axes.errorbar(place, height, deviation, fmt="none", ecolor="black", elinewidth=1.5, capsize=5, zorder=4)


def write_above(axes: Axes, place: float, height: float, text: str) -> None:
    """Text on white, since a line may pass behind it."""
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.annotate(
        text,
        (place, height),
        xytext=(0, 7),  # more than half a marker
        textcoords="offset points",
        ha="center",
        va="bottom",
        bbox=background,
        zorder=5,
        fontsize=12,
    )


def spread_named(series: Sequence[Series]) -> str | None:
    """What bands and error bars show, or `None` where nothing was repeated with another seed."""
    sizes = [len(one.runs) for one in series]
    fewest, most = min(sizes, default=0), max(sizes, default=0)
    counted = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"± 1 standard deviation (n = {counted})" if most > 1 else None


def error_bar_legend(series: Sequence[Series]) -> list[Line2D]:
    """A handle for error bars, if there are any."""
    named = spread_named(series)
    return [Line2D([], [], color="black", linestyle="", marker="|", markersize=14, label=named)] if named else []


def published_marker(axes: Axes, place: float, height: float) -> None:
    """A published figure on a bar, unless it is 0, for none; text above the bar must leave it room."""
    if height:
        axes.plot(place, height, "D", color="white", markeredgecolor="black", markersize=8, zorder=6)


def published_marker_legend() -> Line2D:
    """The handle of published figures beside bars."""
    return Line2D(
        [], [], linestyle="", marker="D", color="white", markeredgecolor="black", markersize=8, label=PUBLISHED
    )


def tint(color: str) -> str:
    """The colour mixed with twice as much white."""
    red, green, blue = to_rgb(color)
    return to_hex(((red + 2) / 3, (green + 2) / 3, (blue + 2) / 3))


def unit_of(largest: float) -> tuple[float, str]:
    """Unit in which the largest value has at least two digits before the point, and its name for an axis title."""
    for unit, name in _UNITS:
        if largest >= 10 * unit:
            return unit, f" ({name})"
    return 1.0, ""


def readable(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
