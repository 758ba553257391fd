"""Spike by spike: the integers of the reference, whatever the chunks, blocks, groups and threads."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from make_networks import LAYER_STRINGS, currents, integer_network, random_images, random_integer_network, two_to_one
from quantspike.errors import QuantspikeError
from quantspike.integer import MEMBRANE_LIMIT, IntegerNetwork
from quantspike.simulation import event_kernels, events, neuron, spike_lists
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.engines import new_engine
from quantspike.simulation.events import EventEngine, fits
from quantspike.simulation.neuron import NeuronParameters, NeuronState
from quantspike.simulation.recording import Engine, Recording
from quantspike.simulation.reference import ReferenceEngine

CPU = torch.device("cpu")
LIMIT = 4096

WIDE = (
    ("70C3-3", 4),  # 2 tiles
    ("64C3-P2-65-3", 4),  # 1, 1, 2 tiles
    ("70C3-P2-130C3-3", 4),  # 2, 2, 3, 1 tiles
    ("130C3-P3-70-129", 6),  # 3, 3, 2, 3 tiles
    ("3C5-260C1-P2-2", 4),  # 1, 5, 5, 1 tiles
)
"""Layer strings whose maps fill several tiles of 64 channels, even numbers of them and odd ones."""


def assert_same(found: Recording, expected: Recording) -> None:
    """The same integers in every field; the net counts may be of different types."""
    for field in fields(Recording)[:-1]:
        values = [getattr(recording, field.name) for recording in (found, expected)]
        assert np.array_equal(*values), field.name
    assert len(found.net_spikes) == len(expected.net_spikes)
    for counts, wanted in zip(found.net_spikes, expected.net_spikes, strict=True):
        assert torch.equal(counts.long(), wanted.long())


def chosen(recording: Recording, images: list[int]) -> Recording:
    """What some images of a batch did, in the order given."""
    parts = {name: getattr(recording, name)[..., images] for name in ("positive", "negative", "synops", "at_rest")}
    return Recording(
        **parts,
        predictions=recording.predictions[:, images],
        settled_step=recording.settled_step[images],
        net_spikes=[counts[images] for counts in recording.net_spikes],
    )


def outcome(engine: Engine, current: Tensor, steps: int, limit: int, first: int = 0) -> Recording | str:
    """The recording, or what is said of a membrane beyond 31 bits."""
    try:
        return engine.run(current, steps, limit, first)
    except QuantspikeError as error:
        return str(error)


def run_with(
    network: IntegerNetwork, current: Tensor, steps: int, limit: int, threads: int, constants: tuple[int, int, int]
) -> Recording | str:
    """What comes of a batch under other constants: CHUNK, BLOCK_BYTES and IMAGES_AT_ONCE."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("CHUNK", "BLOCK_BYTES", "IMAGES_AT_ONCE"), constants, strict=True):
            patch.setattr(events, name, value)
        return outcome(EventEngine(network, threads=threads), current, steps, limit)


def assert_same_outcome(found: Recording | str, expected: Recording | str) -> None:
    if isinstance(found, str) or isinstance(expected, str):
        assert found == expected
    else:
        assert_same(found, expected)


constants = st.tuples(st.sampled_from((1, 2, 3, 32)), st.sampled_from((1, 640 * 1024)), st.sampled_from((1, 2, 8)))


def compare(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int, threads: int, steps: int, more: int, changed: Any
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits)
    current = network.input_current(random_images(n, size, seed))
    expected = ReferenceEngine(network).run(current, steps, steps + more)
    found = run_with(network, current, steps, steps + more, threads, changed)
    assert isinstance(found, Recording)
    assert_same(found, expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 5),
    threads=st.integers(1, 3),
    steps=st.integers(1, 40),
    more=st.sampled_from((0, 1, 7, LIMIT)),
    changed=constants,
)
def test_all_integers_are_the_references(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int, threads: int, steps: int, more: int, changed: Any
) -> None:
    compare(case, seed, k, bits, n, threads, steps, more, changed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(WIDE),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 5),
    threads=st.integers(1, 3),
    steps=st.integers(1, 12),
    more=st.integers(0, 12),
    changed=constants,
)
def test_all_integers_of_maps_of_several_tiles_are_the_references(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int, threads: int, steps: int, more: int, changed: Any
) -> None:
    compare(case, seed, k, bits, n, threads, steps, more, changed)


