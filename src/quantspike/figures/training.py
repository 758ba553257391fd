"""The course of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from quantspike.figures.accuracy import series_legend
from quantspike.figures.comparison import Comparison, Series
from quantspike.figures.style import legend_below, new_figure, plain_numbers, spread_named, style

_LINES: dict[str, Literal["-.", ":"]] = {"pretrain": "-.", "train": ":"}
"""How the end of each phase that another one follows is drawn."""

_SHARED = "black"

_FOLLOWS = {"pretrain": "each k on its own", "train": "fine-tuning begins"}


def training(comparison: Comparison) -> Figure:
    """Loss and accuracy over the epochs of all phases, every k of one network; means over seeds, with bands."""
    with style():
        figure = new_figure(comparison, height=7.0)
        upper, lower = figure.subplots(2, 1, sharex=True)
        tables = [_over_seeds(series) for series in comparison.series]
        ends = _last_epochs(comparison)
        drawn = list(zip(comparison.series, tables, strict=True))
        if shared := ends.get("pretrain", 0):
            own = [(series, table.loc[shared + 1 :]) for series, table in drawn]
            drawn = [(replace(comparison.series[0], k=None, color=_SHARED, style="-"), tables[0].loc[:shared]), *own]
        for series, table in drawn:
            _draw(upper, series, table, "loss", 1.0)
            _draw(lower, series, table, "test_accuracy", 100.0)
            lower.plot(table.index, 100 * table["train_accuracy", "mean"], color=series.color, linewidth=0.9, alpha=0.8)
        for axes in (upper, lower):
            for phase, last in ends.items():
                axes.axvline(last + 0.5, color="gray", linestyle=_LINES[phase], linewidth=1.3)
            axes.grid(axis="y")
        _set_loss_axis(upper, tables)
        upper.set_ylabel("training loss")
        lower.set_ylabel("accuracy (%)")
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        lower.set_xlim(0.5, max(table.index.max() for table in tables) + 0.5)
        legend_below(figure, _legend(comparison))
    return figure


def _over_seeds(series: Series) -> pd.DataFrame:
    """Mean and standard deviation of every measure by epoch."""
    tables = [run.training for run in series.runs if run.training is not None]
    measures = ["loss", "train_accuracy", "test_accuracy"]
    return pd.concat(tables).groupby("epoch")[measures].agg(["mean", "std"])


def _draw(axes: Axes, series: Series, table: pd.DataFrame, measure: str, scale: float) -> None:
    middle, deviation = scale * table[measure, "mean"], scale * table[measure, "std"]
    # A short training is a few points, which a line alone would not show as such.
    marker = "o" if len(table) <= 20 else ""
    axes.plot(
        table.index,
        middle,
        color=series.color,
        linestyle="--" if series.k == "fp32" else series.style,
        marker=marker,
        markersize=5,
    )
    if len(series.runs) > 1:
        axes.fill_between(
            table.index, middle - deviation, middle + deviation, color=series.color, alpha=0.2, linewidth=0
        )


def _set_loss_axis(axes: Axes, tables: Sequence[pd.DataFrame]) -> None:
    """Logarithmic with plain numbers, if the losses span a decade."""
    losses = pd.concat([table["loss", "mean"] for table in tables])
    if losses.min() * 10 > losses.max() or losses.min() <= 0:
        return
    low, high = losses.min() / 1.2, losses.max() * 1.2
    digits = [digit * 10.0**power for power in range(-9, 6) for digit in (1, 2, 5)]
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in digits if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    plain_numbers(axes.yaxis)


def _last_epochs(comparison: Comparison) -> dict[str, int]:
    """The last epoch of each phase that another one follows."""
    table = comparison.series[0].runs[0].training
    assert table is not None
    last = table.groupby("phase")["epoch"].max()
    return {phase: int(last[phase]) for phase in _LINES if phase in last}


def _legend(comparison: Comparison) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [series_legend(series) for series in comparison.series]
    if "pretrain" in (ends := _last_epochs(comparison)):
        handles.append(Line2D([], [], color=_SHARED, linewidth=2.0, label="all k, in full precision"))
    handles.append(Line2D([], [], color="gray", linestyle="-", linewidth=2.0, label="test images"))
    handles.append(Line2D([], [], color="gray", linewidth=0.9, alpha=0.8, label="training images, augmented"))
    for phase in ends:
        handles.append(Line2D([], [], color="gray", linestyle=_LINES[phase], linewidth=1.3, label=_FOLLOWS[phase]))
    if named := spread_named(comparison.series):
        handles.append(Patch(color="gray", alpha=0.2, linewidth=0, label=named))
    return handles
