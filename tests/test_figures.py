"""What all figures share: style, files, colours, room for every label, and words about seeds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from draw_figures import (
    CASES,
    bars_of,
    compare,
    comparison_of,
    error_bars_of,
    figure_of,
    legend_of,
    make_results,
    texts_of,
)
from make_results import data_set
from quantspike.errors import QuantspikeError
from quantspike.figures import FIGURES, LOG_FIGURES, Comparison, compare_logs, save, sops, sparsity
from quantspike.figures.comparison import Run, Series
from quantspike.figures.style import GRAY, legend_below, shorten_middle, spread_named, style, tint
from quantspike.logs import Logs
from quantspike.logs.command import labelled
from quantspike.palette import FULL_PRECISION, color_of

MANY = range(8)
"""The precisions of the case "many k"."""


def legends_of(figure: Figure) -> Iterator[Legend]:
    yield from figure.legends
    yield from (legend for axes in figure.axes if (legend := axes.get_legend()) is not None)


def test_the_figures_of_logs_are_figures_of_results_too() -> None:
    assert LOG_FIGURES.items() <= FIGURES.items()
    assert list(FIGURES) == [
        "accuracy_speed",
        "sparsity",
        "sops",
        "frontier",
        "layers",
        "settling",
        "energy",
        "training",
    ]


# Room


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_no_label_covers_another(name: str, case: str) -> None:
    check_room(figure_of(name, case))


LOGS: dict[str, tuple[str, ...]] = {
    "README": ("metrics/demo/cnn1-1-0/logs/k1", "their/logs/k1"),
    "four of one k": tuple(f"{name}/logs/k1" for name in ("ours", "theirs", "of_others", "of_somebody_else")),
    "four of none": ("metrics/demo/cnn1-1-0/logs/x", "their/logs", "another_folder_of_a_long_name", "short"),
    "one": ("k24",),
}
"""Folders of logs that a figure must have room for."""


def comparison_of_logs(case: str, model: str | None, spiking: bool = True) -> Comparison:
    counts = np.array([40, 60, 62]) * spiking
    return compare_logs(
        labelled(
            [
                Logs(
                    Path(folder),
                    360,
                    3,
                    1,
                    np.array([200, 300 + 9 * place, 310]),
                    counts * 900,
                    counts * 90,
                    counts * 9_000,
                )
                for place, folder in enumerate(LOGS[case])
            ]
        ),
        model,
    )


@pytest.mark.parametrize("model", [None, "cnn1"])
@pytest.mark.parametrize("case", LOGS)
@pytest.mark.parametrize("name", LOG_FIGURES)
def test_in_figures_of_logs_nothing_is_cut_off_and_no_label_covers_another(
    name: str, case: str, model: str | None
) -> None:
    check_room(LOG_FIGURES[name](comparison_of_logs(case, model)))


@pytest.mark.parametrize("name", LOG_FIGURES)
def test_logs_without_any_spike_are_drawn_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_room(LOG_FIGURES[name](comparison_of_logs("README", None, spiking=False)))


def check_room(figure: Figure) -> None:
    """That everything lies within the figure and nothing on top of another."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in texts_of(figure) if text.get_text()}
    assert figure.get_suptitle() in {text.get_text() for text in boxes}
    whole = figure.bbox
    for legend in legends_of(figure):
        box = legend.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
        assert inside, f"the legend {legend_of(figure)} is cut off"
    for text, box in boxes.items():
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
        assert inside, f"{text.get_text()!r} is cut off"
        covered = [other.get_text() for other, place in boxes.items() if other is not text and box.overlaps(place)]
        assert not covered, f"{text.get_text()!r} covers {covered}"


@pytest.mark.parametrize("name", FIGURES)
def test_letters_are_large_enough_to_be_read_at_half_size(name: str) -> None:
    for case in ("many k", "one k"):
        figure = figure_of(name, case)
        assert min(text.get_fontsize() for text in texts_of(figure)) >= 11.5


def test_a_legend_takes_as_many_columns_as_there_is_room_for() -> None:
    handles = [Line2D([], [], label=f"a name of some length, number {number}") for number in range(6)]

    def columns(width: float, wanted: int) -> int:
        with style():
            figure = Figure(figsize=(width, 4), layout="constrained")
            legend_below(figure, handles, columns=wanted)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        return len({round(text.get_window_extent().x0) for text in legend.get_texts()})

    # A column takes about 3.5 inches.
    assert [columns(width, 3) for width in (12.0, 8.0, 4.0, 1.0)] == [3, 2, 1, 1]
    assert columns(30.0, 2) == 2


