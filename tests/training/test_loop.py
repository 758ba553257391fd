"""The training loop: what it learns from, what it only measures, and that a seed decides everything."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from conftest import changed
from make_networks import set_normalization
from quantspike.data.dataset import Dataset
from quantspike.data.preparation import central_images
from quantspike.data.sources import load_source
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, initialize, new_network, with_precision
from quantspike.params import OptimizerName, Precision, Recipe
from quantspike.training import loop
from quantspike.training.augmentation import augment, draw
from quantspike.training.checkpoints import load_checkpoint, resume_optimizer, save_checkpoint
from quantspike.training.evaluation import Split, predict, splits
from quantspike.training.loop import (
    Callback,
    Epoch,
    Objective,
    Settings,
    Training,
    device_name,
    epoch_generator,
    use_bf16,
)
from quantspike.training.optimizer import Optimizer

CPU = torch.device("cpu")
SETTINGS = Settings(
    phase=0,
    epochs=1,
    learning_rate=0.01,
    seed=5,
    crop=4,
    recipe=Recipe(
        optimizer="adam",
        batch_size=8,
        label_smoothing=0.0,
        shift=4,
        flip="random",
        brightness=63.0,
        contrast=0.8,
        clip=None,
        arithmetic="fp32",
    ),
    activation_penalty=0.0,
    bf16=False,
)
ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)

Weights = dict[str, Tensor]


@pytest.fixture
def split(tiny_dataset: Dataset) -> Split:
    """40 training images of 6 x 6."""
    return splits(tiny_dataset, CPU)[0]


@pytest.fixture
def test(tiny_dataset: Dataset) -> Split:
    """20 test images."""
    return splits(tiny_dataset, CPU)[1]


def start(network: QuantizedCNN, settings: Settings, *images: Split) -> Training:
    """Return a training with an optimizer of its own, before its first step."""
    return Training(network, Optimizer(network, settings.recipe.optimizer), settings, *images)


def trained(
    split: Split, test: Split, settings: Settings = SETTINGS, *callbacks: Callback
) -> tuple[Weights, list[Epoch]]:
    """Return weights and curve of a new network after one phase."""
    network = new_network(ARCHITECTURE, 1, settings.seed)
    epochs = start(network, settings, split, test).run(callbacks)
    return network.state_dict(), epochs


class Calling(Callback):
    """Calls a function after each step, and another after each epoch."""

    def __init__(
        self,
        on_step: Callable[[Training], Any] = lambda training: None,
        on_epoch: Callable[[Training, Epoch], Any] = lambda training, epoch: None,
    ) -> None:
        self._on_step, self._on_epoch = on_step, on_epoch

    def on_step_end(self, training: Training) -> None:
        self._on_step(training)

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        self._on_epoch(training, epoch)


def same(first: Weights, second: Weights) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def accuracy(network: QuantizedCNN, split: Split) -> float:
    return int((predict(network, split.images, 4).argmax(1) == split.labels).sum()) / len(split)


# Steps and batches


def plain_batches(split: Split, settings: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch from the choices at its start, all images used."""
    generator = epoch_generator(settings.seed, settings.phase, epoch, CPU)
    count, size = len(split), settings.recipe.batch_size
    order = torch.randperm(count, generator=generator)
    draws = draw(count, split.images.shape[2], settings.crop, settings.recipe, generator)
    for first in range(0, count, size):
        batch = slice(first, first + size)
        images = augment(split.images[order[batch]], draws.part(batch), settings.crop)
        yield images.contiguous(memory_format=torch.channels_last), split.labels[order[batch]]


