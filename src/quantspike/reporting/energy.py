"""Estimates of energy per image: arithmetic and memory traffic, kept apart.

These are estimates, not measurements of a chip: operations and accesses are counted, and each has a price. The prices
are settings (`energy` in params.yaml); those there are of a 45 nm process at 0.9 V, after M. Horowitz, "Computing's
energy problem (and what we can do about it)", ISSCC 2014.

Counted per image is everything but the multiply-accumulates of the encoding layer, which are the same in both kinds of
network; its neurons, spikes and weights are counted. Every weight is fetched from DRAM once, the classifier's at the
width of the others.

- ANN: a multiply-accumulate reads its weight and its activation from on-chip memory and sums in a register; every
  neuron writes its activation once.
- SNN: a synaptic operation is an addition of 32 bits; it reads its weight, and reads and writes the membrane. A spike
  is written once and read once. In every step until the image is settled (or T), every neuron compares its membrane
  with its threshold: an addition and a read. Each membrane is set once.

Neither network keeps a weight in a register for a second use, so a design that reuses weights does better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantspike.networks.architecture import Architecture, layer_macs
from quantspike.params import Energy

WORD = 32
"""Bits of a membrane, of the address that a spike is sent as, and of one memory access that has a price."""


@dataclass(frozen=True)
class Estimate:
    """Energy per image, in picojoules.

    Attributes:
        arithmetic: additions and multiplications.
        on_chip: weights, activations, membranes and spikes, from and to on-chip memory.
        dram: weights from DRAM.
    """

    arithmetic: float
    on_chip: float
    dram: float


def full_precision_ann(architecture: Architecture, weights: int, prices: Energy) -> Estimate:
    """Return the energy of the network before conversion in fp32: weights and activations of 32 bits.

    Args:
        architecture: its layers.
        weights: number of its weights.
        prices: of the operations and accesses.
    """
    price = [prices.fp32_mac] * len(layer_macs(architecture))
    return _ann(architecture, weights, prices, price, WORD, [WORD] * len(price))


def integer_ann(
    architecture: Architecture, weights: int, prices: Energy, weight_bits: int, activation_bits: Sequence[int]
) -> Estimate:
    """Return the energy of the network in integers of given widths.

    A multiplier's energy is proportional to the product of its widths (Horowitz: 0.2 pJ for 8 x 8 bits, 3.1 for
    32 x 32, which is 16 times the product), so a multiply-accumulate costs `int8_mac` times that product over 64.

    Args:
        architecture: its layers.
        weights: number of its weights.
        prices: of the operations and accesses.
        weight_bits: width of the weights.
        activation_bits: width of the activations of each layer.
    """
    price = [prices.int8_mac * weight_bits * bits / 64 for bits in activation_bits]
    return _ann(architecture, weights, prices, price, weight_bits, activation_bits)


def spiking(
    architecture: Architecture,
    weights: int,
    prices: Energy,
    weight_bits: int,
    *,
    synops: float,
    spikes: float,
    steps_at_work: float,
) -> Estimate:
    """Return the energy of the spiking network.

    Args:
        architecture: its layers.
        weights: number of its weights.
        prices: of the operations and accesses.
        weight_bits: width of the weights.
        synops: synaptic operations per image.
        spikes: spikes per image, of both signs.
        steps_at_work: steps until an image is settled, mean over the images.
    """
    comparisons = architecture.neurons * steps_at_work
    words = 2 * spikes + comparisons + architecture.neurons
    bits = synops * (weight_bits + 2 * WORD) + words * WORD
    return Estimate(
        arithmetic=(synops + comparisons) * prices.int32_add,
        on_chip=bits / WORD * prices.on_chip,
        dram=weights * weight_bits / WORD * prices.dram,
    )


def activation_bits(largest_counts: Sequence[int]) -> list[int]:
    """Return the width that holds every activation count of each layer, at least one bit."""
    return [max(count.bit_length(), 1) for count in largest_counts]


def _ann(
    architecture: Architecture,
    weights: int,
    prices: Energy,
    price_of_mac: Sequence[float],
    weight_bits: int,
    activation_bits: Sequence[int],
) -> Estimate:
    """Prices and widths are by the layer whose activations are multiplied."""
    macs = layer_macs(architecture)
    read = sum(count * (weight_bits + bits) for count, bits in zip(macs, activation_bits, strict=True))
    written = sum(layer.neurons * bits for layer, bits in zip(architecture.layers, activation_bits, strict=True))
    return Estimate(
        arithmetic=sum(count * price for count, price in zip(macs, price_of_mac, strict=True)),
        on_chip=(read + written) / WORD * prices.on_chip,
        dram=weights * weight_bits / WORD * prices.dram,
    )
