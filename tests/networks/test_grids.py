"""The network on integer grids: numbers and gradients worked out by hand, and equality with the integer network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from make_networks import random_images
from quantspike.conversion.convert import convert
from quantspike.data.preparation import center_crop, standardize_exactly
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.networks.grids import count_, counts, round_through

ARCHITECTURE = Architecture.parse("8C3-P2-12C3-P2-16-10", image_size=8, image_channels=3, classes=5)


def lively(k: int, clip: float | None, weight_bits: int) -> QuantizedCNN:
    """Return an integer-aware network of random scales and shifts, negative ones too, whose averages fit its images."""
    random = torch.Generator().manual_seed(k)
    network = new_network(ARCHITECTURE, k, 0, clip)
    for block in network.blocks:
        torch.nn.init.normal_(block.normalization.weight, 1.0, 0.7, generator=random)
        torch.nn.init.normal_(block.normalization.bias, 0.5, 0.5, generator=random)
    with torch.no_grad():
        for _ in range(60):  # 0.9^60 = 0.002 of the initial averages is left
            network(standardized(random_images(30, 8, 1, channels=3)).float())
    return with_precision(network, k, weight_bits)


def standardized(images: Tensor) -> Tensor:
    return standardize_exactly(center_crop(images, 8))


@pytest.mark.parametrize(
    ("membrane", "unbounded", "clipped"),
    [(-99, 0, 0), (-5, 0, 0), (4, 0, 0), (5, 1, 1), (14, 1, 1), (15, 2, 2), (24, 2, 2), (25, 3, 2), (999, 100, 2)],
)
def test_counts_round_to_the_nearest_with_ties_upward_and_end_at_the_largest(
    membrane: int, unbounded: int, clipped: int
) -> None:
    # theta = 10 and h = 5: (15 + 5) / 10 = 2, (14 + 5) / 10 = 1.9
    for dtype in (torch.int32, torch.float32, torch.float64):
        given, theta = torch.tensor([membrane], dtype=dtype), torch.tensor([10], dtype=dtype)
        assert [counts(given, theta, largest).item() for largest in (None, 2)] == [unbounded, clipped]
        assert given.item() == membrane
        assert count_(given, theta, 2) is given
        assert given.item() == clipped


def test_the_gradient_of_a_count_is_one_over_theta_where_it_is_not_clamped() -> None:
    # theta = 10, h = 5, M = 2: inside is 0 < U + 5 < 30.
    membrane = torch.tensor([-6.0, -5.0, -4.0, 3.0, 24.0, 25.0, 99.0], requires_grad=True)
    theta = torch.full((7,), 10.0)
    counts(membrane, theta, 2).sum().backward()
    assert membrane.grad is not None
    assert membrane.grad.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0, 0])
    membrane.grad = None
    counts(membrane, theta, None).sum().backward()
    assert membrane.grad.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_rounding_has_the_gradient_of_the_identity() -> None:
    values = torch.tensor([0.5, 1.5, -2.4], requires_grad=True)
    rounded = round_through(values)
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert rounded.tolist() == [0.0, 2.0, -2.0]
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("weight_bits", [4, 8, 12])
def test_an_integer_aware_network_is_the_integer_network_count_by_count(
    k: int, clip: float | None, weight_bits: int
) -> None:
    network, images = lively(k, clip, weight_bits), random_images(30, 8, 2, channels=3)
    integer = convert(network, weight_bits)
    expected = integer.settled_counts(integer.input_current(images))
    # In float64 every number of this small network is exact.
    activations = list(network.activations(standardized(images)))
    for ours, theirs in zip(activations, expected, strict=True):
        assert torch.equal(ours, theirs.double())
    assert max(int(layer.max()) for layer in expected) == 2 * 2**k if clip else max(int(x.max()) for x in expected) > 2
    scores = integer.logits(expected[-1]) * 2.0 ** -(integer.classifier_exponent + k)
    assert torch.equal(network(standardized(images)), scores)


def test_an_integer_aware_network_approximates_the_network_it_was_made_of() -> None:
    # At k = 6 and 16 bits hardly anything is rounded.
    aware, images = lively(6, None, 16), standardized(random_images(30, 8, 2, channels=3)).float()
    plain = with_precision(aware, 6).eval()
    torch.testing.assert_close(aware(images), plain(images), rtol=0, atol=0.02)
    for layer, (count, activation) in enumerate(zip(aware.activations(images), plain.activations(images), strict=True)):
        assert (count / 64 - activation).abs().mean() < 0.01, layer


def test_its_gradients_are_those_of_the_network_it_was_made_of() -> None:
    aware, images = lively(6, 4.0, 16), standardized(random_images(30, 8, 2, channels=3)).float()
    plain = with_precision(aware, 6).eval()  # normalizes by the averages, as the folded weights do
    for network in (aware, plain):
        network(images).square().sum().backward()
    for (name, ours), theirs in zip(aware.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        cosine = torch.nn.functional.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0)
        assert cosine > 0.97, name
        assert ours.grad.norm() == pytest.approx(float(theirs.grad.norm()), rel=0.1), name


def test_its_averages_stay_as_they_are_while_it_trains() -> None:
    network = lively(1, None, 8)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.train()(standardized(random_images(30, 8, 2, channels=3)).float()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