@pytest.fixture
def network() -> IntegerNetwork:
    return random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=11, k=2)


@pytest.fixture
def current(network: IntegerNetwork) -> Tensor:
    """Of 19 images, which make groups of different sizes; the first one is uniform."""
    return network.input_current(random_images(19, 8, seed=11))


def test_the_number_of_threads_changes_nothing(network: IntegerNetwork, current: Tensor) -> None:
    expected = ReferenceEngine(network).run(current, 20, LIMIT)
    for threads in (None, 1, 2, 3, 5, 20):
        assert_same(EventEngine(network, threads=threads).run(current, 20, LIMIT), expected)


def test_the_order_of_the_images_changes_nothing(network: IntegerNetwork, current: Tensor) -> None:
    engine = EventEngine(network, threads=2)
    whole = engine.run(current, 20, LIMIT)
    order = np.random.default_rng(1).permutation(len(current)).tolist()
    assert_same(engine.run(current[order], 20, LIMIT), chosen(whole, order))


def test_batches_of_any_size_and_an_engine_that_has_run_before_change_nothing(
    network: IntegerNetwork, current: Tensor
) -> None:
    engine, before = EventEngine(network, threads=2), current.clone()
    whole = engine.run(current, 20, LIMIT)
    for size in (1, 3, 8, 18):
        for start in range(0, len(current), size):
            images = list(range(len(current)))[start : start + size]
            assert_same(engine.run(current[images], 20, LIMIT, first=start), chosen(whole, images))
    assert torch.equal(current, before)


def extremes(largest: int, outputs: int) -> IntegerNetwork:
    """80 neurons that send 40 spikes at step 1 and 40 more at step 3, while they take the first ones back.

    Every weight behind them is `largest` or its negative.
    """
    encoder = ([1, 1], [0, 0], [2, 2])
    middle = ([[10, -4]] * 40 + [[-1, 1]] * 40, [0] * 80, [4] * 80)
    signs = ([1] * 80, [-1] * 80, [1] * 40 + [-1] * 40, [-1] * 40 + [1] * 40)
    weights = [[largest * sign for sign in signs[channel % 4]] for channel in range(outputs)]
    head = (weights, [0] * outputs, [2 * largest] * outputs)
    return integer_network(f"2C1-80-{outputs}", [encoder, middle, head], [[1] * outputs, [0] * outputs])


