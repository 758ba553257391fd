"""The event engine: the integers of the reference, whatever the chunks, blocks, groups and threads; and its kernels."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from threading import Event
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

from make_networks import (
    DELAYS,
    LARGEST_COUNTS,
    LAYER_STRINGS,
    LIMIT,
    currents,
    integer_network,
    random_images,
    random_integer_network,
)
from quantspike.conversion.integer import MEMBRANE_LIMIT, IntegerNetwork
from quantspike.errors import QuantspikeError
from quantspike.simulation import event_kernels, events, neuron, spike_lists
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.events import EventEngine, fits
from quantspike.simulation.neuron import NeuronParameters, NeuronState
from quantspike.simulation.reference import ReferenceEngine
from quantspike.simulation.run import Engine, new_engine
from quantspike.simulation.trace import Recording

CPU = torch.device("cpu")
LARGEST = 2**30 - 1

WIDE = (
    ("70C3-3", 4),  # 2 tiles
    ("64C3-P2-65-3", 4),  # 1, 1, 2 tiles
    ("70C3-P2-130C3-3", 4),  # 2, 2, 3, 1 tiles
    ("130C3-P3-70-129", 6),  # 3, 3, 2, 3 tiles
    ("3C5-260C1-P2-2", 4),  # 1, 5, 5, 1 tiles
)
"""Layer strings whose maps fill several tiles of 64 channels, even numbers of them and odd ones."""


def outcome(engine: Engine, current: Tensor, steps: int, limit: int, delay: int) -> Recording | str:
    """Return the recording, or the message of a membrane beyond 31 bits."""
    try:
        return engine.run(current, steps, limit, delay)
    except QuantspikeError as error:
        return str(error)


def run_with(
    network: IntegerNetwork,
    current: Tensor,
    steps: int,
    limit: int,
    delay: int,
    threads: int,
    constants: tuple[int, int, int],
) -> Recording | str:
    """Run a batch with other constants: CHUNK, BLOCK_BYTES and IMAGES_AT_ONCE."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("CHUNK", "BLOCK_BYTES", "IMAGES_AT_ONCE"), constants, strict=True):
            patch.setattr(events, name, value)
        return outcome(EventEngine(network, threads=threads), current, steps, limit, delay)


def assert_same(found: Recording | str, expected: Recording | str) -> None:
    """Compare every field, or the messages; the net counts may be of different types."""
    if isinstance(found, str) or isinstance(expected, str):
        assert found == expected
        return
    for name in ("positive", "negative", "synops", "settled", "predictions", "settled_step"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for counts, wanted in zip(found.net_spikes, expected.net_spikes, strict=True):
        assert torch.equal(counts.long(), wanted.long())


constants = st.tuples(st.sampled_from((1, 2, 3, 32)), st.sampled_from((1, 640 * 1024)), st.sampled_from((1, 2, 8)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    case=st.sampled_from((*LAYER_STRINGS, *WIDE)),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 5),
    threads=st.integers(1, 3),
    steps=st.integers(1, 20),
    more=st.sampled_from((0, 1, 7, 25)),
    largest_count=LARGEST_COUNTS,
    delay=DELAYS,
    changed=constants,
)
def test_all_integers_are_the_references(
    case: tuple[str, int],
    seed: int,
    k: int,
    bits: int,
    n: int,
    threads: int,
    steps: int,
    more: int,
    largest_count: int | None,
    delay: int,
    changed: Any,
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits, largest_count=largest_count)
    current = network.input_current(random_images(n, size, seed))
    found = run_with(network, current, steps, steps + more, delay, threads, changed)
    assert_same(found, ReferenceEngine(network).run(current, steps, steps + more, delay))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    case=st.sampled_from((*LAYER_STRINGS[1:], ("3C3-P2-130C1-3", 2))),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    threads=st.integers(1, 3),
    largest_count=LARGEST_COUNTS,
    delay=DELAYS,
    changed=constants,
)
def test_membranes_near_30_bits_give_the_same_recording_or_message_on_every_engine(
    case: tuple[str, int], seed: int, n: int, threads: int, largest_count: int | None, delay: int, changed: Any
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=3, weight_bits=8, largest_count=largest_count)
    random = np.random.default_rng(seed)
    layers = [network.layers[0]]
    for layer in network.layers[1:]:
        # Some channels come within a few spikes of either limit.
        near = random.choice((-1, 1), len(layer.bias)) * (LARGEST - random.integers(0, 1500, len(layer.bias)))
        bias = np.where(random.random(len(layer.bias)) < 0.3, near, layer.bias.numpy()).astype(np.int32)
        layers.append(replace(layer, bias=torch.from_numpy(bias), threshold=layer.threshold.clamp(min=64)))
    network = replace(network, layers=tuple(layers))
    current = network.input_current(random_images(n, size, seed))
    expected = outcome(ReferenceEngine(network), current, 5, 10, delay)
    assert_same(outcome(DenseEngine(network, CPU), current, 5, 10, delay), expected)
    assert_same(run_with(network, current, 5, 10, delay, threads, changed), expected)


