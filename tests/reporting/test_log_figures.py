"""Figures of logs: several simulations in one picture, each with the colour of its k."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from quantspike.reporting.figures import LOG_FIGURES
from quantspike.reporting.figures.comparison import compare_logs
from quantspike.reporting.figures.style import save
from quantspike.reporting.logs import FILES, Logs, labelled, read_logs
from quantspike.reporting.palette import color_of, spare_color
from quantspike.reporting.published import PUBLISHED, published_curve

# Ten images in one batch over three steps: 5, 8 and 9 correct; 40, 60 and 62 spikes, 40, 50 and 48 of them net.
LINES = dict(zip(FILES, ([5, 8, 9], [40, 60, 62], [40, 50, 48], [400, 600, 620]), strict=True))


def write(folder: Path) -> Logs:
    folder.mkdir(parents=True)
    for name, numbers in LINES.items():
        (folder / name).write_text("".join(f"{number}\n" for number in numbers))
    return read_logs(folder, images=10, steps=3)


def curves_of(axes: Axes) -> list[tuple[str, list[int]]]:
    """Return colour and heights of the lines over three steps."""
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    return [(to_hex(line.get_color()), [round(value) for value in line.get_ydata()]) for line in lines]


def test_a_log_is_drawn_with_its_numbers(tmp_path: Path) -> None:
    comparison = compare_logs([(write(tmp_path / "k1"), 1, "")])
    assert curves_of(LOG_FIGURES["accuracy_speed"](comparison).axes[1]) == [(color_of(1), [50, 80, 90])]
    # 62 spikes, 48 of them net: 55 positive and 7 negative, 5.5 and 0.7 per image
    positive, negative = LOG_FIGURES["sparsity"](comparison).axes[0].patches
    assert (positive.get_height(), negative.get_height()) == pytest.approx((5.5, 0.7))
    (bar,) = LOG_FIGURES["sops"](comparison).axes[0].patches
    assert bar.get_height() == 62


def test_up_to_four_logs_of_one_k_or_of_none_never_look_alike(tmp_path: Path) -> None:
    log = write(tmp_path / "k1")
    # Two other k come between: a line style counts only those of the same k.
    found = [(log, k, name) for name in "abcd" for k in (1, None, 2)]
    series = compare_logs(found).series
    for k in (1, 2):
        same = [one for one in series if one.color == color_of(k)]
        assert [one.name for one in same] == [f"k = {k}, {name}" for name in "abcd"]
        assert [one.style for one in same] == ["-", "--", "-.", ":"]
    assert [one.color for one in series[1::3]] == [spare_color(index) for index in range(4)]
    assert len({(one.color, one.style) for one in series}) == len({one.name for one in series}) == 12


def test_sixteen_logs_without_a_k_are_told_apart(tmp_path: Path) -> None:
    log = write(tmp_path / "k1B1")
    series = compare_logs([(log, None, f"k{index}B1") for index in range(16)]).series
    assert len({(one.color, one.style) for one in series}) == 16


def test_bars_without_negative_spikes_leave_room_above_them(tmp_path: Path) -> None:
    log = replace(write(tmp_path / "k1"), negative_spikes=np.zeros(3, np.int64))
    (axes,) = LOG_FIGURES["sparsity"](compare_logs([(log, 1, "")])).axes
    (bar,) = axes.patches
    assert axes.get_ylim() == (0, pytest.approx(1.2 * bar.get_height()))


def test_the_published_network_lends_its_curves_neurons_and_operations(tmp_path: Path) -> None:
    comparison = compare_logs([(write(tmp_path / "k1"), 1, "")], model="cnn1")
    (series,) = comparison.series
    assert series.published == PUBLISHED["cnn1", 1]
    curve = published_curve("cnn1", 1)
    assert curve is not None
    assert series.published_curve is not None
    assert series.published_curve.equals(curve)
    assert comparison.architecture is not None
    assert comparison.architecture.neurons == 336_128


def test_several_logs_fit_into_one_frontier(tmp_path: Path) -> None:
    comparison = compare_logs(labelled([write(tmp_path / "k0"), write(tmp_path / "other")]))
    save(LOG_FIGURES["frontier"](comparison), tmp_path / "out", "frontier")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"frontier.png", "frontier.svg"}
