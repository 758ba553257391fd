"""Convolutions of whole numbers by fast library code, where no sum is ever rounded.

A format holds every whole number up to a power of two: 2^24 for fp32, 2^53 for float64. Products of bytes are added in
32 bits; 2^30 leaves room for a bias below 2^30. If that bounds all partial sums, their order does not matter and the
result is exact, provided that the library multiplies and adds in that format. Winograd and Fourier transforms and tf32
round; they are switched off where a switch exists, and each device is tested before it is trusted. Bytes are multiplied
only where the processor has an instruction for it: without one, the library is slow, or cuts the sums to 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Layer

LARGEST = {torch.int8: 2**30, torch.float32: 2**24, torch.float64: 2**53}
"""Sums of whole numbers below this in magnitude are exact in a format; the fastest format comes first."""

LARGEST_BYTE = 127
"""Values and weights up to this in magnitude can be multiplied as bytes."""

_POSITIONS = 20
"""Positions of the map that are compared, at least; each gives an output per channel."""

_OUTPUTS = 256
"""Outputs that are compared, at least."""

_IMAGES = 20
"""Images of a test: libraries choose other kernels for batches than for single images."""


def exact_format(layer: Layer, largest_sum: int, largest_factor: int, device: torch.device, name: str) -> torch.dtype:
    """Return the fastest format in which a layer's sums are exact on a device.

    Args:
        layer: sizes, stride and padding.
        largest_sum: bound on the magnitude of every partial sum.
        largest_factor: bound on the magnitude of every value and weight.
        device: where the convolution runs.
        name: of the layer, for the message.

    Raises:
        QuantspikeError: no format holds sums as large as that, or the device's convolutions round.
    """
    wide_enough = [dtype for dtype, limit in LARGEST.items() if largest_sum < limit]
    if largest_factor > LARGEST_BYTE or not multiplies_bytes(device):
        wide_enough = [dtype for dtype in wide_enough if dtype.is_floating_point]
    if not wide_enough:
        raise QuantspikeError(
            f"{name}: sums may reach {largest_sum}, which float64 does not hold exactly; "
            "convert with fewer weight_bits or a smaller k"
        )
    for dtype in wide_enough:
        if adds_exactly(layer, device, dtype):
            return dtype
    raise QuantspikeError(
        f"{name}: torch's convolutions on {device} round whole numbers that their format holds; "
        "set device to cpu, or report this with the versions of torch and of the device's driver"
    )


def multiplies_bytes(device: torch.device) -> bool:
    """Return whether a device has an instruction for products of bytes that PyTorch makes use of."""
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return device.type == "cpu" and bool(torch.backends.mkldnn.enabled) and bool(supported())


@cache
def adds_exactly(layer: Layer, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device's convolution of this shape gives the right sums.

    Some outputs are compared with sums in 64-bit integers, twice: with odd weights of 16 bits on few values, which
    a format of fewer bits would cut, and with sums of one sign just below what the format holds.
    """
    random = torch.Generator().manual_seed(0)
    return all(
        _sums_are_exact(values, weight, layer, device, dtype)
        for values, weight in (_sparse_test(layer, dtype, random), _full_test(layer, dtype, random))
    )


