"""The trainable network: the quantizer, the blocks, what they compute, gradients and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import Block, QuantizedCNN, Quantizer, new_network, quantize, with_precision
from quantspike.params import Precision


def small() -> Architecture:
    return Architecture.parse("6C3-P2-8C5-P2-10-7", image_size=8, image_channels=2, classes=4)


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("k", "expected"), [(0, 3.0), (1, 2.5), (2, 2.75), (3, 2.75), (4, 2.6875)])
def test_each_k_has_its_own_steps(k: int, expected: float) -> None:
    # 2.6875 is 2.6875, 5.375, 10.75, 21.5 (a tie, to 22) or 43 steps: 3/1, 5/2, 11/4, 22/8, 43/16
    assert quantize(torch.tensor(2.6875), k).item() == expected
    assert Quantizer(k)(torch.tensor(2.6875)).item() == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1), st.integers(0, 10))
def test_quantizing_agrees_with_whole_number_rounding_in_python(values: list[float], k: int) -> None:
    # Python's round takes ties to even, too; the products with powers of two are exact.
    expected = [round(value * 2**k) / 2**k for value in values]
    tensor = torch.tensor(values, dtype=torch.float64)
    assert quantize(tensor, k).tolist() == expected
    assert tensor.tolist() == values


def test_activations_are_not_clipped_from_above() -> None:
    # 2000000.5 steps tie to 2000000; 2^100 is a step itself.
    assert quantize(torch.tensor([1e6 + 0.25, 2.0**100]), 1).tolist() == [1e6, 2.0**100]


def test_the_gradient_passes_straight_through() -> None:
    values = torch.tensor([0.1, 0.24, 0.5, 7.3], requires_grad=True)
    (quantize(values, 1) * torch.tensor([1.0, 2.0, 3.0, -4.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0, -4.0]


@pytest.mark.parametrize("k", ["fp32", 1])
def test_a_clip_bounds_the_activations_of_every_layer_and_their_gradients(k: Precision) -> None:
    network = new_network(small(), k, 3, clip=1.5)
    for activations in network.activations(images()):
        assert 0 <= activations.min() < activations.max() == 1.5
    values = torch.tensor([-1.0, 0.0, 0.7, 1.26, 1.5, 9.0], requires_grad=True)
    block = network.blocks[0]
    activations = block.rectifier(values * 1.0)
    activations = activations if k == "fp32" else block.quantizer(activations)
    activations.sum().backward()
    # With k = 1: 0.7 is 1.4 steps, 1.26 is 2.52.
    assert activations.tolist() == pytest.approx(
        [0, 0, 0.7, 1.26, 1.5, 1.5] if k == "fp32" else [0, 0, 0.5, 1.5, 1.5, 1.5]
    )
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("k", "clip", "weight_bits", "message"),
    [
        (1, 0.3, None, r"the clip is 0\.3, but with k = 1 activations are multiples of 0\.5"),
        (0, 1023.0, None, "the clip is 1023, but with k = 0"),
        (1, None, 3, "integers of 3 bits are not allowed with k = 1"),
        ("fp32", None, 12, "integers of 12 bits are not allowed with k = fp32"),
    ],
)
def test_a_clip_or_a_width_that_does_not_exist_is_refused(
    k: Precision, clip: float | None, weight_bits: int | None, message: str
) -> None:
    with pytest.raises(QuantspikeError, match=message):
        QuantizedCNN(small(), k, clip, weight_bits)


def test_full_precision_is_the_same_network_without_quantizers() -> None:
    plain, quantized = QuantizedCNN(small(), "fp32"), QuantizedCNN(small(), 3)
    assert list(plain.state_dict()) == list(quantized.state_dict())
    # 6 x 2 x 9, P2: 6 x 6 x 4, 8C5: 8 x 6 x 25, P2: 8 x 8 x 4, 10: 10 x 8 x 4, 7 x 10 and 4 classes of 7; no biases
    assert plain.weights == quantized.weights == 108 + 144 + 1200 + 256 + 320 + 70 + 28
    # A scale and a shift for each of the channels.
    assert sum(p.numel() for p in plain.parameters()) - plain.weights == 2 * (6 + 6 + 8 + 8 + 10 + 7)
    for before, block in zip(plain.blocks, quantized.blocks, strict=True):
        parts = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
        assert ([type(part) for part in before], [type(part) for part in block]) == (parts, [*parts, Quantizer])
        assert (block.normalization.eps, block.normalization.momentum, block.quantizer.k) == (1e-5, 0.1, 3)


def test_a_network_computes_what_its_equations_say() -> None:
    network = new_network(small(), 2, 3).double()
    random = torch.Generator().manual_seed(0)
    for block in network.blocks:
        nn.init.uniform_(block.normalization.weight, -1.0, 2.0, generator=random)
        nn.init.uniform_(block.normalization.running_mean, -0.05, 0.05, generator=random)
        nn.init.uniform_(block.normalization.running_var, 0.0005, 0.005, generator=random)
    network.eval()
    batch = images().double()
    values, activations = batch, list(network.activations(batch))
    for block, layer, activation in zip(network.blocks, network.architecture.layers, activations, strict=True):
        assert isinstance(block, Block)
        columns = nn.functional.unfold(values, layer.kernel, padding=layer.padding, stride=layer.stride)
        sums = (block.convolution.weight.flatten(1) @ columns).unflatten(2, (layer.out_size, layer.out_size))
        norm = block.normalization
        mean, variance, scale, shift = (
            tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        values = ((sums - mean) / torch.sqrt(variance + 1e-5) * scale + shift).clamp(min=0)
        values = torch.round(values * 4) / 4
        assert torch.equal(activation, values)
    expected = values.flatten(1) @ network.classifier.weight.T
    assert len(expected.unique(dim=0)) == 5
    torch.testing.assert_close(network(batch), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(network.classify(activations[-1]), network(batch))
    assert torch.equal(batch, images().double())


def truncated_std(std: float) -> float:
    """Return the standard deviation of a normal distribution of that std, cut off at two std: 0.8796 of it."""
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    return std * math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))


def test_initial_weights_come_from_the_published_distributions() -> None:
    network = new_network(Architecture.parse("64C3-64C3-100-4000", image_size=4, classes=10), 1, 0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std, weight = (0.02 if isinstance(module, nn.Conv2d) else 0.1), module.weight.detach().double()
            n = weight.numel()
            assert weight.abs().max() <= 2 * std * (1 + 1e-6)
            assert weight.abs().max() > 1.9 * std or n < 2000  # cut at two std, not before
            assert abs(weight.mean()) < 5 * std / math.sqrt(n)
            assert abs(weight.std() / truncated_std(std) - 1) < 5 / math.sqrt(2 * n)
        elif isinstance(module, nn.BatchNorm2d):
            n = module.num_features
            assert abs(module.weight.mean() - 1) < 5 * 0.002 / math.sqrt(n)
            assert abs(module.weight.std() / 0.002 - 1) < 5 / math.sqrt(2 * n)
            assert torch.equal(module.bias, torch.zeros(n))
            assert torch.equal(module.running_mean, torch.zeros(n))
            assert torch.equal(module.running_var, torch.ones(n))


def test_the_seed_alone_decides_the_initial_weights_of_every_precision() -> None:
    torch.manual_seed(1)
    first = new_network(small(), 1, 7)
    torch.manual_seed(2)
    others = (new_network(small(), 1, 7), new_network(small(), "fp32", 7), with_precision(first, 2))
    for name, value in first.state_dict().items():
        assert all(torch.equal(value, other.state_dict()[name]) for other in others)
    assert others[2].k == 2
    different = new_network(small(), 1, 8).state_dict()
    assert not torch.equal(first.state_dict()["classifier.weight"], different["classifier.weight"])
    assert not torch.equal(first.state_dict()["blocks.0.convolution.weight"], different["blocks.0.convolution.weight"])
