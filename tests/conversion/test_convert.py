"""Trained network to integer network: thresholds, folding, rounding, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
from make_networks import LAYER_STRINGS, set_normalization
from quantspike.conversion.convert import conversion_report, convert
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.networks.grids import fold, thresholds

BITS = range(4, 17)


def limit_of(weight_bits: int) -> int:
    return 2 ** (weight_bits - 1) - 1


def threshold(largest: float, weight_bits: int) -> int:
    return int(thresholds(torch.tensor([largest], dtype=torch.float64), limit_of(weight_bits))[0])


def one_neuron(weight: list[float], k: int = 0) -> QuantizedCNN:
    """Return a 1x1 convolution of several colours to one channel in float64, with normalization by 0 and 1."""
    architecture = Architecture.parse("1C1-1", image_size=1, image_channels=len(weight), classes=2)
    network = QuantizedCNN(architecture, k).double()
    with torch.no_grad():
        network.blocks[0].convolution.weight.copy_(torch.tensor(weight, dtype=torch.float64).reshape(1, -1, 1, 1))
    set_normalization(network.blocks[0], [1.0], [0.0], [0.0], [1.0])
    return network


def small_network(k: int = 1) -> QuantizedCNN:
    return new_network(Architecture.parse("4C3-P2-3", image_size=4, classes=3), k, seed=0)


def test_a_threshold_worked_out_by_hand() -> None:
    # limit = 7 at 4 bits: 6 x 1.25 = 7.5 ties to 8, which is too much; 4 x 1.25 = 5 fits.
    assert threshold(1.25, 4) == 4


@pytest.mark.parametrize("largest", [0.0, 5e-324, 1e-310, 1e-30, 1e-7])
def test_a_dead_channel_and_weights_too_small_for_any_grid_take_the_largest_threshold(largest: float) -> None:
    assert [threshold(largest, bits) for bits in (4, 16)] == [2**20, 2**20]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(bits=st.sampled_from(BITS), exponent=st.floats(-25, 14.9), near=st.integers(2, 2**20), part=st.integers(0, 2))
def test_a_threshold_is_the_largest_of_all_that_fit(bits: int, exponent: float, near: int, part: int) -> None:
    # Anywhere, or at and just beside a weight that meets the end of the format at some threshold.
    tie = (limit_of(bits) + 0.5) / near
    for largest in (2.0**exponent, [tie, float(np.nextafter(tie, 0)), float(np.nextafter(tie, 1e9))][part]):
        expected = oracle.largest_threshold(largest, bits)
        if expected is None:
            with pytest.raises(QuantspikeError, match="no threshold of at least 2"):
                threshold(largest, bits)
        else:
            assert threshold(largest, bits) == expected


def test_a_weight_without_a_threshold_is_refused_with_layer_and_channel() -> None:
    # 2 x 3.75 = 7.5 ties to 8, beyond 7.
    message = r"layer 3, channel 1: its largest weight is 3\.75, for which no threshold of at least 2 .* within 7; "
    with pytest.raises(QuantspikeError, match=message):
        thresholds(torch.tensor([1.0, 3.75, 0.0], dtype=torch.float64), 7, layer=2)


def test_one_neuron_is_converted_and_reported_as_by_hand() -> None:
    network = one_neuron([0.5, -1.25], k=1)
    set_normalization(network.blocks[0], scale=[-3.0], shift=[0.75], mean=[0.5], deviation=[2.0])
    torch.nn.init.zeros_(network.blocks[1].convolution.weight)
    # g/s = -3/2: W' = (-0.75, 1.875), b' = 2 (0.75 - 0.5 x -3/2) = 3
    # 2 x 1.875 = 3.75 -> 4, 4 x 1.875 = 7.5 -> 8 > 7: theta = 2, w = rint(-1.5, 3.75) = (-2, 4), c = 6
    converted = convert(network, 4)
    layer = converted.layers[0]
    assert (layer.threshold.tolist(), layer.half_threshold.tolist(), layer.bias.tolist()) == ([2], [1], [6])
    assert layer.weight.flatten().tolist() == [-2, 4]
    assert layer.absolute_sums.tolist() == [6]
    report = conversion_report(converted)
    names = ("layer", "token", "neurons", "weights", "smallest_threshold", "largest_threshold", "largest_bias")
    assert report["layers"] == [
        dict(zip((*names, "largest_absolute_sum", "silent_channels"), values, strict=True))
        for values in ((1, "1C1", 1, 2, 2, 2, 6, 6, 0), (2, "1", 1, 1, 2**20, 2**20, 0, 0, 1))
    ]
    # One of 2 inputs, one of 1 input, 2 classes of 1 input.
    sizes = {"k": 1, "weight_bits": 4, "neurons": 2, "weights": 5}
    assert report == sizes | {"classifier_exponent": converted.classifier_exponent, "layers": report["layers"]}


def test_weights_and_biases_tie_to_even() -> None:
    # At 4 bits 4 x 1.75 = 7 fits and 6 x 1.75 = 10.5 does not, so theta = 4.
    network = one_neuron([1.75, 0.125, 0.375, 0.625, -0.125, -0.375])
    set_normalization(network.blocks[0], [1.0], [-0.875], [0.0], [1.0])
    layer = convert(network, 4).layers[0]
    # 4 x: 7, 0.5, 1.5, 2.5, -0.5, -1.5; the bias is -3.5
    assert layer.threshold.tolist() == [4]
    assert layer.weight.flatten().tolist() == [7, 0, 2, 2, 0, -2]
    assert layer.bias.tolist() == [-4]


@pytest.mark.parametrize(("bias", "fits"), [(2**30 - 1, True), (1 - 2**30, True), (2**30, False), (-(2**30), False)])
def test_a_bias_beyond_31_bits_is_refused_with_layer_and_channel(bias: int, fits: bool) -> None:
    network = one_neuron([0.0])
    set_normalization(network.blocks[0], scale=[1.0], shift=[bias / 2**20], mean=[0.0], deviation=[1.0])
    if fits:
        assert convert(network, 12).layers[0].bias.tolist() == [bias]
        return
    message = r"layer 1, channel 0: its bias becomes -?1\.07374e\+09, beyond 31 bits; convert with fewer weight_bits"
    with pytest.raises(QuantspikeError, match=message):
        convert(network, 12)


def test_a_network_in_full_precision_and_other_widths_are_refused() -> None:
    with pytest.raises(QuantspikeError, match="a full-precision network cannot be converted"):
        convert(QuantizedCNN(Architecture.parse("4C3-3", image_size=4), "fp32"), 12)
    with pytest.raises(QuantspikeError, match="weight_bits is 17; allowed are 4 to 16"):
        convert(small_network(), 17)


CHANNEL_MESSAGE = "layer 2, channel 2: a folded weight or bias is NaN or infinite; train again"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda network: network.blocks[1].convolution.weight[2, 0, 1], CHANNEL_MESSAGE),
        (lambda network: network.blocks[1].normalization.weight[2:3], CHANNEL_MESSAGE),
        (lambda network: network.blocks[1].normalization.bias[2:3], CHANNEL_MESSAGE),
        (lambda network: network.blocks[1].normalization.running_mean[2:3], CHANNEL_MESSAGE),
        (lambda network: network.classifier.weight[1, 2], "a weight of the classifier is NaN or infinite; train again"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_and_infinity_are_refused_with_layer_and_channel(
    part: Callable[[QuantizedCNN], Tensor], message: str, value: float
) -> None:
    network = small_network()
    with torch.no_grad():
        part(network).fill_(value)
    with pytest.raises(QuantspikeError, match=message):
        convert(network, 12)


@pytest.mark.parametrize(
    ("largest", "exponent", "whole"),
    [
        (0.0, 0, 0),
        (1.0, 14, 2**14),
        (0.75, 15, 24_576),
        (2**15 - 1, 0, 2**15 - 1),
        (32_767.5, -1, 16_384),  # rint(32767.5) = 32768 is beyond 2^15 - 1; half of it is 16383.75
        (-(2.0**-20), 34, -(2**14)),
        (1e5, -2, 25_000),
    ],
)
def test_the_classifier_takes_the_finest_power_of_two_that_fits(largest: float, exponent: int, whole: int) -> None:
    network = one_neuron([1.0])
    with torch.no_grad():
        network.classifier.weight.copy_(torch.tensor([[largest], [largest / 4]], dtype=torch.float64))
    converted = convert(network, 12)
    # A quarter of it, with ties to even, in the second row.
    quarter = round(largest / 4 * 2.0**exponent)
    assert (converted.classifier.tolist(), converted.classifier_exponent) == ([[whole], [quarter]], exponent)


@pytest.mark.parametrize("bits", [4, 7, 12, 16])
def test_a_network_is_converted_to_the_nearest_integers_and_stays_as_it_was(bits: int) -> None:
    network = small_network(k=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    converted = convert(network, bits)
    for block, layer in zip(network.blocks, converted.layers, strict=True):
        folded = fold(block.convolution.weight, block.normalization, 2)
        weight, bias = (part.detach().numpy() for part in folded)
        for channel, theta in enumerate(layer.threshold.tolist()):
            assert theta == oracle.largest_threshold(float(np.abs(weight[channel]).max()), bits)
            assert layer.weight[channel].flatten().tolist() == [round(theta * w) for w in weight[channel].ravel()]
            assert layer.bias[channel] == round(theta * bias[channel])
        assert layer.weight.abs().max() <= limit_of(bits)
    assert (converted.k, converted.weight_bits) == (2, bits)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_network_trained_as_integers_of_another_width_is_refused() -> None:
    network = with_precision(small_network(), 1, weight_bits=8)
    assert convert(network, 8).weight_bits == 8
    message = (
        r"^the network was trained as integers of 8 bits, but convert\.weight_bits is 5: set it back, or train again "
        "with dvc repro$"
    )
    with pytest.raises(QuantspikeError, match=message):
        convert(network, 5)


def exactly_convertible(text: str, size: int, k: int, bits: int, seed: int) -> QuantizedCNN:
    """Return a float64 network whose folded weights and biases all lie on the grid that the conversion finds."""
    random = np.random.default_rng(seed)
    network = QuantizedCNN(Architecture.parse(text, image_size=size, image_channels=2, classes=3), k).double().eval()
    for block in network.blocks:
        weight = block.convolution.weight
        n = len(weight)
        # W' = m / 2^p with max|m| = limit gives theta = 2^p, since one step more would be limit + 2 limit / 2^p.
        # Few weights, as the largest is 1/2 at least, so that counts do not grow from layer to layer.
        whole = random.integers(-limit_of(bits), limit_of(bits) + 1, weight.shape).astype(float)
        whole[random.random(weight.shape) * weight[0].numel() > 4] = 0
        whole.reshape(n, -1)[:, 0] = limit_of(bits) * random.choice([-1, 1], n)
        power = random.integers(bits - 2, bits + 1, n)
        scale, deviation = random.choice([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0], n), random.choice([0.5, 1.0, 2.0], n)
        factor = np.where(scale == 0, 1.0, scale / deviation)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(whole / (2.0**power * factor).reshape(n, 1, 1, 1)))
        shift, mean = random.integers(-64, 65, n) / 2.0 ** (power + k), random.integers(-8, 9, n) / 8
        # The mean is taken off after the sum, so it goes back into the shift to keep b' on the grid.
        set_normalization(block, scale, shift + scale * mean / deviation, mean, deviation)
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(random.integers(-(2**14) + 1, 2**14, (3, n)) / 2.0**17))
        network.classifier.weight[0, 0] = (2**15 - 1) / 2**17
    return network


def quantized_activations(network: QuantizedCNN, images: Tensor) -> list[Tensor]:
    """Return the activations of every block in units of 2^-k, rounded to the nearest with ties upward."""
    counts, steps = [images.double() * 2.0**network.k], 2.0**network.k
    with torch.no_grad():
        for block in network.blocks:
            values = block.normalization(block.convolution(counts[-1] / steps)).relu()
            counts.append((values * steps + 0.5).floor())
    return counts[1:]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS), k=st.integers(0, 4), bits=st.integers(4, 16), seed=st.integers(0, 2**32 - 1)
)
def test_where_no_weight_is_rounded_the_integer_network_is_the_trained_one(
    case: tuple[str, int], k: int, bits: int, seed: int
) -> None:
    text, size = case
    network = exactly_convertible(text, size, k, bits, seed)
    converted = convert(network, bits)
    # Images of two grey levels, as many of one as of the other, are standardized to -1 and 1 exactly.
    random = np.random.default_rng(seed)
    signs = np.stack([random.permutation(np.repeat([0, 1], size**2)) for _ in range(3)]).reshape(3, 2, size, size)
    pixels = torch.from_numpy((signs * 2 * random.integers(1, 100) + 50).astype(np.uint8))
    counts = converted.settled_counts(converted.input_current(pixels))
    expected = quantized_activations(network, torch.from_numpy(2 * signs - 1))
    for found, wanted in zip(counts, expected, strict=True):
        assert torch.equal(found.double(), wanted)
    scores = network.classifier(expected[-1].flatten(1))
    assert torch.equal(converted.logits(counts[-1]).double(), scores * 2.0**converted.classifier_exponent)
