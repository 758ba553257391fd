"""Estimates of energy against hand-computed numbers for a network of three layers."""

from __future__ import annotations

import pytest

from make_results import ENERGY
from quantspike.networks.architecture import Architecture
from quantspike.params import Energy
from quantspike.reporting.energy import Estimate, activation_bits, full_precision_ann, integer_ann, spiking
from quantspike.reporting.published import LAYERS

TINY = Architecture.parse("2C3-P2-3", image_size=4)
"""2 x 4 x 4 = 32 neurons, then 2 x 2 x 2 = 8, then 3: 43 together.

Multiply-accumulates of the activations of the first layer, in P2: 8 neurons of 2 x 2 x 2 inputs = 64; of the second,
in the head: 3 x 8 = 24; of the last, in the classifier: 10 x 3 = 30: 118 together.
"""

WEIGHTS = 124
"""2 x 3 x 9 = 54, 2 x 2 x 4 = 16, 3 x 2 x 4 = 24 and 10 x 3 = 30."""

PRICES = Energy(fp32_mac=10.0, int8_mac=2.0, int32_add=1.0, on_chip=8.0, dram=100.0)


def test_full_precision_multiplies_floats_and_moves_32_bits() -> None:
    assert full_precision_ann(TINY, WEIGHTS, PRICES) == Estimate(
        arithmetic=118 * 10,
        # A weight and an activation are read for each of them, and 43 activations written: 2 x 118 + 43 = 279 words.
        on_chip=279 * 8,
        dram=124 * 100,
    )


def test_eight_bit_integers_have_a_price_of_their_own_and_move_a_quarter() -> None:
    assert integer_ann(TINY, WEIGHTS, PRICES, 8, [8, 8, 8]) == Estimate(
        arithmetic=118 * 2,
        on_chip=279 / 4 * 8,
        dram=124 / 4 * 100,
    )


def test_other_widths_are_priced_by_their_product_and_move_their_bits() -> None:
    assert integer_ann(TINY, WEIGHTS, PRICES, 12, [2, 3, 1]) == Estimate(
        # 12 x 2 bits are 24/64 of 8 x 8: (64 x 24 + 24 x 36 + 30 x 12) / 64 = 2760 / 64 = 43.125, at 2 pJ.
        arithmetic=86.25,
        # Read: 64 x (12 + 2) + 24 x (12 + 3) + 30 x (12 + 1) = 896 + 360 + 390 = 1646 bits; written:
        # 32 x 2 + 8 x 3 + 3 x 1 = 91 bits. 1737 / 32 words at 8 pJ.
        on_chip=434.25,
        # 124 x 12 / 32 = 46.5 words
        dram=4650,
    )


def test_spikes_add_and_compare_and_move_membranes() -> None:
    found = spiking(TINY, WEIGHTS, PRICES, 12, synops=50, spikes=20, steps_at_work=2.5)
    assert found == Estimate(
        # 50 additions, and 43 neurons compared in 2.5 steps: 107.5.
        arithmetic=157.5,
        # An addition reads 12 bits of weight, reads 32 and writes 32 of a membrane: 50 x 76 / 32 = 118.75 words. 20
        # spikes are written and read: 40. Each comparison reads: 107.5. Each membrane is set once: 43.
        # 118.75 + 40 + 107.5 + 43 = 309.25 words at 8 pJ.
        on_chip=2474,
        dram=4650,
    )


def test_the_first_published_network_in_full_precision_takes_1836_microjoules_of_arithmetic() -> None:
    cnn1 = Architecture.parse(LAYERS["cnn1"], image_size=24)
    # 399,190,016 x 4.6 pJ = 1,836,274,073.6 pJ
    found = full_precision_ann(cnn1, 7_852_576, Energy(**ENERGY))
    assert found.arithmetic / 1e6 == pytest.approx(1836.2740736, abs=1e-9)
    # 7,852,576 words at 640 pJ
    assert found.dram / 1e6 == pytest.approx(5025.64864, abs=1e-9)


@pytest.mark.parametrize(
    ("price", "part", "networks"),
    [
        ("fp32_mac", "arithmetic", {"full"}),
        ("int8_mac", "arithmetic", {"integer"}),
        ("int32_add", "arithmetic", {"spiking"}),
        ("on_chip", "on_chip", {"full", "integer", "spiking"}),
        ("dram", "dram", {"full", "integer", "spiking"}),
    ],
)
def test_twice_a_price_doubles_only_the_energy_that_it_belongs_to(price: str, part: str, networks: set[str]) -> None:
    def estimates(prices: Energy) -> dict[tuple[str, str], float]:
        of = {
            "full": full_precision_ann(TINY, WEIGHTS, prices),
            "integer": integer_ann(TINY, WEIGHTS, prices, 12, [2, 3, 1]),
            "spiking": spiking(TINY, WEIGHTS, prices, 12, synops=50, spikes=20, steps_at_work=2.5),
        }
        return {(name, kind): getattr(one, kind) for name, one in of.items() for kind in vars(one)}

    before = estimates(PRICES)
    after = estimates(PRICES.model_copy(update={price: 2 * getattr(PRICES, price)}))
    paid = {(name, part) for name in networks}
    assert after == {key: 2 * value if key in paid else value for key, value in before.items()}


def test_a_count_takes_the_bits_that_hold_it_and_one_at_least() -> None:
    counts = [0, 1, 2, 3, 4, 7, 8, 255, 256]
    assert activation_bits(counts) == [1, 1, 2, 2, 3, 3, 4, 8, 9]
    for count, bits in zip(range(2000), activation_bits(range(2000)), strict=True):
        assert bits == min(width for width in range(1, 12) if count < 2**width)


def test_a_width_for_each_layer_is_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        integer_ann(TINY, WEIGHTS, PRICES, 8, [8, 8])
