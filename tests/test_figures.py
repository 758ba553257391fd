"""Figures: what they show, that it all fits, and that the same data gives the same bytes."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from make_results import data_set, make_chain, make_params
from quantspike.errors import QuantspikeError
from quantspike.figures import accuracy_speed, save, sops, sparsity
from quantspike.palette import color_of
from quantspike.params import Precision
from quantspike.paths import chains
from quantspike.results import ChainResult, read_all

Draw = Callable[[Sequence[ChainResult]], Figure]

FIGURES = (accuracy_speed, sparsity, sops)


def make_results(
    root: Path,
    k: Sequence[Precision] = ("fp32", 0, 1, 2),
    seed: Sequence[int] = (0,),
    data: dict[str, Any] | None = None,
    steps: int = 100,
) -> list[ChainResult]:
    params = make_params(k=k, seed=seed, steps=steps)
    grid = chains(params, root)
    for chain in grid:
        make_chain(chain, data, steps)
    return read_all(grid, params)


@pytest.fixture
def results(tmp_path: Path) -> list[ChainResult]:
    return make_results(tmp_path)


def line_of(axes: Axes, k: Precision) -> Any:
    """The curve of a precision: the one solid line in its colour."""
    (line,) = [one for one in lines_of(axes, linestyle="-") if to_hex(one.get_color()) == color_of(k)]
    return line


def lines_of(axes: Axes, **wanted: str) -> list[Any]:
    """Lines with these properties, such as marker="o"."""
    return [
        line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
    ]


def bars_of(axes: Axes) -> list[Any]:
    return list(axes.patches)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def written_in(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_curves_are_percentages_in_the_colour_of_their_k(results: list[ChainResult]) -> None:
    for axes in accuracy_speed(results).axes:
        line = line_of(axes, 1)
        assert list(line.get_xdata()) == list(range(1, 101))
        assert line.get_ydata()[-1] == pytest.approx(92.86, abs=1e-9)


def test_every_network_has_the_level_of_its_ann(results: list[ChainResult]) -> None:
    axes = accuracy_speed(results).axes[0]
    levels = {line.get_ydata()[0] for line in lines_of(axes, linestyle=":")}
    assert levels == {100 * 0.926, 100 * 0.9282, 100 * 0.9304}
    (full,) = lines_of(axes, linestyle="--")
    assert full.get_ydata()[0] == 100 * 0.9266


def test_a_dot_marks_the_stable_step(results: list[ChainResult]) -> None:
    axes = accuracy_speed(results).axes[0]
    dots = {line.get_xdata()[0]: line.get_ydata()[0] for line in lines_of(axes, marker="o")}
    assert dots == {29: 100 * 0.9264, 62: 100 * 0.9286, 95: 100 * 0.9308}


def test_of_several_seeds_the_dot_waits_for_the_last_to_be_stable(tmp_path: Path) -> None:
    params = make_params(k=(0,), seed=(0, 1))
    grid = chains(params, tmp_path)
    for chain in grid:
        make_chain(chain)
    path = grid[1].metrics / "snn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stable_step": 40}))
    (dot,) = lines_of(accuracy_speed(read_all(grid, params)).axes[0], marker="o")
    assert dot.get_xdata()[0] == 40


def test_one_seed_has_no_band_and_no_word_about_it(results: list[ChainResult]) -> None:
    figure = accuracy_speed(results)
    assert not any(axes.collections for axes in figure.axes)
    assert legend_of(figure) == [
        "full-precision ANN",
        "k = 0",
        "k = 1",
        "k = 2",
        "ANN of the same k",
        "stable from here on",
    ]


def test_several_seeds_give_their_mean_and_a_band_of_one_standard_deviation(tmp_path: Path) -> None:
    results = make_results(tmp_path, k=(1,), seed=(0, 1, 2))
    finals = [100 * result.snn.accuracy for result in results if result.snn is not None]
    assert len(set(finals)) > 1
    figure = accuracy_speed(results)
    axes = figure.axes[1]
    assert line_of(axes, 1).get_ydata()[-1] == pytest.approx(mean(finals))
    (band,) = axes.collections
    vertices: Any = band.get_paths()[0].vertices
    heights = [y for x, y in vertices if x == 100]
    # statistics.stdev divides by n - 1, as asked for.
    assert min(heights) == pytest.approx(mean(finals) - stdev(finals))
    assert max(heights) == pytest.approx(mean(finals) + stdev(finals))
    assert "± 1 standard deviation (n = 3)" in legend_of(figure)


def test_steps_stand_on_a_logarithmic_axis_with_plain_numbers(tmp_path: Path) -> None:
    axes = accuracy_speed(make_results(tmp_path, k=(1,), steps=30)).axes[1]
    assert axes.get_xscale() == "log"
    # The last step is labelled although it is no round number.
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "5", "10", "20", "30"]
    assert axes.get_xlim() == (1, 30)


def test_a_simulation_of_one_step_is_drawn(tmp_path: Path) -> None:
    assert accuracy_speed(make_results(tmp_path, k=(1,), steps=1)).axes[1].get_xlim() == (1, 2)


def test_spikes_are_stacked_beside_the_number_of_neurons(results: list[ChainResult]) -> None:
    figure = sparsity(results)
    (axes,) = figure.axes
    # k = 0: 160 thousand positive and 41 thousand negative on top
    positive, negative = bars_of(axes)[:2]
    assert (positive.get_height(), negative.get_y(), negative.get_height()) == (160, 160, 41)
    assert axes.get_ylabel() == "spikes per image (thousand)"
    assert lines_of(axes)[0].get_ydata()[0] == 336.128
    assert legend_of(figure) == ["positive spikes", "negative spikes", "336,128 neurons"]
    # 201,000 / 336,128 = 0.598
    assert written_in(axes)[0] == "0.60 spikes\nper neuron"


def test_operations_stand_beside_those_of_the_ann(results: list[ChainResult]) -> None:
    (axes,) = sops(results).axes
    # 270 million SOPs for k = 0; 399,190,016 multiply-accumulates, and three additions for each: 1,197,570,048
    assert written_in(axes) == ["270", "443", "726", "399", "1,198"]
    assert bars_of(axes)[-1].get_height() == pytest.approx(1197.570048)
    assert axes.get_ylabel() == "operations per image (million)"
    assert to_hex(bars_of(axes)[1].get_facecolor()) == color_of(1)


def test_error_bars_say_what_they_are(tmp_path: Path) -> None:
    results = make_results(tmp_path, k=(1,), seed=(0, 1))
    assert legend_of(sops(results)) == ["± 1 standard deviation (n = 2)"]
    assert legend_of(sparsity(results))[-1] == "± 1 standard deviation (n = 2)"


@pytest.mark.parametrize("draw", FIGURES)
def test_full_precision_alone_is_drawn_and_said(
    tmp_path: Path, draw: Callable[[Sequence[ChainResult]], Figure]
) -> None:
    figure = draw(make_results(tmp_path, k=("fp32",), data=data_set("digits")))
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    assert any("only full precision was run" in title for title in titles)


def test_the_title_names_network_images_and_their_number(tmp_path: Path) -> None:
    figure = accuracy_speed(make_results(tmp_path, k=(1,), data=data_set("digits")))
    assert figure.get_suptitle() == "cnn1 on scikit-learn digits, 360 test images"


def test_a_file_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    results = make_results(tmp_path, k=(1,), data=data_set("images", name=r"images of $\nothing$.zip"))
    figure = sops(results)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # a formula that matplotlib does not know would raise here
    assert "nothing" in figure.axes[0].get_title()


CASES: dict[str, dict[str, Any]] = {
    "many k": {"k": ("fp32", 0, 1, 2, 3, 4, 5, 6)},
    "one k": {"k": (1,), "steps": 30},
    "full precision": {"k": ("fp32",)},
    "seeds, long name": {
        "seed": (0, 1),
        "data": data_set("images", name="images of " + "a-long-name-" * 5 + ".tar.gz"),
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draw", FIGURES)
def test_nothing_is_cut_off_and_no_label_covers_another(tmp_path: Path, draw: Draw, case: str) -> None:
    figure = draw(make_results(tmp_path, **CASES[case]))
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts_of(figure) if text.get_text()}
    width, height = canvas.get_width_height()
    for text, box in boxes.items():
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text.get_text()!r} is cut off"
        covered = [other.get_text() for other, place in boxes.items() if other is not text and box.overlaps(place)]
        assert not covered, f"{text.get_text()!r} covers {covered}"


def texts_of(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn; matplotlib also keeps labels for ticks beyond the limits of an axis."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        yield from (child for child in axes.get_children() if isinstance(child, Text))
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            yield axis.label
            shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            yield from (tick.label1 for tick in shown if tick.label1.get_visible())


@pytest.mark.parametrize("draw", [accuracy_speed, sparsity])
def test_the_same_data_gives_the_same_bytes(tmp_path: Path, draw: Draw) -> None:
    results = make_results(tmp_path, k=("fp32", 1))
    save(draw(results), tmp_path / "first", "figure")
    with mpl.rc_context({"font.size": 30, "savefig.dpi": 50}):
        save(draw(results), tmp_path / "second", "figure")
    for name in ("figure.png", "figure.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["figure.png", "figure.svg"]


def test_settings_of_the_caller_stay_as_they_are(results: list[ChainResult], tmp_path: Path) -> None:
    with mpl.rc_context({"font.size": 30}):
        before = dict(mpl.rcParams)
        save(sparsity(results), tmp_path, "sparsity")
        assert dict(mpl.rcParams) == before


def plot_stage() -> Any:
    path = Path(__file__).parents[1] / "stages" / "plot.py"
    return SimpleNamespace(**runpy.run_path(str(path)))


def test_the_plot_stage_writes_figures_and_their_tables(tmp_path: Path) -> None:
    params = make_params(k=("fp32", 1))
    for chain in chains(params, tmp_path):
        make_chain(chain)
    plot_stage().main(params, tmp_path, "paper", "cnn1")
    folder = tmp_path / "plots" / "paper" / "cnn1"
    figures = {f"{name}.{kind}" for name in ("accuracy_speed", "sparsity", "sops") for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == figures | {
        "steps.csv",
        "training.csv",
        "runs.csv",
        "sources.csv",
    }
    assert pd.read_csv(folder / "runs.csv")["k"].tolist() == ["fp32", "1"]
    assert len(pd.read_csv(folder / "steps.csv")) == 100
    assert len(pd.read_csv(folder / "training.csv")) == 2 * 200


def test_the_plot_stage_names_an_unfinished_chain(tmp_path: Path) -> None:
    params = make_params(k=("fp32", 1))
    make_chain(chains(params, tmp_path)[0])
    with pytest.raises(QuantspikeError, match="not finished: paper-cnn1-1-0"):
        plot_stage().main(params, tmp_path, "paper", "cnn1")
    assert not (tmp_path / "plots").exists()


def test_the_plot_stage_refuses_a_network_outside_the_grid(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="holds no such chain"):
        plot_stage().main(make_params(), tmp_path, "paper", "cnn2")
