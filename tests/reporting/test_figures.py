"""What all figures share: style, files, colours, room for every label, and words about seeds."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from draw_figures import (
    CASES,
    PRICES,
    bars_of,
    compare,
    comparison_of,
    error_bars_of,
    figure_of,
    legend_of,
    legends_of,
    results_of,
    texts_of,
    without_spikes,
)
from quantspike.errors import QuantspikeError
from quantspike.reporting.figures import FIGURES, LOG_FIGURES
from quantspike.reporting.figures.comparison import Comparison, compare_logs, compare_results
from quantspike.reporting.figures.style import paper, readable, save, tint, unit_of
from quantspike.reporting.logs import Logs, labelled
from quantspike.reporting.palette import FULL_PRECISION, color_of

MANY = range(8)
"""The precisions of the case "many k"."""


# Room


def check_room(figure: Figure) -> None:
    """Check that everything lies within the figure and that no text covers another."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    boxes = {text: text.get_window_extent() for text in texts_of(figure) if text.get_text()}
    assert figure.get_suptitle() in {text.get_text() for text in boxes}
    whole = figure.bbox
    for shown in (*legends_of(figure), *boxes):
        box = shown.get_window_extent()
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= whole.x1 and box.y1 <= whole.y1
        assert inside, f"{shown} is cut off"
    for text, box in boxes.items():
        covered = [other.get_text() for other, place in boxes.items() if other is not text and box.overlaps(place)]
        assert not covered, f"{text.get_text()!r} covers {covered}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_no_label_covers_another(name: str, case: str) -> None:
    figure = figure_of(name, case)
    check_room(figure)
    # Large enough to be read at half size.
    assert min(text.get_fontsize() for text in texts_of(figure)) >= 11.5


TWO = ("metrics/demo/cnn1-1-0/logs/k1", "their/logs/k1")
FOUR = ("metrics/demo/cnn1-1-0/logs/x", "their/logs", "another_folder_of_a_long_name", "k1")


def comparison_of_logs(folders: tuple[str, ...], model: str | None, spiking: bool = True) -> Comparison:
    counts = np.array([40, 60, 62]) * spiking
    correct = [np.array([200, 300 + 9 * index, 310]) for index in range(len(folders))]
    sums = (counts * 900, counts * 90, counts * 9_000)
    logs = [Logs(Path(folder), 360, 3, 1, right, *sums) for folder, right in zip(folders, correct, strict=True)]
    return compare_logs(labelled(logs), model)


@pytest.mark.parametrize(("folders", "model"), [(TWO, None), (TWO, "cnn1"), (FOUR, None), (("k24",), "cnn1")])
@pytest.mark.parametrize("name", LOG_FIGURES)
def test_in_figures_of_logs_nothing_is_cut_off_and_no_label_covers_another(
    name: str, folders: tuple[str, ...], model: str | None
) -> None:
    check_room(LOG_FIGURES[name](comparison_of_logs(folders, model)))


@pytest.mark.parametrize("name", LOG_FIGURES)
def test_logs_without_any_spike_are_drawn_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_room(LOG_FIGURES[name](comparison_of_logs(TWO, None, spiking=False)))


@pytest.mark.parametrize("name", FIGURES)
def test_networks_without_any_spike_are_drawn_without_a_warning_and_named_as_such(name: str) -> None:
    # Of k = 0 and 2 only the latter is silent; then both are.
    for silent, named in (((2,), ["k = 2, no spikes"]), ((0, 2), ["k = 0, no spikes", "k = 2, no spikes"])):
        results = [without_spikes(one) if one.run.k in silent else one for one in results_of("seeds of digits")]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure = FIGURES[name](compare(results))
            check_room(figure)
        # Nothing is counted below zero.
        assert name not in ("layers", "sops", "sparsity") or all(axes.get_ylim()[0] == 0 for axes in figure.axes)
        words = {" ".join(text.get_text().split()).removesuffix(":") for text in texts_of(figure)}
        assert all(any(one in word for word in words) for one in named)


# Colours


def color_shown(line: Line2D) -> Any:
    """Return the colour of a line, or where there is none of its marks: of their area or, of caps, their edge."""
    if line.get_linestyle() != "None":
        return line.get_color()
    filled = MarkerStyle(line.get_marker()).is_filled()
    return line.get_markerfacecolor() if filled else line.get_markeredgecolor()


