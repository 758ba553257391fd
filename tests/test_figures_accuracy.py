"""Accuracy and images at rest over steps: the lines are the tables, the dots stand at their steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from matplotlib.colors import to_hex

from draw_figures import (
    DIGITS,
    band_of,
    compare,
    comparison_of,
    figure_of,
    legend_of,
    line_of,
    lines_of,
    make_results,
    points_of,
    results_of,
    tick_labels_of,
)
from make_results import make_chain, make_params
from quantspike.figures import accuracy_speed, settling
from quantspike.palette import FULL_PRECISION, color_of
from quantspike.paths import chains
from quantspike.published import published_curve
from quantspike.results import read_all

# Accuracy over steps


def test_curves_are_percentages_of_the_table_in_the_colour_of_their_k() -> None:
    for axes in figure_of("accuracy_speed", "published").axes:
        for result in results_of("published")[1:]:
            assert result.steps is not None
            line = line_of(axes, color_of(result.chain.k))
            assert line.get_xdata().tolist() == list(range(1, 101))
            assert line.get_ydata() == pytest.approx(100 * result.steps["accuracy"].to_numpy(), abs=1e-9)
    # k = 1 ends on 0.9286.
    assert points_of(line_of(axes, color_of(1)))[-1] == (100, pytest.approx(92.86, abs=1e-9))


def test_every_network_has_the_level_of_its_ann() -> None:
    axes = figure_of("accuracy_speed", "published").axes[0]
    levels = {to_hex(line.get_color()): line.get_ydata()[0] for line in lines_of(axes, linestyle=":")}
    assert levels == {color_of(0): 100 * 0.926, color_of(1): 100 * 0.9282, color_of(2): 100 * 0.9304}
    (full,) = lines_of(axes, linestyle="--")
    assert (to_hex(full.get_color()), full.get_ydata()[0]) == (FULL_PRECISION, 100 * 0.9266)


def test_a_dot_marks_the_stable_step() -> None:
    for axes in figure_of("accuracy_speed", "published").axes:
        dots = {to_hex(dot.get_color()): points_of(dot) for dot in lines_of(axes, marker="o")}
        # 29 + 33 k in the made-up networks
        assert dots == {
            color_of(0): [(29, 100 * 0.9264)],
            color_of(1): [(62, 100 * 0.9286)],
            color_of(2): [(95, 100 * 0.9308)],
        }


def test_of_several_seeds_the_dot_waits_for_the_last_to_be_stable(tmp_path: Path) -> None:
    params = make_params(k=(0,), seed=(0, 1))
    grid = chains(params, tmp_path)
    for chain in grid:
        make_chain(chain)
    path = grid[1].metrics / "snn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stable_step": 40}))
    (dot,) = lines_of(accuracy_speed(compare(read_all(grid, params))).axes[0], marker="o")
    assert dot.get_xdata()[0] == 40


def test_one_seed_has_no_band_and_no_word_about_it() -> None:
    figure = figure_of("accuracy_speed", "published")
    assert not any(axes.collections or axes.patches for axes in figure.axes)
    assert legend_of(figure) == [
        "full-precision ANN",
        "k = 0",
        "k = 1",
        "k = 2",
        "ANN of the same k",
        "stable from here on",
        "thin: published (official CIFAR-10)",
    ]


def test_full_precision_alone_has_nothing_but_its_level_to_explain() -> None:
    assert legend_of(figure_of("accuracy_speed", "fp32")) == ["full-precision ANN"]


def test_several_seeds_give_their_mean_and_a_band_of_one_standard_deviation() -> None:
    figure = figure_of("accuracy_speed", "seeds of digits")
    for k in (0, 2):
        runs = [result.steps["accuracy"] for result in results_of("seeds of digits") if result.chain.k == k]
        for step in (1, 7, 100):
            values = [100 * accuracy.iloc[step - 1] for accuracy in runs]
            for axes in figure.axes:
                assert line_of(axes, color_of(k)).get_ydata()[step - 1] == pytest.approx(mean(values))
                # statistics.stdev divides by n - 1, as asked for.
                low, high = mean(values) - stdev(values), mean(values) + stdev(values)
                assert band_of(axes, color_of(k))[step] == pytest.approx((low, high))
    assert len({one.iloc[-1] for one in runs}) > 1
    assert "± 1 standard deviation (n = 3)" in legend_of(figure)


def test_the_level_of_full_precision_has_a_band_of_its_own() -> None:
    levels = [100 * result.ann.accuracy for result in results_of("seeds of digits") if result.chain.k == "fp32"]
    for axes in figure_of("accuracy_speed", "seeds of digits").axes:
        (band,) = axes.patches
        assert to_hex(band.get_facecolor()) == FULL_PRECISION
        assert (band.get_y(), band.get_height()) == pytest.approx((mean(levels) - stdev(levels), 2 * stdev(levels)))
        (full,) = lines_of(axes, linestyle="--")
        assert full.get_ydata()[0] == pytest.approx(mean(levels))


def test_published_curves_are_drawn_thin_where_there_are_any() -> None:
    # Of k = 0, 1 and 2, not of 3 to 7.
    for axes in figure_of("accuracy_speed", "many k").axes:
        thin = {to_hex(line.get_color()): line for line in lines_of(axes, linewidth=0.9)}
        assert set(thin) == {color_of(k) for k in (0, 1, 2)}
        for k in (0, 1, 2):
            curve = published_curve("cnn1", k)
            assert curve is not None
            assert thin[color_of(k)].get_xdata().tolist() == list(range(1, 101))
            assert thin[color_of(k)].get_ydata() == pytest.approx(100 * curve["accuracy"].to_numpy(), abs=1e-9)


def test_other_images_have_no_published_curves_beside_them() -> None:
    figure = figure_of("accuracy_speed", "seeds of digits")
    assert not any(lines_of(axes, linewidth=0.9) for axes in figure.axes)
    assert not any("published" in text for text in legend_of(figure))


def test_a_published_curve_does_not_lengthen_a_short_simulation(tmp_path: Path) -> None:
    figure = accuracy_speed(compare(make_results(tmp_path, k=(1,), steps=7)))
    assert lines_of(figure.axes[1], linewidth=0.9)[0].get_xdata()[-1] == 100
    assert figure.axes[1].get_xlim() == (1, 7)


@pytest.mark.parametrize(
    ("case", "labels"),
    [
        ("published", ["1", "2", "5", "10", "20", "50", "100"]),
        ("one k", ["1", "2", "5", "10", "20", "30"]),  # the last step is labelled although it is no round number
        ("seven steps of few layers", ["1", "2", "5", "7"]),
    ],
)
def test_steps_stand_on_a_logarithmic_axis_with_plain_numbers(case: str, labels: list[str]) -> None:
    for name in ("accuracy_speed", "settling"):
        axes = figure_of(name, case).axes[-1]
        assert axes.get_xscale() == "log"
        assert tick_labels_of(axes) == labels
        assert axes.get_xlim() == (1, int(labels[-1]))


def test_a_round_step_close_to_the_last_one_is_not_labelled(tmp_path: Path) -> None:
    # 20 x 1.3 = 26 is less than 27, but not than 26.
    for steps, last in ((26, ["10", "26"]), (27, ["10", "20", "27"])):
        axes = accuracy_speed(compare(make_results(tmp_path / str(steps), k=(1,), steps=steps))).axes[1]
        assert tick_labels_of(axes)[-len(last) :] == last


def test_a_simulation_of_one_step_is_drawn() -> None:
    axes = figure_of("accuracy_speed", "one step").axes[1]
    assert axes.get_xlim() == (1, 2)
    assert tick_labels_of(axes) == ["1"]  # there is no second step
    assert [points_of(dot)[0][0] for dot in lines_of(axes, marker="o")] == [1, 1]


def test_the_upper_panel_is_the_top_of_the_lower_one() -> None:
    for name in ("accuracy_speed", "frontier"):
        enlarged, whole = figure_of(name, "published").axes[:2]
        # From 92.60 (ANN of k = 0) to 93.08 (k = 2) are less than half a percent: 2 x 0.5 below the lowest.
        assert enlarged.get_ylim()[0] == pytest.approx(92.6 - 2 * 0.5)
        assert whole.get_ylim() == (0, 102)
        assert enlarged.get_title(loc="left") == "the top of the lower panel, enlarged"


def test_a_curve_that_rises_above_its_last_value_is_shown_whole() -> None:
    comparison = comparison_of("published")
    (series,) = [one for one in comparison.series if one.k == 1]
    steps = series.steps[0].copy()
    steps.loc[9, "accuracy"] = 0.97
    peaked = replace(series, runs=[replace(series.runs[0], steps=steps)])
    axes = accuracy_speed(replace(comparison, series=[peaked])).axes[0]
    assert axes.get_ylim()[1] > 97


@pytest.mark.parametrize(("worse", "low"), [(0.9, 90 - 2 * 0.5), (0.85, 85 - 2 * 5), (0.8, 70), (0.1, 70)])
def test_the_upper_panel_shows_at_most_20_points_below_the_best_network(worse: float, low: float) -> None:
    (series,) = comparison_of("one k").series
    flat = [
        replace(series, runs=[replace(run, steps=run.steps.assign(accuracy=value), ann_accuracy=value)])
        for run in series.runs
        if run.steps is not None
        for value in (worse, 0.9)
    ]
    enlarged = accuracy_speed(replace(comparison_of("one k"), series=flat)).axes[0]
    assert enlarged.get_ylim()[0] == pytest.approx(low)
    # Above, half the difference, but no more than a point.
    assert enlarged.get_ylim()[1] == pytest.approx(90 + (0.25 if worse == 0.9 else 1))


def test_accuracies_at_both_ends_stay_within_percentages() -> None:
    (series,) = comparison_of("one k").series
    for value in (0.0, 1.0):
        steps = series.steps[0].assign(accuracy=value)
        flat = replace(series, runs=[replace(series.runs[0], steps=steps, ann_accuracy=value)])
        low, high = accuracy_speed(replace(comparison_of("one k"), series=[flat])).axes[0].get_ylim()
        assert 0 <= low <= 100 * value <= high < 101


# Images at rest


def test_images_at_rest_are_percentages_of_the_table() -> None:
    (axes,) = figure_of("settling", "published").axes
    for result in results_of("published")[1:]:
        assert result.steps is not None
        line = line_of(axes, color_of(result.chain.k))
        assert line.get_ydata() == pytest.approx(100 * result.steps["settled"].to_numpy(), abs=1e-9)
    # The made-up networks come to rest evenly up to step 29 + 33 k: of k = 1 are half of the images by step 31.
    assert points_of(line_of(axes, color_of(1)))[30] == (31, pytest.approx(50))
    assert len(axes.lines) == 2 * 3  # nothing of full precision


def test_a_dot_marks_the_first_step_with_all_images_at_rest() -> None:
    (axes,) = figure_of("settling", "published").axes
    dots = {to_hex(dot.get_color()): points_of(dot) for dot in lines_of(axes, marker="o")}
    assert dots == {color_of(0): [(29, 100)], color_of(1): [(62, 100)], color_of(2): [(95, 100)]}
    assert legend_of(axes.figure) == ["k = 0", "k = 1", "k = 2", "all images at rest from here on"]


def test_of_several_seeds_the_dot_waits_for_the_last_image_of_all() -> None:
    (series,) = [one for one in comparison_of("seeds of digits").series if one.k == 0]
    late = series.steps[1].assign(settled=np.minimum(1.0, np.arange(1, 101) / 40))
    runs = [series.runs[0], replace(series.runs[1], steps=late)]
    (axes,) = settling(replace(comparison_of("seeds of digits"), series=[replace(series, runs=runs)])).axes
    (dot,) = lines_of(axes, marker="o")
    assert points_of(dot) == [(40, 100)]
    # By step 10 are 10/29 and 10/40 at rest.
    both = [1000 / 29, 1000 / 40]
    assert band_of(axes, color_of(0))[10] == pytest.approx((mean(both) - stdev(both), mean(both) + stdev(both)))


def test_images_that_never_come_to_rest_have_no_dot_and_no_word_about_one() -> None:
    (series,) = [one for one in comparison_of("seeds of digits").series if one.k == 0]
    never = series.steps[1].assign(settled=0.999)
    runs = [series.runs[0], replace(series.runs[1], steps=never)]
    figure = settling(replace(comparison_of("seeds of digits"), series=[replace(series, runs=runs)]))
    assert lines_of(figure.axes[0], marker="o") == []
    assert legend_of(figure) == ["k = 0", "± 1 standard deviation (n = 2)"]


def test_a_title_names_network_images_and_their_number(tmp_path: Path) -> None:
    figure = accuracy_speed(compare(make_results(tmp_path, k=(1,), **DIGITS)))
    assert figure.get_suptitle() == "cnn1 on scikit-learn digits, 360 test images"
