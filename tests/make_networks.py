"""Small networks from a seed, or by hand from lists of numbers, and settings to simulate them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from torch import Tensor, nn

from quantspike.conversion.integer import IntegerLayer, IntegerNetwork
from quantspike.networks.architecture import Architecture, Layer
from quantspike.networks.cnn import Block
from quantspike.params import Simulate

LAYER_STRINGS = (
    ("1C1-1", 1),
    ("3C3-2", 4),
    ("2C5-3-2", 5),
    ("2C1-P2-3-2", 4),
    ("2C3-P3-P2-3", 6),
    ("3C5-P3-2C3-4", 6),
    ("3C3-P2-2C3-P2-4-3", 8),
)
"""Layer strings with an image size each: borders, strides and kernels of every kind, small enough to enumerate."""

LARGEST_COUNTS = st.sampled_from((None, None, 1, 2, 5))
"""M of random networks: no clip, or one that many neurons reach."""

DELAYS = st.sampled_from((0, 0, 1, 2, 7))
"""Layer delays: none, some, and more than M where there is a clip."""

LIMIT = 4096
"""Settling limit that every random network keeps."""


def simulate_settings(
    steps: int,
    limit: int = LIMIT,
    engine: Any = "auto",
    batch_size: int = 50,
    log_batch: int = 50,
    layer_delay: Sequence[int] = (0,),
) -> Simulate:
    """Return settings of a simulation."""
    return Simulate(
        steps=steps,
        settle_limit=limit,
        layer_delay=list(layer_delay),
        engine=engine,
        batch_size=batch_size,
        log_batch=log_batch,
    )


def random_integer_network(
    text: str,
    image_size: int,
    seed: int,
    *,
    k: int = 1,
    weight_bits: int = 12,
    largest_count: int | None = None,
    channels: int = 2,
    classes: int = 3,
) -> IntegerNetwork:
    """Return weights over the whole format, thresholds as a conversion makes them, and a few dead channels."""
    random = np.random.default_rng(seed)
    architecture = Architecture.parse(text, image_size=image_size, image_channels=channels, classes=classes)
    layers = tuple(_random_layer(shape, 2 ** (weight_bits - 1) - 1, random) for shape in architecture.layers)
    classifier = random.integers(-(2**15) + 1, 2**15, (classes, architecture.layers[-1].out_channels))
    clip, v = None if largest_count is None else largest_count / 2**k, torch.from_numpy(classifier.astype(np.int16))
    return IntegerNetwork(architecture, k, weight_bits, clip, layers, v, 15)


def random_images(n: int, size: int, seed: int, channels: int = 2) -> Tensor:
    """Return noise, each image with its own contrast, the first one uniform: uint8 [n, channels, size, size]."""
    random = np.random.default_rng(seed)
    levels = np.concatenate(([1], random.integers(2, 257, max(0, n - 1))))[:n]
    pixels = random.random((n, channels, size, size)) * levels[:, None, None, None]
    return torch.from_numpy(pixels.astype(np.uint8))


def integer_network(
    text: str,
    parameters: Sequence[tuple[Any, Sequence[int], Sequence[int]]],
    classifier: Any,
    *,
    image_size: int = 1,
    channels: int = 1,
    k: int = 0,
    clip: float | None = None,
) -> IntegerNetwork:
    """Return a network from numbers: per layer its weights ([out, in, row, column]), biases and thresholds."""
    rows = torch.tensor(classifier, dtype=torch.int16)
    architecture = Architecture.parse(text, image_size=image_size, image_channels=channels, classes=len(rows))
    layers = []
    for shape, (weight, bias, threshold) in zip(architecture.layers, parameters, strict=True):
        kernels = (shape.out_channels, shape.in_channels, shape.kernel, shape.kernel)
        weights = torch.tensor(weight, dtype=torch.int16).reshape(kernels)
        biases, thresholds = (torch.tensor(values, dtype=torch.int32) for values in (bias, threshold))
        layers.append(IntegerLayer(shape, weights, biases, thresholds))
    return IntegerNetwork(architecture, k, 16, clip, tuple(layers), rows, 0)


def currents(*rows: list[int]) -> Tensor:
    """Return input currents of images of one pixel: int64 [N, channels, 1, 1]."""
    return torch.tensor(rows)[:, :, None, None]


def two_to_one(
    bias: int = 0, threshold: int = 4, weights: tuple[int, int] = (10, -4), clip: float | None = None
) -> IntegerNetwork:
    """Return two neurons of theta = 2 that drive one neuron; two classes; k = 0, so that the clip is a count."""
    return integer_network("2C1-1", [([1, 1], [0, 0], [2, 2]), (weights, [bias], [threshold])], [[1], [2]], clip=clip)


def set_normalization(
    block: nn.Module, scale: ArrayLike, shift: ArrayLike, mean: ArrayLike, deviation: ArrayLike
) -> None:
    """Set the float64 batch normalization of a block so that sqrt(variance + eps) is exactly `deviation`."""
    assert isinstance(block, Block)
    norm = block.normalization
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scales, shifts, means, wanted = (torch.as_tensor(v, dtype=torch.float64) for v in (scale, shift, mean, deviation))
    variance = wanted.square() - norm.eps
    assert torch.equal((variance + norm.eps).sqrt(), wanted)
    with torch.no_grad():
        norm.weight.copy_(scales)
        norm.bias.copy_(shifts)
        norm.running_mean.copy_(means)
        norm.running_var.copy_(variance)


def _random_layer(shape: Layer, limit: int, random: np.random.Generator) -> IntegerLayer:
    weight = random.integers(-limit, limit + 1, (shape.out_channels, shape.in_channels, shape.kernel, shape.kernel))
    # theta max|W'| = limit; the larger a kernel, the smaller are its weights.
    largest = random.uniform(0.5, 2.0, shape.out_channels) / np.sqrt(weight[0].size)
    threshold = np.clip(2 * np.floor(limit / largest / 2), 2, 2**20).astype(np.int64)
    weight[random.random(shape.out_channels) < 0.15] = 0
    bias = np.rint(random.normal(0, 1, shape.out_channels) * threshold)
    return IntegerLayer(
        shape,
        torch.from_numpy(weight.astype(np.int16)),
        torch.from_numpy(bias.astype(np.int32)),
        torch.from_numpy(threshold.astype(np.int32)),
    )
