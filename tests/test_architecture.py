"""Layer strings: the published sizes, what a string means layer by layer, and what is refused."""

from __future__ import annotations

import pytest

from quantspike.architecture import Architecture, Layer
from quantspike.errors import QuantspikeError

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"
CNN2 = "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512"


@pytest.mark.parametrize(("text", "neurons", "weights"), [(CNN1, 336_128, 7_852_576), (CNN2, 411_648, 18_522_496)])
def test_the_published_networks_have_the_published_sizes(text: str, neurons: int, weights: int) -> None:
    architecture = Architecture.parse(text, image_size=24)
    convolutions = sum(layer.out_channels * layer.in_channels * layer.kernel**2 for layer in architecture.layers)
    assert architecture.neurons == neurons
    assert convolutions + architecture.classes * architecture.layers[-1].out_channels == weights


def test_every_part_of_a_layer_string_becomes_the_layer_it_stands_for() -> None:
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


def test_images_and_classes_need_not_be_those_of_cifar10() -> None:
    architecture = Architecture.parse("2C1-4", image_size=5, image_channels=1, classes=7)
    assert (architecture.layers[0].in_channels, architecture.layers[1].kernel, architecture.classes) == (1, 5, 7)


def test_the_first_number_of_the_head_covers_what_is_left_of_the_map() -> None:
    layers = Architecture.parse(CNN1, image_size=24).layers
    assert [(layer.kernel, layer.in_size, layer.out_size) for layer in layers[-2:]] == [(3, 3, 1), (1, 1, 1)]


def test_the_width_scales_every_number_of_channels_and_keeps_one_at_least() -> None:
    # 5 x 0.3 = 1.5 -> 2 (ties to even), pooling follows; 1 x 0.3 -> 1 at least; 20 x 0.3 = 6
    architecture = Architecture.parse("5C3-P2-1C3-20", image_size=4, width=0.3)
    assert [layer.out_channels for layer in architecture.layers] == [2, 2, 1, 6]
    assert architecture.text == "2C3-P2-1C3-6"


@pytest.mark.parametrize("width", [0.125, 0.5, 1.0, 1.7])
def test_the_text_of_an_architecture_reads_back_as_the_same_layers(width: float) -> None:
    architecture = Architecture.parse(CNN2, image_size=24, width=width)
    assert Architecture.parse(architecture.text, image_size=24) == architecture


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
    ],
)
def test_a_string_that_means_nothing_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(QuantspikeError, match=message):
        Architecture.parse(text, image_size=24)


def test_pooling_on_a_map_it_does_not_divide_is_refused() -> None:
    message = r"layer 4 \('P2'\) of '4C3-P2-4C3-P2-5': the map is 5x5 there, which 2 does not divide; .*now 10\)"
    with pytest.raises(QuantspikeError, match=message):
        Architecture.parse("4C3-P2-4C3-P2-5", image_size=10)
