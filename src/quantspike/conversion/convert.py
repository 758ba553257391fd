"""Trained network to integer network: batch normalization folded in, every channel on its own grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quantspike.conversion.integer import MEMBRANE_LIMIT, IntegerLayer, IntegerNetwork
from quantspike.errors import QuantspikeError
from quantspike.networks.cnn import Block, QuantizedCNN
from quantspike.networks.grids import classifier_grid, fold, to_grid
from quantspike.params import WEIGHT_BITS


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
        QuantspikeError: the network is not quantized, the width is not allowed or another one than that it was
            trained for, a value is not finite, or a channel has no threshold of at least 2 or a bias beyond 31 bits;
            layer and channel are named.
    """
    k = network.k
    if k == "fp32":
        raise QuantspikeError("a full-precision network cannot be converted: its activations have no step to count in")
    if weight_bits not in WEIGHT_BITS:
        raise QuantspikeError(f"weight_bits is {weight_bits}; allowed are {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]}")
    if network.weight_bits not in (None, weight_bits):
        raise QuantspikeError(
            f"the network was trained as integers of {network.weight_bits} bits, but convert.weight_bits is "
            f"{weight_bits}: set it back, or train again with dvc repro"
        )
    layers = []
    with torch.no_grad():
        for index, block in enumerate(network.blocks):
            assert isinstance(block, Block)
            folded = fold(block.convolution.weight, block.normalization, k)
            weight, bias = (part.cpu() for part in folded)
            _check_finite(weight, bias, index)
            grid = to_grid(weight, bias, weight_bits, index)
            _check_biases(grid.bias, index)
            shape = network.architecture.layers[index]
            layers.append(IntegerLayer(shape, grid.weight.to(torch.int16), grid.bias.int(), grid.threshold.int()))
        if not bool(network.classifier.weight.isfinite().all()):
            raise QuantspikeError("a weight of the classifier is NaN or infinite; train again")
        classifier, exponent = classifier_grid(network.classifier.weight.cpu())
    return IntegerNetwork(
        network.architecture, k, weight_bits, network.clip, tuple(layers), classifier.to(torch.int16), exponent
    )


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


def _check_finite(weight: Tensor, bias: Tensor, layer: int) -> None:
    broken = ~(weight.isfinite().all(dim=(1, 2, 3)) & bias.isfinite())
    if broken.any():
        raise QuantspikeError(
            f"layer {layer + 1}, channel {int(broken.int().argmax())}: a folded weight or bias is NaN or infinite; "
            "train again"
        )


def _check_biases(bias: Tensor, layer: int) -> None:
    if (too_large := bias.abs() >= MEMBRANE_LIMIT).any():
        channel = int(too_large.int().argmax())
        raise QuantspikeError(
            f"layer {layer + 1}, channel {channel}: its bias becomes {float(bias[channel]):.6g}, beyond 31 bits; "
            "convert with fewer weight_bits or a smaller k"
        )
