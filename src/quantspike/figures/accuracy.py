"""Figures of the results, in one style. The only module that knows matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from quantspike.files import atomic_path
from quantspike.palette import FULL_PRECISION, color_of
from quantspike.params import Precision
from quantspike.results import ChainResult, Snn

STYLE: Mapping[Any, Any] = MappingProxyType(
    {
        "savefig.dpi": 200,
        "font.family": "DejaVu Sans",
        "font.size": 13.0,
        # A dollar sign in a file name is a dollar sign.
        "text.parse_math": False,
        "axes.titlesize": 14.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "lines.linewidth": 2.0,
        "hatch.linewidth": 1.2,
        "legend.frameon": False,
        "legend.fontsize": 12.0,
        # Letters as outlines look the same everywhere; fixed ids make the same data give the same bytes.
        "svg.fonttype": "path",
        "svg.hashsalt": "quantspike",
    }
)
"""Settings of every figure, on top of matplotlib's defaults."""

_FORMATS: Mapping[str, dict[str, Any]] = MappingProxyType(
    # No date and no version of matplotlib: the same data gives the same bytes.
    {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
)

_UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
_BAR_WIDTH = 0.62
_INCHES_PER_BAR = 1.35

ADDITIONS_PER_MAC = 3
"""Additions that the publication charges for one multiply-accumulate."""


def accuracy_speed(results: Sequence[ChainResult]) -> Figure:
    """Accuracy over simulation steps, every k of one network: above the last few percent enlarged, below all of it.

    Lines are means over seeds, bands one standard deviation (ddof 1).
    """
    groups = _by_precision(results)
    with _style():
        figure = Figure(figsize=(8.0, 7.0), layout="constrained")
        figure.suptitle(_title(results), fontsize=14)
        enlarged, whole = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
        for axes in (enlarged, whole):
            for k, group in groups.items():
                _draw_accuracy(axes, k, group)
        last = max((_snn(result).steps for result in _spiking(results)), default=results[0].settings.simulate.steps)
        _set_step_axis(whole, last)
        _set_accuracy_axes(enlarged, whole, groups)
        figure.legend(handles=_accuracy_legend(groups), loc="outside lower center", ncols=3)
    return figure


def sparsity(results: Sequence[ChainResult]) -> Figure:
    """Positive and negative spikes per image, every k of one network, beside its number of neurons."""
    groups = _by_precision(_spiking(results))
    neurons = results[0].ann.neurons
    with _style():
        figure, axes = _bar_figure(results, len(groups))
        unit, word = _unit(max([neurons, *(mean(_spike_totals(group)) for group in groups.values())]))
        tops = [_draw_spikes(axes, place, k, group, unit) for place, (k, group) in enumerate(groups.items())]
        axes.axhline(neurons / unit, color=FULL_PRECISION, linestyle="--", linewidth=1.5, zorder=3)
        for place, (top, group) in enumerate(zip(tops, groups.values(), strict=True)):
            ratio = mean(_spike_totals(group)) / neurons
            _write_above(axes, place, top, f"{ratio:.2f} spikes\nper neuron")
        axes.set_xticks(range(len(groups)), [_named(k) for k in groups])
        axes.set_ylim(0, 1.2 * max([neurons / unit, *tops]))
        axes.set_ylabel(f"spikes per image{word}")
        handles = _sparsity_legend(neurons, groups)
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) == 4 else 3)
    return figure


def sops(results: Sequence[ChainResult]) -> Figure:
    """Synaptic operations per image, every k of one network, beside the operations of the network before conversion."""
    groups = _by_precision(_spiking(results))
    macs = results[0].ann.macs
    bars = [(f"SNN, {_named(k)}:\nsynaptic\noperations", _synops(group), color_of(k)) for k, group in groups.items()]
    bars.append(("ANN:\nmultiply-\naccumulates", [macs], FULL_PRECISION))
    bars.append((f"ANN:\nadditions\n({ADDITIONS_PER_MAC} per MAC)", [ADDITIONS_PER_MAC * macs], FULL_PRECISION))
    with _style():
        figure, axes = _bar_figure(results, len(bars))
        unit, word = _unit(max(mean(values) for _, values, _ in bars))
        for place, (_, values, color) in enumerate(bars):
            height, spread = mean(values) / unit, _spread(values) / unit
            axes.bar(place, height, _BAR_WIDTH, color=color)
            _draw_spread(axes, place, height, spread)
            _write_above(axes, place, height + spread, _readable(height))
        axes.set_xticks(range(len(bars)), [name for name, _, _ in bars])
        axes.margins(y=0.12)
        axes.set_ylabel(f"operations per image{word}")
        if handles := _error_bar_legend(groups):
            figure.legend(handles=handles, loc="outside lower center")
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes `name`.png and `name`.svg into a folder; the same data gives the same bytes.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    for kind, metadata in _FORMATS.items():
        with _style(), atomic_path(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)


