"""What a figure shows: one network at every k, each k with its seeds, from results or from logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Literal

import pandas as pd

from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.params import Energy
from quantspike.reporting.logs import Logs
from quantspike.reporting.palette import color_of, spare_color
from quantspike.reporting.published import CROP, LAYERS, PUBLISHED, Published, published_curve
from quantspike.reporting.results import RunResult, SpikingResult, spiking_results

LineStyle = Literal["-", "--", "-.", ":"]

_LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
"""For logs of the same k."""


@dataclass(frozen=True, eq=False)
class Series:
    """One k with all its seeds, or one folder of logs: one line or one bar.

    Attributes:
        name: for legends and axes.
        color: the same for the same k in every figure.
        style: line style.
        steps: for each seed, one row per step: accuracy and, cumulative per image, positive_spikes, negative_spikes
            and synops; for results also `settled`, the share of settled images.
        stable_step: first step from which the accuracy no longer changes, for any seed; None if an image of any seed
            is not settled after the last step.
        results: for each seed, its result; empty for logs.
        published: the published figures of the same network and k.
    """

    name: str
    color: str
    style: LineStyle
    steps: Sequence[pd.DataFrame]
    stable_step: int | None
    results: Sequence[SpikingResult] = ()
    published: Published | None = None

    @property
    def published_curve(self) -> pd.DataFrame | None:
        """Published accuracy and counts by step."""
        return None if self.published is None else published_curve(self.published.model, self.published.k)

    def finals(self, column: str) -> list[float]:
        """Return a column's values after the last step, one per seed."""
        return [float(steps[column].iloc[-1]) for steps in self.steps]

    def curve(self, column: str) -> pd.DataFrame:
        """Return mean and standard deviation of a column by step."""
        return over_seeds(self.steps, "step", column)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that is drawn in one figure.

    Attributes:
        title: network and images.
        series: one per k, in the order of the grid, or one per folder of logs.
        baseline: for each seed, the result of the full-precision network; empty for logs.
        published: the published full-precision network, where published figures apply.
        architecture: layers of the network, if they are known.
        prices: of operations, for estimates of energy.
    """

    title: str
    series: Sequence[Series]
    baseline: Sequence[RunResult] = ()
    published: Published | None = None
    architecture: Architecture | None = None
    prices: Energy | None = None


def accuracies(results: Sequence[RunResult]) -> list[float]:
    """Return the accuracies of the trained networks, 0 to 1."""
    return [result.evaluation.accuracy for result in results]


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds (ddof 1), 0 for a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def over_seeds(tables: Sequence[pd.DataFrame], by: str, column: str) -> pd.DataFrame:
    """Return columns `mean` and `std` (ddof 1, NaN for a single seed) of a column, by step or epoch."""
    return pd.concat(tables).groupby(by)[column].agg(["mean", "std"])


def compare_results(results: Sequence[RunResult], prices: Energy) -> Comparison:
    """Collect the results of one network.

    Args:
        results: baselines and spiking results of one profile and model.
        prices: of operations, for estimates of energy.

    Raises:
        QuantspikeError: there is no baseline, or no spiking result.
    """
    spiking = spiking_results(results)
    baseline = [result for result in results if result.run.k == "fp32"]
    if not spiking or not baseline:
        raise QuantspikeError("figures need the baseline and at least one k: only one of them has results")
    evaluation = baseline[0].evaluation
    precisions = dict.fromkeys(result.conversion.k for result in spiking)
    delay = spiking[0].simulation.layer_delay
    return Comparison(
        title=f"{baseline[0].run.model} on {evaluation.data.name}, {evaluation.images:,} test images"
        + (f", layer delay {delay}" if delay else ""),
        series=[_of_results(k, [result for result in spiking if result.conversion.k == k]) for k in precisions],
        baseline=baseline,
        published=baseline[0].published,
        architecture=baseline[0].architecture,
        prices=prices,
    )


def compare_logs(logs: Sequence[tuple[Logs, int | None, str]], model: str | None = None) -> Comparison:
    """Collect logs in the published format.

    Args:
        logs: at least one, each with its k, if it is known, and its origin, which distinguishes logs of the same k.
        model: `cnn1` or `cnn2`, if the logs belong to that published network; its published figures are drawn as well.
    """
    precisions = [k for _, k, _ in logs]
    return Comparison(
        title=f"{model or 'logs'}, {logs[0][0].images:,} test images",
        series=[_of_logs(*logs[index], precisions[:index].count(k), model) for index, k in enumerate(precisions)],
        published=None if model is None else PUBLISHED.get((model, "fp32")),
        architecture=None if model is None else Architecture.parse(LAYERS[model], image_size=CROP),
    )


def _of_results(k: int, results: Sequence[SpikingResult]) -> Series:
    stable = [result.simulation.stable_step for result in results]
    steps = [result.steps for result in results]
    return Series(
        name=_name(f"k = {k}", steps),
        color=color_of(k),
        style="-",
        steps=steps,
        stable_step=None if None in stable else max(step for step in stable if step),
        results=results,
        published=results[0].published,
    )


def _of_logs(log: Logs, k: int | None, origin: str, index: int, model: str | None) -> Series:
    """Return one folder of logs, given how many of the same k come before."""
    curve = log.curve()
    return Series(
        name=_name(", ".join(part for part in ("" if k is None else f"k = {k}", origin) if part), [curve]),
        color=spare_color(index) if k is None else color_of(k),  # grey, since every other colour belongs to a k
        # Shifted after each four, so that 16 of the four greys are told apart.
        style=_LINE_STYLES[(index + index // 4) % len(_LINE_STYLES)],
        steps=[curve],
        stable_step=log.stable_step,
        published=None if model is None or k is None else PUBLISHED.get((model, k)),
    )


def _name(name: str, steps: Sequence[pd.DataFrame]) -> str:
    """Say of a network without any spike that it has none, since logarithmic axes and bars cannot show it."""
    return (
        name
        if any(table["positive_spikes"].any() or table["negative_spikes"].any() for table in steps)
        else f"{name}, no spikes"
    )
