"""Made-up networks to draw, and what their figures hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.table import Table
from matplotlib.text import Text

from make_results import ENERGY, data_set, make_params, make_run
from quantspike.params import Energy
from quantspike.paths import grid_runs
from quantspike.reporting.figures import FIGURES
from quantspike.reporting.figures.comparison import Comparison, compare_results
from quantspike.reporting.results import RunResult, SpikingResult, read_all, spiking_results

PRICES = Energy(**ENERGY)

DIGITS: dict[str, Any] = {
    "images": data_set("digits"),
    "data": {"source": "digits", "crop": 8, "held_out": 0},
    "width": 0.25,
}
"""CNN 1 as the demo has it, without published figures: 9,792 neurons."""

SHORT: dict[str, Any] = {
    "baseline": [{"epochs": 6, "learning_rate": 1e-3}, {"epochs": 2, "learning_rate": 1e-4}],
    "train": {"start": "scratch", "epochs": 6, "learning_rate": 1e-3, "activation_penalty": 0},
    "finetune": {"epochs": 2, "learning_rate": 1e-4, "integer_aware": False},
}
"""A training of few epochs."""

FROM_BASELINE: dict[str, Any] = {
    "baseline": [{"epochs": 3, "learning_rate": 1e-3}, {"epochs": 1, "learning_rate": 1e-4}],
    "train": {"start": "baseline", "epochs": 2, "learning_rate": 1e-3, "activation_penalty": 0},
    "finetune": {"epochs": 1, "learning_rate": 1e-4, "integer_aware": True},
}
"""A training in which every k starts from the baseline."""

LONG_NAME = "IMAGES_" + "OF_A_LONG_NAME_" * 4 + ".tar.gz"

CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "seeds of digits": {"k": (0, 2), "seed": (0, 1, 2), **DIGITS, **SHORT},
    "delays": {"k": (0, 1), "simulate__layer_delay": [0, 1, 2, 4]},
    "many k": {"k": range(8), "seed": (0, 1, 2), "images": data_set(name=LONG_NAME)},
    "one k": {"k": (1,), "simulate__steps": 30, **DIGITS},
    "delays of seeds": {"seed": (0, 1), "simulate__layer_delay": [1, 0, 2, 3, 4, 8], **DIGITS},
    "from baseline": {"k": (0, 1), **DIGITS, **FROM_BASELINE},
    "one step": {"k": (0, 1), "simulate__steps": 1, **DIGITS},
    "seven steps of few layers": {"k": (3, 0), "simulate__steps": 7, "layers": "8C3-P2-16", **DIGITS, **SHORT},
}
"""Grids that a figure must have room for."""


def make_results(
    root: Path,
    k: Sequence[int] = (0, 1, 2),
    seed: Sequence[int] = (0,),
    images: dict[str, Any] | None = None,
    layers: str | None = None,
    **profile: Any,
) -> list[RunResult]:
    """Return results of CNN 1, or of a network of other layers; `profile` changes the published protocol."""
    runs = grid_runs(make_params(k=k, seed=seed, **profile), root)
    if layers is not None:
        runs = [replace(run, layers=layers) for run in runs]
    for run in runs:
        make_run(run, images)
    return read_all(runs)


def compare(results: Sequence[RunResult]) -> Comparison:
    """Return the comparison of results at the default prices."""
    return compare_results(results, PRICES)


@cache
def results_of(case: str) -> list[RunResult]:
    """Return the results of one of the cases; their files are gone."""
    with TemporaryDirectory() as folder:
        return make_results(Path(folder), **CASES[case])


def spiking_of(case: str, k: int) -> list[SpikingResult]:
    """Return the results of one k, one per seed."""
    return [result for result in spiking_results(results_of(case)) if result.run.k == k]


def without_spikes(result: RunResult) -> RunResult:
    """Return the same result of a network that never spikes."""
    if not isinstance(result, SpikingResult):
        return result
    zeros = dict.fromkeys(("positive_spikes", "negative_spikes", "net_spikes", "synops"), 0.0)
    none = {"least_synops": 0.0, "largest_counts": [0] * len(result.architecture.layers)}
    return replace(
        result,
        simulation=result.simulation.model_copy(update=zeros | none),
        **{name: getattr(result, name).assign(**zeros) for name in ("steps", "layers", "delays")},
    )


@cache
def comparison_of(case: str) -> Comparison:
    """Return what a figure of one of the cases shows."""
    return compare(results_of(case))


@cache
def figure_of(name: str, case: str) -> Figure:
    """Return a figure of one of the cases, drawn once: tests only look at it."""
    return FIGURES[name](comparison_of(case))


def lines_of(axes: Axes, **wanted: Any) -> list[Any]:
    """Return lines with these properties, such as marker="o"."""
    return [
        line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
    ]


def line_of(axes: Axes, color: str) -> Any:
    """Return the curve of a precision: the one thick solid line in its colour."""
    (line,) = [one for one in lines_of(axes, linestyle="-", linewidth=2.0) if to_hex(one.get_color()) == color]
    return line


def points_of(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def band_of(axes: Axes, color: str) -> dict[float, tuple[float, float]]:
    """Return lowest and highest value of the one band in a colour, at each place."""
    (band,) = [one for one in axes.collections if to_hex(one.get_facecolor()[0]) == color]
    heights: dict[float, list[float]] = {}
    for x, y in band.get_paths()[0].vertices:
        heights.setdefault(float(x), []).append(float(y))
    return {x: (min(found), max(found)) for x, found in heights.items()}


def bars_of(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def error_bars_of(axes: Axes) -> list[tuple[float, float, float]]:
    """Return place, low and high end of each error bar."""
    found = []
    for container in axes.containers:
        if (bars := getattr(container, "has_yerr", False)) and bars:
            ((low, high),) = container.lines[2][0].get_segments()
            found.append((float(low[0]), float(low[1]), float(high[1])))
    return found


def legends_of(figure: Figure) -> list[Legend]:
    return [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()) is not None)]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in legends_of(figure) for text in legend.get_texts()]


def written_in(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def table_of(axes: Axes) -> list[list[str]]:
    """Return the text of a table, row by row."""
    (table,) = [child for child in axes.get_children() if isinstance(child, Table)]
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    rows, columns = (1 + max(numbers) for numbers in zip(*cells, strict=True))
    return [[cells[row, column] for column in range(columns)] for row in range(rows)]


def tick_labels_of(axes: Axes) -> list[str]:
    low, high = axes.get_xlim()
    return [label.get_text() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]


def texts_of(figure: Figure) -> Iterator[Text]:
    """Yield every text that is drawn; matplotlib also keeps labels for ticks beyond the limits of an axis."""
    yield from figure.texts
    yield from (text for legend in legends_of(figure) for text in legend.get_texts())
    for axes in figure.axes:
        yield from (child for child in axes.get_children() if isinstance(child, Text))
        tables = [child for child in axes.get_children() if isinstance(child, Table)]
        yield from (cell.get_text() for table in tables for cell in table.get_celld().values())
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            if axes.axison:
                low, high = sorted(limits)
                yield axis.label
                shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                yield from (tick.label1 for tick in shown if tick.label1.get_visible())