@contextmanager
def _style() -> Iterator[None]:
    """Holds while a figure is drawn or saved; neither takes over nor changes settings of the caller."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _spiking(results: Sequence[ChainResult]) -> list[ChainResult]:
    return [result for result in results if result.snn is not None]


def _snn(result: ChainResult) -> Snn:
    assert result.snn is not None, f"{result.chain.key} has no spiking network"
    return result.snn


def _by_precision(results: Sequence[ChainResult]) -> dict[Precision, list[ChainResult]]:
    """The seeds of each k together, in the order of the grid."""
    groups: dict[Precision, list[ChainResult]] = {}
    for result in results:
        groups.setdefault(result.chain.k, []).append(result)
    return groups


def _title(results: Sequence[ChainResult]) -> str:
    names = dict.fromkeys(f"{result.ann.data.name}, {result.ann.images:,} test images" for result in results)
    # A data set may bear the name of a file of any length.
    title = fill(f"{results[0].chain.model} on {' and '.join(names)}", 64)
    return title if _spiking(results) else f"{title}\n(only full precision was run: nothing to spike)"


def _named(k: Precision) -> str:
    return "full-precision ANN" if k == "fp32" else f"k = {k}"


def _spread_named(groups: Mapping[Precision, Sequence[ChainResult]]) -> str | None:
    """What bands and error bars show, or `None` where nothing was repeated with another seed."""
    fewest, most = min(map(len, groups.values()), default=0), max(map(len, groups.values()), default=0)
    counted = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"± 1 standard deviation (n = {counted})" if most > 1 else None


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (ddof 1); of a single one there is none."""
    return stdev(values) if len(values) > 1 else 0.0


def _draw_accuracy(axes: Axes, k: Precision, group: Sequence[ChainResult]) -> None:
    """The ANN's accuracy as a level, and, for a spiking network, its curve with a dot at the stable step."""
    color = color_of(k)
    ann = 100 * mean(result.ann.accuracy for result in group)
    if k == "fp32":
        spread = 100 * _spread([result.ann.accuracy for result in group])
        axes.axhline(ann, color=color, linestyle="--", linewidth=1.8)
        if spread:
            axes.axhspan(ann - spread, ann + spread, color=color, alpha=0.12, linewidth=0)
        return
    axes.axhline(ann, color=color, linestyle=":", linewidth=1.3)
    steps = pd.concat([result.steps for result in group if result.steps is not None])
    curve = 100 * steps.groupby("step")["accuracy"].agg(["mean", "std"])
    axes.plot(curve.index, curve["mean"], color=color)
    if len(group) > 1:
        low, high = curve["mean"] - curve["std"], curve["mean"] + curve["std"]
        axes.fill_between(curve.index, low, high, color=color, alpha=0.2, linewidth=0)
    # The mean over seeds is stable once the last of them is.
    stable = max(_snn(result).stable_step for result in group)
    final = 100 * mean(_snn(result).accuracy for result in group)
    # Not clipped, since that may be the very last step, on the edge.
    axes.plot(stable, final, "o", color=color, markeredgecolor="white", markersize=9, clip_on=False, zorder=4)


