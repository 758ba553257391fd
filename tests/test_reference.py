"""The rule as it stands: by hand, and neuron by neuron against the oracle that lists its synapses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from make_networks import LAYER_STRINGS, currents, random_images, random_integer_network, two_to_one
from quantspike.errors import QuantspikeError
from quantspike.simulation.reference import ReferenceEngine


def test_a_spike_fired_on_partial_evidence_is_taken_back_and_all_of_it_is_recorded() -> None:
    # Inputs 1 and 5 at theta = 2, h = 1 are counts of 1 and 3, one spike a step. Behind them, theta = 4 and h = 2:
    #   step 1: U = 10 - 4 = 6, d = 8, fires
    #   step 2: U = 2, d = 4 - 4 = 0, at rest, but only for now
    #   step 3: U = -2, d = 0 - 4, takes it back; all at rest
    # The second image has no input and no spikes: at rest after step 1.
    recording = ReferenceEngine(two_to_one()).run(currents([1, 5], [0, 0]), 4, 9)
    assert recording.positive.tolist() == [[[2, 0], [1, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert recording.negative.tolist() == [[[0, 0], [0, 0]]] * 2 + [[[0, 0], [1, 0]], [[0, 0], [0, 0]]]
    # A spike of the first layer reaches 1 neuron, one of the second 2 classes.
    assert recording.synops.tolist() == [[[2, 0], [2, 0]], [[1, 0], [0, 0]], [[1, 0], [2, 0]], [[0, 0], [0, 0]]]
    assert recording.at_rest[:, :, 0].tolist() == [[False, False], [False, True], [True, True], [True, True]]
    assert recording.at_rest[:, :, 1].all()
    # A net count of 1 makes logits (1, 2); 0 makes a tie, which the lowest class wins.
    assert recording.predictions.tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    assert recording.settled_step.tolist() == [3, 1]
    assert [net.flatten(1).tolist() for net in recording.net_spikes] == [[[1, 3], [0, 0]], [[0], [0]]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    images=st.integers(1, 3),
    steps=st.integers(1, 12),
)
def test_every_layer_counts_at_every_step_what_the_oracle_counts(
    case: tuple[str, int], seed: int, k: int, bits: int, images: int, steps: int
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits)
    current = network.input_current(random_images(images + 1, size, seed)[1:])
    recording = ReferenceEngine(network).run(current, steps, steps)
    for n, image in enumerate(current):
        run = oracle.run(network, image.flatten().numpy(), steps)
        for name in oracle.COUNTS:
            assert np.array_equal(getattr(recording, name)[:, :, n].cumsum(axis=0), getattr(run, name)), name
        assert np.array_equal(recording.at_rest[:, :, n], run.at_rest)
        assert np.array_equal(recording.predictions[:, n], run.predictions)
        assert recording.settled_step[n] == run.settled_step
        assert [net[n].flatten().tolist() for net in recording.net_spikes] == [net.tolist() for net in run.net[-1]]


def test_it_runs_to_rest_beyond_the_steps_it_records_but_not_beyond_the_limit() -> None:
    engine, current = ReferenceEngine(two_to_one()), currents([1, 5])
    short, cut = engine.run(current, 1, 3), engine.run(current, 1, 2)
    assert (short.positive.shape, short.settled_step.tolist(), int(short.net_spikes[1])) == ((1, 2, 1), [3], 0)
    assert (cut.settled_step.tolist(), int(cut.net_spikes[0][0, 1]), int(cut.net_spikes[1])) == ([0], 2, 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_membrane_beyond_30_bits_on_the_way_is_named_although_it_would_come_back(sign: int) -> None:
    # Counts 1 and 2, so U = 2^30 - 4 + 10 - 6 = 2^30 after step 1, and 2^30 - 6 at rest; or the negatives.
    network = two_to_one(bias=sign * (2**30 - 4), threshold=2**20, weights=(sign * 10, sign * -6))
    message = rf"image 8, layer 2, channel 0: the membrane reaches {sign * 2**30}, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        ReferenceEngine(network).run(currents([0, 0], [1, 3], [0, 0]), 2, 2, first=7)