def test_the_loop_equals_a_plain_loop_with_adam(split: Split, test: Split) -> None:
    settings = changed(SETTINGS, epochs=2, batch_size=16)
    shown: list[tuple[float, float]] = []
    watching = Calling(lambda training: shown.append((training.loss, training.accuracy)))
    weights, epochs = trained(split, test, settings, watching)

    network = new_network(ARCHITECTURE, 1, 5)
    adam = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, fused=True)
    for epoch in (1, 2):
        loss, correct, seen = 0.0, 0, 0
        for batch, labels in plain_batches(split, settings, epoch):  # 16, 16 and 8 images
            scores = network(batch)
            mean = functional.cross_entropy(scores, labels)
            adam.zero_grad()
            mean.backward()
            adam.step()
            loss += functional.cross_entropy(scores, labels, reduction="sum").item()
            correct += int((scores.argmax(1) == labels).sum())
            seen += len(labels)
            assert shown.pop(0) == (pytest.approx(loss / seen, rel=1e-12), correct / seen)
    assert same(weights, network.state_dict())
    assert epochs[-1].loss == pytest.approx(loss / 40, rel=1e-12)
    assert epochs[-1].train_accuracy == correct / 40


def test_running_averages_keep_nine_tenths_of_their_value() -> None:
    block = new_network(ARCHITECTURE, 1, 0).blocks[0]
    batch = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sums = functional.conv2d(batch, block.convolution.weight, padding=1)
    block(batch)
    mean, variance = sums.mean(dim=(0, 2, 3)), sums.var(dim=(0, 2, 3), correction=1)
    torch.testing.assert_close(block.normalization.running_mean, 0.1 * mean)
    torch.testing.assert_close(block.normalization.running_var, 0.9 + 0.1 * variance)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The stored images of each batch that is trained on."""
    seen: list[Tensor] = []

    def watching(images: Tensor, *arguments: Any) -> Tensor:
        seen.append(images)
        return augment(images, *arguments)

    monkeypatch.setattr(loop, "augment", watching)
    return seen


@pytest.mark.parametrize(
    ("images", "size", "expected"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 4]), (3, 4, [3]), (9, 8, [8])]
)
def test_a_last_partial_batch_is_used_unless_it_is_a_single_image(
    images: int, size: int, expected: list[int], split: Split, test: Split, batches: list[Tensor]
) -> None:
    places: list[tuple[int, int, int]] = []
    watching = Calling(lambda training: places.append((training.epoch, training.step, training.seen)))
    network = new_network(ARCHITECTURE, 1, 5)
    training = start(network, changed(SETTINGS, epochs=2, batch_size=size), split.part(slice(images)), test)
    training.run([watching])
    assert [len(batch) for batch in batches] == expected * 2
    assert (training.steps, training.images) == (len(expected), sum(expected))
    seen = np.cumsum(expected).tolist()
    assert places == [(epoch, step, seen[step - 1]) for epoch in (1, 2) for step in range(1, len(expected) + 1)]


def test_every_epoch_sees_every_image_once_in_another_order(split: Split, test: Split, batches: list[Tensor]) -> None:
    trained(split, test, changed(SETTINGS, epochs=2, batch_size=16))
    orders = [torch.cat(part).flatten(1).tolist() for part in (batches[:3], batches[3:])]
    assert orders[0] != orders[1] != split.images.flatten(1).tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(split.images.flatten(1).tolist())


def test_alternating_flips_mirror_half_of_the_images_at_first_and_each_in_every_second_epoch(
    split: Split, test: Split
) -> None:
    settings = changed(SETTINGS, flip="alternating")
    training = start(new_network(ARCHITECTURE, 1, 5), settings, split, test)
    flips = []
    for epoch in (1, 2, 3):
        assert training.epoch == epoch
        order, draws = training._draw()
        flips.append(draws.flips[order.argsort()])  # image by image
        training.records += trained(split, test)[1]
    assert 10 < int(flips[0].sum()) < 30  # of 40
    assert torch.equal(flips[1], ~flips[0])
    assert torch.equal(flips[2], flips[0])


def test_a_single_image_cannot_be_trained_on(split: Split, test: Split) -> None:
    message = r"^recipe\.batch_size is 8 and there are 1 training images, but 1 process needs 2 at least$"
    with pytest.raises(QuantspikeError, match=message):
        start(new_network(ARCHITECTURE, 1, 0), SETTINGS, split.part(slice(1)), test)


# Seeds


def test_the_seed_alone_decides_the_weights_to_the_last_bit(split: Split, test: Split) -> None:
    networks = [new_network(ARCHITECTURE, 1, 0) for _ in range(3)]
    curves = []
    for number, (network, seed) in enumerate(zip(networks, (5, 5, 6), strict=True)):
        torch.manual_seed(number)
        np.random.seed(number)
        before = torch.get_rng_state()
        curves.append(start(network, changed(SETTINGS, epochs=2, seed=seed), split, test).run())
        assert torch.equal(torch.get_rng_state(), before)
    assert same(networks[0].state_dict(), networks[1].state_dict())
    assert curves[0] == curves[1]
    assert not same(networks[0].state_dict(), networks[2].state_dict())


def test_seed_phase_and_epoch_each_have_a_stream_of_their_own() -> None:
    places = [(seed, phase, epoch) for seed in (0, 1, 2**32 - 1) for phase in (0, 1, 2) for epoch in (1, 2, 100)]
    streams = {tuple(torch.rand(4, generator=epoch_generator(*place, CPU)).tolist()) for place in places}
    assert len(streams) == len(places)
    again = [torch.rand(4, generator=epoch_generator(7, 0, 3, CPU)).tolist() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(
    ("place", "seed"),
    [((0, 0, 1), 4324601099084218337), ((0, 1, 1), 1554199118406742183), ((3, 0, 100), 32516905898059202)],
)
def test_the_streams_are_those_of_all_results_so_far(place: tuple[int, int, int], seed: int) -> None:
    # numpy guarantees the numbers of its SeedSequence.
    assert epoch_generator(*place, CPU).initial_seed() == seed


def test_a_longer_training_begins_like_a_shorter_one(split: Split, test: Split) -> None:
    short, long = (trained(split, test, changed(SETTINGS, epochs=epochs))[1] for epochs in (1, 3))
    assert long[:1] == short


# Measuring


def test_the_test_images_do_not_change_the_weights(split: Split, test: Split) -> None:
    settings = changed(SETTINGS, epochs=2)
    other = Split(255 - test.images[:7], (test.labels[:7] + 1) % 3)
    assert same(trained(split, test, settings)[0], trained(split, other, settings)[0])


def test_each_epoch_is_measured_after_its_last_step_and_reported(split: Split, test: Split) -> None:
    reported: list[Epoch] = []

    def on_epoch(training: Training, epoch: Epoch) -> None:
        reported.append(epoch)
        assert training.records == reported
        assert epoch.test_accuracy == accuracy(training.network, test)

    epochs = trained(split, test, changed(SETTINGS, epochs=3), Calling(on_epoch=on_epoch))[1]
    assert reported == epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert {epoch.learning_rate for epoch in epochs} == {0.01}


# Diverged training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_with_advice(value: float, split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    nn.init.constant_(network.classifier.weight, value)
    message = (
        r"^the loss became nan in epoch 1, step 1: the learning rate 0\.5 may be too high; "
        "try a tenth of it or a larger batch$"
    )
    with pytest.raises(QuantspikeError, match=message):
        start(network, changed(SETTINGS, learning_rate=0.5), split, test).run()


def test_the_epoch_and_the_step_at_which_the_loss_became_infinite_are_named(
    split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = functional.cross_entropy, iter(range(1, 100))

    def diverging(*arguments: Any, **options: Any) -> Tensor:
        loss = original(*arguments, **options)
        return loss * math.inf if next(calls) == 8 else loss  # five steps an epoch: the third of the second

    monkeypatch.setattr(functional, "cross_entropy", diverging)
    reported: list[Epoch] = []
    watching = Calling(on_epoch=lambda training, epoch: reported.append(epoch))
    with pytest.raises(QuantspikeError, match=r"^the loss became inf in epoch 2, step 3: the learning rate 0\.01 may"):
        trained(split, test, changed(SETTINGS, epochs=3), watching)
    assert len(reported) == 1


def test_long_epochs_check_the_losses_every_25_steps(split: Split, test: Split) -> None:
    steps: list[int] = []

    def spoil(training: Training) -> None:
        steps.append(training.step)
        if training.step == 26:
            nn.init.constant_(training.network.classifier.weight, math.nan)

    many = Split(split.images.repeat(4, 1, 1, 1), split.labels.repeat(4))  # 80 steps of two images
    with pytest.raises(QuantspikeError, match="the loss became nan in epoch 1, step 27"):
        trained(many, test, changed(SETTINGS, batch_size=2), Calling(spoil))
    assert steps[-1] == 49


def test_a_weight_that_is_not_finite_is_named_with_its_epoch(split: Split, test: Split) -> None:
    def spoil(training: Training) -> None:
        if (training.epoch, training.step) == (2, 5):
            nn.init.constant_(training.network.blocks[1].normalization.bias, math.nan)

    message = r"^blocks\.1\.normalization\.bias became NaN or infinite in epoch 2: the learning rate 0\.01 may"
    with pytest.raises(QuantspikeError, match=message):
        trained(split, test, changed(SETTINGS, epochs=3), Calling(spoil))


# Learning rate


def test_with_muon_the_learning_rate_falls_linearly_to_zero_over_each_phase(split: Split, test: Split) -> None:
    rates: list[float] = []
    formats: list[bool] = []

    class Recording(Optimizer):
        def step(self, learning_rate: float, *, bf16: bool = False) -> None:
            rates.append(learning_rate)
            formats.append(bf16)
            super().step(learning_rate, bf16=bf16)

    network = new_network(ARCHITECTURE, 1, 5)
    settings = changed(SETTINGS, optimizer="muon", epochs=2, batch_size=20, learning_rate=0.1)
    for phase, bf16 in ((0, False), (1, True)):
        phased = changed(settings, phase=phase, bf16=bf16)
        epochs = Training(network, Recording(network, "muon"), phased, split, test).run()
        assert [epoch.learning_rate for epoch in epochs] == [0.1, 0.05]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025] * 2)  # two epochs of two steps
    assert formats == [False] * 4 + [True] * 4


# Resuming


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon"}, {"activation_penalty": 0.01, "bf16": True}])
def test_training_resumes_after_every_epoch_to_the_last_bit(changes: dict[str, Any], split: Split, test: Split) -> None:
    settings = changed(SETTINGS, epochs=3, batch_size=16, **changes)
    states: list[tuple[dict[str, Tensor], str]] = []

    def keep(training: Training, epoch: Epoch) -> None:
        tensors, records = training.state()
        # As in a file, which keeps no memory layout.
        states.append(({name: value.contiguous().clone() for name, value in tensors.items()}, json.dumps(records)))

    whole = start(new_network(ARCHITECTURE, 1, 5), settings, split, test)
    records = whole.run([Calling(on_epoch=keep)])
    expected = [asdict(record) | {"device": device_name(CPU)} for record in records]
    assert [json.loads(state[1]) for state in states] == [expected[:n] for n in (1, 2, 3)]
    for tensors, text in states:
        before = {name: value.clone() for name, value in tensors.items()}
        resumed = start(new_network(ARCHITECTURE, 1, 99), settings, split, test)
        resumed.restore(tensors, json.loads(text))
        steps: list[int] = []
        assert resumed.run([Calling(lambda training, steps=steps: steps.append(training.step))]) == records
        assert len(steps) == 3 * (3 - len(json.loads(text)))  # of 16, 16 and 8 images
        assert same(resumed.state()[0], whole.state()[0])
        assert same(tensors, before)


@pytest.mark.parametrize("k", ["fp32", 1])
def test_a_second_phase_continues_from_a_file_as_from_memory(
    k: Precision, split: Split, test: Split, tmp_path: Path
) -> None:
    second = changed(SETTINGS, phase=1, epochs=2, learning_rate=0.001)
    results: list[Weights] = []
    for through_file, with_moments in ((False, True), (True, True), (True, False)):
        network = new_network(ARCHITECTURE, k, 5)
        optimizer = Optimizer(network, "adam")
        Training(network, optimizer, SETTINGS, split, test).run()
        if through_file:
            save_checkpoint(tmp_path / "x.safetensors", network, optimizer, {})
            checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, k)
            network = checkpoint.network
            new = Optimizer(network, "adam")
            optimizer = resume_optimizer(checkpoint, network, "adam") if with_moments else new
        epochs = Training(network, optimizer, second, split, test).run()
        assert [(epoch.epoch, epoch.learning_rate) for epoch in epochs] == [(1, 0.001), (2, 0.001)]
        results.append(network.state_dict())
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_every_weight_continues_with_its_own_moments(split: Split, test: Split, tmp_path: Path) -> None:
    # Fused Adam walks weights and moments in their order in memory, whatever their strides say.
    network = new_network(ARCHITECTURE, 1, 5)
    optimizer = Optimizer(network, "adam")
    Training(network, optimizer, changed(SETTINGS, epochs=3), split, test).run()  # 3 x 5 steps
    save_checkpoint(tmp_path / "x.safetensors", network, optimizer, {})

    one_batch = changed(SETTINGS, phase=1, batch_size=40, learning_rate=0.001)
    plain = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    ((batch, labels),) = plain_batches(split, one_batch, 1)
    functional.cross_entropy(plain.network(batch), labels).backward()

    checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    resumed = resume_optimizer(checkpoint, checkpoint.network, "adam")
    Training(checkpoint.network, resumed, one_batch, split, test).run()
    for name, weight in plain.network.named_parameters():
        mean = 0.9 * plain.moments[f"optimizer.exp_avg.{name}"] + 0.1 * weight.grad
        square = 0.999 * plain.moments[f"optimizer.exp_avg_sq.{name}"] + 0.001 * weight.grad**2
        step = mean / (1 - 0.9**16) / ((square / (1 - 0.999**16)).sqrt() + 1e-8)
        expected = weight.detach() - 0.001 * step
        torch.testing.assert_close(checkpoint.network.get_parameter(name).detach(), expected, rtol=0, atol=1e-5)


# The loss


def images_and_labels() -> tuple[Tensor, Tensor]:
    images = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([0, 1, 2, 0, 1, 2, 0])


def test_the_loss_is_the_sum_of_the_cross_entropies_and_comes_with_the_number_of_correct_images() -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    nn.init.normal_(network.classifier.weight, generator=torch.Generator().manual_seed(0))
    images, labels = images_and_labels()
    loss, correct = Objective(network, SETTINGS)(images, labels)
    scores = network(images).detach()
    shares = scores.double().exp() / scores.double().exp().sum(1, keepdim=True)
    assert loss.item() == pytest.approx(-sum(math.log(shares[i, label]) for i, label in enumerate(labels)), rel=1e-6)
    assert int(correct) == sum(int(scores[i].argmax() == label) for i, label in enumerate(labels))
    assert 0 < int(correct) < 7


def test_label_smoothing_spreads_a_share_of_each_label_evenly_over_all_classes() -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    images, labels = images_and_labels()
    shares = network(images).detach().double().softmax(1)
    # Of 3 classes: 0.3 / 3 for each, and 0.7 more for the label.
    expected = -sum(0.7 * math.log(shares[i, label]) + 0.1 * shares[i].log().sum() for i, label in enumerate(labels))
    loss, _ = Objective(network, changed(SETTINGS, label_smoothing=0.3))(images, labels)
    assert loss.item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("k", "weight_bits", "counts"),
    [
        # Activations 2.6 and 1.3 before rounding, of one neuron each.
        (0, None, (3, 2)),  # 3, then 1.5, a tie, which becomes 2
        (1, None, (5, 2)),  # 2.5, then 1.25, a tie between 1.0 and 1.5, which becomes 1.0: 2 halves
        (2, None, (10, 5)),  # 2.5 and 1.25
        # The image 1 is 512 of 256 to a step; ties are broken upward: 2.5 halves become 3.
        (1, 16, (5, 3)),
        ("fp32", None, (0, 0)),  # is not penalized
    ],
)
def test_the_penalty_is_the_synaptic_operations_as_a_share_of_the_synapses(
    k: Precision, weight_bits: int | None, counts: tuple[int, int]
) -> None:
    architecture = Architecture.parse("1C1-1", image_size=1, image_channels=1, classes=2)
    network = QuantizedCNN(architecture, k, None, weight_bits).double().eval()
    for block in network.blocks:
        set_normalization(block, [1.0], [0.0], [0.0], [1.0])
    with torch.no_grad():
        network.blocks[0].convolution.weight.fill_(2.6)
        network.blocks[1].convolution.weight.fill_(0.5)
        network.classifier.weight.zero_()
    objective = Objective(network, changed(SETTINGS, activation_penalty=0.1))
    loss, _ = objective(torch.ones(3, 1, 1, 1).double(), torch.tensor([0, 1, 1]))
    # Three equal images, two equal scores; a spike of the first neuron reaches one synapse, of the second two classes.
    synops = counts[0] * 1 + counts[1] * 2
    assert loss.item() == pytest.approx(3 * (math.log(2) + 0.1 * synops / 3), rel=1e-6)


@pytest.mark.parametrize("weight_bits", [None, 8])
def test_the_penalty_weighs_every_spike_by_the_synapses_that_it_reaches(weight_bits: int | None) -> None:
    network = QuantizedCNN(ARCHITECTURE, 2, None, weight_bits)
    initialize(network, torch.Generator().manual_seed(0))
    images, labels = images_and_labels()
    activations = [layer.detach().double() for layer in network.activations(images)]
    plain = functional.cross_entropy(network(images), labels, reduction="sum")
    # Activations of an integer-aware network are counts already.
    steps = 4 if weight_bits is None else 1
    # Without padding a spike reaches one position of P2, of 4 channels; of the head's 2 x 2 one, of 5; then 3 classes.
    # In the 3 x 3 convolution each of the 2 x 2 positions reaches all four, of 6 channels.
    fans, neurons = (4, 4 * 6, 5, 3), (4 * 16, 4 * 4, 6 * 4, 5)
    synops = steps * sum(float(layer.sum()) * fan for layer, fan in zip(activations, fans, strict=True))
    synapses = sum(fan * count for fan, count in zip(fans, neurons, strict=True))
    objective = Objective(network, changed(SETTINGS, activation_penalty=0.25))
    assert synops > 0
    assert objective(images, labels)[0].item() == pytest.approx(plain.item() + 0.25 * synops / synapses, rel=1e-5)


def test_digits_are_learned_and_with_a_penalty_from_fewer_spikes(tmp_path: Path) -> None:
    training_images, test = splits(load_source("digits", downloads=tmp_path), CPU)
    architecture = Architecture.parse("8C3-P2-16", image_size=8, image_channels=1)
    settings = changed(SETTINGS, epochs=3, batch_size=50, crop=8, flip="none")
    spikes = []
    for penalty in (0.0, 0.2):
        network = new_network(architecture, 1, 0)
        records = start(network, changed(settings, activation_penalty=penalty), training_images, test).run()
        assert records[-1].test_accuracy > 0.8
        with torch.no_grad():
            maps = network.eval().activations(central_images(test.images, 8))
            spikes.append(2 * sum(float(layer.sum()) for layer in maps) / len(test) / architecture.neurons)
    assert spikes[1] < 0.7 * spikes[0]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_an_integer_aware_phase_goes_on_from_a_trained_network(optimizer: OptimizerName, tmp_path: Path) -> None:
    training_images, test = splits(load_source("digits", downloads=tmp_path), CPU)
    network = new_network(Architecture.parse("8C3-P2-16", image_size=8, image_channels=1), 1, 0, clip=3.0)
    rate = 0.01 if optimizer == "adam" else 0.1
    settings = changed(
        SETTINGS, optimizer=optimizer, epochs=3, batch_size=50, crop=8, flip="none", learning_rate=rate, clip=3.0
    )
    (*_, before) = start(network, settings, training_images, test).run()
    aware = with_precision(network, 1, weight_bits=6)
    buffers = {name: value.clone() for name, value in aware.named_buffers()}
    first, *_, last = start(aware, changed(settings, phase=1, learning_rate=rate / 10), training_images, test).run()
    assert first.loss < 1.5 * before.loss
    assert last.loss < before.loss
    assert last.test_accuracy > 0.9
    assert all(torch.equal(value, buffers[name]) for name, value in aware.named_buffers())


# bf16


@pytest.mark.parametrize("k", [0, 1, 3])
def test_activations_in_bf16_are_exact_multiples_of_the_step(k: int) -> None:
    network = new_network(ARCHITECTURE, k, 0)
    images = 20 * torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        layers = list(network.activations(images))
        scores = network.classify(layers[-1])
    assert scores.dtype == torch.bfloat16
    for layer in layers:
        assert layer.dtype == torch.bfloat16
        counts = layer.double() * 2**k
        assert torch.equal(counts, counts.round())
        assert torch.equal(counts.bfloat16().double(), counts)  # the spikes are whole numbers in bf16 as well
        assert counts.min() >= 0
    assert (layers[0].double() * 2**k).max() >= 2


def test_in_bf16_weights_moments_and_loss_stay_in_full_precision(split: Split, test: Split) -> None:
    weights, _ = trained(split, test)
    network = new_network(ARCHITECTURE, 1, 5)
    training = start(network, changed(SETTINGS, bf16=True), split, test)
    dtypes: set[torch.dtype] = set()
    for block in network.blocks:
        block.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
    (epoch,) = training.run()
    assert dtypes == {torch.bfloat16}  # where it trains and where it is measured
    with torch.autocast("cpu", torch.bfloat16):
        assert epoch.test_accuracy == accuracy(network, test)
    assert all(value.dtype == torch.float32 for value in network.state_dict().values() if value.is_floating_point())
    assert all(value.dtype == torch.float32 for value in training.optimizer.tensors().values())
    assert Objective(network, training.settings)(*images_and_labels())[0].dtype == torch.float32
    assert not same(network.state_dict(), weights)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach(), weights[name], rtol=0, atol=0.1)  # five steps of 0.01


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),  # Arm
        ({"avx512_bf16": False, "amx_bf16": False, "cpu_name": "x"}, False),
    ],
)
def test_auto_takes_bf16_on_a_cpu_that_has_instructions_for_it(
    capabilities: dict[str, bool | str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert use_bf16("auto", CPU) is expected
    assert use_bf16("bf16", CPU) is True
    assert use_bf16("fp32", CPU) is False


@pytest.mark.parametrize("current", [0, 1])
def test_auto_asks_the_gpu_that_trains_and_does_not_count_emulation(
    current: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two GPUs, of which only the second one multiplies bf16."""
    now = [current]

    @contextmanager
    def as_current(device: torch.device) -> Iterator[None]:
        before = now[0]
        now[0] = before if device.index is None else device.index
        yield
        now[0] = before

    monkeypatch.setattr(torch.cuda, "device", as_current)
    supported = lambda including_emulation=True: including_emulation or now[0] == 1  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert [use_bf16("auto", torch.device("cuda", number)) for number in (0, 1)] == [False, True]
    assert use_bf16("auto", torch.device("cuda")) is bool(current)
