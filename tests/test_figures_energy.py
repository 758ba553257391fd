"""Bars of energy: those of the estimates, worked out by hand for a network of three layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from draw_figures import (
    bars_of,
    comparison_of,
    error_bars_of,
    figure_of,
    legend_of,
    results_of,
    tick_labels_of,
    written_in,
)
from quantspike.architecture import Architecture
from quantspike.energy import activation_bits, integer_ann, spiking
from quantspike.figures import Comparison, energy
from quantspike.figures.comparison import Run, Series
from quantspike.figures.style import tint
from quantspike.palette import FULL_PRECISION, color_of
from quantspike.params import Energy

TINY = Architecture.parse("2C3-P2-3", image_size=4)
"""43 neurons; 64, 24 and 30 multiply-accumulates of the activations of its layers (see test_energy)."""

PRICES = Energy(fp32_mac=10.0, int8_mac=2.0, int32_add=1.0, on_chip=8.0, dram=100.0)


def tiny_run(settled: Sequence[float] = (0.5, 1.0, 1.0), synops: float = 50.0) -> Run:
    """50 synaptic operations and 15 + 5 spikes up to the last of three steps; counts of at most 3, 5 and 1."""
    steps = pd.DataFrame(
        {
            "step": [1, 2, 3],
            "accuracy": [0.5, 0.9, 0.9],
            "positive_spikes": [9.0, 14.0, 15.0],
            "negative_spikes": [0.0, 4.0, 5.0],
            "net_spikes": [9.0, 10.0, 10.0],
            "synops": [20.0, 40.0, synops],
            "settled": settled,
        }
    )
    return Run(1, steps=steps, stable_step=2, weights=124, weight_bits=12, largest_counts=[3, 5, 1])


def tiny(*runs: Run, prices: Energy = PRICES) -> Comparison:
    series = Series(1, "k = 1", color_of(1), "-", list(runs))
    return Comparison("tiny", [series], 3, TINY, prices)


def heights_of(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in bars_of(axes)]


def in_picojoules(axes: Axes) -> list[float]:
    """Heights of the bars, whatever the unit of the axis."""
    units = {"picojoules": 1, "nanojoules": 1e3, "microjoules": 1e6, "millijoules": 1e9}
    return [height * units[axes.get_ylabel().removesuffix(" per image")] for height in heights_of(axes)]


def test_arithmetic_is_drawn_above_as_worked_out_by_hand() -> None:
    upper, _ = energy(tiny(tiny_run())).axes
    # Floats: 118 x 10. Integers of 8 bits: 118 x 2; of 12 x 2, 3 and 1 bits: 2 x 12 (64 x 2 + 24 x 3 + 30 x 1) / 64.
    # Half of the images work in one step, the others in two: 1.5 on average; 50 + 43 x 1.5 = 114.5 additions at 1.
    assert in_picojoules(upper) == pytest.approx([1180, 236, 86.25, 114.5])
    assert upper.get_title("left") == "estimated energy: arithmetic"
    assert written_in(upper) == ["1.18", "0.236", "0.0862", "0.115"]


def test_memory_traffic_is_drawn_below_as_worked_out_by_hand() -> None:
    _, lower = energy(tiny(tiny_run())).axes
    # Words: 2 x 118 + 43 = 279; a quarter of it; (1646 + 91) / 32 (see test_energy); of the spikes 50 x 76 / 32 for the
    # operations, 2 x 20 for the spikes, 43 x 1.5 for comparisons and 43 to set membranes: 266.25. 8 pJ each.
    on_chip = [279 * 8, 279 / 4 * 8, 434.25, 266.25 * 8]
    # 124 weights of 32, 8, 12 and 12 bits, 100 pJ for 32 of them
    dram = [12_400, 3_100, 4_650, 4_650]
    bars = [bar for pair in zip(on_chip, dram, strict=True) for bar in pair]
    assert in_picojoules(lower) == pytest.approx(bars)
    assert lower.get_title("left") == "estimated energy: memory traffic"
    assert written_in(lower) == ["14.6", "3.66", "5.08", "6.78"]


def test_both_panels_have_the_unit_of_the_larger_one() -> None:
    # The largest, 14,632 pJ of memory traffic, has two digits before the point in nanojoules; arithmetic has 1.18.
    assert [axes.get_ylabel() for axes in energy(tiny(tiny_run())).axes] == ["nanojoules per image"] * 2
    # Free memory traffic leaves arithmetic the larger one: 1,180 pJ.
    free = PRICES.model_copy(update={"on_chip": 0.0, "dram": 0.0})
    upper, lower = energy(tiny(tiny_run(), prices=free)).axes
    assert upper.get_ylabel() == lower.get_ylabel() == "picojoules per image"
    assert heights_of(upper) == pytest.approx([1180, 236, 86.25, 114.5])


def test_dram_stands_hatched_on_top_of_on_chip_memory() -> None:
    _, lower = energy(tiny(tiny_run())).axes
    for on_chip, dram in zip(bars_of(lower)[::2], bars_of(lower)[1::2], strict=True):
        assert dram.get_y() == on_chip.get_height()
        assert dram.get_x() == on_chip.get_x()
        assert (bool(on_chip.get_hatch()), bool(dram.get_hatch())) == (False, True)


@pytest.mark.parametrize(
    ("settled", "steps_at_work"),
    [
        ((1.0, 1.0, 1.0), 1.0),  # at rest after the first step, which is work all the same
        ((0.25, 0.75, 1.0), 2.0),  # 1, 2, 2 and 3 steps
        ((0.0, 0.0, 1.0), 3.0),
        ((0.0, 0.0, 0.0), 3.0),  # no more steps than there are
    ],
)
def test_an_image_works_until_it_is_at_rest_or_the_steps_are_over(
    settled: tuple[float, ...], steps_at_work: float
) -> None:
    upper, _ = energy(tiny(tiny_run(settled))).axes
    assert in_picojoules(upper)[-1] == pytest.approx(50 + 43 * steps_at_work)


def test_names_say_what_was_counted_at_which_widths() -> None:
    _, lower = energy(tiny(tiny_run())).axes
    assert tick_labels_of(lower) == [
        "ANN\n32-bit floats",
        "ANN\n8-bit integers",
        "ANN\nk = 1:\n12 x 1-3 bits",
        "SNN\nk = 1",
    ]
    # In the made-up networks all layers have the same largest count, 3 x 2^k.
    assert tick_labels_of(figure_of("energy", "published").axes[1])[2::2] == [
        "ANN\nk = 0:\n12 x 2 bits",
        "ANN\nk = 1:\n12 x 3 bits",
        "ANN\nk = 2:\n12 x 4 bits",
    ]


def test_what_belongs_to_a_k_has_its_colour_and_its_ann_is_white_within_an_edge_of_it() -> None:
    upper, lower = figure_of("energy", "many k").axes
    edges = [FULL_PRECISION, FULL_PRECISION, *(color_of(k) for k in range(8) for _ in ("ANN", "SNN"))]
    faces = [FULL_PRECISION, FULL_PRECISION, *(color for k in range(8) for color in ("#ffffff", color_of(k)))]
    pale = [face if face == "#ffffff" else tint(face) for face in faces]
    for bars, expected in ((bars_of(upper), faces), (bars_of(lower)[::2], faces), (bars_of(lower)[1::2], pale)):
        assert [to_hex(bar.get_facecolor()) for bar in bars] == expected
        assert [to_hex(bar.get_edgecolor()) for bar in bars] == edges


def test_the_first_published_network_multiplies_floats_for_1836_microjoules() -> None:
    upper, lower = figure_of("energy", "published").axes
    # 399,190,016 x 4.6 pJ, and x 0.23 pJ for 8-bit integers
    assert in_picojoules(upper)[:2] == pytest.approx([1_836_274_073.6, 91_813_703.68])
    assert written_in(upper)[:2] == ["1.84", "0.0918"]
    # 7,852,576 words from DRAM at 640 pJ: 5,025.65 microjoules, and for integers of 8 bits a quarter
    dram = [in_picojoules(lower)[place] / 1e6 for place in (1, 3)]
    assert dram == pytest.approx([5025.64864, 5025.64864 / 4])
    assert upper.get_ylabel() == lower.get_ylabel() == "millijoules per image"


def test_bars_of_results_are_the_estimates_of_what_their_files_say() -> None:
    architecture = comparison_of("one k").architecture
    assert architecture is not None
    (result,) = results_of("one k")
    assert result.steps is not None
    assert result.snn is not None
    # k = 1: counts of at most 6 in each layer, three bits
    assert activation_bits(result.snn.largest_counts) == [3] * 10
    own = integer_ann(architecture, result.ann.weights, Energy(), 12, [3] * 10)
    # Of 30 steps, step / 30 of the images are at rest after each: the others work on.
    snn = spiking(
        architecture,
        result.ann.weights,
        Energy(),
        12,
        synops=result.snn.synops,
        spikes=result.snn.positive_spikes + result.snn.negative_spikes,
        steps_at_work=1 + sum(1 - step / 30 for step in range(1, 30)),
    )
    upper, lower = figure_of("energy", "one k").axes
    assert in_picojoules(upper)[2:] == pytest.approx([own.arithmetic, snn.arithmetic])
    assert in_picojoules(lower)[4:] == pytest.approx([own.on_chip, own.dram, snn.on_chip, snn.dram])


def test_prices_change_bars_and_caption() -> None:
    dear = PRICES.model_copy(update={"dram": 300.0, "int32_add": 2.5})
    figures = [energy(tiny(tiny_run(), prices=prices)) for prices in (PRICES, dear)]
    (upper, lower), (other_upper, other_lower) = (figure.axes for figure in figures)
    assert in_picojoules(other_lower)[1::2] == pytest.approx([3 * dram for dram in in_picojoules(lower)[1::2]])
    assert in_picojoules(other_lower)[::2] == pytest.approx(in_picojoules(lower)[::2])
    assert in_picojoules(other_upper)[:3] == pytest.approx(in_picojoules(upper)[:3])
    assert in_picojoules(other_upper)[3] == pytest.approx(2.5 * in_picojoules(upper)[3])
    caption, other = (caption_of(figure) for figure in figures)
    assert "32-bit addition 1;" in caption
    assert "8 on chip, 100 from DRAM" in caption
    assert "32-bit addition 2.5;" in other
    assert "8 on chip, 300 from DRAM" in other


def caption_of(figure: Figure) -> str:
    """The caption as one line; it was broken at spaces and hyphens."""
    return " ".join(figure.get_supxlabel().replace("-\n", "-").split())


def test_the_caption_names_the_source_and_every_default_price() -> None:
    caption = caption_of(figure_of("energy", "published"))
    for words in (
        "Horowitz, ISSCC 2014",
        "defaults: 45 nm",
        "multiply-accumulate 4.6 in fp32, 0.23 for 8 x 8 bits, else by the product of the widths",
        "32-bit addition 0.1",
        "per 32 bits 5 on chip, 640 from DRAM",
    ):
        assert words in caption


def test_several_seeds_have_error_bars_and_say_how_many_there_are() -> None:
    figure = energy(tiny(tiny_run(), tiny_run(synops=70)))
    upper, lower = figure.axes
    # 114.5 and 134.5 pJ: mean 124.5, standard deviation 20 / sqrt(2); in nanojoules, as the memory traffic below
    assert in_picojoules(upper)[-1] == pytest.approx(124.5)
    ((place, low, high),) = error_bars_of(upper)
    assert (place, low, high) == pytest.approx((3, 0.1245 - 200**0.5 / 1e3, 0.1245 + 200**0.5 / 1e3))
    # 20 operations more are 20 x 76 / 32 words at 8 pJ more: 380, in nanojoules
    ((place, low, high),) = error_bars_of(lower)
    assert (place, high - low) == pytest.approx((3, 2 * 0.38 / 2**0.5))
    assert legend_of(figure) == ["on-chip memory", "weights from DRAM, once", "± 1 standard deviation (n = 2)"]


def test_one_seed_has_no_error_bars_and_no_word_about_them() -> None:
    figure = figure_of("energy", "published")
    assert all(error_bars_of(axes) == [] for axes in figure.axes)
    assert legend_of(figure) == ["on-chip memory", "weights from DRAM, once"]


def test_full_precision_alone_shows_the_two_anns() -> None:
    _, lower = figure_of("energy", "fp32").axes
    assert tick_labels_of(lower) == ["ANN\n32-bit floats", "ANN\n8-bit integers"]


def test_a_world_without_prices_is_drawn() -> None:
    free = Energy(fp32_mac=0, int8_mac=0, int32_add=0, on_chip=0, dram=0)
    figure = energy(tiny(tiny_run(), prices=free))
    FigureCanvasAgg(figure).draw()
    assert [written_in(axes) for axes in figure.axes] == [["0"] * 4] * 2


def test_a_run_in_which_a_width_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        energy(tiny(replace(tiny_run(), largest_counts=[3, 5])))
