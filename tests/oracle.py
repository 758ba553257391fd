"""Independent oracle of conversion, integer network and spiking network: slow, obvious, in whole numbers.

Written from the mathematics: sums run over connections listed one by one, and nothing is batched or skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantspike.conversion.integer import IntegerLayer, IntegerNetwork
from quantspike.networks.architecture import Layer

Integers = NDArray[np.int64]

COUNTS = ("positive", "negative", "synops")


def largest_threshold(largest_weight: float, weight_bits: int) -> int | None:
    """Return the largest even theta up to 2^20 with rint(theta max|W'|) <= limit, by trying every one of them."""
    candidates = np.arange(2, 2**20 + 1, 2)
    fits = np.rint(candidates * largest_weight) <= 2 ** (weight_bits - 1) - 1
    return int(candidates[fits].max()) if fits.any() else None


def connections(layer: Layer) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int]]]:
    """Yield each synapse of a layer: target (channel, y, x), source (channel, y, x), (row, column) in the kernel.

    Positions in the padding are not neurons, so there are no synapses from them.
    """
    for y, x in np.ndindex(layer.out_size, layer.out_size):
        for row, column in np.ndindex(layer.kernel, layer.kernel):
            from_y, from_x = y * layer.stride + row - layer.padding, x * layer.stride + column - layer.padding
            if 0 <= from_y < layer.in_size and 0 <= from_x < layer.in_size:
                for out, channel in np.ndindex(layer.out_channels, layer.in_channels):
                    yield (out, y, x), (channel, from_y, from_x), (row, column)


def reached_synapses(layer: Layer) -> Integers:
    """Return the number of synapses in `layer` of each neuron (or pixel) before it: int64 [in, in_size, in_size]."""
    reached = np.zeros((layer.in_channels, layer.in_size, layer.in_size), np.int64)
    for _, source, _ in connections(layer):
        reached[source] += 1
    return reached


def matrix(layer: IntegerLayer) -> Integers:
    """Return the layer as a matrix, one row per neuron and one column per neuron before it: int64."""
    shape = layer.shape
    weight = layer.weight.numpy().astype(np.int64)
    full = np.zeros((shape.out_channels, shape.out_size, shape.out_size, *reached_synapses(shape).shape), np.int64)
    for target, source, (row, column) in connections(shape):
        full[(*target, *source)] = weight[target[0], source[0], row, column]
    return full.reshape(shape.neurons, -1)


def whole_pixels(pixels: NDArray[np.uint8], k: int) -> list[int]:
    """Return x = rint(2^8 2^k z) of a cropped image, exact in every digit.

    With n values, their sum S and the sum Q of their squares, z = (n x - S) / sqrt(max(n Q - S^2, n)).
    """
    values = [int(value) for value in pixels.ravel()]
    n, total, squares = len(values), sum(values), sum(value**2 for value in values)
    radicand = max(n * squares - total**2, n)
    return [_rint_over_root((n * value - total) * 2 ** (8 + k), radicand) for value in values]


def input_current(network: IntegerNetwork, image: NDArray[np.uint8]) -> Integers:
    """Return I = rint(sum w x / 2^8) of every neuron of the encoding layer: int64 [neurons]."""
    size = network.architecture.image_size
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    pixels = whole_pixels(image[:, top : top + size, left : left + size], network.k)
    sums = [sum(int(w) * x for w, x in zip(row, pixels, strict=True)) for row in matrix(network.layers[0])]
    return np.array([_rint(total, 2**8) for total in sums], np.int64)


def settled_counts(network: IntegerNetwork, current: Integers) -> list[Integers]:
    """Return the settled count of every neuron of one image, layer by layer, int64 [neurons]."""
    counts: list[Integers] = []
    for layer in network.layers:
        drive = matrix(layer) @ counts[-1] if counts else current
        bias, threshold = _per_neuron(layer)
        counts.append(_target(drive + bias, threshold, network))
    return counts


def prediction(network: IntegerNetwork, last_counts: Integers) -> int:
    """Return the lowest class among those with the largest logit."""
    rows = network.classifier.numpy().astype(np.int64)
    logits = [sum(int(v) * int(n) for v, n in zip(row, last_counts, strict=True)) for row in rows]
    return logits.index(max(logits))


