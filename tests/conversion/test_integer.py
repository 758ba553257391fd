"""The integer network: its input current, the counts it settles on, and its file."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import oracle
from make_networks import (
    LARGEST_COUNTS,
    LAYER_STRINGS,
    currents,
    integer_network,
    random_images,
    random_integer_network,
    two_to_one,
)
from quantspike.conversion.integer import (
    FORMAT,
    VERSION,
    IntegerNetwork,
    check_membrane,
    class_scores,
    load_integer_network,
    save_integer_network,
)
from quantspike.errors import QuantspikeError
from quantspike.files import load_tensors, save_tensors
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import description


def pixel_network(size: int, weight: int = 256, k: int = 0) -> IntegerNetwork:
    """Pass a pixel on, times weight / 2^8: with 256, the input current is the whole pixel x."""
    return integer_network("1C1-1", [([weight], [0], [2]), ([0] * size**2, [0], [2])], [[1]], image_size=size, k=k)


def image(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.uint8)


@pytest.mark.parametrize(("k", "low", "high"), [(0, -343, -114), (1, -687, -229), (4, -5495, -1832)])
def test_an_image_is_standardized_and_brought_to_whole_numbers(k: int, low: int, high: int) -> None:
    # Mean 4, variance (9 + 1 + 1 + 9) / 4 = 5: z = -3, -1, 1, 3 over sqrt(5) = -1.34164, -0.44721, ...
    # 2^8 z = -343.46, -114.49, ...; 2^9 z = -686.92, -228.97, ...; 2^12 z = -5495.36, -1831.79, ...
    current = pixel_network(2, k=k).input_current(image([[1, 3], [5, 7]]))
    assert current.tolist() == [[[[low, high], [-high, -low]]]]


@pytest.mark.parametrize(
    ("weight", "currents"), [(1, [2, 0]), (3, [4, -2]), (-1, [-2, 0]), (-3, [-4, 2]), (5, [8, -2])]
)
def test_an_input_current_is_rounded_with_ties_to_even(weight: int, currents: list[int]) -> None:
    # Mean 1/4, std sqrt(3)/4 = 0.433 < 1/sqrt(4): z = (0.75, -0.25) / 0.5 = (1.5, -0.5)
    # x = 384 and -128 are 3/2 and -1/2 of 2^8: times 3, 9/2 -> 4 and -3/2 -> -2; times 5, 15/2 -> 8 and -5/2 -> -2
    current = pixel_network(2, weight).input_current(image([[7, 6], [6, 6]]))
    assert current.flatten().tolist() == [*currents, currents[1], currents[1]]


def test_a_tie_of_a_whole_pixel_goes_to_even() -> None:
    # 25 pixels: 9 of 0, 5 of 135 and 11 of 230, with sum S = 3,205 and squares Q = 673,025.
    # 256 z = 256 (25 x - S) / sqrt(25 Q - S^2) = 256 (25 x - 3205) / 2560 = -320.5, 17 and 254.5
    pixels = torch.tensor([0] * 9 + [135] * 5 + [230] * 11, dtype=torch.uint8).reshape(1, 1, 5, 5)
    assert pixel_network(5).input_current(pixels).flatten().tolist() == [-320] * 9 + [17] * 5 + [254] * 11


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (1, 1, 3, 4), (1, 1, 4, 3)])
def test_images_that_do_not_fit_the_network_are_refused(shape: tuple[int, ...]) -> None:
    message = r"the images are \(\d, \d, \d\) .* the network needs 1 channels and at least 4 x 4 pixels"
    with pytest.raises(QuantspikeError, match=message):
        pixel_network(4).input_current(torch.zeros(shape, dtype=torch.uint8))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    larger=st.integers(0, 3),
    largest_count=LARGEST_COUNTS,
)
def test_input_and_settled_counts_are_those_of_the_whole_number_oracle(
    case: tuple[str, int], seed: int, k: int, bits: int, larger: int, largest_count: int | None
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits, largest_count=largest_count)
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
    network = integer_network("1C1-1", [([1], [-3], [4]), ([1], [0], [2])], [[1]])
    assert int(network.settled_counts(torch.full((1, 1, 1, 1), membrane + 3))[0]) == count


@pytest.mark.parametrize(
    ("membrane", "count"), [(-10, 0), (1, 0), (2, 1), (9, 2), (10, 3), (13, 3), (14, 3), (10**9, 3)]
)
def test_counts_are_clipped_at_the_largest_count(membrane: int, count: int) -> None:
    # theta = 4, h = 2, k = 1 and clip = 1.5: M = 3. (9 + 2) / 4 = 2.75; (10 + 2) / 4 = 3 is M itself;
    # (13 + 2) / 4 = 3.75 is the limit, 4 x 4 - 1 = 15; (14 + 2) / 4 = 4 is beyond it.
    network = integer_network("1C1-1", [([1], [-3], [4]), ([1], [0], [2])], [[1]], k=1, clip=1.5)
    assert (network.largest_count, network.limit(network.layers[0]).tolist()) == (3, [15])
    assert int(network.settled_counts(torch.full((1, 1, 1, 1), membrane + 3))[0]) == count


def test_a_clip_bounds_what_the_next_layer_gets() -> None:
    # Inputs 1 and 5 at theta = 2 are counts of 1 and 3, with M = 2 of 1 and 2; behind them at theta = 4
    # 10 - 4 x 3 = -2 is 0, and 10 - 4 x 2 = 2 is (2 + 2) / 4 = 1.
    for clip, counts in ((None, [[1, 3], [0]]), (2, [[1, 2], [1]])):
        settled = two_to_one(clip=clip).settled_counts(currents([1, 5]))
        assert [layer.flatten().tolist() for layer in settled] == counts


def test_without_a_clip_there_is_no_largest_count_and_the_limit_is_beyond_all_membranes() -> None:
    network = two_to_one()
    assert network.largest_count is None
    limit = network.limit(network.layers[0])
    assert (limit.dtype, limit.tolist()) == (torch.int32, [2**31 - 1] * 2)


@pytest.mark.parametrize("clip", [0, -1, 0.1, 0.125, 2.3, float("inf"), float("nan")])
def test_a_clip_that_is_no_positive_multiple_of_a_step_is_refused(clip: float) -> None:
    layers = [([1], [0], [4]), ([1], [0], [2])]
    assert integer_network("1C1-1", layers, [[1]], k=2, clip=0.25).largest_count == 1
    with pytest.raises(QuantspikeError, match=rf"^the clip is {clip:g}, but with k = 2 activations are"):
        integer_network("1C1-1", layers, [[1]], k=2, clip=clip)


def test_the_largest_clip_keeps_the_limit_of_the_largest_threshold_below_30_bits() -> None:
    # theta (M + 1) - 1 = 2^20 x 1023 - 1 < 2^30 = 2^20 x 1024
    network = integer_network("1C1-1", [([1], [0], [2]), ([1], [0], [2**20])], [[1]], k=1, clip=511)
    assert network.limit(network.layers[1]).tolist() == [1023 * 2**20 - 1]
    with pytest.raises(QuantspikeError, match=r"^the clip is 511\.5, but with k = 1 activations are"):
        integer_network("1C1-1", [([1], [0], [2]), ([1], [0], [2])], [[1]], k=1, clip=511.5)


def test_class_scores_are_exact_beyond_24_bits() -> None:
    # Two logits of which fp32 would make one: counts of 2^14 times 2^11 and 2^14 times 2^11 + 1 / 2^14.
    layers = [([1], [0], [2]), ([[1], [0]], [0, 2], [2, 2])]
    network = integer_network("1C1-2", layers, [[2**14, 0], [2**14, 1]])
    counts = torch.tensor([[2**13, 1]], dtype=torch.int32)[:, :, None, None]
    assert network.logits(counts).tolist() == [[2**27, 2**27 + 1]]
    with patch.object(IntegerNetwork, "settled_counts", return_value=[counts]):
        scores = class_scores(network, torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
    assert scores.dtype == torch.float64
    assert scores.argmax(1).item() == 1
    assert (scores * 2.0**network.classifier_exponent).tolist() == [[2**27, 2**27 + 1]]


def test_a_sum_beyond_24_bits_is_exact() -> None:
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
        check_membrane(values[:0], 1, 50)
        return
    message = rf"image 51, layer 2, channel 2: the membrane reaches {membrane}, beyond 2\^30; convert with fewer"
    with pytest.raises(QuantspikeError, match=message):
        check_membrane(values, 1, 50)
    with pytest.raises(QuantspikeError, match="image 7, layer 2, channel 2"):
        check_membrane(values.int(), 1, torch.tensor([3, 7, 8]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "network.safetensors"
    save_integer_network(file, random_integer_network("4C3-P2-3", 4, seed=1, k=2, weight_bits=9, largest_count=7))
    return file


def change(path: Path, header: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
    """Rewrite a network file with other values; a tensor that is None is left out."""
    old_header, old_tensors = load_tensors(path, FORMAT, VERSION)
    kept = {name: tensor for name, tensor in (old_tensors | tensors).items() if tensor is not None}
    save_tensors(path, FORMAT, VERSION, old_header | header, kept)


def test_a_network_is_read_back_as_it_was_written_and_gives_the_same_bytes(path: Path) -> None:
    network = random_integer_network("4C3-P2-3", 4, seed=1, k=2, weight_bits=9, largest_count=7)
    loaded = load_integer_network(path)
    assert loaded.clip == 1.75
    for name in ("architecture", "k", "weight_bits", "clip", "classifier_exponent"):
        assert getattr(loaded, name) == getattr(network, name)
    assert torch.equal(loaded.classifier, network.classifier)
    for found, written in zip(loaded.layers, network.layers, strict=True):
        for name in ("weight", "bias", "threshold"):
            assert getattr(found, name).dtype == getattr(written, name).dtype
            assert torch.equal(getattr(found, name), getattr(written, name))
    save_integer_network(path.with_name("again"), loaded)
    assert path.read_bytes() == path.with_name("again").read_bytes()


def save_without_checksum(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a network file as versions 1 and 2 were."""
    save_file(tensors, path, metadata={FORMAT: json.dumps(header)})


