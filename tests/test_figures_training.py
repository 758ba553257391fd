"""The course of training: the lines are the tables, over both phases."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from draw_figures import band_of, comparison_of, figure_of, legend_of, lines_of, results_of
from quantspike.figures import training
from quantspike.figures.comparison import Comparison, Series
from quantspike.palette import color_of


def with_loss(comparison: Comparison, loss: float) -> Comparison:
    """The same with this loss in the last epoch."""
    tables = [(series, series.runs[0].training) for series in comparison.series]
    series: list[Series] = []
    for one, table in tables:
        assert table is not None
        changed = table.copy()
        changed.loc[len(table) - 1, "loss"] = loss
        series.append(replace(one, runs=[replace(one.runs[0], training=changed)]))
    return replace(comparison, series=series)


def test_loss_and_accuracy_are_those_of_the_table_over_both_phases() -> None:
    upper, lower = figure_of("training", "published").axes
    for result in results_of("published"):
        color, table = color_of(result.chain.k), result.training
        for axes, name, scale in ((upper, "loss", 1), (lower, "test_accuracy", 100)):
            (line,) = [one for one in lines_of(axes, linewidth=2.0) if to_hex(one.get_color()) == color]
            assert line.get_linestyle() == ("--" if result.chain.k == "fp32" else "-")
            assert list(line.get_xdata()) == list(range(1, 201))
            assert list(line.get_ydata()) == pytest.approx(list(scale * table[name]))
        (thin,) = [one for one in lines_of(lower, linewidth=0.9) if to_hex(one.get_color()) == color]
        assert list(thin.get_ydata()) == pytest.approx(list(100 * table["train_accuracy"]))
    # A loss of 1.5 / epoch in the first phase, 0.3 / epoch in the second
    losses = lines_of(upper, linewidth=2.0)[0].get_ydata()
    assert (losses[0], losses[99], losses[100], losses[199]) == pytest.approx((1.5, 0.015, 0.3, 0.003))


def test_a_line_stands_where_fine_tuning_begins() -> None:
    for case, place in (("published", 100.5), ("seeds of digits", 6.5)):
        for axes in figure_of("training", case).axes:
            (begin,) = lines_of(axes, linestyle=":")
            assert list(begin.get_xdata()) == [place, place]


def test_a_line_stands_where_each_k_goes_on_from_what_all_share() -> None:
    figure = figure_of("training", "pretrained")
    for axes in figure.axes:
        (own,), (fine,) = lines_of(axes, linestyle="-."), lines_of(axes, linestyle=":")
        assert (own.get_xdata()[0], fine.get_xdata()[0]) == (4.5, 6.5)  # 4 shared epochs, then 2 and 1 of each k
    assert legend_of(figure)[-2:] == ["each k on its own", "fine-tuning begins"]
    assert legend_of(figure)[:3] == ["full-precision ANN", "k = 1", "all k, in full precision"]
    shared, *own = lines_of(figure.axes[0], linewidth=2.0)
    assert list(shared.get_xdata()) == [1, 2, 3, 4]
    assert [list(line.get_xdata()) for line in own] == [[5, 6, 7], [5, 6, 7]]
    assert figure.axes[1].get_xlim() == (0.5, 7.5)


def test_the_axis_spans_all_epochs_whether_many_or_few() -> None:
    assert figure_of("training", "published").axes[1].get_xlim() == (0.5, 200.5)
    assert figure_of("training", "seeds of digits").axes[1].get_xlim() == (0.5, 8.5)


def test_epochs_of_a_short_training_are_points() -> None:
    def markers(case: str) -> set[str]:
        return {
            str(line.get_marker())
            for axes in figure_of("training", case).axes
            for line in lines_of(axes, linewidth=2.0)
        }

    assert markers("seeds of digits") == {"o"}
    assert markers("published") == {""}


def test_several_seeds_give_their_mean_and_a_band_of_one_standard_deviation() -> None:
    figure = figure_of("training", "seeds of digits")
    tables = [result.training for result in results_of("seeds of digits") if result.chain.k == 2]
    for epoch in (1, 8):
        values = [100 * table["test_accuracy"].iloc[epoch - 1] for table in tables]
        band = band_of(figure.axes[1], color_of(2))
        assert band[epoch] == pytest.approx((mean(values) - stdev(values), mean(values) + stdev(values)))
        assert stdev(values) > 0
    assert legend_of(figure) == [
        "full-precision ANN",
        "k = 0",
        "k = 2",
        "test images",
        "training images, augmented",
        "fine-tuning begins",
        "± 1 standard deviation (n = 3)",
    ]


def test_one_seed_has_no_band_and_no_word_about_it() -> None:
    figure = figure_of("training", "published")
    assert not any(axes.collections for axes in figure.axes)
    assert legend_of(figure)[-1] == "fine-tuning begins"


def test_the_loss_has_a_logarithmic_axis_with_plain_numbers() -> None:
    figure = figure_of("training", "published")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    upper = figure.axes[0]
    assert upper.get_yscale() == "log"
    assert upper.get_ylim() == pytest.approx((0.003 / 1.2, 1.5 * 1.2))
    labels = [label.get_text() for label in upper.get_yticklabels()]
    assert labels == ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]


def test_a_loss_of_nothing_has_a_linear_axis() -> None:
    axes = training(with_loss(comparison_of("fp32"), 0.0)).axes[0]
    assert axes.get_yscale() == "linear"
    assert axes.lines[0].get_ydata()[-1] == 0


def test_full_precision_alone_is_a_training_like_any_other() -> None:
    figure = figure_of("training", "fp32")
    assert legend_of(figure)[0] == "full-precision ANN"
    assert len(lines_of(figure.axes[0], linewidth=2.0)) == 1
