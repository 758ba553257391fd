"""Convolutions of whole numbers in floating point, where no sum is ever rounded.

A format holds every whole number up to a power of two (2^24 for fp32, 2^53 for float64). If that bounds all partial
sums, their order does not matter and the result is exact, provided that the library multiplies and adds in that
format and does nothing cleverer. Winograd and Fourier transforms and tf32 round on the way; they are switched off
where a switch exists, and what a device really does is tried out before it is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from quantspike.architecture import Layer
from quantspike.errors import QuantspikeError

LARGEST = {torch.float32: 2**24, torch.float64: 2**53}
"""Whole numbers below this in magnitude are exact in a format."""

_PROBES = 16


def exact_format(layer: Layer, largest_sum: int, device: torch.device, place: str) -> torch.dtype:
    """The fastest format in which a layer's sums are exact on a device.

    Args:
        layer: sizes, stride and padding.
        largest_sum: bound on the magnitude of every partial sum.
        device: where the convolution runs.
        place: what is summed, for the message.

    Raises:
        QuantspikeError: no format holds sums as large as that, or the device's convolutions round.
    """
    wide_enough = [dtype for dtype, limit in LARGEST.items() if largest_sum < limit]
    if not wide_enough:
        raise QuantspikeError(
            f"{place}: sums may reach {largest_sum}, which float64 does not hold exactly; "
            "convert with fewer weight_bits or a smaller k"
        )
    for dtype in wide_enough:
        if adds_exactly(layer, device, dtype):
            return dtype
    raise QuantspikeError(
        f"{place}: torch's convolutions on {device} round whole numbers that their format holds; "
        "set device to cpu, or report this with the versions of torch and of the device's driver"
    )


@cache
def adds_exactly(layer: Layer, device: torch.device, dtype: torch.dtype) -> bool:
    """Tries whether a device's convolution of this shape gives the right sums, of the largest magnitude allowed.

    Some outputs of a convolution of random whole numbers are compared with sums in 64-bit integers.
    """
    random = torch.Generator().manual_seed(0)
    inputs = layer.in_channels * layer.kernel**2
    # Odd numbers up to 127, and weights as large as the sums allow: every output needs all the bits there are.
    values = torch.randint(0, 64, (2, layer.in_channels, layer.in_size, layer.in_size), generator=random) * 2 + 1
    limit = min(LARGEST[dtype] // (127 * inputs), 2**15)
    if limit < 2:
        limit, values = LARGEST[dtype] // inputs, torch.ones_like(values)
    kernels = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    weight = torch.randint(1 - limit, limit, kernels, generator=random)
    # float64 holds every result of either format, a rounded one included.
    found = convolve(values.to(device), weight.to(device), layer, dtype).cpu().double()
    padded = functional.pad(values, [layer.padding] * 4)
    for probe in torch.randint(0, 2 * layer.out_size**2, (_PROBES,), generator=random).tolist():
        image, place = divmod(probe, layer.out_size**2)
        y, x = (index * layer.stride for index in divmod(place, layer.out_size))
        seen = padded[image, :, y : y + layer.kernel, x : x + layer.kernel]
        expected = (weight * seen).sum(dim=(1, 2, 3)).double()
        if not torch.equal(found[image, :, y // layer.stride, x // layer.stride], expected):
            return False
    return True


def convolve(values: Tensor, weight: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Convolution of whole numbers in a format that `exact_format` has found.

    Args:
        values: [N, in, H, W] of any type.
        weight: [out, in, kernel, kernel] of any type.
        layer: stride and padding.
        dtype: the format.

    Returns:
        dtype [N, out, H', W'], whole numbers.
    """
    layout = torch.channels_last
    with exact_kernels():
        return functional.conv2d(
            values.to(dtype, memory_format=layout),
            weight.to(dtype, memory_format=layout),
            stride=layer.stride,
            padding=layer.padding,
        )


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Keeps GPUs from the kernels that round: cuDNN's transforms and tf32."""
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
