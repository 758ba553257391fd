"""Costs of a network, counted synapse by synapse."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from make_networks import LAYER_STRINGS
from quantspike.architecture import Architecture
from quantspike.operations import fan_out, fan_outs, layer_macs, macs

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"
CNN2 = "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512"


@pytest.mark.parametrize(("text", "expected"), [(CNN1, 399_190_016), (CNN2, 769_659_904)])
def test_the_published_networks_multiply_as_often_as_published(text: str, expected: int) -> None:
    assert macs(Architecture.parse(text, image_size=24)) == expected


def test_positions_in_the_padding_and_the_classifier_count_but_the_encoding_layer_does_not() -> None:
    architecture = Architecture.parse("4C3-P2-5C3-6", image_size=4, classes=7)
    # P2: 4 x 2 x 2 neurons of 4 x 2 x 2 inputs; 5C3: 5 x 2 x 2 of 4 x 3 x 3; 6: 6 of 5 x 2 x 2; classifier: 7 of 6
    assert layer_macs(architecture) == [16 * 16, 20 * 36, 6 * 20, 7 * 6]
    assert macs(architecture) == 16 * 16 + 20 * 36 + 6 * 20 + 7 * 6


def test_by_layer_they_stand_with_the_activations_that_are_multiplied() -> None:
    # CNN 1 by hand: positions x channels out x channels in x kernel. 24 x 24 of 256 x 96 x 9, 12 x 12 of 256 x 256 x 4,
    # 12 x 12 of 384 x 256 x 9, 6 x 6 of 384 x 384 x 4, 6 x 6 of 384 x 384 x 9, 6 x 6 of 256 x 384 x 9, 3 x 3 of
    # 256 x 256 x 4, 1024 x 256 x 9, 1024 x 1024, and 10 classes of 1024.
    assert layer_macs(Architecture.parse(CNN1, image_size=24)) == [
        127_401_984,
        37_748_736,
        127_401_984,
        21_233_664,
        47_775_744,
        31_850_496,
        2_359_296,
        2_359_296,
        1_048_576,
        10_240,
    ]


def test_a_spike_reaches_fewer_synapses_at_the_border_of_a_padded_map() -> None:
    layer = Architecture.parse("2C1-5C3-1", image_size=3).layers[1]
    # A 3x3 kernel on a 3x3 map: a corner lies under 2 x 2 of its positions, an edge under 2 x 3, the centre under 9.
    assert fan_out(layer).tolist() == [[20, 30, 20], [30, 45, 30], [20, 30, 20]]


def test_a_spike_reaches_one_position_of_a_stride_as_wide_as_its_kernel() -> None:
    layer = Architecture.parse("2C1-P2-1", image_size=4).layers[1]
    assert fan_out(layer).tolist() == [[2] * 4] * 4


def test_a_spike_reaches_every_channel_of_the_head_once_and_then_every_class() -> None:
    encoder, head, classifier = fan_outs(Architecture.parse("2C1-7-5", image_size=3, classes=10))
    assert encoder.tolist() == [[7] * 3] * 3
    assert (head.tolist(), classifier.tolist()) == ([[5]], [[10]])


@pytest.mark.parametrize(("text", "size"), [*LAYER_STRINGS, ("2C7-3C9-1", 4), ("1C1-P4-2C3-P2-3", 8)])
def test_fan_outs_are_those_of_the_synapses_listed_one_by_one(text: str, size: int) -> None:
    architecture = Architecture.parse(text, image_size=size, image_channels=2, classes=3)
    for layer, fan in zip(architecture.layers[1:], fan_outs(architecture), strict=False):
        for channel in oracle.reached_synapses(layer):
            assert fan.dtype == np.int64
            assert np.array_equal(fan, channel)
