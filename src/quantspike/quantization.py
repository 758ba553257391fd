"""Activations in steps of 2^-k, with a gradient that passes straight through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, steps_per_unit: float) -> Tensor:
        # Both factors are powers of two, so only the rounding itself changes a value.
        return values.mul(steps_per_unit).round_().mul_(1.0 / steps_per_unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantize(values: Tensor, k: int) -> Tensor:
    """Rounds to multiples of 2^-k, ties to even: Q_k(x) = round(2^k x) / 2^k, without an upper clip.

    The gradient is that of the identity (the straight-through estimator of Bengio et al., 2013).

    Args:
        values: tensor of any shape.
        k: number of binary places, 0 or more.

    Returns:
        A tensor of the same shape and type.
    """
    rounded: Tensor = _RoundToGrid.apply(values, float(2**k))
    return rounded


class Quantizer(nn.Module):
    """Q_k as a layer of a network."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, values: Tensor) -> Tensor:
        return quantize(values, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"
