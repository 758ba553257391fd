"""What a network costs: how many synapses a spike reaches, and how often the plain network multiplies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantspike.architecture import Architecture, Layer


def fan_out(layer: Layer) -> NDArray[np.int64]:
    """Synapses that a spike reaches in `layer`, by the place in the map that it comes from.

    Borders and stride count exactly: a synapse exists where the kernel, moved over the padded map,
    covers the place. In one dimension, place p is covered by every output o with
    0 <= p + padding - o stride < kernel; both dimensions multiply, and so do the output channels.

    Args:
        layer: the layer that receives the spike.

    Returns:
        int64 [in_size, in_size], the same for every channel the spike may come from.
    """
    places = np.arange(layer.in_size)[:, None] + layer.padding
    offsets = places - layer.stride * np.arange(layer.out_size)[None, :]
    covered = ((offsets >= 0) & (offsets < layer.kernel)).sum(axis=1, dtype=np.int64)
    return layer.out_channels * np.outer(covered, covered)


def fan_outs(architecture: Architecture) -> list[NDArray[np.int64]]:
    """For every layer, the synapses that a spike of its neurons reaches, int64 [out_size, out_size].

    A spike of the last layer reaches one synapse per class.
    """
    last = architecture.layers[-1].out_size
    inner = [fan_out(layer) for layer in architecture.layers[1:]]
    return [*inner, np.full((last, last), architecture.classes, dtype=np.int64)]


def layer_macs(architecture: Architecture) -> list[int]:
    """Multiply-accumulates of the plain network per image, by the layer whose activations are multiplied.

    As published: positions in the padding and the classifier are counted, the encoding layer is not.
    """
    convolutions = [layer.neurons * layer.in_channels * layer.kernel**2 for layer in architecture.layers[1:]]
    return [*convolutions, architecture.layers[-1].neurons * architecture.classes]


def macs(architecture: Architecture) -> int:
    """Multiply-accumulates of the plain network per image, as `layer_macs` counts them."""
    return sum(layer_macs(architecture))
