"""Convolutions of whole numbers: exact in the format that is chosen, and a library that rounds is found out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quantspike import exact
from quantspike.architecture import Layer
from quantspike.errors import QuantspikeError
from quantspike.exact import adds_exactly, convolve, exact_format, exact_kernels

CPU = torch.device("cpu")
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
def _try_again() -> None:
    """What was found out about a device is not remembered from test to test."""
    adds_exactly.cache_clear()


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, torch.float32), (2**24 - 1, torch.float32), (2**24, torch.float64), (2**53 - 1, torch.float64)],
)
def test_the_narrowest_format_that_holds_the_sums_is_taken(largest: int, dtype: torch.dtype) -> None:
    assert exact_format(LAYER, largest, CPU, "layer 2") is dtype


def test_sums_that_no_format_holds_are_refused() -> None:
    with pytest.raises(QuantspikeError, match="layer 2: sums may reach 9007199254740992, which float64 does not hold"):
        exact_format(LAYER, 2**53, CPU, "layer 2")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.token)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_this_machine_adds_exactly(shape: Layer, dtype: torch.dtype) -> None:
    assert adds_exactly(shape, CPU, dtype)


def test_a_convolution_is_the_sum_over_the_kernel() -> None:
    # Kernel 2 x 2 with stride 2, two channels of 2 x 2: 1 + 2 + 3 + 4 times 1, 2 + 2 + 2 + 2 times 10.
    values = torch.tensor([[[[1, 2], [3, 4]], [[2, 2], [2, 2]]]])
    weight = torch.tensor([[[[1, 1], [1, 1]], [[10, 10], [10, 10]]]] * 2)
    found = convolve(values, weight, Layer("P2", 2, 2, 2, 2, 0, 2, 1), torch.float32)
    assert found.flatten().tolist() == [90.0, 90.0]


def rounding_in(dtype: torch.dtype) -> object:
    """A library whose convolutions in a format are off by what a transform of that format may be off."""
    original = functional.conv2d

    def conv2d(values: Tensor, weight: Tensor, **options: object) -> Tensor:
        sums = original(values, weight, **options)  # type: ignore[arg-type]
        return sums * (1 + 2 * torch.finfo(dtype).eps) if values.dtype == dtype else sums

    return conv2d


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.token)
def test_where_fp32_rounds_float64_is_taken(shape: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact.functional, "conv2d", rounding_in(torch.float32))
    assert exact_format(shape, 100, CPU, "layer 2") is torch.float64


def test_where_everything_rounds_the_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "adds_exactly", lambda *_: False)
    with pytest.raises(QuantspikeError, match="layer 2: torch's convolutions on cpu round whole numbers"):
        exact_format(LAYER, 100, CPU, "layer 2")


def test_the_exact_settings_end_with_the_convolution() -> None:
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
