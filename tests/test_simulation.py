"""Whole simulations on every engine: the curves are the oracle's, the counts are the integer network's."""

from __future__ import annotations

from collections.abc import Callable
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
from make_networks import LAYER_STRINGS, integer_network, random_images, random_integer_network, set_normalization
from quantspike.architecture import Architecture
from quantspike.conversion import convert
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.networks import new_network
from quantspike.params import Simulate
from quantspike.simulation import Mismatch, Trace, simulate
from quantspike.simulation import run as run_module
from quantspike.simulation.engines import ENGINES
from quantspike.simulation.measures import certificate, check_proved, curves, layer_curves, verdict

CPU = torch.device("cpu")
LIMIT = 4096


Run = Callable[..., Trace]


def run_on(
    engine: Any, network: IntegerNetwork, images: Tensor, steps: int, limit: int = LIMIT, batch_size: int = 50
) -> Trace:
    settings = Simulate(steps=steps, settle_limit=limit, batch_size=batch_size, engine=engine)
    return simulate(network, images, settings, CPU)


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest) -> Run:
    """Simulates on each of the engines in turn."""
    return partial(run_on, request.param)


def expected_trace(network: IntegerNetwork, images: Tensor, steps: int) -> dict[str, Any]:
    """The fields of a trace from the oracle, which runs all steps of all images and drops none."""
    inputs = [oracle.input_current(network, image) for image in images.numpy()]
    runs = [oracle.run_until_settled(network, current, steps, LIMIT) for current in inputs]
    settled = [oracle.settled_counts(network, current) for current in inputs]
    for one, counts in zip(runs, settled, strict=True):
        assert one.settled_step
        assert [net.tolist() for net in one.net[-1]] == [net.tolist() for net in counts]
    by_layer = {name: np.stack([getattr(one, name)[:steps] for one in runs]) for name in oracle.COUNTS}
    return {
        "predictions": np.stack([one.predictions[:steps] for one in runs], axis=1),
        **{f"{name}_spikes": by_layer[name].sum(axis=2).T for name in ("positive", "negative")},
        "synops": by_layer["synops"].sum(axis=2).T,
        **{f"layer_{name}": values.sum(axis=0) for name, values in by_layer.items()},
        "layer_settled": np.sum([one.at_rest[:steps] for one in runs], axis=0),
        "settled_step": np.array([one.settled_step for one in runs]),
        "final_predictions": np.array([one.predictions[-1] for one in runs]),
        "integer_predictions": np.array([oracle.prediction(network, counts[-1]) for counts in settled]),
        "largest_counts": np.max([[counts.max() for counts in layers] for layers in settled], axis=0),
        "mismatching_images": 0,
        "first_mismatch": None,
    }


def assert_same(found: Trace | dict[str, Any], expected: Trace | dict[str, Any]) -> None:
    for field in fields(Trace):
        values = [
            trace[field.name] if isinstance(trace, dict) else getattr(trace, field.name) for trace in (found, expected)
        ]
        assert np.array_equal(*values) if isinstance(values[0], np.ndarray) else values[0] == values[1], field.name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    steps=st.integers(1, 40),
)
def test_the_spiking_network_is_the_integer_network_and_its_curves_are_the_oracles(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int, batch_size: int, steps: int
) -> None:
    text, size = case
    network = random_integer_network(text, size, seed, k=k, weight_bits=bits)
    images = random_images(n + 1, size, seed)[1:] if seed % 2 else random_images(n, size, seed)
    expected = expected_trace(network, images, steps)
    for engine in ENGINES:
        trace = run_on(engine, network, images, steps, batch_size=batch_size)
        assert_same(trace, expected)
        assert np.array_equal(trace.final_predictions, trace.integer_predictions)
        check_proved(trace)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    case=st.sampled_from(LAYER_STRINGS),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 4),
    bits=st.integers(4, 16),
    n=st.integers(1, 4),
)
def test_a_converted_network_with_scales_of_either_sign_and_none_is_the_same_on_every_engine(
    case: tuple[str, int], seed: int, k: int, bits: int, n: int
) -> None:
    text, size = case
    trained = new_network(Architecture.parse(text, image_size=size, image_channels=2, classes=3), k, seed).double()
    random = torch.Generator().manual_seed(seed)
    for block in trained.blocks:
        channels = len(block.normalization.weight)
        scale = torch.randn(channels, generator=random)
        # About one channel in five is dead.
        scale[torch.rand(channels, generator=random) < 0.2] = 0
        set_normalization(
            block,
            scale,
            torch.randn(channels, generator=random) / 2,
            torch.zeros(channels),
            torch.full((channels,), 0.125),
        )
    network = convert(trained.double(), bits)
    images = random_images(n, size, seed)
    traces = [run_on(engine, network, images, steps=30, batch_size=3) for engine in ENGINES]
    for trace in traces[1:]:
        assert_same(trace, traces[0])
    assert (traces[0].settled_step > 0).all()
    check_proved(traces[0])


