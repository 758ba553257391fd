"""Whole simulations on every engine: the curves are the oracle's, the counts are the integer network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import oracle
from make_networks import (
    DELAYS,
    LARGEST_COUNTS,
    LAYER_STRINGS,
    LIMIT,
    integer_network,
    random_images,
    random_integer_network,
    simulate_settings,
)
from quantspike.conversion.integer import IntegerNetwork
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import check_layer_delay
from quantspike.simulation import run as run_module
from quantspike.simulation.measures import certificate, check_proved, verdict
from quantspike.simulation.run import simulate
from quantspike.simulation.trace import Mismatch, Trace

CPU = torch.device("cpu")
ENGINES = ("reference", "dense", "events")

Run = Callable[..., Trace]


def run_on(
    engine: str, network: IntegerNetwork, images: Tensor, steps: int, limit: int = LIMIT, batch_size: int = 50
) -> Trace:
    return simulate(network, images, simulate_settings(steps, limit, engine, batch_size), CPU)[0]


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Run:
    """Simulate on each of the engines in turn."""
    return partial(run_on, request.param)


@pytest.fixture(autouse=True, scope="module")
def _compare_in_pieces() -> Iterator[None]:
    """Compare two images at once, so that a batch is compared in several pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "COMPARED_AT_ONCE", 2)
        yield


def expected_trace(network: IntegerNetwork, images: Tensor, steps: int, delay: int = 0) -> dict[str, Any]:
    """Return the fields of a trace from the oracle, which runs all steps of all images and drops none."""
    inputs = [oracle.input_current(network, image) for image in images.numpy()]
    runs = [oracle.run_until_settled(network, current, steps, LIMIT, delay) for current in inputs]
    settled = [oracle.settled_counts(network, current) for current in inputs]
    for one, counts in zip(runs, settled, strict=True):
        assert one.settled_step
        assert [net.tolist() for net in one.net[-1]] == [net.tolist() for net in counts]
    reached = [*(oracle.reached_synapses(layer.shape).ravel() for layer in network.layers[1:]), np.array([3])]
    by_layer = {name: np.stack([getattr(one, name)[:steps] for one in runs]) for name in oracle.COUNTS}
    return {
        "predictions": np.stack([one.predictions[:steps] for one in runs], axis=1),
        **{f"{name}_spikes": by_layer[name].sum(axis=2).T for name in ("positive", "negative")},
        "synops": by_layer["synops"].sum(axis=2).T,
        **{f"layer_{name}": values.sum(axis=0) for name, values in by_layer.items()},
        "layer_settled": np.sum([one.settled[:steps] for one in runs], axis=0),
        "settled_step": np.array([one.settled_step for one in runs]),
        "final_predictions": np.array([one.predictions[-1] for one in runs]),
        "integer_predictions": np.array([oracle.prediction(network, counts[-1]) for counts in settled]),
        "least_synops": np.array([sum((n * r).sum() for n, r in zip(c, reached, strict=True)) for c in settled]),
        "largest_counts": np.max([[counts.max() for counts in layers] for layers in settled], axis=0),
        "mismatching_images": 0,
        "first_mismatch": None,
    }


