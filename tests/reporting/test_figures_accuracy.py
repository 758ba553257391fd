"""Accuracy and settled images over steps: the lines are the tables, the dots stand at their steps."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import numpy as np
import pytest
from matplotlib.colors import to_hex

from draw_figures import (
    band_of,
    compare,
    comparison_of,
    figure_of,
    legend_of,
    line_of,
    lines_of,
    points_of,
    results_of,
    spiking_of,
    tick_labels_of,
)
from quantspike.reporting.figures.accuracy import accuracy_speed, settling
from quantspike.reporting.figures.comparison import Comparison, Series
from quantspike.reporting.palette import FULL_PRECISION, color_of
from quantspike.reporting.published import PUBLISHED, published_curve
from quantspike.reporting.results import SpikingResult


def with_steps(case: str, **columns: object) -> Comparison:
    """Return the first k of a case, with other columns in the table of its last seed."""
    series: Series = comparison_of(case).series[0]
    steps = [*series.steps[:-1], series.steps[-1].assign(**columns)]
    return replace(comparison_of(case), series=[replace(series, steps=steps)])


# Accuracy over steps


def test_curves_are_percentages_of_the_table_in_the_colour_of_their_k() -> None:
    for axes in figure_of("accuracy_speed", "published").axes:
        for k in (0, 1, 2):
            (result,) = spiking_of("published", k)
            line = line_of(axes, color_of(k))
            assert line.get_xdata().tolist() == list(range(1, 101))
            assert line.get_ydata() == pytest.approx(100 * result.steps["accuracy"].to_numpy(), abs=1e-9)
        # k = 1 ends on 0.9286.
        assert points_of(line_of(axes, color_of(1)))[-1] == (100, pytest.approx(92.86, abs=1e-9))


def test_every_network_has_the_level_of_its_ann() -> None:
    axes = figure_of("accuracy_speed", "published").axes[0]
    levels = {to_hex(line.get_color()): line.get_ydata()[0] for line in lines_of(axes, linestyle=":")}
    assert levels == {color_of(0): 100 * 0.926, color_of(1): 100 * 0.9282, color_of(2): 100 * 0.9304}
    (full,) = lines_of(axes, linestyle="--", linewidth=1.8)
    assert (to_hex(full.get_color()), full.get_ydata()[0]) == (FULL_PRECISION, 100 * 0.9266)


def test_published_full_precision_is_a_thin_grey_level_where_published_figures_apply() -> None:
    full = PUBLISHED["cnn1", "fp32"]
    assert full is not None
    assert full.ann_accuracy == 0.9266
    for axes in figure_of("accuracy_speed", "published").axes:
        (level,) = lines_of(axes, linestyle="--", linewidth=0.9)
        assert (to_hex(level.get_color()), level.get_ydata()[0]) == (to_hex("gray"), pytest.approx(92.66))
    assert lines_of(figure_of("accuracy_speed", "one k").axes[0], linewidth=0.9) == []
    names = ["full-precision ANN", "published full precision", "ANN of the same k"]
    assert legend_of(figure_of("accuracy_speed", "published"))[3:6] == names


def test_a_dot_marks_the_stable_step() -> None:
    for axes in figure_of("accuracy_speed", "published").axes:
        dots = {to_hex(dot.get_color()): points_of(dot) for dot in lines_of(axes, marker="o")}
        # 29 + 33 k in the made-up networks; k = 2 is not settled after the last step.
        assert dots == {color_of(0): [(29, 100 * 0.9264)], color_of(1): [(62, 100 * 0.9286)]}
    # Of several seeds, the dot waits for the last to be stable.
    baseline, *_ = results_of("seeds of digits")
    first, *others = spiking_of("seeds of digits", 0)
    late = replace(first, simulation=first.simulation.model_copy(update={"stable_step": 40}))
    (dot,) = lines_of(accuracy_speed(compare([baseline, late, *others])).axes[0], marker="o")
    assert dot.get_xdata()[0] == 40


def test_a_network_far_below_the_others_has_no_dot_below_the_enlarged_panel() -> None:
    results = [
        replace(result, steps=result.steps.assign(accuracy=0.1))
        if isinstance(result, SpikingResult) and result.run.k == 1
        else result
        for result in results_of("published")
    ]
    enlarged, whole = accuracy_speed(compare(results)).axes
    assert [len(lines_of(axes, marker="o")) for axes in (enlarged, whole)] == [1, 2]


def test_a_network_with_an_image_that_is_not_settled_at_the_last_step_has_no_dot_and_a_word_about_it() -> None:
    baseline, *_ = results_of("seeds of digits")
    first, *others = spiking_of("seeds of digits", 0)
    unsettled = replace(first, simulation=first.simulation.model_copy(update={"stable_step": None}))
    for results, dots, label in (
        ([first, *others], 1, "stable from here on"),
        ([unsettled, *others], 0, "stable from here on (no dot: T too small)"),
    ):
        figure = accuracy_speed(compare([baseline, *results]))
        assert len(lines_of(figure.axes[0], marker="o")) == dots
        assert label in legend_of(figure)


def test_several_seeds_give_their_mean_and_a_band_of_one_standard_deviation() -> None:
    figure = figure_of("accuracy_speed", "seeds of digits")
    for k in (0, 2):
        runs = [result.steps["accuracy"] for result in spiking_of("seeds of digits", k)]
        for step in (1, 7, 100):
            values = [100 * accuracy.iloc[step - 1] for accuracy in runs]
            for axes in figure.axes:
                assert line_of(axes, color_of(k)).get_ydata()[step - 1] == pytest.approx(mean(values))
                # statistics.stdev divides by n - 1, as asked for.
                low, high = mean(values) - stdev(values), mean(values) + stdev(values)
                assert band_of(axes, color_of(k))[step] == pytest.approx((low, high))
    levels = [100 * result.evaluation.accuracy for result in results_of("seeds of digits") if result.run.k == "fp32"]
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_height()) == pytest.approx((mean(levels) - stdev(levels), 2 * stdev(levels)))


def test_published_curves_are_drawn_thin_where_there_are_any() -> None:
    # Of k = 0, 1 and 2, not of 3 to 7.
    for name, column, unit in (("accuracy_speed", "step", 1), ("frontier", "synops", 1e6)):
        for axes in figure_of(name, "many k").axes[:2]:
            thin = {to_hex(line.get_color()): line for line in lines_of(axes, linewidth=0.9, linestyle="-")}
            assert set(thin) == {color_of(k) for k in (0, 1, 2)}
            for k in (0, 1, 2):
                curve = published_curve("cnn1", k)
                assert curve is not None
                assert thin[color_of(k)].get_xdata() == pytest.approx(curve[column].to_numpy() / unit)
                assert thin[color_of(k)].get_ydata() == pytest.approx(100 * curve["accuracy"].to_numpy(), abs=1e-9)


def test_steps_stand_on_a_logarithmic_axis_though_there_be_one_alone() -> None:
    for name in ("accuracy_speed", "settling"):
        for case, labels in (
            ("published", "1 2 5 10 20 50 100"),
            ("seven steps of few layers", "1 2 5"),
            ("one step", "1 2"),
        ):
            axes = figure_of(name, case).axes[-1]
            assert axes.get_xscale() == "log"
            assert tick_labels_of(axes) == labels.split()
        # The made-up networks of one step are not settled.
        assert lines_of(axes, marker="o") == []


def test_the_upper_panel_is_the_top_of_the_lower_one() -> None:
    for name in ("accuracy_speed", "frontier"):
        enlarged, whole = figure_of(name, "published").axes[:2]
        # From 92.60 (ANN of k = 0) to 93.08 (k = 2) are less than half a percent: 2 x 0.5 below the lowest.
        assert enlarged.get_ylim()[0] == pytest.approx(92.6 - 2 * 0.5)
        assert whole.get_ylim() == (0, 102)


def test_the_upper_panel_shows_at_most_20_points_below_the_best_network() -> None:
    # The made-up ANN of k = 1 has 92.82, the spiking network 10: the panel begins 20 points below the better one.
    low, high = accuracy_speed(with_steps("one k", accuracy=0.1)).axes[0].get_ylim()
    assert low == pytest.approx(72.82)
    assert high == pytest.approx(92.82 + 1)  # half the difference above, but at most a point
    # A curve that rises above its last value is shown whole.
    peaked = comparison_of("one k").series[0].steps[0]["accuracy"].where(lambda accuracy: accuracy.index != 9, 0.97)
    assert accuracy_speed(with_steps("one k", accuracy=peaked)).axes[0].get_ylim()[1] > 97


# Settled images


def test_settled_images_are_percentages_of_the_table_with_a_dot_where_all_are() -> None:
    figure = figure_of("settling", "published")
    (axes,) = figure.axes
    for k in (0, 1, 2):
        (result,) = spiking_of("published", k)
        line = line_of(axes, color_of(k))
        assert line.get_ydata() == pytest.approx(100 * result.steps["settled"].to_numpy(), abs=1e-9)
    # The images of the made-up networks settle evenly up to step 56 + 33 k: of k = 0, half of them by step 28.
    assert points_of(line_of(axes, color_of(0)))[27] == (28, pytest.approx(50))
    dots = {to_hex(dot.get_color()): points_of(dot) for dot in lines_of(axes, marker="o")}
    assert dots == {color_of(0): [(56, 100)], color_of(1): [(89, 100)]}  # 122 is beyond the last step
    assert legend_of(figure) == ["k = 0", "k = 1", "k = 2", "all images settled from here on"]


def test_of_several_seeds_the_dot_waits_for_the_last_image_of_all() -> None:
    (axes,) = settling(with_steps("seeds of digits", settled=np.minimum(1.0, np.arange(1, 101) / 80))).axes
    (dot,) = lines_of(axes, marker="o")
    assert points_of(dot) == [(80, 100)]
    # By step 10 are 10/56, 10/56 and 10/80 settled.
    settled = [1000 / 56, 1000 / 56, 1000 / 80]
    band = mean(settled) - stdev(settled), mean(settled) + stdev(settled)
    assert band_of(axes, color_of(0))[10] == pytest.approx(band)


def test_images_that_never_settle_have_no_dot_and_no_word_about_one() -> None:
    figure = settling(with_steps("seeds of digits", settled=0.999))
    assert lines_of(figure.axes[0], marker="o") == []
    assert legend_of(figure) == ["k = 0", "± 1 standard deviation (n = 3)"]