@pytest.fixture
def network() -> IntegerNetwork:
    return random_integer_network("3C3-P2-2C3-P2-4-3", 8, seed=11, k=2)


@pytest.fixture
def images() -> Tensor:
    return random_images(7, 8, seed=11)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 8])
def test_the_batch_size_changes_nothing(run: Run, network: IntegerNetwork, images: Tensor, batch_size: int) -> None:
    assert_same(run(network, images, 9, batch_size=batch_size), run(network, images, 9))


def test_the_order_of_the_images_changes_nothing(run: Run, network: IntegerNetwork, images: Tensor) -> None:
    order = torch.tensor([4, 0, 6, 1, 5, 3, 2])
    trace, shuffled = run(network, images, 9, batch_size=3), run(network, images[order], 9, batch_size=3)
    for name in {field.name for field in fields(Trace)} - {"mismatching_images", "first_mismatch"}:
        values, by_layer = getattr(trace, name), name.startswith("layer_") or name == "largest_counts"
        assert np.array_equal(getattr(shuffled, name), values if by_layer else values[..., order])


def test_steps_beyond_the_last_repeat_the_counts_at_rest(run: Run, network: IntegerNetwork, images: Tensor) -> None:
    trace = run(network, images, 300)
    last = int(trace.settled_step.max())
    assert 1 < last < 300
    assert_same(trace, expected_trace(network, images, 300))
    for name in ("predictions", "positive_spikes", "negative_spikes", "synops", "layer_synops", "layer_settled"):
        assert np.array_equal(
            getattr(trace, name)[last:], getattr(trace, name)[last - 1 : last].repeat(300 - last, axis=0)
        )
    assert trace.layer_settled[-1].tolist() == [7] * 6


def test_running_on_to_the_limit_leaves_the_measures_at_the_last_step(
    run: Run, network: IntegerNetwork, images: Tensor
) -> None:
    stopped, run_on = run(network, images, 3, limit=3), run(network, images, 3)
    assert stopped.settled_step.min() == 0
    assert run_on.settled_step.max() > 3
    labels = np.arange(7) % 3
    assert curves(stopped, labels) == curves(run_on, labels)
    assert layer_curves(stopped, network.architecture) == layer_curves(run_on, network.architecture)


def test_an_image_that_does_not_settle_is_reported_and_never_called_equal(
    run: Run, network: IntegerNetwork, images: Tensor
) -> None:
    expected = expected_trace(network, images, 12)
    limit = int(np.sort(expected["settled_step"])[3])
    in_time = expected["settled_step"] <= limit
    trace = run(network, images, 2, limit=limit, batch_size=4)
    assert trace.settled_step.tolist() == np.where(in_time, expected["settled_step"], 0).tolist()
    proof = certificate(trace, network.architecture, limit)
    assert (proof["settled"], proof["unsettled_at_limit"], proof["equal"]) == (
        in_time.sum(),
        7 - in_time.sum(),
        in_time.sum(),
    )
    assert proof["mismatches"] == 0
    assert verdict(trace).startswith(f"{in_time.sum()} of 7 images came to rest by step {limit}")
    check_proved(trace)


def test_an_image_may_settle_at_the_limit_itself(run: Run, network: IntegerNetwork, images: Tensor) -> None:
    last = int(run(network, images, 1).settled_step.max())
    assert run(network, images, 1, limit=last).settled_step.min() > 0
    assert (run(network, images, 1, limit=last - 1).settled_step == 0).any()