def assert_same(found: Trace, expected: Trace | dict[str, Any]) -> None:
    wanted = expected if isinstance(expected, dict) else vars(expected)
    for field in fields(Trace):
        assert np.array_equal(getattr(found, field.name), wanted[field.name]), field.name


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    steps=st.integers(1, 40),
    largest_count=LARGEST_COUNTS,
    delays=st.lists(DELAYS, min_size=1, max_size=3, unique=True),
)
def test_the_spiking_network_is_the_integer_network_and_its_curves_are_the_oracles(
    case: tuple[str, int],
    seed: int,
    k: int,
    bits: int,
    n: int,
    batch_size: int,
    steps: int,
    largest_count: int | None,
    delays: list[int],
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits, largest_count=largest_count)
    images = random_images(n + 1, size, seed)[1:] if seed % 2 else random_images(n, size, seed)
    expected = {delay: expected_trace(network, images, steps, delay) for delay in delays}
    for engine in ENGINES:
        settings = simulate_settings(steps, LIMIT, engine, batch_size, layer_delay=delays)
        traces = simulate(network, images, settings, CPU)
        assert list(traces) == delays
        for delay, trace in traces.items():
            assert_same(trace, expected[delay])
            assert np.array_equal(trace.final_predictions, trace.integer_predictions)
        check_proved(traces)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    largest_count=st.integers(1, 4),
    more=st.integers(0, 3),
)
def test_with_a_delay_of_the_largest_count_every_neuron_fires_exactly_its_count(
    case: tuple[str, int], seed: int, largest_count: int, more: int
) -> None:
    # The first layer needs M steps at most. Then its input is all there when a layer begins, so it needs M more.
    text, size = case
    network = random_integer_network(text, size, seed, k=2, largest_count=largest_count)
    images = random_images(3, size, seed)
    delay = largest_count + more
    steps = (len(network.layers) - 1) * delay + largest_count
    for engine in ENGINES:
        settings = simulate_settings(steps, steps, engine, layer_delay=[delay])
        trace = simulate(network, images, settings, CPU)[delay]
        assert (trace.settled_step > 0).all()
        assert not trace.negative_spikes.any()
        assert trace.synops[-1].tolist() == trace.least_synops.tolist()


def test_the_least_synops_are_exact_beyond_32_bits() -> None:
    # Eight counts of (2^30 - 2 + 1) / 2, rounded down: 8 (2^29 - 1) = 2^32 - 8 synapses to the neuron behind them.
    network = integer_network("8C1-1", [([1] * 8, [0] * 8, [2] * 8), ([0] * 8, [0], [2])], [[1]])
    expected = run_module._expected(network, torch.full((1, 8, 1, 1), 2**30 - 2), 0)
    assert expected.least_synops.tolist() == [2**32 - 8]


@pytest.mark.parametrize(("delays", "refused"), [([4], False), ([0, 5, 1], True), ([20], True)])
def test_a_delay_with_which_the_last_layer_never_fires_is_refused(
    network: IntegerNetwork, delays: list[int], refused: bool
) -> None:
    # Six layers: with D = 4 the last one fires from step 5 x 4 + 1 = 21 on, with 5 from 26, with 20 from 101.
    settings = simulate_settings(21, layer_delay=delays)
    if not refused:
        check_layer_delay(network.architecture, settings, "simulate")
        return
    longest = max(delays)
    message = (
        rf"simulate\.layer_delay holds {longest}, with which the last of 6 layers fires from step {5 * longest + 1} on"
        rf", but simulate\.steps is 21: set it to 4 or less, or the steps to {5 * longest + 1} or more"
    )
    with pytest.raises(QuantspikeError, match=message):
        check_layer_delay(network.architecture, settings, "simulate")


@pytest.fixture
def network() -> IntegerNetwork:
    return random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=11, k=2)


@pytest.fixture
def images() -> Tensor:
    return random_images(7, 8, seed=11)


def test_an_image_that_does_not_settle_is_reported_and_never_called_equal(
    run: Run, network: IntegerNetwork, images: Tensor
) -> None:
    expected = expected_trace(network, images, 12)
    limit = int(np.sort(expected["settled_step"])[3])
    in_time = expected["settled_step"] <= limit
    n = int(in_time.sum())
    trace = run(network, images, 2, limit=limit, batch_size=4)
    assert trace.settled_step.tolist() == np.where(in_time, expected["settled_step"], 0).tolist()
    proof = certificate(trace, network.architecture, limit)
    assert (proof["settled_by_limit"], proof["unsettled_at_limit"]) == (n, 7 - n)
    assert (proof["equal"], proof["mismatches"]) == (n, 0)
    assert verdict(trace).startswith(f"{n} of 7 images settled by step {limit}, equal to the integer network")
    check_proved({0: trace})


