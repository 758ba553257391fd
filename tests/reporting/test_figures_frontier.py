"""Accuracy over synaptic operations: curves, marks where to stop, and the same in words."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from draw_figures import (
    band_of,
    compare,
    figure_of,
    legend_of,
    line_of,
    lines_of,
    points_of,
    results_of,
    table_of,
    tick_labels_of,
    written_in,
)
from quantspike.reporting.figures.comparison import Comparison, Series
from quantspike.reporting.figures.frontier import frontier
from quantspike.reporting.palette import FULL_PRECISION, color_of
from quantspike.reporting.results import SpikingResult, spiking_results
from quantspike.reporting.tables import LOSSES, stopping_step

MARKERS = ("o", "s", "^")


def hand_made(*seeds: tuple[list[float], list[float]], name: str = "k = 1") -> Comparison:
    """Return one network of one k, without anything beside it: accuracy and SOPs by step of each seed."""
    steps = [
        pd.DataFrame({"step": range(1, len(accuracy) + 1), "accuracy": accuracy, "synops": synops})
        for accuracy, synops in seeds
    ]
    return Comparison("by hand", [Series(name, color_of(1), "-", steps, 1)])


def marks_of(axes: Axes, color: str) -> dict[str, tuple[float, float]]:
    """Return the place of each mark in a colour, by its shape."""
    return {
        marker: points_of(line)[0]
        for marker in MARKERS
        for line in lines_of(axes, marker=marker)
        if to_hex(line.get_color()) == color
    }


def test_marks_stand_where_the_accuracy_stays_close_to_the_last_one_or_above() -> None:
    # Within 0.001 of 0.92 from step 5 on, within 0.005 from step 4 on; within 0.01 at step 2, but not at step 3.
    below = hand_made(([0.5, 0.915, 0.8, 0.916, 0.92, 0.92], [10, 20, 30, 40, 50, 60]))
    for axes in frontier(below).axes[:2]:
        assert marks_of(axes, color_of(1)) == {
            "o": (50, 92),
            "s": (40, pytest.approx(91.6)),
            "^": (40, pytest.approx(91.6)),
        }
    above = hand_made(([0.5, 0.95, 0.93, 0.92], [10, 20, 30, 40]))
    axes = frontier(above).axes[0]
    assert marks_of(axes, color_of(1)) == dict.fromkeys(MARKERS, (20, pytest.approx(95)))


def test_the_words_below_say_the_same_as_the_marks() -> None:
    figure = figure_of("frontier", "published")
    head, *rows = table_of(figure.axes[2])
    assert head == ["", "● 0.1 points", "■ 0.5 points", "▲ 1 point", "D = 0", "least", "accuracy (%)"]
    title = " ".join(figure.axes[2].get_title(loc="left").split())
    assert "stays within so many percentage points of that after step 100, or above (layer delay 0), and up to" in title
    for k, (name, *stops, settled, least, accuracy) in enumerate(rows):
        assert name == f"k = {k}"
        (steps,) = [result.steps for result in spiking_results(results_of("published")) if result.run.k == k]
        expected = steps.iloc[[stopping_step(steps["accuracy"], loss) - 1 for loss in LOSSES]]
        assert stops == [f"{one.synops / 1e6:,.0f}, step {one.step}" for one in expected.itertuples()]
        # 270 million x 1.64^k, nearly all of them by step 56 + 33 k, which is 122 for k = 2; 70% for the net counts
        assert settled == ("-" if k == 2 else f"{270 * 1.64**k:,.0f}, step {56 + 33 * k}")
        assert (least, accuracy) == (f"{0.7 * 270 * 1.64**k:,.0f}", f"{92.64 + 0.22 * k:.2f}")
        marks = marks_of(figure.axes[1], color_of(k))
        assert marks == {
            marker: (pytest.approx(one.synops / 1e6), pytest.approx(100 * one.accuracy))
            for marker, one in zip(MARKERS, expected.itertuples(), strict=True)
        }


def test_marks_at_the_same_step_are_of_different_sizes_the_smallest_on_top() -> None:
    axes = frontier(hand_made(([0.1, 0.9], [10, 20]))).axes[0]
    marks = [line for line in axes.lines if line.get_marker() in MARKERS]
    assert len({points_of(mark)[0] for mark in marks}) == 1
    assert [mark.get_markersize() for mark in marks] == [20, 10, 6]  # what is drawn later lies on top


def test_operations_of_the_ann_are_vertical_lines_and_its_accuracy_a_horizontal_one() -> None:
    figure = figure_of("frontier", "published")
    for axes in figure.axes[:2]:
        (once,), (thrice,) = (lines_of(axes, linestyle=style) for style in ("-.", ":"))
        (level,) = lines_of(axes, linestyle="--", linewidth=1.8)
        # 399,190,016 multiply-accumulates, and three additions for each
        assert list(once.get_xdata()) == pytest.approx([399.190016] * 2)
        assert list(thrice.get_xdata()) == pytest.approx([1197.570048] * 2)
        assert list(level.get_ydata()) == pytest.approx([100 * 0.9266] * 2)
        assert {to_hex(line.get_color()) for line in (once, thrice, level)} == {FULL_PRECISION}
    assert legend_of(figure)[5:8] == ["ANN: MACs", "ANN: 3 additions per MAC", "thin: published (official CIFAR-10)"]


def settled_of(axes: Axes, k: int) -> list[tuple[float, float]]:
    """Return steps and SOPs of the points of a k in the panel of settled images."""
    (line,) = [one for one in lines_of(axes, marker="o") if to_hex(one.get_color()) == color_of(k)]
    return points_of(line)


def test_a_point_for_each_layer_delay_shows_step_and_operations_until_all_images_are_settled() -> None:
    figure = figure_of("frontier", "delays")
    panel = figure.axes[3]
    # Of k = 0: step 56 + 9 D and 270 million x (0.7 + 0.3 / (1 + D)), nearly; of k = 1, 89 + 9 D goes beyond 100.
    expected = [(56, 270), (65, 229.5), (74, 216), (92, 205.2)]
    assert settled_of(panel, 0) == [(step, pytest.approx(synops, rel=1e-6)) for step, synops in expected]
    assert [step for step, _ in settled_of(panel, 1)] == [89, 98]
    assert written_in(panel) == ["0", "1", "2", "4", "0", "1"]
    assert table_of(figure.axes[2])[2][4:] == ["443, step 89", "376, step 98", "-", "-", "310", "92.86"]
    published = {to_hex(line.get_markeredgecolor()): points_of(line) for line in lines_of(panel, marker="D")}
    assert published == {color_of(0): [(29, 270.161535)], color_of(1): [(57, pytest.approx(414.151, abs=1e-3))]}
    levels = [
        line.get_ydata()[0] for line in panel.lines if len(set(line.get_xdata())) == 2 and line.get_marker() == "None"
    ]
    assert levels == pytest.approx([0.7 * 270, 0.7 * 270 * 1.64])
    assert legend_of(figure)[7:] == [
        "all images settled; number: layer delay D",
        "least possible (net counts)",
        "published time steps",
    ]


def test_of_several_seeds_points_are_means_with_error_bars_and_wait_for_all_seeds() -> None:
    baseline, first, second = (results_of("delays of seeds")[place] for place in (0, 2, 3))
    assert isinstance(first, SpikingResult)
    assert isinstance(second, SpikingResult)
    # D = 0 after 56 and 60 steps with 1,000,000 and 1,200,000 SOPs; D = 1 does not settle with the second seed.
    seeds = []
    for result, settled, synops, late in ((first, 56, 1e6, 1.0), (second, 60, 1.2e6, 0.9)):
        steps = pd.DataFrame({"step": range(1, 101), "settled": 0.5, "synops": synops})
        steps.loc[settled - 1 :, "settled"] = 1.0
        delays = pd.concat([steps.assign(layer_delay=0), steps.assign(layer_delay=1, settled=late)])
        seeds.append(replace(result, delays=delays))
    figure = frontier(compare([baseline, *seeds]))
    panel = figure.axes[3]
    assert settled_of(panel, 0) == [(58, 1_100)]
    # Standard deviations: 4 / sqrt(2) steps and 200 / sqrt(2) thousand SOPs
    (across,), (along,) = (bars.get_segments() for bars in panel.containers[0].lines[2])
    assert across[:, 0] == pytest.approx([58 - 8**0.5, 58 + 8**0.5])
    assert along[:, 1] == pytest.approx([1_100 - 20_000**0.5, 1_100 + 20_000**0.5])
    assert table_of(figure.axes[2])[1][4:6] == ["1,100, step 58", "-"]


def test_of_several_seeds_curve_and_marks_are_those_of_the_mean_with_a_band() -> None:
    comparison = hand_made(([0.1, 0.9, 0.9], [10, 20, 30]), ([0.1, 0.7, 0.9], [20, 30, 40]))
    axes = frontier(comparison).axes[0]
    # (0.9 + 0.7) / 2 = 0.8 at step 2, so step 3, with (30 + 40) / 2 operations
    assert all(place == pytest.approx((35, 90)) for place in marks_of(axes, color_of(1)).values())
    curve = line_of(axes, color_of(1))
    assert points_of(curve) == [(15, pytest.approx(10)), (25, pytest.approx(80)), (35, pytest.approx(90))]
    # 90 and 70: a standard deviation of 20 / sqrt(2)
    assert band_of(axes, color_of(1))[25] == pytest.approx((80 - 200**0.5, 80 + 200**0.5))
    # Nothing is known about the network of these curves.
    assert legend_of(axes.figure) == ["k = 1", "± 1 standard deviation (n = 2)"]


def test_operations_stand_on_a_logarithmic_axis_with_plain_numbers_from_the_first_step_on() -> None:
    figure = figure_of("frontier", "published")
    enlarged, whole = figure.axes[:2]
    assert whole.get_xscale() == enlarged.get_xscale() == "log"
    # The first step of k = 0 has 270 million x (1 - exp(-1/2.5)) = 89.0 million.
    low, high = whole.get_xlim()
    assert enlarged.get_xlim() == (low, high)
    assert (low, high) == pytest.approx((0.9 * 89.0, 1.1 * 1197.570048), rel=1e-3)
    assert tick_labels_of(whole) == ["100", "200", "500", "1,000"]
    assert whole.get_xlabel() == "synaptic operations per image (million), logarithmic"


@pytest.mark.parametrize(
    ("synops", "first"),
    [([0, 2, 5_000_000], 2), ([0, 40, 5_000], 40), ([0, 0, 1], 1), ([3, 3, 3], 3)],
)
def test_the_axis_begins_with_the_fewest_operations_that_are_any(synops: list[float], first: float) -> None:
    figure = frontier(hand_made(([0.1, 0.5, 0.9], synops)))
    FigureCanvasAgg(figure).draw()
    # 5,000,000 are not yet 10 million, so their unit is a thousand.
    unit = 1e3 if synops[-1] == 5_000_000 else 1
    assert figure.axes[1].get_xlim() == pytest.approx((0.9 * first / unit, 1.1 * synops[-1] / unit))


def test_a_long_name_is_shortened_in_the_middle_in_the_table_alone() -> None:
    names = ("k = 1, metrics/demo/cnn1", "k = 1, metrics/demo/cnn1-1-0")  # of 24 letters, and of 28
    figures = [frontier(hand_made(([0.1, 0.9], [10, 20]), name=name)) for name in names]
    assert [table_of(figure.axes[2])[1][0] for figure in figures] == [names[0], "k = 1, metr…mo/cnn1-1-0"]
    assert legend_of(figures[1]) == [names[1]]


def test_marks_before_the_first_operation_are_left_out_since_a_logarithmic_axis_has_no_zero() -> None:
    # The accuracy never changes, so the simulation may stop after the first step, without any operation.
    figure = frontier(hand_made(([0.1, 0.1], [0, 50])))
    assert [marks_of(axes, color_of(1)) for axes in figure.axes[:2]] == [{}, {}]
    assert table_of(figure.axes[2])[1][1] == "0, step 1"


def test_a_network_that_never_spikes_is_drawn() -> None:
    figure = frontier(hand_made(([0.1, 0.1], [0, 0])))
    FigureCanvasAgg(figure).draw()
    assert figure.axes[1].get_xscale() == "linear"
    assert figure.axes[1].get_xlabel() == "synaptic operations per image"
    head, row = table_of(figure.axes[2])
    assert (head[-1], row) == ("last step", ["k = 1", "0, step 1", "0, step 1", "0, step 1", "0"])
    assert len(figure.axes) == 3  # no panel of settled images