def convolve(values: Tensor, weight: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Convolve whole numbers in a format that `exact_format` returned.

    Args:
        values: [N, in, H, W] of any type.
        weight: [out, in, kernel, kernel] of any type.
        layer: stride and padding.
        dtype: the format.

    Returns:
        Whole numbers in dtype, int32 for bytes: [N, out, H', W'].
    """
    layout = torch.channels_last
    values, weight = values.to(dtype, memory_format=layout), weight.to(dtype, memory_format=layout)
    if dtype == torch.int8:
        return _convolve_bytes(values, weight, layer)
    with exact_kernels():
        return functional.conv2d(values, weight, stride=layer.stride, padding=layer.padding)


def _convolve_bytes(values: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """Convolve bytes as one product of matrices: int8 [N, in, H, W] -> int32 [N, out, H', W'], channels last."""
    n, channels = values.shape[:2]
    padded = functional.pad(values.permute(0, 2, 3, 1), [0, 0, *[layer.padding] * 4]).contiguous()
    image, row, column, _ = padded.stride()
    windows = padded.as_strided(
        (n, layer.out_size, layer.out_size, layer.kernel, layer.kernel, channels),
        (image, row * layer.stride, column * layer.stride, row, column, 1),
    )
    matrix = windows.reshape(n * layer.out_size**2, layer.kernel**2 * channels)
    sums: Tensor = torch._int_mm(matrix, weight.permute(0, 2, 3, 1).reshape(len(weight), -1).t())
    return sums.view(n, layer.out_size, layer.out_size, len(weight)).permute(0, 3, 1, 2)


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Switch off kernels that round: cuDNN's transforms and tf32, and NNPACK's Winograd."""
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32


def _sparse_test(layer: Layer, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return odd values of either sign, about 256 of them under a kernel, and odd weights up to 32,767, or 127."""
    bits = 8 if dtype == torch.int8 else 16
    largest = min(LARGEST[dtype] // 2**24, 2**14)
    values = _odd(_map_shape(layer), largest, random)
    values[torch.rand(values.shape, generator=random) > 256 / _inputs(layer)] = 0
    return values, _odd(_kernel_shape(layer), 2 ** (bits - 1), random)


def _full_test(layer: Layer, dtype: torch.dtype, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return positive values and weights whose sums, inside the map, reach half to all of what the format holds.

    Bytes reach half to all of the largest bytes instead.
    """
    factor = LARGEST_BYTE if dtype == torch.int8 else LARGEST[dtype]
    weight = min(factor, 2**15 - 1, (LARGEST[dtype] - 1) // _inputs(layer))
    value = min(factor, (LARGEST[dtype] - 1) // (_inputs(layer) * weight))
    return (
        torch.randint(-(-3 * value // 4), value + 1, _map_shape(layer), generator=random),
        torch.randint(-(-3 * weight // 4), weight + 1, _kernel_shape(layer), generator=random),
    )


def _sums_are_exact(values: Tensor, weight: Tensor, layer: Layer, device: torch.device, dtype: torch.dtype) -> bool:
    # float64 holds every result of either format, a rounded one included.
    whole, one = (convolve(part.to(device), weight.to(device), layer, dtype) for part in (values, values[:1]))
    if not torch.equal(whole[:1], one):
        return False
    sums = whole.cpu().double()
    padded = functional.pad(values, [layer.padding] * 4)
    positions = torch.cartesian_prod(torch.arange(layer.out_size), torch.arange(layer.out_size)).tolist()
    # Narrow layers have few outputs at a position, some of which hide what is rounded.
    n = max(_POSITIONS, _OUTPUTS // layer.out_channels)
    for index in range(n):
        # From all over the batch and the map.
        image, (y, x) = index % _IMAGES, positions[index * len(positions) // n]
        top, left = y * layer.stride, x * layer.stride
        window = padded[image, :, top : top + layer.kernel, left : left + layer.kernel]
        if not torch.equal(sums[image, :, y, x], (weight * window).sum(dim=(1, 2, 3)).double()):
            return False
    return True


def _inputs(layer: Layer) -> int:
    return layer.in_channels * layer.kernel**2


def _map_shape(layer: Layer) -> tuple[int, ...]:
    return (_IMAGES, layer.in_channels, layer.in_size, layer.in_size)


def _kernel_shape(layer: Layer) -> tuple[int, ...]:
    return (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)


def _odd(shape: tuple[int, ...], limit: int, random: torch.Generator) -> Tensor:
    """Return random odd numbers of either sign, below the limit in magnitude, or 1."""
    magnitudes = torch.randint(0, max(1, limit // 2), shape, generator=random) * 2 + 1
    return magnitudes * (torch.randint(0, 2, shape, generator=random) * 2 - 1)
