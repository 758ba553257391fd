"""A quantized network on integer grids: the one computation behind fine-tuning, `evaluate` and the integer network.

Batch normalization is folded into the weights; every output channel has an integer grid of its own, and activations are
counts of steps of 2^-k. All of it is differentiable, straight through the rounding (Bengio et al., 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantspike.errors import QuantspikeError

INPUT_BITS = 8
"""Binary places of the image beyond those of the activations."""

LARGEST_THRESHOLD = 2**20

CLASSIFIER_LIMIT = 2**15 - 1


@dataclass(frozen=True, eq=False)
class Grid:
    """A convolution in whole numbers, each output channel on a grid of its own.

    Attributes:
        weight: w, [out, in, kernel, kernel].
        bias: c, [out].
        threshold: theta, [out], even, from 2 to 2^20.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_through(values: Tensor) -> Tensor:
    """Round to whole numbers, ties to even, with the gradient of the identity."""
    rounded: Tensor = _Round.apply(values)
    return rounded


def fold(weight: Tensor, normalization: nn.BatchNorm2d, k: int) -> tuple[Tensor, Tensor]:
    """Fold batch normalization into the convolution before it, in float64.

    With scale g, shift b, mean m and variance v, and s = sqrt(v + eps): W' = (g/s) W and b' = 2^k (b - g m / s).

    Args:
        weight: W, [out, in, kernel, kernel].
        normalization: its running averages count.
        k: binary places of the activations.

    Returns:
        W' as float64 [out, in, kernel, kernel] and b' as float64 [out], in units of 2^-k.
    """
    mean, variance = normalization.running_mean, normalization.running_var
    assert mean is not None
    assert variance is not None
    factor = normalization.weight.double() / (variance.double() + normalization.eps).sqrt()
    return (
        factor[:, None, None, None] * weight.double(),
        2.0**k * (normalization.bias.double() - factor * mean.double()),
    )


def to_grid(weight: Tensor, bias: Tensor, weight_bits: int, layer: int) -> Grid:
    """Put folded weights on the finest grids that fit: w = rint(theta W'), c = rint(theta b').

    Args:
        weight: W', float64 [out, in, kernel, kernel].
        bias: b', float64 [out].
        weight_bits: width of the weights, sign included.
        layer: index from 0, for the message.

    Returns:
        Whole numbers as float64; thresholds have no gradient.

    Raises:
        QuantspikeError: a channel has no threshold of at least 2.
    """
    largest = weight.detach().abs().amax(dim=(1, 2, 3))
    theta = thresholds(largest, 2 ** (weight_bits - 1) - 1, layer)
    return Grid(round_through(theta[:, None, None, None] * weight), round_through(theta * bias), theta)


def thresholds(largest: Tensor, limit: int, layer: int = 0) -> Tensor:
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
    guess = ((limit + 0.5) / largest).floor().clamp(max=LARGEST_THRESHOLD)
    theta = guess - guess % 2 + 2
    # The quotient is rounded, so the guess can be one step off either way: begin above, come down.
    while bool((too_large := (theta > LARGEST_THRESHOLD) | ((theta * largest).round() > limit)).any()):
        theta = torch.where(too_large, theta - 2, theta)
        if bool((theta < 2).any()):
            channel = int(theta.argmin())
            raise QuantspikeError(
                f"layer {layer + 1}, channel {channel}: its largest weight is {float(largest[channel]):.6g}, for which "
                f"no threshold of at least 2 keeps the weights within {limit}; set convert.weight_bits higher, "
                "or train with a lower learning rate"
            )
    return theta


def classifier_grid(weight: Tensor) -> tuple[Tensor, int]:
    """Put the classifier on one power-of-two grid: v = rint(2^q V) with the largest q that keeps |v| < 2^15.

    Args:
        weight: V, [classes, features].

    Returns:
        v, whole numbers as float64 [classes, features], and q.
    """
    largest = weight.detach().double().abs().max()
    exponent = 0
    if largest > 0:
        # frexp: largest = f 2^e with 1/2 <= f < 1, so 15 - e is right or one too much.
        exponent = 15 - int(torch.frexp(largest).exponent)
        if (largest * 2.0**exponent).round() > CLASSIFIER_LIMIT:
            exponent -= 1
    return round_through(weight.double() * 2.0**exponent), exponent


def count_(membrane: Tensor, threshold: Tensor, largest: int | None) -> Tensor:
    """Turn membranes into the counts of settled neurons, in place: n = min(floor(max(0, U + theta / 2) / theta), M).

    Args:
        membrane: U, whole numbers of any type, [N, out, H, W].
        threshold: theta, broadcastable to it.
        largest: M, or None for no clip.

    Returns:
        The same tensor.
    """
    return membrane.add_(threshold // 2).div_(threshold, rounding_mode="floor").clamp_(min=0, max=largest)


class _Counts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: Tensor, largest: int | None) -> Tensor:
        result = count_(membrane.clone(), threshold, largest)
        # The count is 0 both where the gradient is 0 and just above.
        above = membrane > -(threshold // 2)
        ctx.save_for_backward(above if largest is None else above & (membrane < threshold * largest + threshold // 2))
        ctx.threshold = threshold
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside / ctx.threshold, None, None


def counts(membrane: Tensor, threshold: Tensor, largest: int | None) -> Tensor:
    """Return the same as a new tensor, with the gradient 1 / theta where 0 < U + theta / 2 < theta (M + 1), else 0."""
    result: Tensor = _Counts.apply(membrane, threshold, largest)
    return result
