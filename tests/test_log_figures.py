"""Figures of logs: ours and others' in one picture, each with the colour of its k."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.colors
import pytest

from quantspike.figures import LOG_FIGURES, accuracy_speed, compare_logs, sops, sparsity
from quantspike.logs import FILES, Logs, command, read_logs
from quantspike.logs.command import plot
from quantspike.palette import color_of, spare_color
from quantspike.published import published, published_curve

# Ten images in one batch over three steps: 5, 8 and 9 correct; 40, 60 and 60 spikes, 40, 50 and 48 of them net.
LINES = dict(zip(FILES, ([5, 8, 9], [40, 60, 62], [40, 50, 48], [400, 600, 620]), strict=True))


def write(folder: Path) -> Logs:
    folder.mkdir(parents=True)
    for name, numbers in LINES.items():
        (folder / name).write_text("".join(f"{number}\n" for number in numbers))
    return read_logs(folder, images=10, steps=3)


def solid_colours(comparison_axes: object) -> list[str]:
    lines = comparison_axes.lines  # type: ignore[attr-defined]
    return [matplotlib.colors.to_hex(line.get_color()) for line in lines if len(line.get_xdata()) == 3]


def test_a_log_is_drawn_as_what_it_holds(tmp_path: Path) -> None:
    comparison = compare_logs([(write(tmp_path / "k1"), 1, "")])
    axes = accuracy_speed(comparison).axes[1]
    (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [round(value) for value in curve.get_ydata()] == [50, 80, 90]
    # 62 spikes, 48 of them net: 55 positive and 7 negative, 5.5 and 0.7 per image
    positive, negative = sparsity(comparison).axes[0].patches
    assert (positive.get_height(), negative.get_height()) == pytest.approx((5.5, 0.7))
    (bar,) = sops(comparison).axes[0].patches
    assert bar.get_height() == 62


def test_logs_of_the_same_k_share_its_colour_and_differ_in_line_and_name(tmp_path: Path) -> None:
    found = [(write(tmp_path / "ours" / "k1"), 1, "ours"), (write(tmp_path / "theirs" / "k1"), 1, "theirs")]
    comparison = compare_logs(found)
    assert [series.name for series in comparison.series] == ["k = 1, ours", "k = 1, theirs"]
    axes = accuracy_speed(comparison).axes[1]
    assert solid_colours(axes) == [color_of(1)] * 2
    assert [series.style for series in comparison.series] == ["-", "--"]


def test_up_to_four_logs_of_one_k_or_of_none_never_look_alike(tmp_path: Path) -> None:
    log = write(tmp_path / "k1")
    # The k of two logs come between: a line style counts those of the same k alone.
    found = [(log, k, name) for name in "abcd" for k in (1, None, 2)]
    series = compare_logs(found).series
    for k in (1, 2):
        assert [one.style for one in series if one.k == k] == ["-", "--", "-.", ":"]
        assert {one.color for one in series if one.k == k} == {color_of(k)}
    assert [one.color for one in series if one.k is None] == [spare_color(place) for place in range(4)]
    assert len({(one.color, one.style) for one in series}) == 12
    assert len({one.name for one in series}) == 12


def test_a_folder_that_is_not_named_after_k_has_a_name_and_a_colour_of_its_own(tmp_path: Path) -> None:
    labelled = command.labelled([write(tmp_path / "k1"), write(tmp_path / "baseline"), write(tmp_path / "k99")])
    assert [(k, origin) for _, k, origin in labelled] == [(1, ""), (None, "baseline"), (None, "k99")]
    series = compare_logs(labelled).series
    assert [one.color for one in series] == [color_of(1), spare_color(0), spare_color(1)]
    assert len({one.color for one in series}) == 3


def test_the_published_network_lends_its_curves_neurons_and_operations(tmp_path: Path) -> None:
    comparison = compare_logs([(write(tmp_path / "k1"), 1, "")], model="cnn1")
    (series,) = comparison.series
    assert series.published == published("cnn1", 1)
    curve = published_curve("cnn1", 1)
    assert curve is not None
    assert series.published_curve is not None
    assert series.published_curve.equals(curve)
    assert comparison.architecture is not None
    assert comparison.architecture.neurons == 336_128


def test_plot_writes_every_figure_that_logs_suffice_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "k0")
    write(tmp_path / "k2")
    arguments = [str(tmp_path), "--images", "10", "--steps", "3", "--plot", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["logs", *arguments])
    command.main()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}.{kind}" for name in LOG_FIGURES for kind in ("png", "svg")}


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "k0")
    (tmp_path / "out").write_text("a file")
    arguments = [str(tmp_path / "k0"), "--images", "10", "--steps", "3", "--plot", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["logs", *arguments])
    with pytest.raises(SystemExit, match=r"error: .*out"):
        command.main()


def test_plots_of_one_log_are_those_of_its_curve(tmp_path: Path) -> None:
    log = write(tmp_path / "k3")
    plot([log], tmp_path / "out")
    assert (tmp_path / "out" / "frontier.svg").stat().st_size > 1000
