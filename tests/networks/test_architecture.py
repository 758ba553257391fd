"""Layer strings: the published sizes, the layers of a string, costs counted synapse by synapse, and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

import oracle
from hostile import fuzz
from make_networks import LAYER_STRINGS
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture, Layer, fan_out, fan_outs, layer_macs, macs

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"
CNN2 = "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512"


@pytest.mark.parametrize(
    ("text", "neurons", "weights", "multiplications"),
    [(CNN1, 336_128, 7_852_576, 399_190_016), (CNN2, 411_648, 18_522_496, 769_659_904)],
)
def test_the_published_networks_have_the_published_sizes(
    text: str, neurons: int, weights: int, multiplications: int
) -> None:
    architecture = Architecture.parse(text, image_size=24)
    convolutions = sum(layer.out_channels * layer.in_channels * layer.kernel**2 for layer in architecture.layers)
    assert architecture.neurons == neurons
    assert convolutions + architecture.classes * architecture.layers[-1].out_channels == weights
    assert macs(architecture) == multiplications


def test_every_part_of_a_layer_string_becomes_its_layer() -> None:
    architecture = Architecture.parse("6C3-P2-8C5-P3-20-30", image_size=12)
    assert architecture.layers == (
        # token, in_channels, out_channels, kernel, stride, padding, in_size, out_size
        Layer("6C3", 3, 6, 3, 1, 1, 12, 12),
        Layer("P2", 6, 6, 2, 2, 0, 12, 6),
        Layer("8C5", 6, 8, 5, 1, 2, 6, 6),
        Layer("P3", 8, 8, 3, 3, 0, 6, 2),
        Layer("20", 8, 20, 2, 1, 0, 2, 1),
        Layer("30", 20, 30, 1, 1, 0, 1, 1),
    )
    # 6 x 12 x 12 + 6 x 6 x 6 + 8 x 6 x 6 + 8 x 2 x 2 + 20 + 30
    assert architecture.neurons == 864 + 216 + 288 + 32 + 20 + 30


def test_the_width_scales_every_number_of_channels_and_keeps_one_at_least() -> None:
    # 5 x 0.3 = 1.5 -> 2 (ties to even), pooling follows; 1 x 0.3 -> 1 at least; 20 x 0.3 = 6
    architecture = Architecture.parse("5C3-P2-1C3-20", image_size=4, width=0.3)
    assert [layer.out_channels for layer in architecture.layers] == [2, 2, 1, 6]
    assert architecture.text == "2C3-P2-1C3-6"
    assert Architecture.parse(architecture.text, image_size=4) == architecture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4C3-P2", r"'4C3-P2' has no head: end with a bare number of channels"),
        ("", r"layer 1 \(''\) of '' is not understood: write cCn"),
        ("4C3--5", r"layer 2 \(''\) of '4C3--5' is not understood"),
        ("4c3-5", r"layer 1 \('4c3'\) of '4c3-5' is not understood"),
        ("04C3-5", r"layer 1 \('04C3'\)"),
        ("4C3-P0-5", r"layer 2 \('P0'\)"),
        ("4C3-5\n", r"layer 2 \('5\\n'\)"),
        ("4C3-5.5", r"layer 2 \('5.5'\)"),
        ("4C4-5", r"layer 1 \('4C4'\) of '4C4-5': a 4x4 kernel cannot keep the map's size; use an odd one"),
        ("P2-5", r"layer 1 \('P2'\) of 'P2-5': pooling cannot come first"),
        ("5", r"layer 1 \('5'\) of '5': the head cannot come first"),
        ("4C3-5-4C3", r"layer 3 \('4C3'\) of '4C3-5-4C3': no convolution may follow the head"),
        ("4C3-5-P1", r"layer 3 \('P1'\) of '4C3-5-P1': no pooling may follow the head"),
        ("1000000C3-5", r"layer 1 \('1000000C3'\) of '1000000C3-5' is not understood: .* numbers of at most 6 digits"),
        ("9" * 400 + "C3-5", r"layer 1 \('9{400}C3'\)"),
        ("1\u0663C3-5", r"layer 1 \('1\u0663C3'\)"),  # a digit of another script
        ("4C3-" * 100 + "5", r"the layer string has 101 layers, at most 100 are allowed"),
        # Weights: 3 x 50,000 x 9 + 50,000 x 30,000 + 30,000 x 24 x 24; neurons: 80,000 x 24 x 24 + 1.
        ("50000C3-30000C1-1", r"has 1,518,630,000 weights and 46,080,001 neurons, at most 1,073,741,824 of each are"),
        ("4C3-P2-4C3-P2-4C3-P2-4C3-P2-5", r"layer 8 \('P2'\) of .*: the map is 3x3 there, .*now 24\)"),
    ],
)
def test_a_string_that_means_nothing_is_refused_with_its_layer(text: str, message: str) -> None:
    with pytest.raises(QuantspikeError, match=message):
        Architecture.parse(text, image_size=24)


def test_multiplications_belong_to_the_layer_whose_activations_are_multiplied() -> None:
    # Positions in the padding and the classifier count, the encoding layer does not.
    # P2: 4 x 2 x 2 neurons of 4 x 2 x 2 inputs; 5C3: 5 x 2 x 2 of 4 x 3 x 3; 6: 6 of 5 x 2 x 2; classifier: 7 of 6
    architecture = Architecture.parse("4C3-P2-5C3-6", image_size=4, classes=7)
    assert layer_macs(architecture) == [16 * 16, 20 * 36, 6 * 20, 7 * 6]
    assert macs(architecture) == 16 * 16 + 20 * 36 + 6 * 20 + 7 * 6


def test_a_spike_reaches_fewer_synapses_at_the_border_of_a_padded_map() -> None:
    # A 3x3 kernel on a 3x3 map: a corner lies under 2 x 2 of its positions, an edge under 2 x 3, the centre under 9.
    layer = Architecture.parse("2C1-5C3-1", image_size=3).layers[1]
    assert fan_out(layer).tolist() == [[20, 30, 20], [30, 45, 30], [20, 30, 20]]


@pytest.mark.parametrize(("text", "size"), [*LAYER_STRINGS, ("2C7-3C9-1", 4), ("1C1-P4-2C3-P2-3", 8)])
def test_fan_outs_are_those_of_the_synapses_listed_one_by_one(text: str, size: int) -> None:
    architecture = Architecture.parse(text, image_size=size, image_channels=2, classes=3)
    *inner, last = fan_outs(architecture)
    assert last.tolist() == [[3]]  # one per class
    for layer, fan in zip(architecture.layers[1:], inner, strict=True):
        for channel in oracle.reached_synapses(layer):
            assert fan.dtype == np.int64
            assert np.array_equal(fan, channel)


@fuzz(text=st.text() | st.text("0123456789CP-") | st.lists(st.from_regex(r"\d{0,7}[CP]?\d{0,7}")).map("-".join))
def test_any_text_is_a_network_of_bounded_size_or_refused(text: str) -> None:
    try:
        architecture = Architecture.parse(text, image_size=24)
    except QuantspikeError:
        return
    assert Architecture.parse(architecture.text, image_size=24) == architecture
    assert sum(layer.out_channels * layer.in_channels * layer.kernel**2 for layer in architecture.layers) <= 2**30