def test_networks_of_versions_1_and_2_are_read_without_a_checksum(path: Path) -> None:
    header, tensors = load_tensors(path, FORMAT, VERSION)
    save_without_checksum(path, header | {"version": 2}, tensors)
    assert load_integer_network(path).clip == 1.75
    save_without_checksum(path, header | {"version": 2, "clip": None}, tensors)
    assert load_integer_network(path).clip is None
    del header["clip"]
    save_without_checksum(path, header | {"version": 1}, tensors)
    assert load_integer_network(path).clip is None
    save_without_checksum(path, header | {"version": 2}, tensors)
    with pytest.raises(QuantspikeError, match=r"is damaged \(KeyError: 'clip'\)"):
        load_integer_network(path)
    save_without_checksum(path, header | {"version": 4}, tensors)
    with pytest.raises(QuantspikeError, match="has version 4, this quantspike reads 1, 2, 3: delete it and run dvc"):
        load_integer_network(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, "k = 3, expected 2"),
        ({"layers": "4C3-P2-5"}, "layers = 4C3-P2-5, expected 4C3-P2-3"),
        ({"image_size": 8}, "image_size = 8, expected 4"),
        ({"image_channels": 3}, "image_channels = 3, expected 2"),
        ({"classes": 10}, "classes = 10, expected 3"),
        ({"weight_bits": 12}, "weight_bits = 12, expected 9"),
        ({"clip": None}, r"clip = None, expected 1\.75"),
    ],
)
def test_a_network_of_another_run_is_refused(changes: dict[str, Any], message: str, path: Path) -> None:
    architecture = Architecture.parse("4C3-P2-3", image_size=4, image_channels=2, classes=3)
    expected = description(architecture, 2, clip=1.75, weight_bits=9)
    assert load_integer_network(path, expected).k == 2
    change(path, changes, {})
    with pytest.raises(QuantspikeError, match=rf"network\.safetensors holds a network with {message}: run dvc repro"):
        load_integer_network(path, expected)


