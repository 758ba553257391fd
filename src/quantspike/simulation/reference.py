"""The rule of the spiking network, written out: NumPy, 64 bits, every step of every layer and image.

Nothing is skipped, so the other engines are compared with this one; for small inputs only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from quantspike.conversion.integer import MEMBRANE_LIMIT, IntegerNetwork, membrane_error
from quantspike.networks.architecture import Layer
from quantspike.simulation.trace import Integers, Recording


@dataclass(frozen=True, eq=False)
class _Layer:
    shape: Layer
    weight: Integers
    bias: Integers
    threshold: Integers
    limit: Integers


class ReferenceEngine:
    """Run batches of one network, slowly; no state is kept between batches."""

    def __init__(self, network: IntegerNetwork) -> None:
        self._classifier = network.classifier.numpy().astype(np.int64)
        self._layers = [
            _Layer(
                layer.shape,
                layer.weight.numpy().astype(np.int64),
                layer.bias.numpy().astype(np.int64)[:, None, None],
                layer.threshold.numpy().astype(np.int64)[:, None, None],
                network.limit(layer).numpy().astype(np.int64)[:, None, None],
            )
            for layer in network.layers
        ]

    def run(self, input_current: Tensor, steps: int, settle_limit: int, delay: int = 0, first: int = 0) -> Recording:
        """Run a batch until every image is settled, and for all T steps at least; see `Engine`."""
        n = len(input_current)
        sizes = [(n, layer.shape.out_channels, layer.shape.out_size, layer.shape.out_size) for layer in self._layers]
        recording = Recording.blank(steps, [torch.zeros(size, dtype=torch.int64) for size in sizes])
        net_spikes = [counts.numpy() for counts in recording.net_spikes]
        membranes = [layer.bias + np.zeros(size, np.int64) for layer, size in zip(self._layers, sizes, strict=True)]
        membranes[0] += input_current.numpy()
        for step in range(1, settle_limit + 1):
            image_settled = np.ones(n, np.bool_)
            spikes = np.zeros(0, np.int64)
            for index, layer in enumerate(self._layers):
                if index > 0:
                    membranes[index] += _drive(spikes, layer.weight, layer.shape)
                _check(membranes[index], index, first)
                spikes = _rule(membranes[index], net_spikes[index], layer) * (step > index * delay)
                net_spikes[index] += spikes
                settled = (_rule(membranes[index], net_spikes[index], layer) == 0).all(axis=(1, 2, 3))
                image_settled &= settled
                if step <= steps:
                    recording.positive[step - 1, index] = (spikes == 1).sum(axis=(1, 2, 3))
                    recording.negative[step - 1, index] = (spikes == -1).sum(axis=(1, 2, 3))
                    recording.synops[step - 1, index] = self._reached(spikes, index)
                    recording.settled[step - 1, index] = settled
            if step <= steps:
                logits = net_spikes[-1].reshape(n, -1) @ self._classifier.T
                recording.predictions[step - 1] = logits.argmax(axis=1)
            recording.settled_step[image_settled & (recording.settled_step == 0)] = step
            if image_settled.all() and step >= steps:
                break
        return recording

    def _reached(self, spikes: Integers, index: int) -> Integers:
        """Count the synapses that spikes of layer `index` reach, by image; the last layer reaches the classes."""
        fired = np.abs(spikes)
        if index + 1 == len(self._layers):
            by_class: Integers = fired.sum(axis=(1, 2, 3)) * len(self._classifier)
            return by_class
        shape = self._layers[index + 1].shape
        by_synapse: Integers = _windows(fired, shape).sum(axis=(1, 2, 3, 4, 5)) * shape.out_channels
        return by_synapse


def _rule(membrane: Integers, net_spikes: Integers, layer: _Layer) -> Integers:
    """s = +1 if d >= theta, -1 if d < 0, 0 otherwise, with d = clamp(U + theta / 2, 0, limit) - theta N."""
    distance = np.clip(membrane + layer.threshold // 2, 0, layer.limit) - layer.threshold * net_spikes
    spikes: Integers = (distance >= layer.threshold).astype(np.int64) - (distance < 0)
    return spikes


def _drive(spikes: Integers, weight: Integers, shape: Layer) -> Integers:
    """sum_i w_oi s_i: int64 [n, in, H, W] -> int64 [n, out, H', W']."""
    drive: Integers = np.einsum("oirc,niyxrc->noyx", weight, _windows(spikes, shape))
    return drive


def _windows(values: Integers, shape: Layer) -> Integers:
    """Return the input of each position of the layer: [n, in, H, W] -> [n, in, H', W', kernel, kernel]."""
    border = (shape.padding, shape.padding)
    padded = np.pad(values, ((0, 0), (0, 0), border, border))
    windows = sliding_window_view(padded, (shape.kernel, shape.kernel), axis=(2, 3))
    strided: Integers = windows[:, :, :: shape.stride, :: shape.stride]
    return strided


def _check(membranes: Integers, layer: int, first: int) -> None:
    beyond = np.argwhere(np.abs(membranes) >= MEMBRANE_LIMIT)
    if len(beyond):
        image, channel, y, x = beyond[0].tolist()
        raise membrane_error(first + image, layer, channel, int(membranes[image, channel, y, x]))
