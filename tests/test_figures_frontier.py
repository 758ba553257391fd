"""Accuracy over synaptic operations: curves, marks where to stop, and the same in words."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from draw_figures import (
    band_of,
    figure_of,
    legend_of,
    line_of,
    lines_of,
    points_of,
    results_of,
    tick_labels_of,
    written_in,
)
from quantspike.figures import Comparison, frontier
from quantspike.figures.comparison import Run, Series
from quantspike.palette import FULL_PRECISION, color_of
from quantspike.published import published_curve
from quantspike.stopping_points import LOSSES
from quantspike.tables import stops_table

MARKERS = ("o", "s", "^")


def hand_made(accuracy: list[float], synops: list[float], k: int = 1) -> Comparison:
    """One network of one k, without anything beside it."""
    steps = pd.DataFrame({"step": range(1, len(accuracy) + 1), "accuracy": accuracy, "synops": synops})
    series = Series(k, f"k = {k}", color_of(k), "-", [Run(k, steps=steps, stable_step=1)])
    return Comparison("by hand", [series], len(accuracy))


def marks_of(axes: Axes, color: str) -> dict[str, tuple[float, float]]:
    """Place of each mark in a colour, by its shape."""
    return {
        marker: points_of(line)[0]
        for marker in MARKERS
        for line in lines_of(axes, marker=marker)
        if to_hex(line.get_color()) == color
    }


def test_curves_lead_from_operations_to_accuracy() -> None:
    for axes in figure_of("frontier", "published").axes[:2]:
        for result in results_of("published")[1:]:
            assert result.steps is not None
            line = line_of(axes, color_of(result.chain.k))
            assert line.get_xdata() == pytest.approx(result.steps["synops"].to_numpy() / 1e6)
            assert line.get_ydata() == pytest.approx(100 * result.steps["accuracy"].to_numpy())


def test_marks_stand_where_the_accuracy_stays_close_to_the_last_one() -> None:
    # Within 0.001 of 0.92 from step 5 on, within 0.005 from step 4 on; within 0.01 at step 2, but not at step 3.
    comparison = hand_made([0.5, 0.915, 0.8, 0.916, 0.92, 0.92], [10, 20, 30, 40, 50, 60])
    for axes in frontier(comparison).axes[:2]:
        assert marks_of(axes, color_of(1)) == {
            "o": (50, 92),
            "s": (40, pytest.approx(91.6)),
            "^": (40, pytest.approx(91.6)),
        }


def test_the_words_below_say_the_same_as_the_table_of_stops() -> None:
    table = stops_table(results_of("published"))
    written = written_in(figure_of("frontier", "published").axes[2])
    head = ["", "● within 0.1 points", "■ within 0.5 points", "▲ within 1 point", "last step"]
    assert written[:5] == head
    for row, k in enumerate((0, 1, 2), start=1):
        name, *stops, last = written[5 * row : 5 * row + 5]
        assert name == f"k = {k}"
        rows = table[table["k"] == str(k)]
        assert stops == [f"{one.synops / 1e6:,.0f}, step {one.step}" for one in rows.itertuples()]
        # 270 million x 1.64^k, nearly all of them by step 100
        assert last == f"{270 * 1.64**k:,.0f}"
        marks = marks_of(figure_of("frontier", "published").axes[1], color_of(k))
        assert marks == {
            marker: (pytest.approx(one.synops / 1e6), pytest.approx(100 * one.accuracy))
            for marker, one in zip(MARKERS, rows.itertuples(), strict=True)
        }


def test_the_words_below_have_the_colour_of_their_k() -> None:
    texts = figure_of("frontier", "many k").axes[2].texts
    assert [to_hex(text.get_color()) for text in texts[5::5]] == [color_of(k) for k in range(8)]


def test_marks_at_the_same_step_are_of_different_sizes_the_smallest_on_top() -> None:
    axes = frontier(hand_made([0.1, 0.9], [10, 20])).axes[0]
    marks = [line for line in axes.lines if line.get_marker() in MARKERS]
    assert len({points_of(mark)[0] for mark in marks}) == 1
    sizes = [mark.get_markersize() for mark in marks]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(LOSSES)
    assert sizes == [20, 10, 6]
    assert len({mark.get_zorder() for mark in marks}) == 1  # so that what is drawn later lies on top


def test_the_ann_stands_upright_with_its_operations_and_lies_with_its_accuracy() -> None:
    figure = figure_of("frontier", "published")
    for axes in figure.axes[:2]:
        (once,), (thrice,), (level,) = (lines_of(axes, linestyle=style) for style in ("-.", ":", "--"))
        # 399,190,016 multiply-accumulates, and three additions for each
        assert list(once.get_xdata()) == pytest.approx([399.190016] * 2)
        assert list(thrice.get_xdata()) == pytest.approx([1197.570048] * 2)
        assert list(level.get_ydata()) == pytest.approx([100 * 0.9266] * 2)
        assert {to_hex(line.get_color()) for line in (once, thrice, level)} == {FULL_PRECISION}
    assert legend_of(figure) == [
        "k = 0",
        "k = 1",
        "k = 2",
        "full-precision ANN",
        "ANN: MACs",
        "ANN: 3 additions per MAC",
        "thin: published (official CIFAR-10)",
    ]


def test_without_a_known_network_there_are_no_operations_of_an_ann() -> None:
    figure = frontier(hand_made([0.1, 0.9], [10, 20]))
    assert all(lines_of(axes, linestyle=style) == [] for axes in figure.axes[:2] for style in ("-.", ":", "--"))
    assert legend_of(figure) == ["k = 1"]


def test_published_curves_are_drawn_thin_where_there_are_any() -> None:
    for axes in figure_of("frontier", "many k").axes[:2]:
        thin = {to_hex(line.get_color()): line for line in lines_of(axes, linewidth=0.9)}
        assert set(thin) == {color_of(k) for k in (0, 1, 2)}
        for k in (0, 1, 2):
            curve = published_curve("cnn1", k)
            assert curve is not None
            assert thin[color_of(k)].get_xdata() == pytest.approx(curve["synops"].to_numpy() / 1e6)
            assert thin[color_of(k)].get_ydata() == pytest.approx(100 * curve["accuracy"].to_numpy())
    figure = figure_of("frontier", "seeds of digits")
    assert not any(lines_of(axes, linewidth=0.9) for axes in figure.axes)
    assert not any("published" in text for text in legend_of(figure))


def test_several_seeds_give_means_and_a_band_of_the_accuracy() -> None:
    figure = figure_of("frontier", "seeds of digits")
    runs = [result.steps for result in results_of("seeds of digits") if result.chain.k == 0]
    for step in (1, 5, 100):
        lines = [steps.iloc[step - 1] for steps in runs if steps is not None]
        accuracies = [100 * line["accuracy"] for line in lines]
        place = mean(line["synops"] for line in lines) / 1e3
        for axes in figure.axes[:2]:
            curve = line_of(axes, color_of(0))
            assert points_of(curve)[step - 1] == pytest.approx((place, mean(accuracies)))
            low, high = mean(accuracies) - stdev(accuracies), mean(accuracies) + stdev(accuracies)
            band = band_of(axes, color_of(0))
            assert band[curve.get_xdata()[step - 1]] == pytest.approx((low, high))
    assert figure.axes[1].get_xlabel() == "synaptic operations per image (thousand), logarithmic"
    assert legend_of(figure)[-1] == "± 1 standard deviation (n = 3)"


def test_one_seed_has_no_band_and_no_word_about_it() -> None:
    figure = figure_of("frontier", "published")
    assert not any(axes.collections for axes in figure.axes)
    assert not any("deviation" in text for text in legend_of(figure))


def test_operations_stand_on_a_logarithmic_axis_with_plain_numbers_from_the_first_step_on() -> None:
    figure = figure_of("frontier", "published")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    enlarged, whole = figure.axes[:2]
    assert whole.get_xscale() == enlarged.get_xscale() == "log"
    # The first step of k = 0 has 270 million x (1 - exp(-1/2.5)) = 89.0 million.
    low, high = whole.get_xlim()
    assert low == pytest.approx(0.9 * 89.0, rel=1e-3)
    assert high == pytest.approx(1.1 * 1197.570048)
    assert enlarged.get_xlim() == (low, high)
    assert tick_labels_of(whole) == ["100", "200", "500", "1,000"]
    assert whole.get_xlabel() == "synaptic operations per image (million), logarithmic"


@pytest.mark.parametrize(
    ("synops", "first"),
    [([0, 2, 5_000_000], 2), ([0, 40, 5_000], 40), ([0, 0, 1], 1), ([3, 3, 3], 3), ([7, 7, 7], 7)],
)
def test_the_axis_begins_with_the_fewest_operations_that_are_any(synops: list[float], first: float) -> None:
    figure = frontier(hand_made([0.1, 0.5, 0.9], synops))
    FigureCanvasAgg(figure).draw()
    # 5,000,000 are not yet 10 million, so their unit is a thousand.
    unit = 1e3 if synops[-1] == 5_000_000 else 1
    assert figure.axes[1].get_xlim() == pytest.approx((0.9 * first / unit, 1.1 * synops[-1] / unit))


@pytest.mark.parametrize(
    ("synops", "labels"),
    [
        ([100, 300, 900], ["100", "200", "500"]),
        ([100, 200, 300], ["100", "120", "150", "200", "250", "300"]),
        ([3, 3, 3], ["2.8", "3", "3.2"]),
        ([7, 7, 7], ["6.5", "7", "7.5"]),  # from 6.3 to 7.7
        ([2, 600, 2_000_000], ["0.01", "0.1", "1", "10", "100", "1,000"]),  # thousand; too many of 1, 2, 5
        ([1600, 1700, 1800], ["1,500", "1,600", "1,700", "1,800", "1,900"]),
    ],
)
def test_operations_have_three_ticks_at_least_and_no_more_than_there_is_room_for(
    synops: list[float], labels: list[str]
) -> None:
    figure = frontier(hand_made([0.1, 0.5, 0.9], synops))
    FigureCanvasAgg(figure).draw()
    assert tick_labels_of(figure.axes[1]) == labels


def named(name: str) -> Comparison:
    comparison = hand_made([0.1, 0.9], [10, 20])
    return replace(comparison, series=[replace(comparison.series[0], name=name)])


def test_the_first_column_is_as_wide_as_the_names() -> None:
    # 0.013 of the width for each letter; of the rest, the second column begins after 0.15.
    for name in ("k = 1", "k = 1, ours", "k = 1, of a long folder"):
        wide = 0.013 * len(name)
        places = [text.get_position()[0] for text in frontier(named(name)).axes[2].texts[:5]]
        assert places == pytest.approx([0, *(wide + (1 - wide) * share for share in (0.15, 0.43, 0.7, 1))])


def test_a_long_name_is_shortened_in_the_middle() -> None:
    names = ("k = 1, metrics/demo/cnn1", "k = 1, metrics/demo/cnn1-1-0")  # of 24 letters, and of 28
    figures = [frontier(named(name)) for name in names]
    assert [figure.axes[2].texts[5].get_text() for figure in figures] == [names[0], "k = 1, metr…mo/cnn1-1-0"]
    assert figures[1].axes[2].texts[1].get_position()[0] == pytest.approx(0.312 + 0.688 * 0.15)  # 24 letters
    assert legend_of(figures[1]) == [names[1]]


def test_a_network_that_never_spikes_is_drawn() -> None:
    figure = frontier(hand_made([0.1, 0.1], [0, 0]))
    FigureCanvasAgg(figure).draw()
    assert figure.axes[1].get_xscale() == "linear"
    assert figure.axes[1].get_xlabel() == "synaptic operations per image"
    assert written_in(figure.axes[2])[5:] == ["k = 1", "0, step 1", "0, step 1", "0, step 1", "0"]


def test_full_precision_alone_has_its_operations_and_no_table() -> None:
    figure = figure_of("frontier", "fp32")
    assert legend_of(figure) == ["full-precision ANN", "ANN: MACs", "ANN: 3 additions per MAC"]
    assert written_in(figure.axes[2]) == []
    low, high = figure.axes[1].get_xlim()
    assert low < 399.190016 < 1197.570048 < high


def test_of_several_seeds_the_marks_are_those_of_the_mean() -> None:
    comparison = hand_made([0.1, 0.9, 0.9], [10, 20, 30])
    (series,) = comparison.series
    later = pd.DataFrame({"step": [1, 2, 3], "accuracy": [0.1, 0.7, 0.9], "synops": [20, 30, 40]})
    both = replace(series, runs=[*series.runs, Run(1, steps=later, stable_step=3)])
    axes = frontier(replace(comparison, series=[both])).axes[0]
    # (0.9 + 0.7) / 2 = 0.8 at step 2, so step 3, with (30 + 40) / 2 operations
    assert all(place == pytest.approx((35, 90)) for place in marks_of(axes, color_of(1)).values())
    assert list(line_of(axes, color_of(1)).get_ydata()) == pytest.approx([10, 80, 90])