def test_the_largest_counts_are_of_all_images_in_whatever_pieces_they_are_compared(
    run: Run, network: IntegerNetwork, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(network, images, 9)
    alone = [run(network, image[None], 9).largest_counts for image in images]
    # No image has the largest count of every layer, or one of them alone would do.
    assert all((counts < whole.largest_counts).any() for counts in alone)
    monkeypatch.setattr(run_module, "COMPARED_AT_ONCE", 2)
    assert run(network, images, 9).largest_counts.tolist() == np.max(alone, axis=0).tolist()
    assert whole.largest_counts.tolist() == np.max(alone, axis=0).tolist()


def test_an_image_without_contrast_settles_on_what_the_biases_give(run: Run, network: IntegerNetwork) -> None:
    flat = torch.full((1, 2, 8, 8), 99, dtype=torch.uint8)
    assert network.input_current(flat).abs().max() == 0
    assert_same(run(network, flat, 5), expected_trace(network, flat, 5))


def two_to_one(first: list[int], head: tuple[list[Any], list[int], list[int]]) -> IntegerNetwork:
    """Of two colours the first counts: where it is the brighter one the inputs are `first`, else their negatives."""
    weights = [[weight, 0] for weight in first]
    encoder = (weights, [0] * len(first), [2] * len(first))
    return integer_network(
        f"{len(first)}C1-{len(head[1])}", [encoder, head], [[1] * len(head[1]), [0] * len(head[1])], channels=2
    )


BRIGHT, DARK, FLAT = [200, 100], [100, 200], [50, 50]


def pixels(*images: list[int]) -> Tensor:
    return torch.tensor(images, dtype=torch.uint8)[:, :, None, None]


def test_a_simulation_worked_out_by_hand(run: Run) -> None:
    # BRIGHT gives counts 1 and 3 behind inputs 1 and 5; the neuron of theta = 4 fires at step 1 and takes it back at
    # step 3 (see test_dense). DARK gives negative inputs and no spikes at all: at rest after step 1.
    trace = run(two_to_one([1, 5], ([10, -4], [0], [4])), pixels(BRIGHT, DARK), steps=4)
    assert trace.positive_spikes.tolist() == [[3, 0], [4, 0], [5, 0], [5, 0]]
    assert trace.negative_spikes.tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]
    # Each spike of the first layer reaches 1 neuron, each one of the second 2 classes.
    assert trace.synops.tolist() == [[4, 0], [5, 0], [8, 0], [8, 0]]
    assert trace.layer_positive.tolist() == [[2, 1], [3, 1], [4, 1], [4, 1]]
    assert trace.layer_negative.tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]
    assert trace.layer_synops.tolist() == [[2, 2], [3, 2], [4, 4], [4, 4]]
    assert trace.layer_settled.tolist() == [[1, 1], [1, 2], [2, 2], [2, 2]]
    assert trace.settled_step.tolist() == [3, 1]
    assert trace.settled.tolist() == [[False, True], [False, True], [True, True], [True, True]]
    # At rest BRIGHT has counts 1 and 3, which take the other neuron to 10 - 3 x 4 = -2: floor(max(0, -2 + 2) / 4) = 0;
    # that it fired in between does not count. DARK has none.
    assert trace.largest_counts.tolist() == [3, 0]
    # One spike makes logits (1, 0), none makes a tie, which the lowest class wins.
    assert trace.predictions.tolist() == [[0, 0]] * 4
    assert (trace.images, trace.steps) == (2, 4)


