"""The course of training: the lines are the tables, over all phases."""

from __future__ import annotations

from statistics import mean, stdev

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from draw_figures import band_of, figure_of, legend_of, lines_of, results_of, spiking_of
from quantspike.reporting.palette import FULL_PRECISION, color_of


def curve_of(axes: Axes, color: str) -> tuple[list[int], list[float]]:
    """Return epochs and values of the one thick line in a colour."""
    (line,) = [one for one in lines_of(axes, linewidth=2.0) if to_hex(one.get_color()) == color]
    return list(line.get_xdata()), list(line.get_ydata())


def test_loss_and_accuracy_are_those_of_the_table_over_all_phases() -> None:
    upper, lower = figure_of("training", "published").axes
    for result in results_of("published"):
        color, table = color_of(result.run.k), result.training
        for axes, name, scale in ((upper, "loss", 1), (lower, "test_accuracy", 100)):
            epochs, values = curve_of(axes, color)
            assert epochs == list(range(1, 201))
            assert values == pytest.approx(list(scale * table[name]))
        (thin,) = [one for one in lines_of(lower, linewidth=0.9) if to_hex(one.get_color()) == color]
        assert list(thin.get_ydata()) == pytest.approx(list(100 * table["train_accuracy"]))
    for axes in (upper, lower):
        (line,) = lines_of(axes, linestyle="--")
        assert to_hex(line.get_color()) == FULL_PRECISION
    # A loss of 1.5 / epoch in the first phase, 0.3 / epoch in the second
    losses = curve_of(upper, color_of(0))[1]
    assert (losses[0], losses[99], losses[100], losses[199]) == pytest.approx((1.5, 0.015, 0.3, 0.003))


@pytest.mark.parametrize(
    ("case", "places"),
    [
        ("published", [100.5]),  # of the baseline and of every k
        ("seeds of digits", [6.5]),
        ("from baseline", [3.5, 4.5, 6.5]),  # 3 and 1 epochs of the baseline, then 2 and 1 of each k
    ],
)
def test_a_dotted_line_stands_where_a_phase_ends_and_the_next_begins(case: str, places: list[float]) -> None:
    for axes in figure_of("training", case).axes:
        assert sorted(line.get_xdata()[0] for line in lines_of(axes, linestyle=":")) == places
    assert "next phase begins" in legend_of(figure_of("training", case))


def test_runs_that_start_from_the_baseline_begin_where_it_ends() -> None:
    upper, lower = figure_of("training", "from baseline").axes
    for axes in (upper, lower):
        assert curve_of(axes, FULL_PRECISION)[0] == [1, 2, 3, 4]
        assert curve_of(axes, color_of(0))[0] == curve_of(axes, color_of(1))[0] == [5, 6, 7]
    # 1.5 and 0.75, then 0.3 in the first epoch of fine-tuning
    assert curve_of(upper, color_of(1))[1] == pytest.approx([1.5, 0.75, 0.3])
    assert lower.get_xlim() == (0.5, 7.5)


def test_the_axis_spans_all_epochs_and_few_epochs_are_points() -> None:
    for case, last, marker in (("published", 200.5, "None"), ("seeds of digits", 8.5, "o")):
        figure = figure_of("training", case)
        assert figure.axes[1].get_xlim() == (0.5, last)
        curves = [line for axes in figure.axes for line in lines_of(axes, linewidth=2.0)]
        assert {str(line.get_marker()) for line in curves} == {marker}


def test_several_seeds_give_their_mean_and_a_band_of_one_standard_deviation() -> None:
    figure = figure_of("training", "seeds of digits")
    tables = [result.training for result in spiking_of("seeds of digits", 2)]
    for epoch in (1, 8):
        values = [100 * table["test_accuracy"].iloc[epoch - 1] for table in tables]
        band = band_of(figure.axes[1], color_of(2))
        assert band[epoch] == pytest.approx((mean(values) - stdev(values), mean(values) + stdev(values)))
        assert curve_of(figure.axes[1], color_of(2))[1][epoch - 1] == pytest.approx(mean(values))
        assert stdev(values) > 0


def test_the_loss_has_a_logarithmic_axis_with_plain_numbers() -> None:
    figure = figure_of("training", "published")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    upper = figure.axes[0]
    assert upper.get_yscale() == "log"
    low, high = upper.get_ylim()
    shown = [label.get_text() for label in upper.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert shown == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]
