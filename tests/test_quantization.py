"""Q_k: to the nearest step of 2^-k, with the gradient of the identity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantspike.quantization import Quantizer, quantize


def test_activations_are_rounded_to_steps_with_ties_to_even() -> None:
    values = torch.tensor([-0.75, -0.3, 0.25, 0.26, 0.75, 1.25, 1.3])
    # k = 1: twice the values are -1.5, -0.6, 0.5, 0.52, 1.5, 2.5, 2.6, rounded -2, -1, 0, 1, 2, 2, 3
    assert quantize(values, 1).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.0, 1.5]


@pytest.mark.parametrize(("k", "expected"), [(0, 3.0), (1, 2.5), (2, 2.75), (3, 2.75), (4, 2.6875)])
def test_each_k_has_steps_of_its_own(k: int, expected: float) -> None:
    # 2.6875 is 2.6875, 5.375, 10.75, 21.5 (a tie, to 22) or 43 steps: 3/1, 5/2, 11/4, 22/8, 43/16
    assert quantize(torch.tensor(2.6875), k).item() == expected


def test_nothing_is_clipped_from_above() -> None:
    # 2000000.5 steps tie to 2000000; 2^100 is a step itself.
    assert quantize(torch.tensor([1e6 + 0.25, 2.0**100]), 1).tolist() == [1e6, 2.0**100]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1), st.integers(0, 10))
def test_quantizing_agrees_with_whole_number_rounding_in_python(values: list[float], k: int) -> None:
    # Python's round takes ties to even, too; the products with powers of two are exact.
    expected = [round(value * 2**k) / 2**k for value in values]
    assert quantize(torch.tensor(values, dtype=torch.float64), k).tolist() == expected


def test_the_gradient_passes_straight_through() -> None:
    values = torch.tensor([0.1, 0.24, 0.5, 7.3], requires_grad=True)
    (quantize(values, 1) * torch.tensor([1.0, 2.0, 3.0, -4.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 2.0, 3.0, -4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_stays_as_it_was_and_its_type_is_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.3], [0.8]], dtype=dtype)
    rounded = quantize(values, 0)
    assert (rounded.dtype, rounded.tolist()) == (dtype, [[0.0], [1.0]])
    assert torch.equal(values, torch.tensor([[0.3], [0.8]], dtype=dtype))


def test_the_layer_says_its_k_and_does_what_the_function_does() -> None:
    layer, values = Quantizer(2), torch.tensor([0.1, 0.2, 0.3])
    assert repr(layer) == "Quantizer(k=2)"
    assert torch.equal(layer(values), quantize(values, 2))
