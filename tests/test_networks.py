"""Layer string to network: shapes, quantized activations, gradients and initial weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantspike.architecture import Architecture
from quantspike.networks import Block, QuantizedCNN, new_network
from quantspike.quantization import Quantizer

CNN1 = "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"
CNN2 = "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512"


def small(text: str = "6C3-P2-8C5-P2-10-7", image_size: int = 8, classes: int = 4) -> Architecture:
    return Architecture.parse(text, image_size=image_size, image_channels=2, classes=classes)


def images(n: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def block_outputs(network: QuantizedCNN, batch: Tensor) -> list[Tensor]:
    """What leaves each block, as it is at that moment."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda *seen: found.append(seen[-1].clone())) for block in network.blocks]
    network(batch)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("text", "weights"), [(CNN1, 7_852_576), (CNN2, 18_522_496)])
def test_the_published_networks_have_the_published_number_of_weights(text: str, weights: int) -> None:
    with torch.device("meta"):  # shapes without memory
        network = QuantizedCNN(Architecture.parse(text, image_size=24), 2)
    assert network.weights == weights
    norms = sum(parameter.numel() for parameter in network.parameters()) - weights
    # A scale and a shift per channel, and nothing else: no biases anywhere.
    assert norms == 2 * sum(layer.out_channels for layer in network.architecture.layers)


@pytest.mark.parametrize("k", ["fp32", 0, 2])
def test_every_map_has_the_size_that_the_architecture_says(k: Any) -> None:
    architecture = small()
    network = new_network(architecture, k, 0)
    shapes = [tuple(output.shape) for output in block_outputs(network, images())]
    assert shapes == [(5, layer.out_channels, layer.out_size, layer.out_size) for layer in architecture.layers]
    assert network(images()).shape == (5, 4)


def test_a_block_is_convolution_normalization_rectifier_and_quantizer() -> None:
    for block in QuantizedCNN(small(), 3).blocks:
        assert [type(part) for part in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, Quantizer]
        assert block.convolution.bias is None
        assert (block.normalization.eps, block.normalization.momentum) == (1e-5, 0.1)
        assert block.quantizer.k == 3
    assert QuantizedCNN(small(), 3).classifier.bias is None


def test_full_precision_is_the_same_network_without_quantizers() -> None:
    plain, quantized = QuantizedCNN(small(), "fp32"), QuantizedCNN(small(), 0)
    assert not any(isinstance(module, Quantizer) for module in plain.modules())
    assert sum(isinstance(module, Quantizer) for module in quantized.modules()) == len(quantized.blocks)
    assert list(plain.state_dict()) == list(quantized.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_what_leaves_a_block_counts_in_steps_of_two_to_the_minus_k(k: int, training: bool) -> None:
    network = new_network(small(), k, 0).train(training)
    outputs = block_outputs(network, 20 * images())
    for output in outputs:
        counts = output * 2**k
        assert torch.equal(counts, counts.round())
        assert output.min() >= 0
    assert (outputs[0] * 2**k % 2 == 1).any()  # the finest step is really used


def test_activations_are_not_clipped_from_above() -> None:
    network = new_network(small(), 1, 0).eval()
    assert block_outputs(network, 1e4 * images())[0].max() > 1000


def test_neither_the_image_nor_the_scores_are_quantized() -> None:
    network = new_network(small(), 0, 0)
    seen: list[Tensor] = []
    network.blocks[0].convolution.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    scores = network(images())
    assert torch.equal(seen[0], images())
    assert not torch.equal(scores, scores.round())


def test_a_quantized_block_rounds_what_the_plain_block_gives() -> None:
    plain, quantized = (new_network(small(), k, 0) for k in ("fp32", 1))
    before, after = block_outputs(plain, images())[0], block_outputs(quantized, images())[0]
    # Python rounds ties to even too.
    expected = torch.tensor([round(2 * value) / 2 for value in before.flatten().tolist()]).reshape(before.shape)
    assert torch.equal(after, expected)


def test_the_gradient_of_a_quantized_block_is_that_of_the_plain_block() -> None:
    gradients = []
    for k in ("fp32", 0):
        block = new_network(small(), k, 0).blocks[0]
        batch = images().requires_grad_()
        weight = torch.linspace(-1, 1, 5 * 6 * 64).reshape(5, 6, 8, 8)
        (block(batch) * weight).sum().backward()
        gradients.append((batch.grad, block.convolution.weight.grad, block.normalization.weight.grad))
    for plain, quantized in zip(*gradients, strict=True):
        assert torch.equal(plain, quantized)
        assert plain.abs().max() > 0


def test_every_parameter_learns_through_all_quantizers() -> None:
    network = new_network(small(), 1, 0)
    network(images()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_forward_pass_leaves_the_images_as_they_were() -> None:
    batch = images()
    new_network(small(), 1, 0)(batch)
    assert torch.equal(batch, images())


def test_a_network_computes_what_its_equations_say() -> None:
    torch.manual_seed(0)
    network = new_network(small(), 2, 3).double()
    for block in network.blocks:
        nn.init.uniform_(block.normalization.weight, -1.0, 2.0)
        nn.init.uniform_(block.normalization.running_mean, -0.05, 0.05)
        nn.init.uniform_(block.normalization.running_var, 0.0005, 0.005)
    network.eval()
    values = images().double()
    for block, layer in zip(network.blocks, network.architecture.layers, strict=True):
        assert isinstance(block, Block)
        columns = nn.functional.unfold(values, layer.kernel, padding=layer.padding, stride=layer.stride)
        sums = (block.convolution.weight.flatten(1) @ columns).unflatten(2, (layer.out_size, layer.out_size))
        norm = block.normalization
        mean, variance, scale, shift = (
            tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        values = ((sums - mean) / torch.sqrt(variance + 1e-5) * scale + shift).clamp(min=0)
        values = torch.round(values * 4) / 4
    expected = values.flatten(1) @ network.classifier.weight.T
    assert len(expected.unique(dim=0)) == 5
    torch.testing.assert_close(network(images().double()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", ["fp32", 2])
def test_activations_are_what_leaves_each_block_and_the_classifier_makes_scores_of_the_last(k: Any) -> None:
    network = new_network(small(), k, 0).eval()
    outputs, layers = block_outputs(network, images()), list(network.activations(images()))
    assert len(layers) == len(outputs) == len(network.blocks)
    assert all(torch.equal(layer, output) for layer, output in zip(layers, outputs, strict=True))
    assert torch.equal(network.classify(layers[-1]), network(images()))
    expected = layers[-1].flatten(1) @ network.classifier.weight.T
    torch.testing.assert_close(network.classify(layers[-1]), expected)


# Initial weights


def truncated_std(std: float) -> float:
    """Standard deviation of a normal distribution of that std, cut off at two std: 0.8796 of it."""
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


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(1)
    first = new_network(small(), 1, 7).state_dict()
    torch.manual_seed(2)
    again, other = (new_network(small(), 1, seed).state_dict() for seed in (7, 8))
    for name, value in first.items():
        assert torch.equal(value, again[name])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(first["blocks.0.convolution.weight"], other["blocks.0.convolution.weight"])


def test_all_precisions_start_from_the_same_weights() -> None:
    plain, quantized = (new_network(small(), k, 7).state_dict() for k in ("fp32", 2))
    assert all(torch.equal(value, quantized[name]) for name, value in plain.items())