@pytest.mark.parametrize("name", FIGURES)
def test_every_k_has_its_colour_and_no_other_colour_is_there(name: str) -> None:
    found = set()
    for axes in figure_of(name, "many k").axes:
        found |= {to_hex(color_shown(line)) for line in axes.lines}
        found |= {to_hex(bar.get_facecolor()) for bar in bars_of(axes)}
        found |= {to_hex(color) for collection in axes.collections for color in collection.get_facecolor()}
    neutral = {to_hex(color) for color in ("black", "white", "gray", FULL_PRECISION, tint(FULL_PRECISION))}
    own = {color_of(k) for k in MANY}
    assert own <= found <= own | {tint(color) for color in own} | neutral


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"sparsity", "sops", "energy"}))
def test_the_legend_gives_every_k_its_colour(name: str) -> None:
    (legend,) = figure_of(name, "many k").legends
    handles = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    for k in MANY:
        handle: Any = handles[f"k = {k}"]
        color = handle.get_color() if isinstance(handle, Line2D) else handle.get_facecolor()
        assert same_color(color, color_of(k))


# Seeds, titles and numbers


@pytest.mark.parametrize("name", FIGURES)
def test_bands_and_error_bars_are_there_and_named_only_with_several_seeds(name: str) -> None:
    assert "± 1 standard deviation (n = 3)" in legend_of(figure_of(name, "seeds of digits"))
    figure = figure_of(name, "published")
    assert not any("deviation" in text for text in legend_of(figure))
    assert not any(axes.collections or error_bars_of(axes) for axes in figure.axes)


@pytest.mark.parametrize("name", FIGURES)
def test_published_figures_are_named_only_where_they_apply(name: str) -> None:
    def published(case: str) -> bool:
        return any("published" in text for text in legend_of(figure_of(name, case)))

    assert published("published") is (name in LOG_FIGURES)
    assert not published("seeds of digits")


def test_a_title_names_network_images_and_their_number() -> None:
    assert figure_of("sops", "one k").get_suptitle() == "cnn1 on scikit-learn digits, 360 test images"


def test_a_file_name_with_dollar_signs_is_not_a_formula() -> None:
    figure = FIGURES["sops"](replace(comparison_of("one k"), title=r"cnn1 on images of $\nothing$.zip"))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # a formula that matplotlib does not know would raise here
    assert r"$\nothing$" in figure.get_suptitle()


def test_a_baseline_alone_or_its_absence_is_refused() -> None:
    for wanted in (True, False):
        results = [result for result in results_of("published") if (result.run.k == "fp32") is wanted]
        with pytest.raises(QuantspikeError, match="the baseline and at least one k"):
            compare_results(results, PRICES)


def test_numbers_have_three_digits_and_a_unit_in_which_the_largest_is_at_least_ten() -> None:
    values = (0.0, 0.0523, 5.1234, 99.94, 99.96, 1835.6, 1234567.0)
    assert [readable(value) for value in values] == ["0", "0.0523", "5.12", "99.9", "100", "1,836", "1,234,567"]
    units = {0.0: 1.0, 9_999.0: 1.0, 10_000.0: 1e3, 1e7: 1e6, 9.99e9: 1e6, 1e14: 1e9}
    assert {largest: unit_of(largest)[0] for largest in units} == units
    assert [unit_of(largest)[1] for largest in (9e3, 9e4, 9e7, 9e10)] == ["", " (thousand)", " (million)", " (billion)"]


# Style and files


def test_settings_of_the_caller_neither_count_nor_change() -> None:
    # Two that the style sheet has, and two that it does not have.
    theirs = {"font.size": 30, "lines.linewidth": 7, "axes.facecolor": "red", "lines.markeredgewidth": 9}
    with mpl.rc_context(theirs):
        before = dict(mpl.rcParams)
        with paper():
            ours = {name: mpl.rcParams[name] for name in theirs}
        with pytest.raises(ZeroDivisionError), paper():
            raise ZeroDivisionError
        assert dict(mpl.rcParams) == before
    assert ours == {"font.size": 13, "lines.linewidth": 2, "axes.facecolor": "white", "lines.markeredgewidth": 1}


def test_the_same_data_gives_the_same_png_and_svg_whatever_the_caller_has_set(tmp_path: Path) -> None:
    with mpl.rc_context({"font.size": 30, "savefig.dpi": 50, "svg.fonttype": "none", "savefig.bbox": "tight"}):
        save(figure_of("settling", "one k"), tmp_path / "new" / "folder", "some name")
    save(FIGURES["settling"](comparison_of("one k")), tmp_path / "again", "some name")
    first, second = (
        {path.name: path.read_bytes() for path in tmp_path.glob(f"{name}/*")} for name in ("new/*", "again")
    )
    assert sorted(first) == ["some name.png", "some name.svg"]
    assert first == second
    png, svg = first["some name.png"], first["some name.svg"].decode()
    # Width and height stand in bytes 16 to 23: 8 x 5.4 inches at 200 dots.
    assert [int.from_bytes(png[start : start + 4], "big") for start in (16, 20)] == [1600, 1080]
    assert b"Software" not in png
    assert not re.search(r"<dc:date>|<dc:creator>|\d{4}-\d\d-\d\dT|matplotlib\.org", svg)
    assert "<text" not in svg  # letters are outlines


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(QuantspikeError, match="plots"):
        save(figure_of("settling", "one k"), tmp_path / "plots", "settling")