def int16(*shape: int) -> Tensor:
    return torch.full(shape, -256, dtype=torch.int16)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


# The network has 9 bits: weights up to 255.
@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layer1.weight": int16(4, 4, 2, 2)}, r"layer1\.weight holds a value of magnitude 256, beyond 255"),
        ({"layer0.bias": int32(0, 0, 2**30, 0)}, r"layer0\.bias holds a value of magnitude 1073741824, beyond"),
        ({"layer0.bias": int32(0, 0, -(2**31), 0)}, r"layer0\.bias holds a value of magnitude 2147483648, beyond"),
        ({"classifier": 128 * int16(3, 3)}, r"classifier holds a value of magnitude 32768, beyond 32767"),
        ({"layer0.threshold": int32(2, 2**20, 2**20 + 2, 4)}, r"layer0\.threshold holds a value of magnitude 1048578"),
        ({"layer0.threshold": int32(2, 2**20, 3, 4)}, "layer0 holds a threshold that is not an even number from 2"),
        ({"layer0.threshold": int32(2, 2**20, 0, 4)}, "layer0 holds a threshold that is not an even number from 2"),
        ({"layer0.threshold": int32(2, 2**20, -2, 4)}, "layer0 holds a threshold that is not an even number from 2"),
        ({"layer1.bias": None}, r"KeyError: 'layer1\.bias'"),
        ({"classifier": None}, r"KeyError: 'classifier'"),
        ({"classifier": int16(3, 3).to(torch.float8_e5m2)}, "classifier is .*float8_e5m2"),
        ({"layer1.bias": torch.zeros(4)}, r"layer1\.bias is \(torch\.float32, \(4,\)\), expected \(torch\.int32, \(4"),
        ({"layer0.threshold": int32(2, 2, 2)}, r"layer0\.threshold is .*\(3,\).* expected .*\(4,\)"),
        ({"layer2.weight": int16(3, 4, 1, 1)}, r"layer2\.weight is .*expected .*\(3, 4, 2, 2\)"),
        ({"classifier": int16(3, 4)}, r"classifier is .*, expected .*\(3, 3\)"),
        ({"layer3.weight": int16(1, 1, 1, 1)}, r"unexpected tensors layer3\.weight"),
    ],
)
def test_tensors_that_no_conversion_makes_are_refused(
    path: Path, tensors: dict[str, Tensor | None], message: str
) -> None:
    change(path, {}, tensors)
    with pytest.raises(QuantspikeError, match=rf"network\.safetensors is damaged \(.*{message}.*: delete it and run"):
        load_integer_network(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("layers", ["4C3", "4C3-P2-3-3", "999999C3-P2-3", f"{10**400}C3-P2-3", 3, ["4C3"]]),
        ("image_size", [6, 0, -4, 10**400, inf, "four", None]),
        ("image_channels", [3, 0, 10**9]),
        ("classes", [10, 0, nan]),
        ("k", ["two", None, -1, 25, 10**400, inf, True, 2.5]),
        ("weight_bits", [40, 0, inf, nan, "nine", [9]]),
        ("clip", ["half", 0.3, 2**28, 10**400, inf, nan, []]),
        ("classifier_exponent", [1024, -1024, 10**400, inf, None]),
    ],
)
def test_a_header_that_does_not_fit_is_refused(name: str, values: list[Any], path: Path) -> None:
    for value in values:
        change(path, {name: value}, {})
        with pytest.raises(QuantspikeError, match=r"network\.safetensors is damaged"):
            load_integer_network(path)


def test_a_layer_without_values_is_refused(path: Path) -> None:
    change(path, {"classes": 0}, {"classifier": int16(0, 3)})
    with pytest.raises(QuantspikeError, match=r"network\.safetensors is damaged"):
        load_integer_network(path)
