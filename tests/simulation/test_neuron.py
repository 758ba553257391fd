"""One step of the neuron: by hand, and against whole numbers in Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantspike.simulation.neuron import NeuronParameters, NeuronState, fire

LARGEST = 2**30 - 1


def step(membrane: int, net: int, threshold: int) -> tuple[int, int, bool]:
    """Return the spike, the new net count and whether the neuron is settled, and check that the old state stays."""
    theta, half, u, n = (
        torch.full((1, 1, 1, 1), value, dtype=torch.int32) for value in (threshold, threshold // 2, membrane, net)
    )
    spike, state, settled = fire(NeuronParameters(theta, half), NeuronState(u, n))
    assert (spike.dtype, state.net_spikes.dtype, int(state.membrane)) == (torch.int8, torch.int32, membrane)
    assert (int(theta), int(half), int(u), int(n)) == (threshold, threshold // 2, membrane, net)
    return int(spike), int(state.net_spikes), bool(settled)


@pytest.mark.parametrize(
    ("membrane", "net", "expected"),
    [
        # theta = 6, h = 3; d = max(0, U + 3) - 6 N
        (2, 0, (0, 0, True)),  # d = 5, one below the threshold
        (3, 0, (1, 1, True)),  # d = 6, exactly at it; then 0
        (8, 0, (1, 1, True)),  # d = 11; then 5
        (9, 0, (1, 1, False)),  # d = 12; then 6, so it fires again
        (3, 1, (0, 1, True)),  # d = 0, exactly as much as was fired
        (2, 1, (-1, 0, True)),  # d = -1; then 5
        (-3, 1, (-1, 0, True)),  # d = 0 - 6; then 0
        (-100, 1, (-1, 0, True)),  # the same: membranes below zero count as zero
        (-100, 2, (-1, 1, False)),  # d = -12; then -6
        (-4, 0, (0, 0, True)),  # d = 0: settled below zero
    ],
)
def test_a_neuron_fires_takes_back_or_stays_as_by_hand(
    membrane: int, net: int, expected: tuple[int, int, bool]
) -> None:
    assert step(membrane, net, 6) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    membrane=st.integers(-LARGEST, LARGEST) | st.integers(-100, 100) | st.sampled_from((LARGEST, -LARGEST)),
    half=st.integers(1, 2**19) | st.integers(1, 20),
    off=st.integers(-3, 3) | st.integers(-(2**30), 2**30),
)
def test_a_step_is_the_rule_in_whole_numbers_up_to_the_largest_membrane(membrane: int, half: int, off: int) -> None:
    threshold, target = 2 * half, max(0, membrane + half) // (2 * half)
    # A net count is never below zero, nor above what the largest membrane asks for.
    net = min(max(0, target + off), (LARGEST + half) // threshold)
    spike = (target > net) - (target < net)
    assert step(membrane, net, threshold) == (spike, net + spike, net + spike == target)