def extremes(largest: int, outputs: int) -> IntegerNetwork:
    """Return 80 neurons that send 40 spikes at step 1, and at step 3 take them back and send 40 more.

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
def test_sums_of_the_largest_weights_do_not_overflow_16_bits(largest: int, outputs: int) -> None:
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


@pytest.mark.parametrize("largest", [127, 128])
def test_sums_of_hundreds_of_weights_of_8_and_of_16_bits_do_not_overflow_16_bits(largest: int) -> None:
    # 600 neurons fire once, at the first step: U = 600 m, theta = 2 m, so n = floor((600 m + m) / 2 m) = 300.
    encoder = ([1] * 600, [1] * 600, [2] * 600)
    network = integer_network("600C1-1", [encoder, ([largest] * 600, [0], [2 * largest])], [[1], [2]])
    engine = EventEngine(network, threads=1)
    assert engine.run(currents([0]), 10, LIMIT).net_spikes[1].item() == 300


def many_to_one(last: int, bias: int = 0, sign: int = 1) -> IntegerNetwork:
    """Return 32769 weights of 32767 and one more, all from neurons that fire once, at the first step."""
    weights = [sign * 32_767] * 32_769 + [sign * last]
    encoder = ([1] * 32_770, [1] * 32_770, [2] * 32_770)
    return integer_network("32770C1-1", [encoder, (weights, [bias], [2**20])], [[1], [2]])


def test_a_network_whose_sums_may_reach_30_bits_in_one_step_is_left_to_the_dense_engine() -> None:
    # 32769 x 32767 = 2^30 - 1.
    below, beyond = many_to_one(0), many_to_one(1)
    assert [int(network.layers[1].absolute_sums.max()) for network in (below, beyond)] == [2**30 - 1, 2**30]
    assert (fits(below), fits(beyond), fits(many_to_one(1, sign=-1))) == (True, False, False)
    message = r"31 bits that the engine 'events' works with; set simulate.engine to dense or auto, or convert with"
    with pytest.raises(QuantspikeError, match=message):
        new_engine("events", beyond, CPU)
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


def test_an_interruption_lets_no_further_group_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, begun, none_left = list(range(40)), [], Event()

    def next_group() -> int:
        if not groups:
            none_left.set()
        return groups.pop(0) if groups else -1

    def run(batch: object, image: int, scratch: object) -> None:
        begun.append(image)
        if image == 0:
            raise KeyboardInterrupt
        assert none_left.wait(timeout=60)

    monkeypatch.setattr(events._Batch, "run", run)
    monkeypatch.setattr(events.np, "array_split", lambda *_: iter(next_group, -1))
    network = random_integer_network("1C1-1", 1, seed=0)
    with pytest.raises(KeyboardInterrupt):
        EventEngine(network, threads=2).run(network.input_current(random_images(40, 1, seed=0)), 5, 5)
    assert none_left.is_set()
    # The other thread finishes its group, if it has one.
    assert sorted(begun) in ([0], [0, 1])


@njit  # type: ignore[untyped-decorator]
def fire_tile(
    membrane: Any, net: Any, start: Any, neurons: Any, channel: Any, barrier: Any, masks: Any, word: Any
) -> Any:
    theta, half, limit = neurons
    return event_kernels.fire(membrane, net, start, theta, half, limit, channel, barrier, masks, word)


@njit  # type: ignore[untyped-decorator]
def copy(target: Any, start: Any, source: Any, begin: Any, end: Any, shift: Any) -> None:
    event_kernels.copy_shifted(target, start, source, begin, end, shift)


def random_tiles(random: np.random.Generator, tiles: int) -> tuple[NDArray[np.int32], ...]:
    """Return U of every size up to the largest, N near its target or far from it, theta, h and limit of U + h.

    Each int32 [64 tiles].
    """
    n = 64 * tiles
    half = np.minimum(2 ** random.integers(0, 20, n) + random.integers(0, 9, n), 2**19)
    membrane = random.integers(-LARGEST, LARGEST + 1, n) >> random.integers(0, 30, n)
    membrane[random.random(n) < 0.1] = LARGEST
    membrane[random.random(n) < 0.1] = -LARGEST
    # Exactly at a multiple of theta, and one below it.
    tie = random.random(n) < 0.2
    membrane[tie] = ((membrane // (2 * half)) * 2 * half - half - random.integers(0, 2, n))[tie]
    membrane = np.clip(membrane, -LARGEST, LARGEST)
    most = np.where(random.random(n) < 0.5, random.integers(1, 512, n), (LARGEST + half) // (2 * half))
    limit = np.minimum(2 * half * (most + 1) - 1, 2**31 - 1)
    # Exactly at the limit, and one above it.
    tie = random.random(n) < 0.1
    membrane[tie] = np.minimum(limit - half + random.integers(0, 2, n), LARGEST)[tie]
    target = np.clip(membrane + half, 0, limit) // (2 * half)
    near = target + random.integers(-2, 3, n)
    net = np.where(random.random(n) < 0.7, near, random.integers(0, 2**30, n))
    net = np.clip(net, 0, most)
    return tuple(values.astype(np.int32) for values in (membrane, net, 2 * half, half, limit))


@pytest.mark.parametrize("seed", range(40))
def test_a_tile_fires_by_the_rule_of_the_neuron(seed: int) -> None:
    membrane, net, *neurons = random_tiles(np.random.default_rng(seed), 3)
    theta, half, limit = neurons
    if seed % 4 == 0:  # all settled already
        net = (np.clip(membrane + half, 0, limit) // theta).astype(np.int32)
    if waiting := seed % 4 == 1:
        net[:] = 0
    parameters, state = ([torch.from_numpy(values.copy()) for values in some] for some in (neurons, (membrane, net)))
    spikes, after, settled = neuron.fire(NeuronParameters(*parameters), NeuronState(*state), waiting=waiting)
    masks, before, unchanged = np.full(8, 77, np.uint64), net.copy(), membrane.copy()
    tile = slice(64, 128)
    theta = np.concatenate((theta, np.full(192, 2**31 - 1, np.int32)))
    result = fire_tile(membrane, net, 64, (theta, half, limit), 64, 192 + 64 if waiting else 64, masks, 3)
    expected = spikes[tile].numpy()
    for mask, spike in ((masks[3], 1), (masks[4], -1)):
        assert [bool(int(mask) >> lane & 1) for lane in range(64)] == (expected == spike).tolist()
    assert np.delete(masks, (3, 4)).tolist() == [77] * 6
    assert net[tile].tolist() == after.net_spikes[tile].tolist()
    assert np.array_equal(np.delete(net, tile), np.delete(before, tile))
    assert np.array_equal(membrane, unchanged)
    assert result >> 2 == np.abs(expected).sum()
    assert result & 3 == (0 if settled[tile].all() else 1)


@pytest.mark.parametrize("magnitude", [0, 1, 2**20, 2**30 - 2, 2**30 - 1, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1])
@pytest.mark.parametrize("lane", [0, 31, 32, 63])
def test_a_single_membrane_of_2_to_the_30_and_more_is_noticed(magnitude: int, lane: int) -> None:
    theta = np.full(64, 2**20, np.int32)
    for value in (magnitude, -magnitude, -magnitude - 1):
        membrane, net = np.zeros(64, np.int32), np.zeros(64, np.int32)
        membrane[lane] = value
        neurons = theta, theta // 2, np.full(64, 2**31 - 1, np.int32)
        result = fire_tile(membrane, net, 0, neurons, 0, 0, np.zeros(2, np.uint64), 0)
        assert bool(result & 2) == (abs(value) >= 2**30)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 32, 33, 100])
def test_a_copy_is_shifted_and_goes_at_most_the_margin_beyond(n: int) -> None:
    source = np.arange(1000, 1200, dtype=np.int32)
    target = np.full(200, -1, np.int32)
    copy(target, 5, source, 7, 7 + n, -300)
    assert target[:5].tolist() == [-1] * 5
    assert target[5 : 5 + n].tolist() == list(range(707, 707 + n))
    assert (target[5 + n + event_kernels.MARGIN - 1 :] == -1).all()
    assert source.tolist() == list(range(1000, 1200))


@pytest.mark.parametrize("module", [event_kernels, spike_lists])
def test_cached_kernels_depend_on_no_other_file_of_the_package(module: ModuleType) -> None:
    # Numba's cache notices a change of the file that holds a compiled function, and of no other.
    source = Path(str(module.__file__)).read_text()
    assert "@compiled" in source
    nodes = list(ast.walk(ast.parse(source)))
    assert not [node for node in nodes if isinstance(node, ast.Import) and "quantspike" in ast.unparse(node)]
    named = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("quantspike")]
    # The decorator is not compiled itself.
    assert [alias.name for node in named for alias in node.names] == ([] if module is event_kernels else ["compiled"])
    assert event_kernels.MEMBRANE_LIMIT == MEMBRANE_LIMIT


def test_kernels_are_compiled_where_no_folder_for_them_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_cache(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'add': no locator available")
        return njit(**options)

    monkeypatch.setattr(event_kernels, "njit", without_cache)
    assert event_kernels.compiled(lambda a, b: a + b)(2, 3) == 5
