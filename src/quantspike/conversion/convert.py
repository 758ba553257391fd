"""Trained network to integer network: batch normalization folded in, every channel on its own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantspike.conversion.integer import (
    CLASSIFIER_LIMIT,
    LARGEST_THRESHOLD,
    MEMBRANE_LIMIT,
    IntegerLayer,
    IntegerNetwork,
)
from quantspike.errors import QuantspikeError
from quantspike.networks.cnn import Block, QuantizedCNN
from quantspike.params import WEIGHT_BITS

Floats = NDArray[np.float64]


def convert(network: QuantizedCNN, weight_bits: int) -> IntegerNetwork:
    """Convert a quantized network, in float64 throughout.

    With scale g, shift b, mean m and variance v of the batch normalization and s = sqrt(v + eps), and
    with activations counted in units of 2^-k, W' = (g/s) W and b' = 2^k (b - g m / s). Each channel
    takes the largest even threshold theta, at most 2^20, at which its weights fit:
    w = rint(theta W'), c = rint(theta b').

    Args:
        network: quantized, on any device.
        weight_bits: width of the weights, sign included, 4 to 16.

    Raises:
        QuantspikeError: the network is not quantized, the width is not allowed, a value is not finite, or a
            channel has no threshold of at least 2 or a bias beyond 31 bits; layer and channel are named.
    """
    k = network.k
    if k == "fp32":
        raise QuantspikeError("a full-precision network cannot be converted: its activations have no step to count in")
    if weight_bits not in WEIGHT_BITS:
        raise QuantspikeError(f"weight_bits is {weight_bits}; allowed are {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]}")
    layers = []
    for index, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        weight, bias = fold(block, k)
        _check_finite(weight, bias, index)
        theta = thresholds(np.abs(weight).reshape(len(weight), -1).max(axis=1), 2 ** (weight_bits - 1) - 1, index)
        layers.append(
            IntegerLayer(
                network.architecture.layers[index],
                torch.from_numpy(np.rint(theta[:, None, None, None] * weight).astype(np.int16)),
                torch.from_numpy(_biases(theta, bias, index)),
                torch.from_numpy(theta.astype(np.int32)),
            )
        )
    classifier, exponent = _classifier(network.classifier.weight.detach().cpu().double().numpy())
    return IntegerNetwork(network.architecture, k, weight_bits, tuple(layers), classifier, exponent)


def fold(block: Block, k: int) -> tuple[Floats, Floats]:
    """Return the weights W' and biases b' of a block with its batch normalization folded in.

    Returns:
        W' as float64 [out, in, kernel, kernel] and b' as float64 [out], in units of 2^-k.
    """
    norm = block.normalization
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift, mean, variance, weight = (
        tensor.detach().cpu().double().numpy()
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var, block.convolution.weight)
    )
    # Values that are not finite are reported by layer and channel, not by a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        factor = scale / np.sqrt(variance + norm.eps)
        return factor[:, None, None, None] * weight, 2.0**k * (shift - factor * mean)


def thresholds(largest: Floats, limit: int, layer: int = 0) -> Floats:
    """Return, for every channel, the largest even theta up to 2^20 with rint(theta max|W'|) <= limit.

    Args:
        largest: max |W'| of each channel, float64 [out]; a channel with 0 takes 2^20.
        limit: largest weight that fits the format.
        layer: index of the layer from 0, for the message.

    Returns:
        Whole numbers as float64 [out].

    Raises:
        QuantspikeError: no theta of at least 2 exists for some channel.
    """
    with np.errstate(divide="ignore", over="ignore"):
        guess = np.minimum(np.floor((limit + 0.5) / largest), LARGEST_THRESHOLD)
    theta: Floats = guess - guess % 2 + 2
    # The quotient is rounded, so the guess can be one step off either way: begin above, come down.
    while (too_large := (theta > LARGEST_THRESHOLD) | (np.rint(theta * largest) > limit)).any():
        theta[too_large] -= 2
        if (theta < 2).any():
            channel = int(np.argmin(theta))
            raise QuantspikeError(
                f"layer {layer + 1}, channel {channel}: its largest weight is {largest[channel]:.6g}, for which "
                f"no threshold of at least 2 keeps the weights within {limit}; convert with more weight_bits"
            )
    return theta


def conversion_report(network: IntegerNetwork) -> dict[str, Any]:
    """Return the sizes and ranges of every layer, for convert.json."""
    layers = []
    for index, layer in enumerate(network.layers, start=1):
        sums = layer.absolute_sums
        layers.append(
            {
                "layer": index,
                "token": layer.shape.token,
                "neurons": layer.shape.neurons,
                "weights": layer.weight.numel(),
                "smallest_threshold": int(layer.threshold.min()),
                "largest_threshold": int(layer.threshold.max()),
                "largest_bias": int(layer.bias.abs().max()),
                "largest_absolute_sum": int(sums.max()),
                "silent_channels": int((sums == 0).sum()),
            }
        )
    return {
        "k": network.k,
        "weight_bits": network.weight_bits,
        "neurons": network.architecture.neurons,
        "weights": sum(layer.weight.numel() for layer in network.layers) + network.classifier.numel(),
        "classifier_exponent": network.classifier_exponent,
        "layers": layers,
    }


def _check_finite(weight: Floats, bias: Floats, layer: int) -> None:
    broken = ~(np.isfinite(weight).reshape(len(weight), -1).all(axis=1) & np.isfinite(bias))
    if broken.any():
        raise QuantspikeError(
            f"layer {layer + 1}, channel {int(np.argmax(broken))}: a folded weight or bias is NaN or infinite; "
            "train again"
        )


def _biases(theta: Floats, bias: Floats, layer: int) -> NDArray[np.int32]:
    whole = np.rint(theta * bias)
    if (too_large := np.abs(whole) >= MEMBRANE_LIMIT).any():
        channel = int(np.argmax(too_large))
        raise QuantspikeError(
            f"layer {layer + 1}, channel {channel}: its bias becomes {whole[channel]:.6g}, beyond 31 bits; "
            "convert with fewer weight_bits or a smaller k"
        )
    return whole.astype(np.int32)


def _classifier(weight: Floats) -> tuple[torch.Tensor, int]:
    """Put the classifier on one power-of-two grid: v = rint(2^q V) with the largest q that keeps |v| < 2^15."""
    if not np.isfinite(weight).all():
        raise QuantspikeError("a weight of the classifier is NaN or infinite; train again")
    largest = np.abs(weight).max()
    exponent = 0
    if largest > 0:
        # frexp: largest = f 2^e with 1/2 <= f < 1, so 15 - e is right or one too much.
        exponent = 15 - int(np.frexp(largest)[1])
        if np.rint(np.ldexp(largest, exponent)) > CLASSIFIER_LIMIT:
            exponent -= 1
    return torch.from_numpy(np.rint(np.ldexp(weight, exponent)).astype(np.int16)), exponent
