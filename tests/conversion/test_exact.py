"""Convolutions of whole numbers: exact in the chosen format, and a library that rounds is detected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quantspike.conversion import exact
from quantspike.conversion.exact import adds_exactly, convolve, exact_format, exact_kernels
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Layer

CPU = torch.device("cpu")
CONV2D = functional.conv2d
LAYER = Layer("4C3", 2, 4, 3, 1, 1, 6, 6)
SHAPES = [
    LAYER,
    Layer("3C1", 5, 3, 1, 1, 0, 4, 4),
    Layer("2C5", 3, 2, 5, 1, 2, 7, 7),
    Layer("P2", 6, 6, 2, 2, 0, 8, 4),
    Layer("P3", 2, 2, 3, 3, 0, 9, 3),
    Layer("8", 4, 8, 3, 1, 0, 3, 1),
    Layer("384C3", 384, 384, 3, 1, 1, 6, 6),
]


@pytest.fixture(autouse=True)
def _forget_devices() -> None:
    adds_exactly.cache_clear()


@pytest.mark.parametrize(
    ("largest", "factor", "dtype"),
    [
        (0, 127, torch.int8),
        (2**30 - 1, 127, torch.int8),
        (2**30, 127, torch.float64),
        (0, 128, torch.float32),
        (2**24 - 1, 128, torch.float32),
        (2**24, 128, torch.float64),
        (2**53 - 1, 128, torch.float64),
    ],
)
def test_the_fastest_format_that_holds_the_sums_is_taken(
    largest: int, factor: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "multiplies_bytes", lambda device: True)  # whatever this machine's processor does
    monkeypatch.setattr(exact, "adds_exactly", lambda *_: True)
    assert exact_format(LAYER, largest, factor, CPU, "layer 2") is dtype


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_bytes_are_multiplied_only_by_a_processor_with_an_instruction_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "adds_exactly", lambda *_: True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert exact_format(LAYER, 100, 100, CPU, "layer 2") is torch.int8
    assert exact_format(LAYER, 100, 100, torch.device("cuda"), "layer 2") is torch.float32
    with torch.backends.mkldnn.flags(enabled=False):  # the library would multiply one by one
        assert exact_format(LAYER, 100, 100, CPU, "layer 2") is torch.float32
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert exact_format(LAYER, 100, 100, CPU, "layer 2") is torch.float32
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert exact_format(LAYER, 100, 100, CPU, "layer 2") is torch.float32


def test_sums_that_no_format_holds_are_refused() -> None:
    with pytest.raises(QuantspikeError, match="layer 2: sums may reach 9007199254740992, which float64 does not hold"):
        exact_format(LAYER, 2**53, 128, CPU, "layer 2")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.token)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_this_machine_adds_exactly(shape: Layer, dtype: torch.dtype) -> None:
    assert adds_exactly(shape, CPU, dtype)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.token)
def test_bytes_give_the_sums_of_64_bits(shape: Layer, n: int) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (n, shape.in_channels, shape.in_size, shape.in_size), generator=random)
    kernel = (shape.out_channels, shape.in_channels, shape.kernel, shape.kernel)
    weight = torch.randint(-127, 128, kernel, generator=random)
    windows = functional.pad(values, [shape.padding] * 4).unfold(2, shape.kernel, shape.stride)
    expected = torch.einsum("ncyxij,ocij->noyx", windows.unfold(3, shape.kernel, shape.stride), weight)
    found = torch.equal(convolve(values, weight, shape, torch.int8).long(), expected)
    # A processor without an instruction for bytes may be wrong, but is then not trusted.
    assert found or not adds_exactly(shape, CPU, torch.int8)


def cut_to_16_bits(values: Tensor, weight: Tensor) -> Tensor:
    """Simulate a processor that adds products of bytes by pairs in 16 bits, values being counted from -128 on."""
    products = (values.long() + 128)[:, :, None] * weight.long()[None]
    if products.shape[1] % 2:
        products = functional.pad(products, [0, 0, 0, 1])
    pairs = products.view(len(values), -1, 2, weight.shape[1]).sum(dim=2).clamp(-(2**15), 2**15 - 1)
    return (pairs.sum(dim=1) - 128 * weight.long().sum(dim=0)).int()


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=lambda shape: shape.token)
def test_a_processor_that_cuts_products_of_bytes_to_16_bits_is_found_out(
    shape: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "multiplies_bytes", lambda device: True)
    monkeypatch.setattr(exact.torch, "_int_mm", cut_to_16_bits)
    assert exact_format(shape, 100, 100, CPU, "layer 2") is torch.float32


def cut_to(bits: int, values: Tensor) -> Tensor:
    """Round to so many significant bits, as tf32 does to 11."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def reduced_precision(bits: int) -> Callable[..., Tensor]:
    """Return a library that rounds the inputs of an fp32 convolution."""

    def conv2d(values: Tensor, weight: Tensor, **options: Any) -> Tensor:
        if values.dtype == torch.float32:
            values, weight = cut_to(bits, values), cut_to(bits, weight)
        return CONV2D(values, weight, **options)

    return conv2d


def transform_for_batches(values: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Simulate a library that takes a kernel that rounds from 16 images on."""
    sums = CONV2D(values, weight, **options)
    return sums * (1 + 2**-22) if len(values) >= 16 and values.dtype == torch.float32 else sums


def rounded_sums(values: Tensor, weight: Tensor, **options: Any) -> Tensor:
    """Simulate a library that keeps 23 bits of a sum in place of 24."""
    sums = CONV2D(values, weight, **options)
    return cut_to(23, sums) if values.dtype == torch.float32 else sums


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.token)
@pytest.mark.parametrize(
    "library",
    [reduced_precision(11), reduced_precision(14), transform_for_batches, rounded_sums],
    ids=["tf32", "14 bits", "transform", "sums"],
)
def test_where_fp32_rounds_float64_is_taken(
    library: Callable[..., Tensor], shape: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact.functional, "conv2d", library)
    assert exact_format(shape, 100, 128, CPU, "layer 2") is torch.float64


def test_where_everything_rounds_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "adds_exactly", lambda *_: False)
    with pytest.raises(QuantspikeError, match="layer 2: torch's convolutions on cpu round whole numbers"):
        exact_format(LAYER, 100, 128, CPU, "layer 2")


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("n", [1, 16, 50])
def test_a_batch_of_real_size_is_summed_exactly_whatever_library_torch_takes(n: int, onednn: bool) -> None:
    # Without oneDNN torch turns to NNPACK, whose Winograd transform rounds from 16 images on.
    layer = Layer("64C3", 64, 64, 3, 1, 1, 12, 12)
    random = torch.Generator().manual_seed(n)
    values = torch.randint(-1, 2, (n, 64, 12, 12), generator=random)
    weight = torch.randint(-2047, 2048, (64, 64, 3, 3), generator=random)
    with torch.backends.mkldnn.flags(enabled=onednn):
        found = convolve(values, weight, layer, torch.float32)
    windows = functional.pad(values, [1] * 4).unfold(2, 3, 1).unfold(3, 3, 1)
    expected = torch.einsum("ncyxij,ocij->noyx", windows, weight)
    assert torch.equal(found.long(), expected)


def test_the_exact_settings_end_with_the_convolution_even_if_it_fails() -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.enabled

    def fail() -> None:
        with exact_kernels():
            assert settings() == (False, False)
            raise ZeroDivisionError

    before = settings()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert settings() == before
