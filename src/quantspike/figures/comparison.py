"""What a figure shows: the runs of one network, each k with its seeds, whether from results or from others' logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Literal

import pandas as pd

from quantspike.architecture import Architecture
from quantspike.logs import Logs
from quantspike.palette import color_of, spare_color
from quantspike.params import Energy, Precision
from quantspike.published import LAYERS, Published, published, published_curve
from quantspike.results import ChainResult

LineStyle = Literal["-", "--", "-.", ":"]

LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
"""For logs of different origin with the same k."""


@dataclass(frozen=True, eq=False)
class Run:
    """One network with one seed; `None` where it is not known, or where there are no spikes.

    Attributes:
        k: precision of the activations.
        origin: what tells logs of the same k apart; empty for results.
        ann_accuracy: of the network before conversion, 0 to 1.
        steps: one row per step: accuracy, and per image and cumulative positive_spikes, negative_spikes, synops;
            for results also `settled`, the share of images at rest.
        stable_step: first step from which the accuracy no longer changes.
        layers: the same per layer, counted from 1.
        training: one row per epoch, as in `ChainResult`.
        weights: of the network.
        weight_bits: width of the integer weights.
        largest_counts: largest net count of any neuron, by layer.
    """

    k: Precision | None
    origin: str = ""
    ann_accuracy: float | None = None
    steps: pd.DataFrame | None = None
    stable_step: int | None = None
    layers: pd.DataFrame | None = None
    training: pd.DataFrame | None = None
    weights: int = 0
    weight_bits: int = 0
    largest_counts: Sequence[int] = ()


@dataclass(frozen=True, eq=False)
class Series:
    """The seeds of one k, which are drawn as one.

    Attributes:
        k: precision of the activations.
        name: for legends and axes.
        color: the same for the same k everywhere.
        style: of lines, as matplotlib has it.
        runs: one per seed.
        published: published figures beside it.
        published_curve: published course of the simulation.
    """

    k: Precision | None
    name: str
    color: str
    style: LineStyle
    runs: list[Run]
    published: Published | None = None
    published_curve: pd.DataFrame | None = None

    @property
    def spiking(self) -> bool:
        """Whether there is a simulation to show."""
        return all(run.steps is not None for run in self.runs)

    @property
    def steps(self) -> list[pd.DataFrame]:
        """The simulations of all seeds."""
        return [run.steps for run in self.runs if run.steps is not None]

    @property
    def ann_accuracies(self) -> list[float]:
        """Of the networks before conversion, as far as they are known."""
        return [run.ann_accuracy for run in self.runs if run.ann_accuracy is not None]

    def finals(self, *names: str) -> list[float]:
        """The sum of these columns after the last step, one value per seed."""
        return [float(sum(steps[name].iloc[-1] for name in names)) for steps in self.steps]

    def curve(self, name: str) -> pd.DataFrame:
        """Mean and standard deviation (ddof 1) of a column over the seeds, by step."""
        return pd.concat(self.steps).groupby("step")[name].agg(["mean", "std"])


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is drawn together: all k of one network.

    Attributes:
        title: network and images.
        series: one per k, in the order of the grid.
        last_step: length of the step axis.
        architecture: layers of the network.
        prices: of operations, for estimates of energy.
    """

    title: str
    series: list[Series]
    last_step: int
    architecture: Architecture | None = None
    prices: Energy = field(default_factory=Energy)

    @property
    def spiking(self) -> list[Series]:
        """Those with a simulation."""
        return [one for one in self.series if one.spiking]

    @property
    def has_published(self) -> bool:
        """Whether published curves stand beside any of them."""
        return any(one.published_curve is not None for one in self.series)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (ddof 1); of a single one there is none."""
    return stdev(values) if len(values) > 1 else 0.0


def compare_results(results: Sequence[ChainResult], prices: Energy) -> Comparison:
    """Results of one network.

    Args:
        results: of one profile and model, at least one.
        prices: of operations, for estimates of energy.
    """
    first = results[0]
    names = dict.fromkeys(f"{result.ann.data.name}, {result.ann.images:,} test images" for result in results)
    runs: dict[Precision, list[Run]] = {}
    for result in results:
        runs.setdefault(result.chain.k, []).append(_run_of_result(result))
    beside = {result.chain.k: result.published for result in results}
    series = [
        Series(
            k,
            "full-precision ANN" if k == "fp32" else f"k = {k}",
            color_of(k),
            LINE_STYLES[0],
            group,
            beside[k],
            None if beside[k] is None else published_curve(first.chain.model, k),
        )
        for k, group in runs.items()
    ]
    last = max((result.snn.steps for result in results if result.snn), default=first.settings.simulate.steps)
    return Comparison(f"{first.chain.model} on {' and '.join(names)}", series, last, first.architecture, prices)


def compare_logs(logs: Sequence[tuple[Logs, int | None, str]], model: str | None = None) -> Comparison:
    """Logs in the published format.

    Args:
        logs: at least one, each with its k, if that is known, and its origin, which tells those of the same k apart.
        model: `cnn1` or `cnn2`: the published network that the logs belong to, whose published curves are then
            drawn beside.
    """
    series: list[Series] = []
    for found, k, origin in logs:
        unknown = sum(one.k is None for one in series)
        same = sum(one.k == k for one in series)
        run = Run(k, origin, steps=found.curve(), stable_step=found.stable_step)
        name = ", ".join(part for part in (None if k is None else f"k = {k}", origin) if part)
        # Greys for what has no k: every colour of the palette stands for one.
        color = spare_color(unknown) if k is None else color_of(k)
        style = LINE_STYLES[(unknown if k is None else same) % len(LINE_STYLES)]
        beside = None if model is None or k is None else published(model, k)
        curve = None if model is None or k is None else published_curve(model, k)
        series.append(Series(k, name, color, style, [run], beside, curve))
    title = f"{model or 'logs'}, {logs[0][0].images:,} test images"
    architecture = None if model is None else Architecture.parse(LAYERS[model], image_size=24)
    return Comparison(title, series, max(found.steps for found, _, _ in logs), architecture)


def _run_of_result(result: ChainResult) -> Run:
    snn, conversion = result.snn, result.conversion
    return Run(
        k=result.chain.k,
        ann_accuracy=result.ann.accuracy,
        steps=result.steps,
        stable_step=None if snn is None else snn.stable_step,
        layers=result.layers,
        training=result.training,
        weights=result.ann.weights,
        weight_bits=0 if conversion is None else conversion.weight_bits,
        largest_counts=() if snn is None else snn.largest_counts,
    )