def test_nothing_to_name_gives_no_legend() -> None:
    figure = Figure()
    legend_below(figure, [])
    assert figure.legends == []


# Colours


def colors_of(figure: Figure) -> set[str]:
    """Colours of all that shows data; the greys that belong to no k are left out."""
    found = set()
    for axes in figure.axes:
        found |= {to_hex(color_shown(line)) for line in axes.lines}
        found |= {to_hex(bar.get_facecolor()) for bar in bars_of(axes)}
        found |= {to_hex(color) for collection in axes.collections for color in collection.get_facecolor()}
    neutral = {to_hex(color) for color in ("black", "white", "gray", GRAY, FULL_PRECISION, tint(FULL_PRECISION))}
    return found - neutral


def color_shown(line: Line2D) -> Any:
    """Of a line, or where there is none of its marks: of their area or, as in the caps of error bars, their edge."""
    if line.get_linestyle() != "None":
        return line.get_color()
    filled = MarkerStyle(line.get_marker()).is_filled()
    return line.get_markerfacecolor() if filled else line.get_markeredgecolor()


@pytest.mark.parametrize("name", FIGURES)
def test_every_k_has_its_colour_and_no_other_colour_is_there(name: str) -> None:
    own = {color_of(k) for k in MANY}
    tints = {tint(color) for color in own} | {tint(tint(color)) for color in own}
    found = colors_of(figure_of(name, "many k"))
    assert own <= found <= own | tints


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"sparsity", "sops", "energy"}))
def test_the_legend_gives_every_k_its_colour(name: str) -> None:
    (legend,) = figure_of(name, "many k").legends
    handles = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    for k in MANY:
        assert same_color(color_in_legend(handles[f"k = {k}"]), color_of(k))


def color_in_legend(handle: Artist | None) -> Any:
    assert handle is not None
    return handle.get_color() if isinstance(handle, Line2D) else handle.get_facecolor()  # type: ignore[attr-defined]


# Seeds


@pytest.mark.parametrize("name", FIGURES)
def test_with_several_seeds_the_legend_tells_their_number(name: str) -> None:
    assert "± 1 standard deviation (n = 3)" in legend_of(figure_of(name, "seeds of digits"))


@pytest.mark.parametrize("name", FIGURES)
def test_with_one_seed_there_are_neither_bands_nor_error_bars_nor_a_word_about_them(name: str) -> None:
    figure = figure_of(name, "published")
    assert not any("deviation" in text for text in legend_of(figure))
    assert not any(axes.collections or error_bars_of(axes) for axes in figure.axes)


def test_unequal_numbers_of_seeds_are_told_as_a_range() -> None:
    def seeds(*numbers: int) -> list[Series]:
        return [Series(1, "k = 1", "#000000", "-", [Run(1)] * number) for number in numbers]

    assert spread_named(seeds(1, 1)) is None
    assert spread_named([]) is None
    assert spread_named(seeds(3, 3)) == "± 1 standard deviation (n = 3)"
    assert spread_named(seeds(3, 1, 2)) == "± 1 standard deviation (n = 1 to 3)"


# Titles


@pytest.mark.parametrize("name", FIGURES)
def test_full_precision_alone_is_drawn_and_said(name: str) -> None:
    assert figure_of(name, "fp32").get_suptitle().endswith("\n(only full precision was run: nothing to spike)")
    assert "nothing to spike" not in figure_of(name, "published").get_suptitle()


def test_a_title_names_each_of_several_data_sets(tmp_path: Path) -> None:
    results = make_results(tmp_path / "one", k=(0,)) + make_results(
        tmp_path / "other", k=(1,), images=data_set("images")
    )
    title = "cnn1 on CIFAR-10 (official archive), 10,000 test images and images of photos.tar.gz, 10,000 test images"
    assert compare(results).title == title


@pytest.mark.parametrize(
    ("text", "longest", "shown"),
    [("abcdefg", 7, "abcdefg"), ("abcdefgh", 7, "abc…fgh"), ("abcdefghi", 8, "abc…ghi"), ("", 5, "")],
)
def test_a_text_is_shortened_in_the_middle_only_where_it_is_longer(text: str, longest: int, shown: str) -> None:
    assert shorten_middle(text, longest) == shown


