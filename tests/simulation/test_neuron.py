"""One step of the neuron: by hand, and against whole numbers in Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantspike.simulation.neuron import NeuronParameters, NeuronState, fire

LARGEST = 2**30 - 1


def step(
    membrane: int, net: int, threshold: int, limit: int = 2**31 - 1, waiting: bool = False
) -> tuple[int, int, bool]:
    """Return the spike, the new net count and whether the neuron is settled, and check that the old state stays."""
    theta, half, most, u, n = (
        torch.full((1, 1, 1, 1), value, dtype=torch.int32)
        for value in (threshold, threshold // 2, limit, membrane, net)
    )
    spike, state, settled = fire(NeuronParameters(theta, half, most), NeuronState(u, n), waiting=waiting)
    assert (spike.dtype, state.net_spikes.dtype, int(state.membrane)) == (torch.int8, torch.int32, membrane)
    assert (int(theta), int(half), int(most), int(u), int(n)) == (threshold, threshold // 2, limit, membrane, net)
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


@pytest.mark.parametrize(
    ("membrane", "net", "expected"),
    [
        # theta = 6, h = 3, M = 2, so the limit is 6 x 3 - 1 = 17; d = min(U + 3, 17) - 6 N
        (14, 1, (1, 2, True)),  # U + 3 = 17, exactly at the limit: d = 11; then 5
        (15, 1, (1, 2, True)),  # U + 3 = 18 would be a count of 3: the same
        (15, 2, (0, 2, True)),  # d = 17 - 12 = 5: settled at the largest count
        (10**9, 2, (0, 2, True)),  # the same, however large the membrane
        (10**9, 0, (1, 1, False)),  # d = 17; then 11
        (10**9, 3, (-1, 2, True)),  # d = 17 - 18 = -1; then 5
    ],
)
def test_a_clipped_neuron_settles_at_the_largest_count(
    membrane: int, net: int, expected: tuple[int, int, bool]
) -> None:
    assert step(membrane, net, 6, limit=17) == expected


@pytest.mark.parametrize(
    ("membrane", "settled"),
    [(-100, True), (2, True), (3, False), (100, False)],  # theta = 6, h = 3: d = 0, 5, 6 and 103
)
def test_a_waiting_neuron_fires_nothing_and_is_settled_only_below_its_threshold(membrane: int, settled: bool) -> None:
    assert step(membrane, 0, 6, waiting=True) == (0, 0, settled)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    membrane=st.integers(-LARGEST, LARGEST) | st.integers(-100, 100) | st.sampled_from((LARGEST, -LARGEST)),
    half=st.integers(1, 2**19) | st.integers(1, 20),
    largest_count=st.integers(1, 511) | st.none(),  # 2^20 x 512 - 1 is below 2^30
    off=st.integers(-3, 3) | st.integers(-(2**30), 2**30),
)
def test_a_step_is_the_rule_in_whole_numbers_up_to_the_largest_membrane(
    membrane: int, half: int, largest_count: int | None, off: int
) -> None:
    threshold, most = 2 * half, (LARGEST + half) // (2 * half) if largest_count is None else largest_count
    limit = 2**31 - 1 if largest_count is None else threshold * (most + 1) - 1
    target = min(max(0, membrane + half) // threshold, most)
    # A net count is never below zero, nor above the clip or what the largest membrane asks for.
    net = min(max(0, target + off), most)
    spike = (target > net) - (target < net)
    assert step(membrane, net, threshold, limit) == (spike, net + spike, net + spike == target)