@pytest.mark.parametrize("outputs", [4, 128, 132])
@pytest.mark.parametrize("largest", [7, 127, 2_047, 8_191, 32_767])
def test_sums_of_the_largest_weights_leave_no_16_bits(largest: int, outputs: int) -> None:
    # Inputs 1 and 5 at theta = 2 are counts of 1 and 3. With theta = 4, h = 2 behind them:
    #   10 a - 4 b: U = 6, 2, -2 after steps 1, 2, 3: one spike at step 1, taken back at step 3
    #   b - a:      U = 0, 1, 2: one spike at step 3
    # So at step 3 behind those U = 40 m - 40 m + 40 m = 40 m where all weights are m, and (40 m + m) / 2 m = 20.5;
    # where the signs are -, +, U = -40 m at step 1 and -40 m + 40 m + 40 m = 40 m at step 3; else U = -40 m.
    network = extremes(largest, outputs)
    recording = EventEngine(network, threads=1).run(currents([1, 5]), 40, LIMIT)
    assert recording.positive[:3, 1, 0].tolist() == [40, 0, 40]
    assert recording.negative[:3, 1, 0].tolist() == [0, 0, 40]
    assert recording.net_spikes[2].flatten().tolist() == [20, 0, 0, 20] * (outputs // 4)
    assert_same(recording, ReferenceEngine(network).run(currents([1, 5]), 40, LIMIT))


def test_dead_channels_stay_silent_among_those_that_fire() -> None:
    # Channel 1 of the encoder has no weights and no bias, channel 0 of the head no weights. Count 2 for input 3 at
    # theta = 2, and 2 x 4 = 8 behind it, (8 + 2) / 4 = 2.5.
    network = integer_network("2C1-2", [([1, 0], [0, 0], [2, 2]), ([[0, 0], [4, 9]], [0, 0], [4, 4])], [[1, 0], [0, 1]])
    recording = EventEngine(network, threads=1).run(currents([3, 0]), 3, LIMIT)
    assert [counts.flatten().tolist() for counts in recording.net_spikes] == [[2, 0], [0, 2]]
    assert recording.predictions.flatten().tolist() == [1, 1, 1]
    assert_same(recording, ReferenceEngine(network).run(currents([3, 0]), 3, LIMIT))


@pytest.mark.parametrize("chunk", [1, 2, 3, 32])
def test_a_spike_fired_on_partial_evidence_is_taken_back_in_the_same_chunk_or_a_later_one(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # See test_dense; the second image never fires.
    monkeypatch.setattr(events, "CHUNK", chunk)
    recording = EventEngine(two_to_one(), threads=1).run(currents([1, 5], [-3, -8]), 5, LIMIT)
    assert recording.positive[:, :, 0].tolist() == [[2, 1], [1, 0], [1, 0], [0, 0], [0, 0]]
    assert recording.negative[:, :, 0].tolist() == [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]
    assert recording.synops[:, :, 0].tolist() == [[2, 2], [1, 0], [1, 2], [0, 0], [0, 0]]
    assert recording.at_rest[:, :, 0].tolist() == [[False, False], [False, True]] + [[True, True]] * 3
    for counts in (recording.positive, recording.negative, recording.synops):
        assert not counts[:, :, 1].any()
    assert recording.at_rest[:, :, 1].all()
    # Logits (1, 2), then a tie at 0, which the lowest class wins; the class at rest is repeated.
    assert recording.predictions.T.tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert recording.settled_step.tolist() == [3, 1]
    assert [counts.flatten(1).tolist() for counts in recording.net_spikes] == [[[1, 3], [0, 0]], [[0], [0]]]


@pytest.mark.parametrize("chunk", [1, 2, 32])
@pytest.mark.parametrize(("steps", "limit", "settled"), [(1, 3, 3), (1, 2, 0), (2, 2, 0), (3, 3, 3), (2, 60, 3)])
def test_an_image_may_settle_at_the_limit_or_beyond_the_steps_but_not_beyond_the_limit(
    steps: int, limit: int, settled: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CHUNK", chunk)
    recording = EventEngine(two_to_one(), threads=1).run(currents([1, 5]), steps, limit)
    assert recording.settled_step.tolist() == [settled]
    # Counts 1 and 2 after step 2, and a spike that step 3 takes back.
    counts = [[1, 3], [0]] if settled else [[1, 2], [1]]
    assert [net.flatten().tolist() for net in recording.net_spikes] == counts
    assert_same(recording, ReferenceEngine(two_to_one()).run(currents([1, 5]), steps, limit))


def test_after_the_last_image_has_settled_predictions_repeat(network: IntegerNetwork, current: Tensor) -> None:
    recording = EventEngine(network, threads=2).run(current, 300, LIMIT)
    last = int(recording.settled_step.max())
    assert 1 < last < 300
    assert (recording.predictions[last:] == recording.predictions[last - 1]).all()
    assert not recording.positive[last:].any()
    assert recording.at_rest[last - 1 :].all()
    for steps in (last - 1, last, last + 1):
        assert_same(
            EventEngine(network, threads=2).run(current, steps, LIMIT),
            replace(
                recording,
                **{
                    name: getattr(recording, name)[:steps]
                    for name in ("positive", "negative", "synops", "at_rest", "predictions")
                },
            ),
        )


def test_where_some_images_settle_in_time_the_others_keep_what_they_have_at_the_limit(
    network: IntegerNetwork, current: Tensor
) -> None:
    settled = EventEngine(network, threads=2).run(current, 1, LIMIT).settled_step
    limit = int(np.sort(settled)[9])
    recording = EventEngine(network, threads=2).run(current, 2, limit)
    assert recording.settled_step.tolist() == np.where(settled <= limit, settled, 0).tolist()
    assert (recording.settled_step == 0).any()
    assert_same(recording, ReferenceEngine(network).run(current, 2, limit))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_membrane_that_leaves_30_bits_on_the_way_is_named_although_it_would_come_back(sign: int) -> None:
    # Counts 1 and 2, so U = 2^30 - 4 + 10 - 6 = 2^30 after step 1, and 2^30 - 6 at rest; or the negatives.
    network = two_to_one(bias=sign * (2**30 - 4), threshold=2**20, weights=(sign * 10, sign * -6))
    message = rf"image 5, layer 2, channel 0: the membrane reaches {sign * 2**30}, beyond 2\^30; convert with fewer"
    with pytest.raises(QuantspikeError, match=message):
        EventEngine(network, threads=2).run(currents([0, 0], [1, 3], [0, 0]), 2, 2, first=4)


@pytest.mark.parametrize("current", [2**30 - 4, 2**40, -(2**30) - 4])
def test_an_input_beyond_30_bits_is_named_with_image_layer_and_channel(current: int) -> None:
    network = integer_network("2C1-1", [([1, 1], [0, 4], [2, 2]), ([1, 1], [0], [2])], [[1]])
    images = currents([0, 0], [0, current])
    message = rf"image 31, layer 1, channel 1: the membrane reaches {current + 4}, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        EventEngine(network, threads=1).run(images, 1, 1, first=30)


def counters(inputs: int, *layers: tuple[Any, list[int], list[int]]) -> IntegerNetwork:
    """An input of 2 c - 1 sends c spikes, one a step, to the layers given by weights, biases and thresholds."""
    encoder = (np.eye(inputs, dtype=int).tolist(), [0] * inputs, [2] * inputs)
    text = "-".join([f"{inputs}C1", *(str(len(bias)) for _, bias, _ in layers)])
    return integer_network(text, [encoder, *layers], [[1] * len(layers[-1][1])], channels=inputs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("at_once", [1, 2, 8])
@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_of_several_membranes_beyond_30_bits_the_first_by_step_layer_and_image_is_named(
    chunk: int, at_once: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CHUNK", chunk)
    monkeypatch.setattr(events, "IMAGES_AT_ONCE", at_once)
    # The third spike of input 0 is too much for channel 0 of layer 2, and the second one of input 2 for channel 2.
    # Channel 1 passes the spikes of input 1 on; the third one is too much for channel 1 of layer 3.
    network = counters(
        3,
        ([[1, 0, 0], [0, 2, 0], [0, 0, 1]], [2**30 - 3, 0, 2**30 - 2], [2**20, 2, 2**20]),
        ([[0, 0, 0], [0, 1, 0]], [0, 2**30 - 3], [2**20, 2**20]),
    )
    never, third, both, deep, second = [3, 3, 1], [9, 0, 0], [9, 9, 0], [0, 9, 0], [0, 0, 9]
    for images, place in (
        ([never, deep, third, second], "image 23, layer 2, channel 2"),
        ([deep, never, third, third], "image 22, layer 2, channel 0"),
        ([never, deep, deep, never], "image 21, layer 3, channel 1"),
        ([deep, never, never, both], "image 23, layer 2, channel 0"),
    ):
        message = (
            f"{place}: the membrane reaches 1073741824, beyond 2^30; convert with fewer weight_bits or a smaller k"
        )
        for engine in (EventEngine(network, threads), ReferenceEngine(network), DenseEngine(network, CPU)):
            assert outcome(engine, currents(*images), 4, 4, first=20) == message


def test_the_first_channel_beyond_30_bits_is_named_although_one_of_another_block_follows_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A spike at each of three steps adds 1: channel 129 leaves 31 bits at step 1, channel 0 of another block at step 2.
    bias = [2**30 - 2] + [0] * 128 + [2**30 - 1]
    network = counters(1, ([[1]] * 130, bias, [2**20] * 130))
    monkeypatch.setattr(events, "BLOCK_BYTES", 1)
    expected = outcome(DenseEngine(network, CPU), currents([5]), 4, 4)
    assert isinstance(expected, str)
    assert expected.startswith("image 0, layer 2, channel 129: the membrane reaches 1073741824, beyond 2^30")
    assert outcome(EventEngine(network, threads=1), currents([5]), 4, 4) == expected


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    case=st.sampled_from((*LAYER_STRINGS[1:], ("3C3-P2-130C1-3", 2))),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    threads=st.integers(1, 3),
    changed=constants,
)
def test_what_is_said_of_membranes_near_30_bits_is_what_the_dense_engine_says(
    case: tuple[str, int], seed: int, n: int, threads: int, changed: Any
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=3, weight_bits=8)
    random = np.random.default_rng(seed)
    layers = [network.layers[0]]
    for layer in network.layers[1:]:
        # Some channels come within a few spikes of either limit.
        near = random.choice((-1, 1), len(layer.bias)) * (2**30 - 1 - random.integers(0, 1500, len(layer.bias)))
        bias = np.where(random.random(len(layer.bias)) < 0.3, near, layer.bias.numpy()).astype(np.int32)
        layers.append(replace(layer, bias=torch.from_numpy(bias), threshold=layer.threshold.clamp(min=64)))
    network = replace(network, layers=tuple(layers))
    current = network.input_current(random_images(n, size, seed))
    found = run_with(network, current, 5, 10, threads, changed)
    assert_same_outcome(found, outcome(DenseEngine(network, CPU), current, 5, 10))
    assert_same_outcome(found, outcome(ReferenceEngine(network), current, 5, 10))


def many_to_one(last: int, bias: int = 0, sign: int = 1) -> IntegerNetwork:
    """32769 weights of 32767 and one more, all from neurons that fire once, at the first step."""
    weights = [sign * 32_767] * 32_769 + [sign * last]
    encoder = ([1] * 32_770, [1] * 32_770, [2] * 32_770)
    return integer_network("32770C1-1", [encoder, (weights, [bias], [2**20])], [[1], [2]])


def test_a_network_whose_sums_may_reach_30_bits_in_one_step_is_left_to_the_dense_engine() -> None:
    # 32769 x 32767 = 2^30 - 1.
    below, beyond = many_to_one(0), many_to_one(1)
    assert [int(network.layers[1].absolute_sums.max()) for network in (below, beyond)] == [2**30 - 1, 2**30]
    assert (fits(below), fits(beyond), fits(many_to_one(1, sign=-1))) == (True, False, False)
    message = r"31 bits that the engine 'events' works with; set simulate.engine to dense or auto, or convert with"
    for refused in (lambda: EventEngine(beyond), lambda: new_engine("events", beyond, CPU)):
        with pytest.raises(QuantspikeError, match=message):
            refused()
    assert type(new_engine("auto", beyond, CPU)) is DenseEngine
    assert type(new_engine("auto", below, CPU)) is EventEngine


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_step_that_fits_moves_a_membrane_exactly(sign: int) -> None:
    # All neurons fire at once: U = -+(2^30 - 1) +- (2^30 - 1) = 0, or +-(2^31 - 2) where the bias has the same sign.
    silent = torch.zeros((1, 32_770, 1, 1), dtype=torch.int64)
    back = EventEngine(many_to_one(0, -sign * (2**30 - 1), sign), threads=1).run(silent, 1, 1)
    assert back.positive[0, 0].tolist() == [32_770]
    assert (int(back.net_spikes[1]), back.settled_step.tolist()) == (0, [1])
    message = rf"image 0, layer 2, channel 0: the membrane reaches {sign * (2**31 - 2)}, beyond"
    with pytest.raises(QuantspikeError, match=message):
        EventEngine(many_to_one(0, sign * (2**30 - 1), sign), threads=1).run(silent, 1, 1)


@njit  # type: ignore[untyped-decorator]
def fire_tile(membrane: Any, net: Any, place: Any, theta: Any, half: Any, channel: Any, masks: Any, word: Any) -> Any:
    return event_kernels.fire(membrane, net, place, theta, half, channel, masks, word)


@njit  # type: ignore[untyped-decorator]
def add_tile(membrane: Any, place: Any, weights: Any, lane: Any, rows: Any, first: Any, plus: Any, minus: Any) -> None:
    event_kernels.add_rows(membrane, place, weights, lane, rows, first, plus, minus)


@njit  # type: ignore[untyped-decorator]
def add_two_tiles(
    membrane: Any, place: Any, weights: Any, lane: Any, rows: Any, first: Any, plus: Any, minus: Any
) -> None:
    event_kernels.add_wide_rows(membrane, place, weights, lane, rows, first, plus, minus)


@njit  # type: ignore[untyped-decorator]
def copy(target: Any, start: Any, source: Any, begin: Any, end: Any, shift: Any) -> None:
    event_kernels.copy_shifted(target, start, source, begin, end, shift)


@njit  # type: ignore[untyped-decorator]
def lowest(mask: Any) -> Any:
    return spike_lists.lowest_bit(mask)


LARGEST = 2**30 - 1


def random_tiles(random: np.random.Generator, tiles: int) -> tuple[NDArray[np.int32], ...]:
    """U of every size up to the largest, N near what U asks for or far from it, theta and h: int32 [64 tiles]."""
    n = 64 * tiles
    half = np.minimum(2 ** random.integers(0, 20, n) + random.integers(0, 9, n), 2**19)
    membrane = random.integers(-LARGEST, LARGEST + 1, n) >> random.integers(0, 30, n)
    membrane[random.random(n) < 0.1] = LARGEST
    membrane[random.random(n) < 0.1] = -LARGEST
    # Exactly at a multiple of theta, and one below it.
    tie = random.random(n) < 0.2
    membrane[tie] = ((membrane // (2 * half)) * 2 * half - half - random.integers(0, 2, n))[tie]
    membrane = np.clip(membrane, -LARGEST, LARGEST)
    target = np.maximum(0, membrane + half) // (2 * half)
    near = target + random.integers(-2, 3, n)
    net = np.where(random.random(n) < 0.7, near, random.integers(0, 2**30, n))
    net = np.clip(net, 0, (LARGEST + half) // (2 * half))
    return tuple(values.astype(np.int32) for values in (membrane, net, 2 * half, half))


def bits(mask: np.uint64) -> list[bool]:
    return [bool(int(mask) >> lane & 1) for lane in range(64)]


@pytest.mark.parametrize("seed", range(40))
def test_a_tile_fires_by_the_rule_of_the_neuron(seed: int) -> None:
    membrane, net, theta, half = random_tiles(np.random.default_rng(seed), 3)
    if seed % 4 == 0:  # all at rest already
        net = (np.maximum(0, membrane + half) // theta).astype(np.int32)
    parameters, state = (
        [torch.from_numpy(values.copy()) for values in pair] for pair in ((theta, half), (membrane, net))
    )
    spikes, after, at_rest = neuron.fire(NeuronParameters(*parameters), NeuronState(*state))
    masks, before, unchanged = np.full(8, 77, np.uint64), net.copy(), membrane.copy()
    tile = slice(64, 128)
    result = fire_tile(membrane, net, 64, theta, half, 64, masks, 3)
    expected = spikes[tile].numpy()
    assert bits(masks[3]) == (expected == 1).tolist()
    assert bits(masks[4]) == (expected == -1).tolist()
    assert np.delete(masks, (3, 4)).tolist() == [77] * 6
    assert net[tile].tolist() == after.net_spikes[tile].tolist()
    assert np.array_equal(np.delete(net, tile), np.delete(before, tile))
    assert np.array_equal(membrane, unchanged)
    assert result >> 2 == np.abs(expected).sum()
    assert result & 3 == (0 if at_rest[tile].all() else 1)


@pytest.mark.parametrize(
    ("value", "beyond"),
    [
        (sign * magnitude, magnitude >= 2**30)
        for sign in (1, -1)
        for magnitude in (0, 1, 2**20, 2**30 - 2, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1)
    ]
    + [(-(2**31), True)],
)
@pytest.mark.parametrize("lane", [0, 1, 31, 32, 63])
def test_a_single_membrane_of_2_to_the_30_and_more_is_noticed(value: int, beyond: bool, lane: int) -> None:
    membrane, net = np.zeros(64, np.int32), np.zeros(64, np.int32)
    membrane[lane] = value
    theta = np.full(64, 2**20, np.int32)
    result = fire_tile(membrane, net, 0, theta, theta // 2, 0, np.zeros(2, np.uint64), 0)
    assert bool(result & 2) == beyond


@pytest.mark.parametrize(("add", "lanes"), [(add_tile, 64), (add_two_tiles, 128)])
@pytest.mark.parametrize("largest", [1, 2_047, 32_767])
def test_rows_are_added_and_subtracted_where_they_belong(add: Callable[..., None], lanes: int, largest: int) -> None:
    random = np.random.default_rng(largest)
    most = 32_767 // largest
    for plus, minus in ((0, 0), (1, 0), (0, 1), (min(16, most), 0), (0, min(16, most)), (most // 2, most // 3)):
        weights = random.choice((-largest, largest), 40 * 200).astype(np.int16)
        # Rows of 200 weights, so that no vector is aligned, any number of times each.
        rows = (200 * random.integers(0, 40, plus + minus + 4)).astype(np.int32)
        if plus + minus == 16:
            rows[:] = rows[0]
        membrane = random.integers(-(2**29), 2**29, (3, 2, 150)).astype(np.int32)
        chosen_rows = weights.reshape(40, 200)[rows // 200, 13 : 13 + lanes].astype(np.int64)
        expected = membrane.astype(np.int64).ravel()
        expected[305 : 305 + lanes] += chosen_rows[3 : 3 + plus].sum(axis=0)
        expected[305 : 305 + lanes] -= chosen_rows[3 + plus : 3 + plus + minus].sum(axis=0)
        add(membrane, 305, weights, 13, rows, 3, plus, minus)
        assert np.array_equal(membrane.ravel(), expected)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 32, 33, 100])
def test_a_copy_is_shifted_and_goes_at_most_the_margin_beyond(n: int) -> None:
    source = np.arange(1000, 1200, dtype=np.int32)
    target = np.full(200, -1, np.int32)
    copy(target, 5, source, 7, 7 + n, -300)
    assert target[:5].tolist() == [-1] * 5
    assert target[5 : 5 + n].tolist() == list(range(707, 707 + n))
    assert (target[5 + n + event_kernels.MARGIN - 1 :] == -1).all()
    assert source.tolist() == list(range(1000, 1200))


def test_the_lowest_bit_is_found_wherever_it_is() -> None:
    for position in range(64):
        assert lowest(np.uint64(2**position)) == position
        assert lowest(np.uint64(2**64 - 2**position)) == position


@pytest.mark.parametrize("module", [event_kernels, spike_lists])
def test_what_numba_keeps_on_disk_depends_on_no_other_file_of_the_package(module: ModuleType) -> None:
    # Its cache notices a change of the file that a compiled function stands in, and of no other.
    source = Path(str(module.__file__)).read_text()
    assert "cache=True" in source
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imported if isinstance(node, ast.ImportFrom)}
    assert names
    assert not [name for name in names if name.startswith("quantspike")]
    assert event_kernels.MEMBRANE_LIMIT == MEMBRANE_LIMIT


def test_an_interruption_lets_no_further_group_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def run(batch: object, images: NDArray[np.int64], scratch: object) -> None:
        begun.append(int(images[0]))
        if images[0] == 0:
            raise KeyboardInterrupt
        time.sleep(0.1)

    monkeypatch.setattr(events._Batch, "run", run)
    monkeypatch.setattr(events, "IMAGES_AT_ONCE", 1)
    network = random_integer_network("1C1-1", 1, seed=0)
    engine = EventEngine(network, threads=2)
    with pytest.raises(KeyboardInterrupt):
        engine.run(network.input_current(random_images(40, 1, seed=0)), 5, 5)
    # The other thread ends the group that it is at; 40 groups would take it 4 seconds.
    assert len(begun) < 10
