"""The engine, step by step: by hand, and neuron by neuron against the oracle that lists its synapses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from make_networks import LAYER_STRINGS, currents, integer_network, random_images, random_integer_network, two_to_one
from quantspike.errors import QuantspikeError
from quantspike.simulation.dense import Batch, DenseEngine

CPU = torch.device("cpu")


def watch(batch: Batch, steps: int) -> list[tuple[list[int], list[int], list[int], list[bool], list[int]]]:
    """Per step of a batch of one image: positive, negative, SOPs and rest by layer, net counts of all neurons."""
    seen = []
    for _ in range(steps):
        counts = batch.step()
        by_layer = (getattr(counts, name)[:, 0].tolist() for name in ("positive", "negative", "synops", "at_rest"))
        seen.append((*by_layer, [n for layer in batch.net_spikes() for n in layer.flatten().tolist()]))
    return seen


def test_a_spike_fired_on_partial_evidence_is_taken_back() -> None:
    # Inputs 1 and 5 at theta = 2, h = 1 are counts of 1 and 3, one spike a step. Behind them, theta = 4 and h = 2:
    #   step 1: U = 10 - 4 = 6, d = 8, fires
    #   step 2: U = 2, d = 4 - 4 = 0, at rest, but only for now
    #   step 3: U = -2, d = 0 - 4, takes it back; all at rest
    batch = DenseEngine(two_to_one(), CPU).start(currents([1, 5]))
    assert watch(batch, 4) == [
        ([2, 1], [0, 0], [2, 2], [False, False], [1, 1, 1]),
        ([1, 0], [0, 0], [1, 0], [False, True], [1, 2, 1]),
        ([1, 0], [0, 1], [1, 2], [True, True], [1, 3, 0]),
        ([0, 0], [0, 0], [0, 0], [True, True], [1, 3, 0]),
    ]


def test_a_spike_crosses_the_whole_network_within_its_step() -> None:
    chain = [([1], [0], [2])] + [([2], [0], [2])] * 3
    batch = DenseEngine(integer_network("1C1-1-1-1", chain, [[1]]), CPU).start(currents([1]))
    assert watch(batch, 1) == [([1] * 4, [0] * 4, [1] * 4, [True] * 4, [1] * 4)]


def test_a_bias_drives_a_neuron_without_any_input() -> None:
    # U = 9 of theta = 4: floor((9 + 2) / 4) = 2, in the second layer, while the first is silent.
    batch = DenseEngine(two_to_one(bias=9), CPU).start(currents([0, 0]))
    assert [(positive, net) for positive, _, _, _, net in watch(batch, 3)] == [
        ([0, 1], [0, 0, 1]),
        ([0, 1], [0, 0, 2]),
        ([0, 0], [0, 0, 2]),
    ]


@pytest.mark.parametrize(("current", "count"), [(-2, 0), (0, 0), (1, 1), (2, 1), (3, 2)])
def test_ties_exactly_at_the_threshold_fire(current: int, count: int) -> None:
    # theta = 2, h = 1: (1 + 1) / 2 and (3 + 1) / 2 are whole.
    batch = DenseEngine(two_to_one(weights=(0, 0)), CPU).start(currents([current, 0]))
    assert watch(batch, 4)[-1][-1][0] == count


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    images=st.integers(1, 3),
)
def test_every_neuron_does_at_every_step_what_the_oracle_does(
    case: tuple[str, int], seed: int, k: int, bits: int, images: int
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits)
    current = network.input_current(random_images(images + 1, size, seed)[1:])
    runs = [oracle.run(network, image.flatten().numpy(), 12) for image in current]
    batch = DenseEngine(network, CPU).start(current)
    totals = np.zeros((3, len(network.layers), images), np.int64)
    for step in range(12):
        counts = batch.step()
        totals += np.stack([counts.positive, counts.negative, counts.synops])
        for n, run in enumerate(runs):
            assert [net[n].flatten().tolist() for net in batch.net_spikes()] == [net.tolist() for net in run.net[step]]
            assert totals[:, :, n].tolist() == [
                part[step].tolist() for part in (run.positive, run.negative, run.synops)
            ]
            assert counts.at_rest[:, n].tolist() == run.at_rest[step].tolist()


def test_images_that_are_kept_go_on_as_if_nothing_had_happened() -> None:
    network = random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=5, k=2)
    current = network.input_current(random_images(5, 8, seed=5))
    whole, part = (DenseEngine(network, CPU).start(current, first=20) for _ in range(2))
    chosen = torch.tensor([False, True, False, True, True])
    for step in range(10):
        if step == 4:
            part.keep(chosen)
        expected, counts = whole.step(), part.step()
    assert part.images.tolist() == [21, 23, 24]
    assert torch.equal(counts.synops, expected.synops[:, chosen])
    for kept, net in zip(part.net_spikes(), whole.net_spikes(chosen), strict=True):
        assert torch.equal(kept, net)


def test_a_batch_starts_fresh_and_leaves_its_input_alone() -> None:
    engine, current = DenseEngine(two_to_one(), CPU), currents([1, 5])
    first = watch(engine.start(current), 3)
    assert current.flatten().tolist() == [1, 5]
    assert watch(engine.start(current), 3) == first


@pytest.mark.parametrize(("inputs", "sum_of_weights"), [(512, 512 * 32_767), (1024, 1023 * 32_767 - 32_766)])
def test_sums_are_exact_below_and_beyond_24_bits(inputs: int, sum_of_weights: int) -> None:
    # All inputs fire once, in the first step: 16,776,704 is below 2^24; 33,487,875 is odd and beyond it, so that
    # fp32 does not hold it. The bias takes the sum away but for one, or all of it: U = 1 fires at theta = 2, U = 0 not.
    weights = [32_767] * (inputs - 1) + [sum_of_weights - (inputs - 1) * 32_767]
    head = ([weights, weights], [1 - sum_of_weights, -sum_of_weights], [2, 2])
    encoder = ([1] * inputs, [1] * inputs, [2] * inputs)
    network = integer_network(f"{inputs}C1-2", [encoder, head], [[1, 0], [0, 1]])
    batch = DenseEngine(network, CPU).start(torch.zeros((1, inputs, 1, 1), dtype=torch.int64))
    batch.step()
    assert batch.net_spikes()[1].flatten().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("current", "fits"), [(2**30 - 5, True), (2**30 - 4, False), (2**40, False), (-(2**30) - 4, False)]
)
def test_an_input_beyond_30_bits_is_named_with_image_layer_and_channel(current: int, fits: bool) -> None:
    network = integer_network("2C1-1", [([1, 1], [0, 4], [2, 2]), ([1, 1], [0], [2])], [[1]])
    images = currents([0, 0], [0, current])
    if fits:
        DenseEngine(network, CPU).start(images, first=30)
        return
    message = rf"image 31, layer 1, channel 1: the membrane reaches {current + 4}, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        DenseEngine(network, CPU).start(images, first=30)


def test_a_membrane_that_leaves_30_bits_on_the_way_is_named_although_it_would_come_back() -> None:
    # Counts 1 and 2, so U = 2^30 - 4 + 10 - 6 = 2^30 after step 1, and 2^30 - 6 at rest.
    network = two_to_one(bias=2**30 - 4, threshold=2**20, weights=(10, -6))
    current = currents([0, 0], [1, 3], [0, 0])
    assert int(network.settled_counts(current)[1].max()) == 1024
    batch = DenseEngine(network, CPU).start(current, first=4)
    batch.keep(torch.tensor([False, True, True]))
    with pytest.raises(QuantspikeError, match=r"image 5, layer 2, channel 0: the membrane reaches 1073741824, beyond"):
        batch.step()
