"""Loss and accuracy over the epochs of training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from quantspike.params import Profile
from quantspike.reporting.figures import style
from quantspike.reporting.figures.comparison import Comparison, LineStyle, over_seeds
from quantspike.reporting.palette import FULL_PRECISION
from quantspike.reporting.results import RunResult


@style.paper()
def training(comparison: Comparison) -> Figure:
    """Draw loss and accuracy over the epochs of all phases, for the baseline and every k.

    Runs that start from the baseline begin where it ends. Lines are means over seeds, bands one standard deviation.
    """
    shift, phase_ends = _phases(comparison.baseline[0].run.settings)
    figure = style.new_figure(comparison, height=7.0)
    upper, lower = figure.subplots(2, 1, sharex=True)
    lines = [_draw(upper, lower, one.results, shift, one.color, "-", one.name) for one in comparison.series]
    lines.append(_draw(upper, lower, comparison.baseline, 0, FULL_PRECISION, "--", style.BASELINE))
    for axes, label in ((upper, "training loss (logarithmic)"), (lower, "accuracy (%)")):
        axes.set_ylabel(label)
        axes.grid(axis="y")
        for epoch in phase_ends:
            axes.axvline(epoch + 0.5, color="gray", linestyle=":", linewidth=1.3)
    upper.set_yscale("log")
    style.label_log_axis(upper.yaxis)
    lower.set_xlim(0.5, lower.dataLim.xmax + 0.5)
    lower.set_xlabel("epoch")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines.append(Line2D([], [], color="gray", label="test images"))
    lines.append(Line2D([], [], color="gray", linewidth=0.9, alpha=0.8, label="training images, augmented"))
    lines.append(Line2D([], [], color="gray", linestyle=":", linewidth=1.3, label="next phase begins"))
    style.legend_below(figure, [*lines, *style.seeds_legend(comparison)])
    return figure


def _phases(settings: Profile) -> tuple[int, set[int]]:
    """Return the epochs before the training of each k begins, and those after which another phase begins."""
    ends = list(accumulate(phase.epochs for phase in settings.baseline))
    shift = ends[-1] if settings.train.start == "baseline" else 0
    return shift, {*ends[:-1], shift, shift + settings.train.epochs} - {0}


def _draw(
    upper: Axes, lower: Axes, results: Sequence[RunResult], shift: int, color: str, line: LineStyle, name: str
) -> Line2D:
    """Draw the training of the seeds of one network, `shift` epochs to the right; return the line of its loss."""
    loss, accuracy, train_accuracy = (
        over_seeds([result.training for result in results], "epoch", measure).rename(lambda epoch: epoch + shift)
        for measure in ("loss", "test_accuracy", "train_accuracy")
    )
    lower.plot(100 * train_accuracy["mean"], color=color, linewidth=0.9, alpha=0.8)
    accuracy_curve = style.draw_curve(lower, accuracy.index, 100 * accuracy, color, line, name)
    curve = style.draw_curve(upper, loss.index, loss, color, line, name)
    if len(loss) <= 20:  # a few points, which a line alone would not show
        accuracy_curve.set(marker="o", markersize=5)
        curve.set(marker="o", markersize=5)
    return curve
