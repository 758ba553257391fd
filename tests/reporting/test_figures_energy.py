"""Bars of energy: those of the estimates, worked out by hand for a network of three layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from draw_figures import bars_of, error_bars_of, figure_of, legend_of, make_results, tick_labels_of, written_in
from make_results import data_set
from quantspike.params import Energy
from quantspike.reporting.figures.comparison import compare_results
from quantspike.reporting.figures.costs import energy
from quantspike.reporting.results import RunResult, SpikingResult

PRICES = Energy(fp32_mac=10.0, int8_mac=2.0, int32_add=1.0, on_chip=8.0, dram=100.0)


@cache
def tiny_results() -> list[RunResult]:
    """Return baseline and k = 1 of a network of 43 neurons and 124 weights.

    The activations of its layers take 64, 24 and 30 multiply-accumulates (see test_energy).
    """
    tiny = {"layers": "2C3-P2-3", "data": {"source": "digits", "crop": 4, "held_out": 0}, "images": data_set("digits")}
    with TemporaryDirectory() as folder:
        return make_results(Path(folder), k=(1,), simulate__steps=3, **tiny)


def draw(
    settled: Sequence[float] = (0.5, 1.0, 1.0), synops: Sequence[float] = (50,), prices: Energy = PRICES
) -> Figure:
    """Draw three steps with 15 + 5 spikes and, for each seed, so many operations; counts are at most 3, 5 and 1."""
    baseline, spiking = tiny_results()
    assert isinstance(spiking, SpikingResult)
    counts = {"positive_spikes": 15.0, "negative_spikes": 5.0, "largest_counts": [3, 5, 1]}
    seeds = [
        replace(
            spiking,
            steps=spiking.steps.assign(settled=list(settled)),
            simulation=spiking.simulation.model_copy(update={**counts, "synops": float(count)}),
        )
        for count in synops
    ]
    return energy(compare_results([baseline, *seeds], prices))


def heights_of(axes: Axes) -> list[float]:
    """Return the heights of the bars in picojoules, whatever the unit of the axis."""
    units = {"picojoules": 1, "nanojoules": 1e3, "microjoules": 1e6, "millijoules": 1e9}
    unit = units[axes.get_ylabel().removesuffix(" per image")]
    return [bar.get_height() * unit for bar in bars_of(axes)]


def test_arithmetic_is_drawn_above_as_worked_out_by_hand() -> None:
    upper, _ = draw().axes
    # Floats: 118 x 10. Integers of 8 bits: 118 x 2; of 12 x 2, 3 and 1 bits: 2 x 12 (64 x 2 + 24 x 3 + 30 x 1) / 64.
    # Half of the images work in one step, the others in two: 1.5 on average; 50 + 43 x 1.5 = 114.5 additions at 1.
    assert heights_of(upper) == pytest.approx([1180, 236, 86.25, 114.5])
    assert upper.get_title("left") == "estimated energy: arithmetic"
    assert written_in(upper) == ["1.18", "0.236", "0.0862", "0.115"]


def test_memory_traffic_is_drawn_below_as_worked_out_by_hand() -> None:
    _, lower = draw().axes
    # Words: 2 x 118 + 43 = 279; a quarter of it; (1646 + 91) / 32 (see test_energy); of the spikes 50 x 76 / 32 for the
    # operations, 2 x 20 for the spikes, 43 x 1.5 for comparisons and 43 to set membranes: 266.25. 8 pJ each.
    on_chip = [279 * 8, 279 / 4 * 8, 434.25, 266.25 * 8]
    # 124 weights of 32, 8, 12 and 12 bits, 100 pJ for 32 of them
    dram = [12_400, 3_100, 4_650, 4_650]
    assert heights_of(lower) == pytest.approx([bar for pair in zip(on_chip, dram, strict=True) for bar in pair])
    assert lower.get_title("left") == "estimated energy: memory traffic"
    assert written_in(lower) == ["14.6", "3.66", "5.08", "6.78"]
    for inner, outer in zip(bars_of(lower)[::2], bars_of(lower)[1::2], strict=True):
        assert (outer.get_x(), outer.get_y()) == (inner.get_x(), inner.get_height())
        assert (bool(inner.get_hatch()), bool(outer.get_hatch())) == (False, True)


def test_both_panels_have_the_unit_of_the_larger_one() -> None:
    # The largest, 14,632 pJ of memory traffic, has two digits before the point in nanojoules; arithmetic has 1.18.
    assert [axes.get_ylabel() for axes in draw().axes] == ["nanojoules per image"] * 2
    # Free memory traffic leaves arithmetic the larger one: 1,180 pJ.
    free = PRICES.model_copy(update={"on_chip": 0.0, "dram": 0.0})
    assert [axes.get_ylabel() for axes in draw(prices=free).axes] == ["picojoules per image"] * 2


@pytest.mark.parametrize(
    ("settled", "steps_at_work"),
    [
        ((1.0, 1.0, 1.0), 1.0),  # settled after the first step, which is work all the same
        ((0.25, 0.75, 1.0), 2.0),  # 1, 2, 2 and 3 steps
        ((0.0, 0.0, 0.0), 3.0),  # no more steps than there are
    ],
)
def test_an_image_works_until_it_is_settled_or_the_steps_are_over(
    settled: tuple[float, ...], steps_at_work: float
) -> None:
    upper, _ = draw(settled).axes
    assert heights_of(upper)[-1] == pytest.approx(50 + 43 * steps_at_work)


def test_names_say_what_was_counted_at_which_widths() -> None:
    _, lower = draw().axes
    names = ["ANN\n32-bit floats", "ANN\n8-bit integers", "ANN\nk = 1:\n12 x 1-3 bits", "SNN\nk = 1"]
    assert tick_labels_of(lower) == names
    # In the made-up networks all layers have the same largest count, 3 x 2^k.
    assert tick_labels_of(figure_of("energy", "published").axes[1])[4] == "ANN\nk = 1:\n12 x 3 bits"


def test_the_caption_names_the_source_and_every_price() -> None:
    def caption(figure: Figure) -> str:
        return " ".join(figure.get_supxlabel().replace("-\n", "-").split())

    default = caption(figure_of("energy", "published"))
    for words in (
        "defaults: 45 nm, Horowitz, ISSCC 2014",
        "multiply-accumulate 4.6 in fp32, 0.23 for 8 x 8 bits, else by the product of the widths",
        "32-bit addition 0.1; per 32 bits 5 on chip, 640 from DRAM",
    ):
        assert words in default
    assert "32-bit addition 1; per 32 bits 8 on chip, 100 from DRAM" in caption(draw())


def test_several_seeds_have_error_bars_and_say_how_many_there_are() -> None:
    figure = draw(synops=(50, 70))
    upper, lower = figure.axes
    # 114.5 and 134.5 pJ: mean 124.5, standard deviation 20 / sqrt(2); in nanojoules, as the memory traffic below
    assert heights_of(upper)[-1] == pytest.approx(124.5)
    ((place, low, high),) = error_bars_of(upper)
    assert (place, low, high) == pytest.approx((3, 0.1245 - 200**0.5 / 1e3, 0.1245 + 200**0.5 / 1e3))
    # 20 operations more are 20 x 76 / 32 words at 8 pJ more: 380, in nanojoules
    ((place, low, high),) = error_bars_of(lower)
    assert (place, high - low) == pytest.approx((3, 2 * 0.38 / 2**0.5))
    assert legend_of(figure) == ["on-chip memory", "weights from DRAM, once", "± 1 standard deviation (n = 2)"]


def test_a_world_without_prices_is_drawn() -> None:
    figure = draw(prices=Energy(fp32_mac=0, int8_mac=0, int32_add=0, on_chip=0, dram=0))
    FigureCanvasAgg(figure).draw()
    assert [written_in(axes) for axes in figure.axes] == [["0"] * 4] * 2