def test_the_lowest_of_equal_classes_is_predicted_after_every_step(run: Run) -> None:
    network = two_to_one([1, 5], ([10, -4], [0], [4]))
    network = replace(network, classifier=torch.tensor([[0], [1], [1]], dtype=torch.int16))
    # Net counts of 1, 1, 0, 0: logits (0, 1, 1) twice, then (0, 0, 0).
    assert run(network, pixels(BRIGHT), steps=4).predictions.tolist() == [[1], [1], [0], [0]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_membrane_beyond_30_bits_is_named_with_the_image_of_the_whole_set(run: Run, batch_size: int) -> None:
    # Counts 1 and 2 add 10 - 6 at step 1 to the 2^30 - 4 of channel 1, and leave 2^30 - 6 at rest.
    head = ([[0, 0], [10, -6]], [0, 2**30 - 4], [2**20, 2**20])
    network = two_to_one([1, 3], head)
    message = r"image 3, layer 2, channel 1: the membrane reaches 1073741824, beyond 2\^30"
    with pytest.raises(QuantspikeError, match=message):
        run(network, pixels(FLAT, DARK, FLAT, BRIGHT, FLAT), steps=2, limit=2, batch_size=batch_size)


def test_images_that_do_not_fit_the_network_are_refused(run: Run, network: IntegerNetwork) -> None:
    with pytest.raises(QuantspikeError, match=r"the images are \(2, 7, 8\) .* at least 8 x 8 pixels"):
        run(network, torch.zeros((3, 2, 7, 8), dtype=torch.uint8), steps=2)


def tamper(monkeypatch: pytest.MonkeyPatch, network: IntegerNetwork, layer: int, **changed: Tensor) -> IntegerNetwork:
    """Lets the engine run a network with one layer changed, while the integer network stays what it is."""
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
    network = two_to_one([1, 5], ([[10, 0], [4, 4]], [0, 0], [4, 4]))
    weight = network.layers[1].weight.clone()
    weight[1, 1] = 3
    tamper(monkeypatch, network, 1, weight=weight)
    # Counts 1 and 3: (4 + 3 x 4 + 2) / 4 = 4.5, but (4 + 3 x 3 + 2) / 4 = 3.75 with the wrong weight.
    trace = run(network, pixels(DARK, FLAT, FLAT, BRIGHT, DARK, BRIGHT), steps=3, batch_size=batch_size)
    assert trace.first_mismatch == Mismatch(image=3, layer=2, channel=1, y=0, x=0, spiking=3, integer=4)
    assert trace.mismatching_images == 2
    message = (
        r"2 images came to rest on counts that are not the integer network's, first image 3, layer 2, channel 1, "
        r"y 0, x 0: 3 as spikes, 4 in the integer network"
    )
    with pytest.raises(QuantspikeError, match=message):
        check_proved(trace)
    proof = certificate(trace, network.architecture, LIMIT)
    assert (proof["settled"], proof["equal"], proof["mismatches"]) == (6, 4, 2)
    assert verdict(trace).startswith("4 of 6 images came to rest")


def test_the_place_of_a_wrong_neuron_is_its_place_in_the_map(
    run: Run, monkeypatch: pytest.MonkeyPatch, network: IntegerNetwork, images: Tensor
) -> None:
    # An eighth of a step more changes the count of few neurons of the channel.
    bias = network.layers[0].bias.clone()
    bias[1] += network.layers[0].threshold[1] // 8
    wrong = tamper(monkeypatch, network, 0, bias=bias)
    trace = run(network, images[1:2], steps=3)
    current = oracle.input_current(network, images[1].numpy())
    found, expected = (oracle.settled_counts(net, current)[0].reshape(3, 8, 8) for net in (wrong, network))
    channel, y, x = (int(index) for index in np.argwhere(found != expected)[0])
    assert (channel, y, x) == (1, 1, 0)
    place = Mismatch(0, 1, channel, y, x, int(found[channel, y, x]), int(expected[channel, y, x]))
    assert (trace.first_mismatch, trace.mismatching_images) == (place, 1)


def test_the_first_mismatch_is_the_same_for_every_batch_size(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # BRIGHT settles later than FLAT; both end on counts of 2 in place of 0: (10 - 12 + 8 + 2) / 4 and (8 + 2) / 4.
    network = two_to_one([1, 5], ([10, -4], [0], [4]))
    tamper(monkeypatch, network, 1, bias=torch.tensor([8], dtype=torch.int32))
    traces = [run(network, pixels(BRIGHT, FLAT), steps=9, batch_size=size) for size in (1, 2)]
    assert traces[0].mismatching_images == 2
    assert_same(*traces)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", LAYER_STRINGS)
def test_a_gpu_gives_the_same_trace(case: tuple[str, int]) -> None:
    text, size = case
    images = random_images(5, size, seed=3)
    for bits in (4, 12, 16):
        simulated = partial(simulate, random_integer_network(text, size, 3, weight_bits=bits), images, Simulate())
        assert_same(simulated(torch.device("cuda")), simulated(CPU))
