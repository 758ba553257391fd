"""Networks to draw, made up by formula, and what is found in the figures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from make_results import data_set, make_chain, make_made_with, make_params, make_pretraining
from quantspike.figures import FIGURES, Comparison, compare_results
from quantspike.params import Energy, Model, Params, Precision
from quantspike.paths import chains
from quantspike.results import ChainResult, read_all

DIGITS: dict[str, Any] = {"images": data_set("digits"), "data": {"source": "digits", "crop": 8}, "width": 0.25}
"""CNN 1 as the demo has it, of which nothing was published: 9,472 neurons."""

SHORT: dict[str, Any] = {
    "pretrain": {"epochs": 0},
    "train": {"epochs": 6, "learning_rate": 1e-3, "batch_size": 200},
    "finetune": {"epochs": 2, "learning_rate": 1e-4},
}
"""A training of few epochs."""

PRETRAINED: dict[str, Any] = {
    "pretrain": {"epochs": 4},
    "train": {"epochs": 2, "learning_rate": 1e-3, "batch_size": 200},
    "finetune": {"epochs": 1, "learning_rate": 1e-4},
}
"""A training of which every k shares the first epochs."""

LONG_NAME = "IMAGES_" + "OF_A_LONG_NAME_" * 4 + ".tar.gz"

CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "seeds": {"seed": (0, 1, 2), "images": data_set("images", name=LONG_NAME)},
    "seeds of digits": {"k": ("fp32", 0, 2), "seed": (0, 1, 2), **DIGITS, **SHORT},
    "many k": {"k": ("fp32", *range(8)), "seed": (0, 1, 2)},
    "one k": {"k": (1,), "steps": 30, **DIGITS},
    "fp32": {"k": ("fp32",)},
    "pretrained": {"k": ("fp32", 1), **DIGITS, **PRETRAINED},
    "one step": {"k": (0, 1), "steps": 1, **DIGITS},
    "seven steps of few layers": {"k": ("fp32", 3, 0), "steps": 7, "layers": "8C3-P2-16", **DIGITS, **SHORT},
}
"""Grids that a figure must have room for."""


def make_project(
    root: Path,
    k: Sequence[Precision] = ("fp32", 0, 1, 2),
    seed: Sequence[int] = (0,),
    images: dict[str, Any] | None = None,
    steps: int = 100,
    layers: str | None = None,
    **profile: Any,
) -> Params:
    """Result files of CNN 1, or of a network of other layers; `profile` changes the published protocol."""
    params = make_params(k=k, seed=seed, steps=steps, **profile)
    if layers is not None:
        params = params.model_copy(update={"models": {"cnn1": Model(layers=layers)}})
    settings = params.profiles["paper"]
    epochs = (settings.train.epochs, settings.finetune.epochs)
    made_with = make_made_with() | {"settings": settings.training_settings}
    for chain in chains(params, root):
        make_chain(chain, images, steps, epochs, made_with, params.architecture(chain.profile, chain.model))
        if settings.pretrain.epochs:
            make_pretraining(chain, settings.pretrain.epochs)
    return params


def make_results(root: Path, **grid: Any) -> list[ChainResult]:
    """The same, read back."""
    params = make_project(root, **grid)
    return read_all(chains(params, root), params)


def compare(results: Sequence[ChainResult]) -> Comparison:
    """At the default prices."""
    return compare_results(results, Energy())


@cache
def results_of(case: str) -> list[ChainResult]:
    """Results of one of the cases; their files are gone."""
    with TemporaryDirectory() as folder:
        return make_results(Path(folder), **CASES[case])


@cache
def comparison_of(case: str) -> Comparison:
    """What a figure of one of the cases shows."""
    return compare(results_of(case))


@cache
def figure_of(name: str, case: str) -> Figure:
    """A figure of one of the cases, drawn once: tests only look at it."""
    return FIGURES[name](comparison_of(case))


def lines_of(axes: Axes, **wanted: Any) -> list[Any]:
    """Lines with these properties, such as marker="o"."""
    return [
        line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
    ]


def line_of(axes: Axes, color: str) -> Any:
    """The curve of a precision: the one thick solid line in its colour."""
    (line,) = [one for one in lines_of(axes, linestyle="-", linewidth=2.0) if to_hex(one.get_color()) == color]
    return line


def points_of(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def band_of(axes: Axes, color: str) -> dict[float, tuple[float, float]]:
    """Lowest and highest value of the one band in a colour, at each place."""
    (band,) = [one for one in axes.collections if to_hex(one.get_facecolor()[0]) == color]
    heights: dict[float, list[float]] = {}
    for x, y in band.get_paths()[0].vertices:
        heights.setdefault(float(x), []).append(float(y))
    return {x: (min(found), max(found)) for x, found in heights.items()}


def bars_of(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def error_bars_of(axes: Axes) -> list[tuple[float, float, float]]:
    """Place, low and high end of each error bar."""
    found = []
    for container in axes.containers:
        if (bars := getattr(container, "has_yerr", False)) and bars:
            ((low, high),) = container.lines[2][0].get_segments()
            found.append((float(low[0]), float(low[1]), float(high[1])))
    return found


def legend_of(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


def written_in(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def tick_labels_of(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def texts_of(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn; matplotlib also keeps labels for ticks beyond the limits of an axis."""
    yield from figure.texts
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is not None:
            yield from legend.get_texts()
    for axes in figure.axes:
        yield from (child for child in axes.get_children() if isinstance(child, Text))
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            if axes.axison:
                low, high = sorted(limits)
                yield axis.label
                shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                yield from (tick.label1 for tick in shown if tick.label1.get_visible())
