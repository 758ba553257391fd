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

_PROBES = 20
"""Places that are looked at, at least; each gives an output per channel."""

_OUTPUTS = 256
"""Outputs that are looked at, at least."""

_IMAGES = 20
"""Of a probe: libraries choose other kernels for batches than for single images."""


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
    """Tries whether a device's convolution of this shape gives the right sums.

    Some outputs are compared with sums in 64-bit integers, twice: with odd weights of 16 bits on few values, which
    a format of fewer bits would cut, and with sums of one sign just below what the format holds.
    """
    random = torch.Generator().manual_seed(0)
    return all(
        _gives_exact_sums(values, weight, layer, device, dtype)
        for values, weight in (_sparse_probe(layer, dtype, random), _full_probe(layer, dtype, random))
    )


def _sparse_probe(layer: Layer, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Odd weights up to 32,767 of either sign, on odd values of either sign of which about 256 stand under a kernel."""
    largest = min(LARGEST[dtype] // 2**24, 2**14)
    values = _odd(_maps(layer), largest, random)
    values[torch.rand(values.shape, generator=random) > 256 / _inputs(layer)] = 0
    return values, _odd(_kernels(layer), 2**15, random)


def _full_probe(layer: Layer, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positive weights on positive values: inside the map, sums lie between half and all of what the format holds."""
    weight = min(2**15 - 1, (LARGEST[dtype] - 1) // _inputs(layer))
    value = (LARGEST[dtype] - 1) // (_inputs(layer) * weight)
    return (
        torch.randint(-(-3 * value // 4), value + 1, _maps(layer), generator=random),
        torch.randint(-(-3 * weight // 4), weight + 1, _kernels(layer), generator=random),
    )


def _gives_exact_sums(values: Tensor, weight: Tensor, layer: Layer, device: torch.device, dtype: torch.dtype) -> bool:
    # float64 holds every result of either format, a rounded one included.
    found = convolve(values.to(device), weight.to(device), layer, dtype).cpu().double()
    padded = functional.pad(values, [layer.padding] * 4)
    places = torch.cartesian_prod(torch.arange(layer.out_size), torch.arange(layer.out_size)).tolist()
    # Narrow layers have few outputs at a place, of which some hide what is rounded.
    probes = max(_PROBES, _OUTPUTS // layer.out_channels)
    for probe in range(probes):
        # From all over the batch and the map.
        image, (y, x) = probe % _IMAGES, places[probe * len(places) // probes]
        top, left = y * layer.stride, x * layer.stride
        seen = padded[image, :, top : top + layer.kernel, left : left + layer.kernel]
        if not torch.equal(found[image, :, y, x], (weight * seen).sum(dim=(1, 2, 3)).double()):
            return False
    return True


def _inputs(layer: Layer) -> int:
    return layer.in_channels * layer.kernel**2


def _maps(layer: Layer) -> tuple[int, ...]:
    return (_IMAGES, layer.in_channels, layer.in_size, layer.in_size)


def _kernels(layer: Layer) -> tuple[int, ...]:
    return (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)


def _odd(shape: tuple[int, ...], limit: int, random: torch.Generator) -> Tensor:
    """Odd whole numbers of either sign, below the limit in magnitude, or 1."""
    magnitudes = torch.randint(0, max(1, limit // 2), shape, generator=random) * 2 + 1
    return magnitudes * (torch.randint(0, 2, shape, generator=random) * 2 - 1)


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
    """Keeps away from kernels that round: cuDNN's transforms and tf32, and NNPACK's Winograd."""
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