@dataclass(frozen=True)
class Run:
    """One image over T steps and L layers; counts are cumulative.

    Attributes:
        net: net counts of every neuron, per step and layer, int64 [neurons].
        positive, negative, synops: int64 [T, L].
        settled: bool [T, L].
        predictions: int64 [T].
    """

    net: list[list[Integers]]
    positive: Integers
    negative: Integers
    synops: Integers
    settled: NDArray[np.bool_]
    predictions: Integers

    @property
    def settled_step(self) -> int:
        """First step after which every neuron is settled, 0 if there is none."""
        settled = self.settled.all(axis=1)
        return int(settled.argmax()) + 1 if settled.any() else 0


def run(network: IntegerNetwork, current: Integers, steps: int, delay: int = 0) -> Run:
    """Run the rule for all steps; with a delay D, layer l (from 0) fires nothing up to step l D."""
    parameters = [(matrix(layer), *_per_neuron(layer)) for layer in network.layers]
    reached = [reached_synapses(layer.shape).ravel() for layer in network.layers[1:]]
    reached.append(np.full(network.layers[-1].shape.neurons, network.architecture.classes))
    membranes = [bias.copy() for _, bias, _ in parameters]
    membranes[0] += current
    net = [np.zeros_like(bias) for _, bias, _ in parameters]
    nets, rows, settled, predictions = [], [], [], []
    for step in range(1, steps + 1):
        row, layer_settled, spikes = [], [], np.zeros(0, np.int64)
        for index, (weights, _, threshold) in enumerate(parameters):
            if index:
                membranes[index] = membranes[index] + weights @ spikes
            spikes = np.sign(_target(membranes[index], threshold, network) - net[index])
            if step <= index * delay:
                spikes = np.zeros_like(spikes)
            net[index] = net[index] + spikes
            row.append([(spikes > 0).sum(), (spikes < 0).sum(), np.abs(spikes) @ reached[index]])
            layer_settled.append(bool((net[index] == _target(membranes[index], threshold, network)).all()))
        nets.append(list(net))
        rows.append(row)
        settled.append(layer_settled)
        predictions.append(prediction(network, net[-1]))
    positive, negative, synops = np.moveaxis(np.cumsum(np.array(rows, np.int64), axis=0), 2, 0)
    return Run(nets, positive, negative, synops, np.array(settled), np.array(predictions))


def run_until_settled(
    network: IntegerNetwork, current: Integers, at_least: int = 1, most: int = 4096, delay: int = 0
) -> Run:
    """Run as many steps as the image needs to settle, found by doubling."""
    steps = at_least
    while not (result := run(network, current, steps, delay)).settled_step and steps < most:
        steps *= 2
    return result


def _target(membrane: Integers, threshold: Integers, network: IntegerNetwork) -> Integers:
    """Return the count that a neuron settles on if its membrane stays: U / theta, rounded, not below 0 nor above M."""
    largest = math.inf if network.clip is None else network.clip * 2**network.k
    return np.array(
        [min(max(0, int(u) + int(t) // 2) // int(t), largest) for u, t in zip(membrane, threshold, strict=True)],
        np.int64,
    )


def _per_neuron(layer: IntegerLayer) -> tuple[Integers, Integers]:
    positions = layer.shape.out_size**2
    bias, threshold = (part.numpy().astype(np.int64) for part in (layer.bias, layer.threshold))
    return np.repeat(bias, positions), np.repeat(threshold, positions)


def _rint(numerator: int, denominator: int) -> int:
    """Return the nearest whole number, ties to even."""
    floor, rest = divmod(numerator, denominator)
    return floor + (2 * rest > denominator or (2 * rest == denominator and floor % 2 == 1))


def _rint_over_root(numerator: int, radicand: int) -> int:
    """Return rint(numerator / sqrt(radicand)), decided by comparing squares."""
    square = numerator**2
    whole = math.isqrt(square // radicand)
    middle = (2 * whole + 1) ** 2 * radicand
    if 4 * square > middle or (4 * square == middle and whole % 2 == 1):
        whole += 1
    return whole if numerator >= 0 else -whole
