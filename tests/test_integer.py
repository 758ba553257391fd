"""The integer network: what it makes of an image, the counts it settles on, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
from make_networks import LAYER_STRINGS, integer_network, random_images, random_integer_network
from quantspike.errors import QuantspikeError
from quantspike.integer import (
    FORMAT,
    VERSION,
    IntegerNetwork,
    check_membrane,
    load_integer_network,
    save_integer_network,
)
from quantspike.tensors import load_tensors, save_tensors

CASES = st.sampled_from(LAYER_STRINGS)
SEEDS = st.integers(0, 2**32 - 1)


def pixel_network(size: int, weight: int = 256, k: int = 0, channels: int = 1) -> IntegerNetwork:
    """Passes the first colour of a pixel on, times weight / 2^8: with 256, the input current is the whole pixel x."""
    row = [weight] + [0] * (channels - 1)
    head = [0] * size**2
    return integer_network("1C1-1", [(row, [0], [2]), (head, [0], [2])], [[1]], image_size=size, channels=channels, k=k)


def image(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.uint8)


def neuron(bias: int, threshold: int) -> IntegerNetwork:
    """One neuron whose membrane is its input current and its bias, and one neuron behind it."""
    return integer_network("1C1-1", [([1], [bias], [threshold]), ([1], [0], [2])], [[1]])


def test_an_image_is_standardized_and_brought_to_whole_numbers() -> None:
    # Mean 4, variance (9 + 1 + 1 + 9) / 4 = 5: z = -3, -1, 1, 3 over sqrt(5) = -1.34164, -0.44721, ...
    # 256 z = -343.46, -114.49, 114.49, 343.46
    pixels = image([[1, 3], [5, 7]])
    assert pixel_network(2).input_current(pixels).tolist() == [[[[-343, -114], [114, 343]]]]
    # 512 z = -686.92, -228.97, ... and 2^8 2^4 z = -5495.36, -1831.79, ...
    assert pixel_network(2, k=1).input_current(pixels).tolist() == [[[[-687, -229], [229, 687]]]]
    assert pixel_network(2, k=4).input_current(pixels).tolist() == [[[[-5495, -1832], [1832, 5495]]]]


def test_all_colours_of_an_image_share_a_mean_and_a_variance() -> None:
    # Values 0, 0, 0, 0 and 10, 10, 10, 10: mean 5, std 5, z = -1 in the first colour.
    pixels = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 10.0)])[None].to(torch.uint8)
    assert pixel_network(2, channels=2).input_current(pixels).tolist() == [[[[-256, -256], [-256, -256]]]]


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_uniform_image_gives_no_input(level: int) -> None:
    assert pixel_network(3).input_current(torch.full((1, 1, 3, 3), level, dtype=torch.uint8)).abs().max() == 0


def test_the_deviation_has_a_floor() -> None:
    # Mean 1/4, std sqrt(3)/4 = 0.433 < 1/sqrt(4): z = (0.75, -0.25) / 0.5 = (1.5, -0.5)
    assert pixel_network(2).input_current(image([[7, 6], [6, 6]])).tolist() == [[[[384, -128], [-128, -128]]]]


@pytest.mark.parametrize(
    ("weight", "currents"), [(1, [2, 0]), (3, [4, -2]), (-1, [-2, 0]), (-3, [-4, 2]), (5, [8, -2])]
)
def test_an_input_current_is_rounded_with_ties_to_even(weight: int, currents: list[int]) -> None:
    # x = 384 and -128 are 3/2 and -1/2 of 2^8: times 3, 9/2 -> 4 and -3/2 -> -2; times 5, 15/2 -> 8 and -5/2 -> -2
    current = pixel_network(2, weight).input_current(image([[7, 6], [6, 6]]))
    assert current.flatten().tolist() == [*currents, currents[1], currents[1]]


def test_a_tie_of_a_whole_pixel_goes_to_even() -> None:
    # 25 pixels: 9 of 0, 5 of 135 and 11 of 230, with sum S = 3,205 and squares Q = 673,025.
    # 256 z = 256 (25 x - S) / sqrt(25 Q - S^2) = 256 (25 x - 3205) / 2560 = -320.5, 17 and 254.5
    pixels = torch.tensor([0] * 9 + [135] * 5 + [230] * 11, dtype=torch.uint8).reshape(1, 1, 5, 5)
    assert pixel_network(5).input_current(pixels).flatten().tolist() == [-320] * 9 + [17] * 5 + [254] * 11


@pytest.mark.parametrize(("stored", "top", "left"), [((5, 5), 1, 1), ((4, 5), 1, 1), ((2, 9), 0, 3), ((3, 2), 0, 0)])
def test_the_central_square_of_an_image_is_seen(stored: tuple[int, int], top: int, left: int) -> None:
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, (2, 1, *stored), dtype=np.uint8))
    network = pixel_network(2)
    cropped = pixels[:, :, top : top + 2, left : left + 2].contiguous()
    assert torch.equal(network.input_current(pixels), network.input_current(cropped))


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 1, 3, 4), (1, 1, 4, 3)])
def test_images_that_do_not_fit_the_network_are_refused(shape: tuple[int, ...]) -> None:
    message = r"the images are \(\d, \d, \d\) .* the network wants 1 channels and at least 4 x 4 pixels"
    with pytest.raises(QuantspikeError, match=message):
        pixel_network(4).input_current(torch.zeros(shape, dtype=torch.uint8))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=CASES, seed=SEEDS, k=st.integers(0, 4), bits=st.integers(4, 16), larger=st.integers(0, 3))
def test_input_and_settled_counts_are_those_of_the_whole_number_oracle(
    case: tuple[str, int], seed: int, k: int, bits: int, larger: int
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits)
    pixels = random_images(3, size + larger, seed)
    current = network.input_current(pixels)
    counts = network.settled_counts(current)
    predictions = network.logits(counts[-1]).argmax(dim=1)
    for n, stored in enumerate(pixels.numpy()):
        expected = oracle.input_current(network, stored)
        assert current[n].flatten().tolist() == expected.tolist()
        settled = oracle.settled_counts(network, expected)
        assert [count[n].flatten().tolist() for count in counts] == [layer.tolist() for layer in settled]
        assert int(predictions[n]) == oracle.prediction(network, settled[-1])


@pytest.mark.parametrize(
    ("membrane", "count"), [(-10, 0), (-3, 0), (-2, 0), (0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (9, 2), (10, 3)]
)
def test_counts_are_rounded_to_the_nearest_with_ties_upward(membrane: int, count: int) -> None:
    # theta = 4, h = 2: floor((U + 2) / 4), so that 2/4, 6/4 and 10/4 all go up.
    assert int(neuron(bias=-3, threshold=4).settled_counts(torch.full((1, 1, 1, 1), membrane + 3))[0]) == count


def test_a_sum_that_leaves_24_bits_is_exact() -> None:
    # 1,023 inputs of count 1 and weight 32,767, and one of weight -32,766: 33,520,641 - 32,766 = 33,487,875, an odd
    # number beyond 2^24, where fp32 holds only even ones.
    weights = [32_767] * 1023 + [-32_766]
    network = integer_network("1C1-1", [([1], [0], [2]), (weights, [0], [2])], [[1]], image_size=32)
    counts = network.settled_counts(torch.full((1, 1, 32, 32), 2))
    # theta = 2, h = 1: (33,487,875 + 1) / 2
    assert (int(counts[0].sum()), int(counts[1])) == (1024, 16_743_938)


def test_logits_need_64_bits_and_the_lowest_of_equal_classes_is_predicted() -> None:
    classifier = [[-1], [2**15 - 1], [-(2**15) + 1], [2**15 - 1]]
    network = integer_network("1C1-1", [([1], [0], [2]), ([1], [0], [2])], classifier)
    logits = network.logits(torch.tensor([[[[2**29]]], [[[0]]]], dtype=torch.int32))
    # 2^29 x 32767 = 2^44 - 2^29
    assert logits.tolist() == [[-(2**29), 2**44 - 2**29, 2**29 - 2**44, 2**44 - 2**29], [0, 0, 0, 0]]
    assert logits.argmax(dim=1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("membrane", "beyond"), [(2**30 - 1, False), (2**30, True), (1 - 2**30, False), (-(2**30), True)]
)
def test_a_membrane_beyond_30_bits_is_named_with_image_layer_and_channel(membrane: int, beyond: bool) -> None:
    values = torch.zeros((3, 4, 2, 2), dtype=torch.int64)
    values[1, 2, 0, 1] = membrane
    if not beyond:
        check_membrane(values, 1, 50)
        return
    message = rf"image 51, layer 2, channel 2: the membrane reaches {membrane}, beyond 2\^30; convert with fewer"
    with pytest.raises(QuantspikeError, match=message):
        check_membrane(values, 1, 50)
    with pytest.raises(QuantspikeError, match="image 7, layer 2, channel 2"):
        check_membrane(values.int(), 1, torch.tensor([3, 7, 8]))


def test_no_membranes_are_no_overflow() -> None:
    check_membrane(torch.zeros((0, 4, 2, 2), dtype=torch.int32), 0)


def test_the_settled_counts_name_the_image_in_the_whole_set() -> None:
    current = torch.tensor([0, 2**31]).reshape(2, 1, 1, 1)
    with pytest.raises(QuantspikeError, match=r"image 101, layer 1, channel 0: the membrane reaches 2147483651"):
        neuron(bias=3, threshold=4).settled_counts(current, first=100)


def test_sums_that_float64_does_not_hold_are_refused() -> None:
    # Counts of up to (2^30 - 1 + 1) / 2 = 2^29 times 2^10 inputs of weight 2^14 and more: 2^53.
    layers = [([1], [0], [2]), ([2**14] * 1024, [0], [2])]
    network = integer_network("1C1-1", layers, [[1]], image_size=32)
    with pytest.raises(QuantspikeError, match=r"layer 2: sums may reach 9007199254740992, which float64 does not hold"):
        network.settled_counts(torch.full((1, 1, 32, 32), 2**30 - 1))


@pytest.fixture
def network() -> IntegerNetwork:
    return random_integer_network("4C3-P2-3", 4, seed=1, k=2, weight_bits=9)


@pytest.fixture
def path(tmp_path: Path, network: IntegerNetwork) -> Path:
    file = tmp_path / "network.safetensors"
    save_integer_network(file, network)
    return file


def change(path: Path, header: dict[str, Any] | None = None, **tensors: Tensor | None) -> None:
    """Rewrites a network file with other values; a tensor that is None is left out."""
    old_header, old_tensors = load_tensors(path, FORMAT, VERSION)
    replaced = {name.replace("_", ".", 1): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in (old_tensors | replaced).items() if tensor is not None}
    save_tensors(path, FORMAT, VERSION, old_header | (header or {}), kept)


def test_a_network_is_read_back_as_it_was_written(path: Path, network: IntegerNetwork) -> None:
    loaded = load_integer_network(path)
    assert (loaded.architecture, loaded.k, loaded.weight_bits) == (network.architecture, 2, 9)
    assert loaded.classifier_exponent == network.classifier_exponent
    assert torch.equal(loaded.classifier, network.classifier)
    for found, written in zip(loaded.layers, network.layers, strict=True):
        for name in ("weight", "bias", "threshold"):
            assert getattr(found, name).dtype == getattr(written, name).dtype
            assert torch.equal(getattr(found, name), getattr(written, name))


def test_the_same_network_gives_the_same_bytes(path: Path, network: IntegerNetwork) -> None:
    save_integer_network(path.with_name("again"), network)
    save_integer_network(path.with_name("loaded"), load_integer_network(path))
    assert path.read_bytes() == path.with_name("again").read_bytes() == path.with_name("loaded").read_bytes()


def test_an_absent_and_a_damaged_network_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(QuantspikeError, match=r"network\.safetensors is damaged"):
        load_integer_network(path)
    path.unlink()
    with pytest.raises(QuantspikeError, match=r"network\.safetensors is not there: run the stage"):
        load_integer_network(path)


def test_a_network_of_another_version_is_refused(path: Path) -> None:
    header, tensors = load_tensors(path, FORMAT, VERSION)
    save_tensors(path, FORMAT, VERSION + 1, {name: header[name] for name in header if name != "version"}, tensors)
    with pytest.raises(QuantspikeError, match=r"is of version 2, this quantspike reads 1"):
        load_integer_network(path)


def test_a_weight_beyond_the_format_is_refused(path: Path) -> None:
    # 9 bits hold up to 255.
    weight = torch.zeros((4, 4, 2, 2), dtype=torch.int16)
    weight[3, 1, 0, 1] = -256
    change(path, layer1_weight=weight)
    with pytest.raises(QuantspikeError, match=r"layer1\.weight holds a value of magnitude 256, beyond the 255 of its"):
        load_integer_network(path)


@pytest.mark.parametrize("threshold", [3, 0, -2, 2**20 + 2, 2**20 - 1])
def test_a_threshold_that_no_conversion_makes_is_refused(path: Path, threshold: int) -> None:
    change(path, layer0_threshold=torch.tensor([2, 2**20, threshold, 4], dtype=torch.int32))
    with pytest.raises(QuantspikeError, match=r"layer0 holds a threshold that is not even and from 2 to 2\^20"):
        load_integer_network(path)


@pytest.mark.parametrize("bias", [2**30, -(2**30), -(2**31)])
def test_a_bias_that_no_conversion_makes_is_refused(path: Path, bias: int) -> None:
    change(path, layer0_bias=torch.tensor([0, 0, bias, 0], dtype=torch.int32))
    with pytest.raises(QuantspikeError, match="layer0"):
        load_integer_network(path)


def test_a_classifier_weight_that_no_conversion_makes_is_refused(path: Path) -> None:
    change(path, classifier=torch.full((3, 3), -(2**15), dtype=torch.int16))
    with pytest.raises(QuantspikeError, match="classifier"):
        load_integer_network(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layer1_bias": None}, r"is no whole integer network \('layer1\.bias'\)"),
        ({"classifier": None}, r"is no whole integer network \('classifier'\)"),
        (
            {"layer1_bias": torch.zeros(4)},
            r"layer1\.bias is \(torch\.float32, \(4,\)\), expected \(torch\.int32, \(4,\)\)",
        ),
        (
            {"layer0_threshold": torch.full((3,), 2, dtype=torch.int32)},
            r"layer0\.threshold is .*\(3,\).* expected .*\(4,\)",
        ),
        (
            {"layer2_weight": torch.zeros((3, 4, 1, 1), dtype=torch.int16)},
            r"layer2\.weight is .*expected .*\(3, 4, 2, 2\)",
        ),
        ({"classifier": torch.zeros((3, 4), dtype=torch.int16)}, r"classifier is .*, expected .*\(3, 3\)"),
        ({"layer3_weight": torch.zeros((1, 1, 1, 1), dtype=torch.int16)}, r"layer3\.weight"),
    ],
)
def test_tensors_that_the_header_does_not_announce_are_refused(
    path: Path, tensors: dict[str, Tensor | None], message: str
) -> None:
    change(path, **tensors)
    with pytest.raises(QuantspikeError, match=message):
        load_integer_network(path)


@pytest.mark.parametrize(
    "header",
    [
        {"layers": "4C3"},
        {"layers": "4C3-P2-3-3"},
        {"image_size": 6},
        {"image_channels": 3},
        {"classes": 10},
        {"k": "two"},
        {"k": None},
        {"k": -1},
        {"weight_bits": 40},
    ],
)
def test_a_header_that_does_not_fit_is_refused(path: Path, header: dict[str, Any]) -> None:
    change(path, header)
    with pytest.raises(QuantspikeError, match=r"network\.safetensors"):
        load_integer_network(path)