def two_colors(first: list[int], head: tuple[list[Any], list[int], list[int]]) -> IntegerNetwork:
    """Return a network whose inputs are `first` where the first of two colors is the brighter one, else -`first`."""
    encoder = ([[weight, 0] for weight in first], [0] * len(first), [2] * len(first))
    text, outputs = f"{len(first)}C1-{len(head[1])}", len(head[1])
    return integer_network(text, [encoder, head], [[1] * outputs, [0] * outputs], channels=2)


BRIGHT, DARK, FLAT = [200, 100], [100, 200], [50, 50]


def pixels(*images: list[int]) -> Tensor:
    return torch.tensor(images, dtype=torch.uint8)[:, :, None, None]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_membrane_beyond_30_bits_is_named_with_the_image_of_the_whole_set(run: Run, batch_size: int) -> None:
    # Counts 1 and 2 add 10 - 6 at step 1 to the 2^30 - 4 of channel 1, and leave 2^30 - 6 once settled.
    network = two_colors([1, 3], ([[0, 0], [10, -6]], [0, 2**30 - 4], [2**20, 2**20]))
    message = r"image 3, layer 2, channel 1: the membrane reaches 1073741824, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        run(network, pixels(FLAT, DARK, FLAT, BRIGHT, FLAT), steps=2, limit=2, batch_size=batch_size)


def test_an_empty_set_of_images_is_refused(run: Run, network: IntegerNetwork, images: Tensor) -> None:
    with pytest.raises(QuantspikeError, match="there are no images to simulate"):
        run(network, images[:0], steps=2)


def tamper(monkeypatch: pytest.MonkeyPatch, network: IntegerNetwork, layer: int, **changed: Tensor) -> IntegerNetwork:
    """Let the engine run a network with one layer changed, while the integer network stays what it is."""
    layers = list(network.layers)
    layers[layer] = replace(layers[layer], **changed)
    wrong = replace(network, layers=tuple(layers))
    new_engine = run_module.new_engine
    monkeypatch.setattr(run_module, "new_engine", lambda name, _, device: new_engine(name, wrong, device))
    return wrong


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_an_engine_with_a_wrong_weight_is_caught_and_the_neuron_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    network = two_colors([1, 5], ([[10, 0], [4, 4]], [0, 0], [4, 4]))
    weight = network.layers[1].weight.clone()
    weight[1, 1] = 3
    tamper(monkeypatch, network, 1, weight=weight)
    # Counts 1 and 3: (4 + 3 x 4 + 2) / 4 = 4.5, but (4 + 3 x 3 + 2) / 4 = 3.75 with the wrong weight.
    trace = run(network, pixels(DARK, FLAT, FLAT, BRIGHT, DARK, BRIGHT), steps=3, batch_size=batch_size)
    assert trace.first_mismatch == Mismatch(image=3, layer=2, channel=1, y=0, x=0, spiking=3, integer=4)
    assert trace.mismatching_images == 2
    message = (
        r"^layer delay 3: 2 images settled on counts that are not the integer network's, first image 3, layer 2, "
        r"channel 1, y 0, x 0: 3 as spikes, 4 in the integer network"
    )
    with pytest.raises(QuantspikeError, match=message):
        check_proved({0: replace(trace, first_mismatch=None), 3: trace})
    proof = certificate(trace, network.architecture, LIMIT)
    assert (proof["settled_by_limit"], proof["equal"], proof["mismatches"]) == (6, 4, 2)
    assert verdict(trace).startswith("4 of 6 images settled by step")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", LAYER_STRINGS)
def test_a_gpu_gives_the_same_trace(case: tuple[str, int]) -> None:
    text, size = case
    images = random_images(5, size, seed=3)
    for bits in (4, 12, 16):
        network = random_integer_network(text, size, 3, weight_bits=bits, largest_count=None if bits == 12 else 3)
        assert_same(*(simulate(network, images, simulate_settings(100), torch.device(d))[0] for d in ("cuda", "cpu")))
