"""What every engine records of a batch: by hand, and neuron by neuron against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from make_networks import (
    DELAYS,
    LARGEST_COUNTS,
    LAYER_STRINGS,
    LIMIT,
    currents,
    integer_network,
    random_images,
    random_integer_network,
    two_to_one,
)
from quantspike.conversion.integer import IntegerNetwork
from quantspike.errors import QuantspikeError
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.events import EventEngine
from quantspike.simulation.reference import ReferenceEngine
from quantspike.simulation.run import Engine, engine_device, new_engine
from quantspike.simulation.trace import Recording

CPU = torch.device("cpu")
ENGINES = {"reference": ReferenceEngine, "dense": DenseEngine, "events": EventEngine}

Make = Callable[[IntegerNetwork], Engine]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Make:
    """Make each of the engines in turn."""
    return partial(new_engine, request.param, device=CPU)


def net_counts(recording: Recording) -> list[list[int]]:
    return [counts.flatten().tolist() for counts in recording.net_spikes]


def test_a_spike_fired_on_partial_evidence_is_taken_back(engine: Make) -> None:
    # Inputs 1 and 5 at theta = 2, h = 1 are counts of 1 and 3, one spike a step. Behind them, theta = 4 and h = 2:
    #   step 1: U = 10 - 4 = 6, d = 8, fires
    #   step 2: U = 2, d = 4 - 4 = 0, settled, but only for now
    #   step 3: U = -2, d = 0 - 4, takes it back; all settled
    # The other image has negative inputs and no spikes at all.
    recording = engine(two_to_one()).run(currents([1, 5], [-3, -8]), 4, 9)
    assert recording.positive[:, :, 0].tolist() == [[2, 1], [1, 0], [1, 0], [0, 0]]
    assert recording.negative[:, :, 0].tolist() == [[0, 0], [0, 0], [0, 1], [0, 0]]
    # A spike of the first layer reaches 1 neuron, one of the second 2 classes.
    assert recording.synops[:, :, 0].tolist() == [[2, 2], [1, 0], [1, 2], [0, 0]]
    assert recording.settled[:, :, 0].tolist() == [[False, False], [False, True], [True, True], [True, True]]
    for counts in (recording.positive, recording.negative, recording.synops, ~recording.settled):
        assert not counts[:, :, 1].any()
    # A net count of 1 makes logits (1, 2); 0 makes a tie, which the lowest class wins.
    assert recording.predictions.tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    assert recording.settled_step.tolist() == [3, 1]
    assert net_counts(recording) == [[1, 3, 0, 0], [0, 0]]


@pytest.mark.parametrize(("steps", "limit", "settled"), [(1, 3, 3), (1, 2, 0), (2, 2, 0), (3, 3, 3), (2, 60, 3)])
def test_an_image_may_settle_at_the_limit_or_beyond_the_steps_but_not_beyond_the_limit(
    engine: Make, steps: int, limit: int, settled: int
) -> None:
    recording = engine(two_to_one()).run(currents([1, 5]), steps, limit)
    assert recording.settled_step.tolist() == [settled]
    # Counts 1 and 2 after step 2, and a spike that step 3 takes back.
    assert net_counts(recording) == ([[1, 3], [0]] if settled else [[1, 2], [1]])


def test_a_spike_crosses_the_whole_network_within_its_step(engine: Make) -> None:
    layers = [([1], [0], [2])] + [([2], [0], [2])] * 3
    recording = engine(integer_network("1C1-1-1-1", layers, [[1]])).run(currents([1]), 1, 1)
    assert (recording.positive.tolist(), recording.settled_step.tolist()) == ([[[1]] * 4], [1])


def test_a_clipped_neuron_stops_at_the_largest_count(engine: Make) -> None:
    # M = 2. Inputs 1 and 5 at theta = 2 are counts of 1 and 2: 5 + 1 is one beyond the limit, 2 x 3 - 1 = 5. Behind
    # them, with theta = 4 and h = 2:
    #   step 1: U = 10 + 4 = 14, min(14 + 2, 4 x 3 - 1) = 11: d = 11, fires
    #   step 2: U = 18, d = 11 - 4 = 7, fires; then 3: all settled
    # With the other image, input 3 is exactly the clip, (3 + 1) / 2 = 2, and U = 4 + 4 = 8, a count of 2.5.
    recording = engine(two_to_one(weights=(10, 4), clip=2)).run(currents([1, 5], [-2, 3]), 3, 9)
    assert recording.positive[:, :, 0].tolist() == [[2, 1], [1, 1], [0, 0]]
    assert recording.positive[:, :, 1].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert not recording.negative.any()
    assert recording.settled_step.tolist() == [2, 2]
    assert net_counts(recording) == [[1, 2, 0, 2], [2, 2]]


def test_a_layer_with_a_delay_adds_up_its_input_and_fires_when_its_time_has_come(engine: Make) -> None:
    # As above, U = 6, 2, -2 after steps 1, 2 and 3, with d = 8, 4 and 0. With D = 1 the second layer fires at step 2,
    # d = 4, and takes that back at step 3; with D = 2 it has nothing to fire, and from D = 3 on neither.
    for delay, positive, negative, settled in (
        (1, [0, 1, 0, 0], [0, 0, 1, 0], [False, True, True, True]),
        (2, [0, 0, 0, 0], [0, 0, 0, 0], [False, False, True, True]),
        (3, [0, 0, 0, 0], [0, 0, 0, 0], [False, False, True, True]),
    ):
        recording = engine(two_to_one()).run(currents([1, 5]), 4, 9, delay)
        assert recording.positive[:, 0, 0].tolist() == [2, 1, 1, 0]
        assert recording.positive[:, 1, 0].tolist() == positive
        assert recording.negative[:, 1, 0].tolist() == negative
        assert recording.settled[:, 1, 0].tolist() == settled
        assert recording.settled_step.tolist() == [3]
        assert net_counts(recording) == [[1, 3], [0]]


def test_a_spike_with_a_delay_crosses_one_layer_after_another(engine: Make) -> None:
    # The same membrane in every layer, 2 after step 1, l D + 1 steps later for layer l: a count of 1, and settled then.
    layers = [([1], [0], [2])] + [([2], [0], [2])] * 3
    recording = engine(integer_network("1C1-1-1-1", layers, [[1]])).run(currents([1]), 50, 50, 15)
    fired = recording.positive[:, :, 0].nonzero()
    # Across the 32 steps after which the event engine goes on to the next layer.
    assert [part.tolist() for part in fired] == [[0, 15, 30, 45], [0, 1, 2, 3]]
    assert recording.settled_step.tolist() == [46]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 3),
    steps=st.integers(1, 12),
    largest_count=LARGEST_COUNTS,
    delay=DELAYS,
)
def test_every_engine_records_what_the_oracle_counts(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int, steps: int, largest_count: int | None, delay: int
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits, largest_count=largest_count)
    current = network.input_current(random_images(n + 1, size, seed)[1:])
    runs = [oracle.run(network, image.flatten().numpy(), steps, delay) for image in current]
    for name in ENGINES:
        recording = new_engine(name, network, CPU).run(current, steps, steps, delay)
        for n, run in enumerate(runs):
            for measure in oracle.COUNTS:
                counts = getattr(recording, measure)[:, :, n].cumsum(axis=0)
                assert np.array_equal(counts, getattr(run, measure)), (name, measure)
            assert np.array_equal(recording.settled[:, :, n], run.settled)
            assert np.array_equal(recording.predictions[:, n], run.predictions)
            assert recording.settled_step[n] == run.settled_step
            # Of every neuron, whether its image has settled or not.
            net = [counts[n].flatten().tolist() for counts in recording.net_spikes]
            assert net == [counts.tolist() for counts in run.net[-1]]


def test_batches_of_any_size_and_an_engine_that_has_run_before_change_nothing(engine: Make) -> None:
    network = random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=11, k=2)
    current = network.input_current(random_images(19, 8, seed=11))
    runner, before = engine(network), current.clone()
    whole = runner.run(current, 20, LIMIT)
    for size in (1, 8, 18):
        for start in range(0, len(current), size):
            part = runner.run(current[start : start + size], 20, LIMIT, first=start)
            images = slice(start, start + size)
            for name in (*oracle.COUNTS, "settled", "predictions", "settled_step"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[..., images]), name
            for counts, expected in zip(part.net_spikes, whole.net_spikes, strict=True):
                assert torch.equal(counts, expected[images])
    assert torch.equal(current, before)


@pytest.mark.parametrize(("inputs", "sum_of_weights"), [(512, 512 * 32_767), (1024, 1023 * 32_767 - 32_766)])
def test_sums_are_exact_below_and_beyond_24_bits(engine: Make, inputs: int, sum_of_weights: int) -> None:
    # All inputs fire once, in the first step: 16,776,704 is below 2^24; 33,487,875 is odd and beyond it, so that
    # fp32 does not hold it. The bias takes the sum away but for one, or all of it: U = 1 fires at theta = 2, U = 0 not.
    weights = [32_767] * (inputs - 1) + [sum_of_weights - (inputs - 1) * 32_767]
    head = ([weights, weights], [1 - sum_of_weights, -sum_of_weights], [2, 2])
    encoder = ([1] * inputs, [1] * inputs, [2] * inputs)
    network = integer_network(f"{inputs}C1-2", [encoder, head], [[1, 0], [0, 1]])
    recording = engine(network).run(torch.zeros((1, inputs, 1, 1), dtype=torch.int64), 1, 1)
    assert net_counts(recording)[1] == [1, 0]


@pytest.mark.parametrize("current", [2**30 - 4, 2**40, -(2**30) - 4])
def test_an_input_beyond_30_bits_is_named_with_image_layer_and_channel(engine: Make, current: int) -> None:
    network = integer_network("2C1-1", [([1, 1], [0, 4], [2, 2]), ([1, 1], [0], [2**20])], [[1]])
    engine(network).run(currents([0, 0], [0, 2**30 - 5]), 1, 1, first=30)
    message = rf"image 31, layer 1, channel 1: the membrane reaches {current + 4}, beyond 2\^30; convert with fewer"
    with pytest.raises(QuantspikeError, match=message):
        engine(network).run(currents([0, 0], [0, current]), 1, 1, first=30)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_membrane_that_leaves_30_bits_on_the_way_is_named_although_it_would_come_back(
    engine: Make, sign: int
) -> None:
    # Counts 1 and 2, so U = 2^30 - 4 + 10 - 6 = 2^30 after step 1, and 2^30 - 6 once settled; or the negatives.
    network = two_to_one(bias=sign * (2**30 - 4), threshold=2**20, weights=(sign * 10, sign * -6))
    message = rf"image 8, layer 2, channel 0: the membrane reaches {sign * 2**30}, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        engine(network).run(currents([0, 0], [1, 3], [0, 0]), 2, 2, first=7)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("name", ["reference", "events"])
def test_an_engine_of_the_cpu_is_refused_on_a_gpu(name: str, device: str) -> None:
    message = rf"simulate.engine is '{name}', which runs on the CPU only, but device is '{device}'; set device to cpu"
    for choose in (engine_device, lambda name, device: new_engine(name, two_to_one(), torch.device(device))):
        with pytest.raises(QuantspikeError, match=message):
            choose(name, device)


def test_the_device_follows_the_settings_except_that_auto_is_the_cpu_for_an_engine_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("reference", "events"):
        assert [engine_device(name, device) for device in ("auto", "cpu")] == [CPU, CPU]
    for name in ("auto", "dense"):
        devices = [str(engine_device(name, device)) for device in ("auto", "cpu", "cuda:1")]
        assert devices == ["cuda", "cpu", "cuda:1"]


def test_auto_is_events_on_a_cpu_and_dense_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, Any] = {**ENGINES, "auto": EventEngine}
    assert {name: type(new_engine(name, two_to_one(), CPU)) for name in kinds} == kinds
    monkeypatch.setattr("quantspike.simulation.run.DenseEngine", lambda _, device: str(device))
    for name in ("auto", "dense"):
        assert new_engine(name, two_to_one(), torch.device("cuda:1")) == "cuda:1"