def _set_step_axis(axes: Axes, steps: int) -> None:
    """Logarithmic, so that the early steps, where everything happens, get their room; with plain numbers."""
    last = max(steps, 2)
    round_steps = (digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5))
    # The last step is always labelled; a round number close before it would run into its label.
    ticks = [step for step in round_steps if step * 1.3 < last] + [last]
    axes.set_xscale("log")
    axes.set_xlim(1, last)
    axes.set_xticks(ticks, [str(step) for step in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("simulation step (logarithmic)")


def _set_accuracy_axes(enlarged: Axes, whole: Axes, groups: Mapping[Precision, Sequence[ChainResult]]) -> None:
    levels = [100 * result.ann.accuracy for group in groups.values() for result in group]
    levels += [100 * snn.accuracy for group in groups.values() for r in group if (snn := r.snn) is not None]
    # Room below for the last part of the climb; at least half a percent, were all levels the same.
    room = max(max(levels) - min(levels), 0.5)
    low, high = max(min(levels) - 2.0 * room, 0.0), min(max(levels) + 0.5 * room, 100 + 0.1 * room)
    enlarged.set_ylim(low, high)
    enlarged.yaxis.set_major_locator(MaxNLocator(5))
    whole.set_ylim(0, 102)
    for axes in (enlarged, whole):
        axes.grid(axis="y")
        axes.set_ylabel("accuracy (%)")
    enlarged.set_title("the top of the lower panel, enlarged", loc="left", fontsize=12)


def _accuracy_legend(groups: Mapping[Precision, Sequence[ChainResult]]) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = []
    for k in groups:
        handles.append(Line2D([], [], color=color_of(k), linestyle="--" if k == "fp32" else "-", label=_named(k)))
    if any(k != "fp32" for k in groups):
        handles.append(Line2D([], [], color="gray", linestyle=":", linewidth=1.3, label="ANN of the same k"))
        handles.append(
            Line2D([], [], color="gray", linestyle="", marker="o", markersize=9, label="stable from here on")
        )
    if spread := _spread_named(groups):
        handles.append(Patch(color="gray", alpha=0.2, linewidth=0, label=spread))
    return handles


def _bar_figure(results: Sequence[ChainResult], bars: int) -> tuple[Figure, Axes]:
    """A figure as wide as its bars need; few bars stand in the middle and keep their width."""
    figure = Figure(figsize=(max(8.0, _INCHES_PER_BAR * bars + 1.5), 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_title(results), pad=14)
    beside = max(0.0, (4 - bars) / 2)
    axes.set_xlim(-0.6 - beside, bars - 0.4 + beside)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y")
    return figure, axes


def _synops(group: Sequence[ChainResult]) -> list[float]:
    return [_snn(result).synops for result in group]


def _spike_totals(group: Sequence[ChainResult]) -> list[float]:
    return [_snn(result).positive_spikes + _snn(result).negative_spikes for result in group]


def _draw_spikes(axes: Axes, place: int, k: Precision, group: Sequence[ChainResult], unit: float) -> float:
    """Stacks negative on positive spikes; gives the height where text may begin, in units of the axis."""
    color = color_of(k)
    positive = mean(_snn(result).positive_spikes for result in group) / unit
    negative = mean(_snn(result).negative_spikes for result in group) / unit
    axes.bar(place, positive, _BAR_WIDTH, color=color, edgecolor=color)
    axes.bar(place, negative, _BAR_WIDTH, bottom=positive, color=_tint(color), edgecolor=color, hatch="//")
    spread = _spread(_spike_totals(group)) / unit
    _draw_spread(axes, place, positive + negative, spread)
    return positive + negative + spread


def _sparsity_legend(neurons: int, groups: Mapping[Precision, Sequence[ChainResult]]) -> list[Line2D | Patch]:
    gray = "#777777"
    return [
        Patch(facecolor=gray, edgecolor=gray, label="positive spikes"),
        Patch(facecolor=_tint(gray), edgecolor=gray, hatch="//", label="negative spikes"),
        Line2D([], [], color=FULL_PRECISION, linestyle="--", linewidth=1.5, label=f"{neurons:,} neurons"),
        *_error_bar_legend(groups),
    ]


def _error_bar_legend(groups: Mapping[Precision, Sequence[ChainResult]]) -> list[Line2D]:
    spread = _spread_named(groups)
    return [Line2D([], [], color="black", linestyle="", marker="|", markersize=14, label=spread)] if spread else []


def _draw_spread(axes: Axes, place: int, height: float, spread: float) -> None:
    if spread:
        axes.errorbar(place, height, spread, fmt="none", ecolor="black", elinewidth=1.5, capsize=5, zorder=4)


def _write_above(axes: Axes, place: int, height: float, text: str) -> None:
    """Text on white, since a line may pass behind it."""
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.annotate(
        text,
        (place, height),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        bbox=background,
        zorder=5,
        fontsize=12,
    )


def _tint(color: str) -> str:
    """The colour mixed with twice as much white."""
    red, green, blue = to_rgb(color)
    return to_hex(((red + 2) / 3, (green + 2) / 3, (blue + 2) / 3))


def _unit(largest: float) -> tuple[float, str]:
    """Unit in which the largest value has at least two digits before the point, and its name for an axis title."""
    for unit, name in _UNITS:
        if largest >= 10 * unit:
            return unit, f" ({name})"
    return 1.0, ""


def _readable(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
