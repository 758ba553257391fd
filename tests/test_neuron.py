"""The neuron that may take a spike back: one step, by hand and against whole numbers in Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantspike.simulation.neuron import NeuronParameters, NeuronState, fire

LARGEST = 2**30 - 1


def step(membrane: int, net: int, threshold: int) -> tuple[int, int, bool]:
    """Spike, new net count and whether the neuron is at rest, of a single neuron."""
    values = (
        torch.full((1, 1, 1, 1), value, dtype=torch.int32) for value in (threshold, threshold // 2, membrane, net)
    )
    theta, half, u, n = values
    spike, state, at_rest = fire(NeuronParameters(theta, half), NeuronState(u, n))
    assert (spike.dtype, state.net_spikes.dtype, int(state.membrane)) == (torch.int8, torch.int32, membrane)
    return int(spike), int(state.net_spikes), bool(at_rest)


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
        (-100, 1, (-1, 0, True)),  # the same: what lies below zero does not count
        (-100, 2, (-1, 1, False)),  # d = -12; then -6
        (-4, 0, (0, 0, True)),  # d = 0 at rest below zero
    ],
)
def test_a_neuron_fires_takes_back_or_rests_as_by_hand(
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


def test_the_state_before_a_step_stays_as_it_was() -> None:
    state = NeuronState(torch.full((2, 3, 1, 1), 40, dtype=torch.int32), torch.ones((2, 3, 1, 1), dtype=torch.int32))
    threshold = torch.tensor([2, 4, 6], dtype=torch.int32).reshape(3, 1, 1)
    fire(NeuronParameters(threshold, threshold // 2), state)
    assert bool((state.membrane == 40).all() & (state.net_spikes == 1).all())
    assert threshold.flatten().tolist() == [2, 4, 6]