def test_a_word_of_a_title_has_at_most_40_letters() -> None:
    comparison = replace(comparison_of("one k"), title=f"cnn1 on {'a' * 40} and {'b' * 30}{'c' * 30}.tar, 9 images")
    words = sops(comparison).get_suptitle().split()
    # 19 letters of each end
    assert words == ["cnn1", "on", "a" * 40, "and", f"{'b' * 19}…{'c' * 14}.tar,", "9", "images"]


def test_a_file_name_with_dollar_signs_is_no_formula() -> None:
    comparison = replace(comparison_of("one k"), title=r"cnn1 on images of $\nothing$.zip")
    figure = sops(comparison)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # a formula that matplotlib does not know would raise here
    assert r"$\nothing$" in figure.get_suptitle()


# Comparisons


def test_seeds_of_a_k_are_one_series_in_the_order_of_the_grid() -> None:
    comparison: Comparison = comparison_of("seeds of digits")
    assert [(series.k, len(series.runs)) for series in comparison.series] == [("fp32", 3), (0, 3), (2, 3)]
    assert [series.k for series in comparison.spiking] == [0, 2]
    assert [series.name for series in comparison.series] == ["full-precision ANN", "k = 0", "k = 2"]
    assert comparison.last_step == 100
    assert not comparison.has_published


def test_steps_of_full_precision_alone_are_those_of_the_settings(tmp_path: Path) -> None:
    assert compare(make_results(tmp_path, k=("fp32",), steps=70)).last_step == 70


# Style


def test_the_style_sheet_can_be_used_elsewhere() -> None:
    with mpl.rc_context():
        mpl.rcdefaults()
        before = dict(mpl.rcParams)
        matplotlib.style.use("quantspike.figures.paper")
        changed = {name for name, value in mpl.rcParams.items() if before[name] != value}
        assert (mpl.rcParams["font.size"], mpl.rcParams["svg.hashsalt"]) == (13.0, "quantspike")
        assert {"savefig.dpi", "axes.spines.top", "legend.frameon", "text.parse_math"} <= changed
        used = dict(mpl.rcParams)
    # It is all there is: figures are drawn with it on top of matplotlib's defaults.
    with style():
        assert {name: mpl.rcParams[name] for name in used} == used


def test_settings_of_the_caller_neither_count_nor_change() -> None:
    # Two that the style sheet has, and two that it has not.
    theirs = {"font.size": 30, "lines.linewidth": 7, "axes.facecolor": "red", "lines.markeredgewidth": 9}
    with mpl.rc_context(theirs):
        before = dict(mpl.rcParams)
        with style():
            ours = {name: mpl.rcParams[name] for name in theirs}
        assert ours == {"font.size": 13, "lines.linewidth": 2, "axes.facecolor": "white", "lines.markeredgewidth": 1}
        sparsity(comparison_of("one k"))
        assert dict(mpl.rcParams) == before


def test_settings_of_the_caller_come_back_after_an_error() -> None:
    with mpl.rc_context({"font.size": 30}):
        with pytest.raises(ZeroDivisionError), style():
            raise ZeroDivisionError
        assert mpl.rcParams["font.size"] == 30


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "new" / "folder"
    theirs = {"font.size": 30, "savefig.dpi": 50, "svg.fonttype": "none", "savefig.bbox": "tight"}
    with mpl.rc_context(theirs):
        before = dict(mpl.rcParams)
        save(figure_of("settling", "one k"), folder, "some name")
        assert dict(mpl.rcParams) == before
    return folder


def test_a_figure_is_saved_as_png_and_svg_and_nothing_is_left_beside_them(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["some name.png", "some name.svg"]
    png = (saved / "some name.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    # Width and height stand in bytes 16 to 23: 8 x 5.4 inches at 200 dots, whatever the caller has set.
    assert [int.from_bytes(png[start : start + 4], "big") for start in (16, 20)] == [1600, 1080]


def test_files_tell_neither_date_nor_version(saved: Path) -> None:
    svg = (saved / "some name.svg").read_text()
    assert "<svg" in svg
    assert not re.search(r"<dc:date>|<dc:creator>|\d{4}-\d\d-\d\dT|matplotlib\.org", svg)
    assert b"Software" not in (saved / "some name.png").read_bytes()


def test_letters_in_an_svg_are_outlines(saved: Path) -> None:
    assert "<text" not in (saved / "some name.svg").read_text()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(QuantspikeError, match="plots"):
        save(figure_of("settling", "one k"), tmp_path / "plots", "settling")
