"""The training loop: what is learned from, what is only measured, and that a seed decides everything."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from make_networks import set_normalization
from make_results import make_params
from quantspike import augmentation, training
from quantspike.adam import adam_tensors, make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import Augmentation
from quantspike.checkpoints import load_checkpoint, resume_adam, save_checkpoint
from quantspike.data import Dataset, load_source
from quantspike.errors import QuantspikeError
from quantspike.measuring import Split, hold_out, measure, predict, splits
from quantspike.networks import QuantizedCNN, new_network
from quantspike.params import Precision
from quantspike.recipes import RECIPES
from quantspike.training import (
    FINETUNE,
    PRETRAIN,
    TRAIN,
    Epoch,
    NotFiniteError,
    Objective,
    Observer,
    Settings,
    Training,
    Unobserved,
    epoch_generator,
    phase_settings,
    rate_factor,
)

CPU = torch.device("cpu")
SETTINGS = Settings(phase=TRAIN, epochs=1, learning_rate=0.01, batch_size=8, seed=5, augmentation=Augmentation(4))
ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)

UNOBSERVED = Unobserved()

Weights = dict[str, Tensor]


@pytest.fixture
def split(tiny_dataset: Dataset) -> Split:
    """40 training images of 6 x 6."""
    return splits(tiny_dataset, CPU)[0]


@pytest.fixture
def test(tiny_dataset: Dataset) -> Split:
    """20 test images."""
    return splits(tiny_dataset, CPU)[1]


def first(split: Split, n: int) -> Split:
    return Split(split.images[:n], split.labels[:n])


def start(network: QuantizedCNN, settings: Settings, *images: Split | None) -> Training:
    """A training with an Adam of its own, before its first step."""
    adam = make_adam(network, settings.learning_rate, settings.weight_decay)
    return Training(network, adam, settings, *images)


def trained(
    split: Split,
    test: Split,
    settings: Settings = SETTINGS,
    validation: Split | None = None,
    observer: Observer = UNOBSERVED,
) -> tuple[Weights, list[Epoch]]:
    """Weights and curve of a fresh network after one phase."""
    network = new_network(ARCHITECTURE, 1, settings.seed)
    epochs = start(network, settings, split, test, validation).run(observer)
    return network.state_dict(), epochs


class Watching(Unobserved):
    """Calls a function after each step, and another after each epoch."""

    def __init__(
        self,
        stepped: Callable[[Training, int], Any] = lambda training, images: None,
        measured: Callable[[Training, Epoch], Any] = lambda training, epoch: None,
    ) -> None:
        self._stepped, self._measured = stepped, measured

    def stepped(self, training: Training, images: int) -> None:
        self._stepped(training, images)

    def measured(self, training: Training, epoch: Epoch) -> None:
        self._measured(training, epoch)


def untimed(epochs: list[Epoch]) -> list[Epoch]:
    return [replace(epoch, seconds=0) for epoch in epochs]


def same(first: Weights, second: Weights) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


# What a step does


def plain_batches(split: Split, settings: Settings, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of an epoch as the choices at its start make them, all images used."""
    generator = epoch_generator(settings.seed, settings.phase, epoch, CPU)
    count, size = len(split), settings.batch_size
    order = torch.randperm(count, generator=generator)
    draws = augmentation.draw(count, split.images.shape[2], settings.augmentation, generator)
    for first in range(0, count, size):
        place = slice(first, first + size)
        batch = augmentation.augment(split.images[order[place]], draws.part(place), settings.augmentation)
        yield batch.contiguous(memory_format=torch.channels_last), split.labels[order[place]]


def test_the_loop_does_what_a_plain_loop_with_adam_does(split: Split, test: Split) -> None:
    settings = replace(SETTINGS, epochs=2, batch_size=16)
    network = new_network(ARCHITECTURE, 1, 5).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, fused=True)
    losses, correct = [], 0
    for epoch in (1, 2):
        losses, correct = [], 0
        for batch, labels in plain_batches(split, settings, epoch):  # 16, 16 and 8 images
            scores = network(batch)
            loss = functional.cross_entropy(scores, labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(functional.cross_entropy(scores, labels, reduction="sum").item())
            correct += int((scores.argmax(1) == labels).sum())
    weights, epochs = trained(split, test, settings)
    assert same(weights, network.state_dict())
    assert epochs[-1].loss == pytest.approx(sum(losses) / 40, rel=1e-12)
    assert epochs[-1].train_accuracy == correct / 40


def test_running_averages_keep_nine_tenths_of_what_they_were() -> None:
    block = new_network(ARCHITECTURE, 1, 0).blocks[0]
    batch = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sums = functional.conv2d(batch, block.convolution.weight, padding=1)
    block(batch)
    mean, variance = sums.mean(dim=(0, 2, 3)), sums.var(dim=(0, 2, 3), correction=1)
    torch.testing.assert_close(block.normalization.running_mean, 0.1 * mean)
    torch.testing.assert_close(block.normalization.running_var, 0.9 + 0.1 * variance)


def test_a_network_learns(split: Split, test: Split) -> None:
    network = new_network(Architecture.parse("8C3-P2-12", image_size=6, image_channels=1, classes=3), 1, 0)
    settings = replace(SETTINGS, epochs=25, learning_rate=0.02, augmentation=Augmentation(6, flip=False))
    epochs = start(network, settings, split, test).run()
    assert epochs[-1].loss < 0.3 * epochs[0].loss
    assert epochs[-1].test_accuracy > 0.8


# Batches


def batches_of(split: Split, test: Split, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The stored images that go into each batch of a phase."""
    seen: list[Tensor] = []
    original = augmentation.augment

    def watching(images: Tensor, *arguments: object) -> Tensor:
        seen.append(images)
        return original(images, *arguments)

    monkeypatch.setattr(augmentation, "augment", watching)
    trained(split, test, settings)
    return seen


@pytest.mark.parametrize(
    ("images", "size", "expected"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 4]), (3, 4, [3]), (9, 8, [8])]
)
def test_a_last_partial_batch_is_used_unless_it_is_a_single_image(
    images: int, size: int, expected: list[int], split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(first(split, images), test, replace(SETTINGS, batch_size=size), monkeypatch)
    assert [len(batch) for batch in batches] == expected


def test_every_epoch_sees_every_image_once_in_another_order(
    split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(split, test, replace(SETTINGS, epochs=2, batch_size=16), monkeypatch)
    orders = [torch.cat(part).flatten(1).tolist() for part in (batches[:3], batches[3:])]
    assert orders[0] != orders[1] != split.images.flatten(1).tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(split.images.flatten(1).tolist())


def test_the_mean_loss_counts_every_image_once(split: Split, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 4.0, 10.0])  # means of batches of 4, 4 and 2 images: (4 + 16 + 20) / 10 = 4
    original = functional.cross_entropy

    def fixed(scores: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return original(scores, labels, **options) * 0 + next(losses) * len(labels)

    monkeypatch.setattr(functional, "cross_entropy", fixed)
    epochs = trained(first(split, 10), test, replace(SETTINGS, batch_size=4))[1]
    assert epochs[0].loss == 4.0


# Seeds


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(split: Split, test: Split) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    weights, epochs = trained(split, test, replace(SETTINGS, epochs=2))
    torch.manual_seed(2)
    np.random.seed(2)
    again, epochs_again = trained(split, test, replace(SETTINGS, epochs=2))
    assert same(weights, again)
    assert untimed(epochs) == untimed(epochs_again)


def test_another_seed_gives_other_weights(split: Split, test: Split) -> None:
    assert not same(trained(split, test)[0], trained(split, test, replace(SETTINGS, seed=6))[0])


def test_training_leaves_the_global_generator_alone(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    before = torch.get_rng_state()
    start(network, SETTINGS, split, test).run()
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_phase_and_epoch_each_have_a_stream_of_their_own() -> None:
    places = [
        (seed, phase, epoch) for seed in (0, 1, 2**32 - 1) for phase in (TRAIN, FINETUNE) for epoch in (1, 2, 100)
    ]
    streams = {tuple(torch.rand(4, generator=epoch_generator(*place, CPU)).tolist()) for place in places}
    assert len(streams) == len(places)
    again = [torch.rand(4, generator=epoch_generator(7, TRAIN, 3, CPU)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_a_longer_training_begins_like_a_shorter_one(split: Split, test: Split) -> None:
    short, long = (trained(split, test, replace(SETTINGS, epochs=epochs))[1] for epochs in (1, 3))
    assert untimed(long[:1]) == untimed(short)


# What is held out, and what is only measured


def test_what_is_held_out_and_what_is_kept_make_up_the_whole(split: Split) -> None:
    kept, held = hold_out(split, 15, seed=3)
    assert held is not None
    assert (len(kept), len(held)) == (25, 15)
    everything = torch.cat([kept.images, held.images]).flatten(1).tolist()
    labels = torch.cat([kept.labels, held.labels]).tolist()
    expected = zip(split.images.flatten(1).tolist(), split.labels.tolist(), strict=True)
    assert sorted(zip(everything, labels, strict=True)) == sorted(expected)


def test_the_seed_decides_what_is_held_out(split: Split) -> None:
    first, again, other = (hold_out(split, 15, seed)[1] for seed in (3, 3, 4))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert not torch.equal(first.images, split.images[:15])


def test_nothing_is_held_out_unless_it_is_asked_for(split: Split, test: Split) -> None:
    kept, held = hold_out(split, 0, seed=3)
    assert kept is split
    assert held is None
    assert trained(split, test)[1][0].validation_accuracy is None


@pytest.mark.parametrize("count", [39, 40, 1000])
def test_two_images_at_least_are_left_to_train_on(count: int, split: Split) -> None:
    assert len(hold_out(split, 38, seed=3)[0]) == 2
    with pytest.raises(
        QuantspikeError, match=f"train.validation is {count}, but of 40 training images at most 38 can be held out"
    ):
        hold_out(split, count, seed=3)


def test_neither_test_nor_validation_images_change_the_weights(split: Split, test: Split) -> None:
    other = Split(255 - test.images[:7], (test.labels[:7] + 1) % 3)
    weights = trained(split, test, replace(SETTINGS, epochs=2))[0]
    assert same(weights, trained(split, other, replace(SETTINGS, epochs=2))[0])
    assert same(weights, trained(split, test, replace(SETTINGS, epochs=2), validation=other)[0])


def test_held_out_images_do_not_change_the_weights_either(split: Split, test: Split) -> None:
    kept, held = hold_out(split, 10, seed=3)
    assert held is not None
    altered = Split(torch.zeros_like(held.images), held.labels)
    assert same(trained(kept, test, validation=held)[0], trained(kept, test, validation=altered)[0])


def test_each_accuracy_is_that_of_its_own_images(split: Split, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, held = hold_out(split, 10, seed=3)
    assert held is not None
    right = {len(test): 5, len(held): 8}  # of 20 and of 10

    def fixed(network: nn.Module, images: Tensor, crop: int, between: Callable[[], None]) -> Tensor:
        (known,) = [part for part in (test, held) if torch.equal(part.images, images)]
        answers = known.labels.clone()
        answers[right[len(known)] :] += 1
        return functional.one_hot(answers % 3, 3).float()

    monkeypatch.setattr(training, "predict", fixed)
    (epoch,) = trained(kept, test, validation=held)[1]
    assert (epoch.test_accuracy, epoch.validation_accuracy) == (0.25, 0.8)


def test_accuracies_are_measured_after_the_last_step_of_an_epoch(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    epochs = start(network, replace(SETTINGS, epochs=2), split, test, split).run()
    assert epochs[-1].test_accuracy == measure(network, test, 4)[0]
    assert epochs[-1].validation_accuracy == measure(network, split, 4)[0]


# Records and errors


def test_each_epoch_is_reported_as_it_ends(split: Split, test: Split) -> None:
    reported: list[Epoch] = []
    complete: list[int] = []

    def measured(training: Training, epoch: Epoch) -> None:
        reported.append(epoch)
        complete.append(len(training.records))

    _, epochs = trained(split, test, replace(SETTINGS, epochs=3), observer=Watching(measured=measured))
    assert reported == epochs
    assert complete == [1, 2, 3]
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert {epoch.learning_rate for epoch in epochs} == {0.01}
    assert all(epoch.seconds > 0 for epoch in epochs)


def test_each_step_is_told_with_its_images_and_measuring_with_none(split: Split, test: Split) -> None:
    told: list[tuple[int, int, int, int]] = []
    watching = Watching(lambda training, images: told.append((training.epoch, training.step, training.seen, images)))
    trained(first(split, 20), test, replace(SETTINGS, epochs=2), first(split, 5), watching)
    steps = [(1, 8, 8), (2, 16, 8), (3, 20, 4)]
    # Validation and test images are a batch each.
    assert told == [(epoch, *step) for epoch in (1, 2) for step in (*steps, (3, 20, 0), (3, 20, 0))]


def test_the_mean_so_far_is_over_the_images_so_far(split: Split, test: Split) -> None:
    seen: list[tuple[float, float]] = []
    watching = Watching(lambda training, images: seen.append((training.loss, training.accuracy)))
    (epoch,) = trained(split, test, observer=watching)[1]
    network, losses, correct = new_network(ARCHITECTURE, 1, 5), [], []
    adam = make_adam(network, 0.01)
    for batch, labels in plain_batches(split, SETTINGS, 1):
        scores = network(batch)
        loss = functional.cross_entropy(scores, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        correct.append(int((scores.argmax(1) == labels).sum()))
        assert seen[len(losses) - 1][0] == pytest.approx(np.mean(losses), rel=1e-6)
        assert seen[len(losses) - 1][1] == sum(correct) / (8 * len(losses))
    assert seen[-1] == (epoch.loss, epoch.train_accuracy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_with_advice(value: float, split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    nn.init.constant_(network.classifier.weight, value)
    message = r"the loss became nan in epoch 1, step 1: the learning rate 0\.5 may be too high; try a tenth of it"
    with pytest.raises(NotFiniteError, match=message):
        start(network, replace(SETTINGS, learning_rate=0.5), split, test).run()


def test_the_epoch_and_the_step_at_which_the_loss_went_astray_are_named(
    split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = functional.cross_entropy, iter(range(1, 100))

    def astray(*arguments: Any, **options: Any) -> Tensor:
        loss = original(*arguments, **options)
        return loss * math.inf if next(calls) == 8 else loss  # five steps an epoch: the third of the second

    monkeypatch.setattr(functional, "cross_entropy", astray)
    reported: list[Epoch] = []
    with pytest.raises(NotFiniteError, match=r"^the loss became inf in epoch 2, step 3: the learning rate 0\.01 may"):
        trained(split, test, replace(SETTINGS, epochs=3), observer=Watching(measured=lambda _, e: reported.append(e)))
    assert len(reported) == 1


def test_a_weight_that_is_not_finite_is_named_with_its_epoch_and_step(split: Split, test: Split) -> None:
    def spoil(training: Training, images: int) -> None:
        if (training.epoch, training.step) == (2, 5):
            nn.init.constant_(training.network.blocks[1].normalization.bias, math.nan)

    message = r"^blocks\.1\.normalization\.bias is no longer finite after epoch 2, step 5: the learning rate 0\.01 may"
    with pytest.raises(NotFiniteError, match=message):
        trained(split, test, replace(SETTINGS, epochs=3), observer=Watching(spoil))


def test_a_single_image_cannot_be_trained_on(split: Split, test: Split) -> None:
    with pytest.raises(
        QuantspikeError,
        match=r"train\.batch_size is 8 and there are 1 training images, but 1 process needs 2 at least$",
    ):
        start(new_network(ARCHITECTURE, 1, 0), SETTINGS, first(split, 1), test)


# Going on with the second phase


@pytest.mark.parametrize("k", ["fp32", 1])
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(
    k: int, split: Split, test: Split, tmp_path: Path
) -> None:
    second = replace(SETTINGS, phase=FINETUNE, epochs=3, learning_rate=0.001)
    networks: list[QuantizedCNN] = []
    for through_file in (False, True):
        network = new_network(ARCHITECTURE, k, 5)
        adam = make_adam(network, 0.01)
        Training(network, adam, SETTINGS, split, test).run()
        if through_file:
            save_checkpoint(tmp_path / "x.safetensors", network, adam)
            checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, k)
            network, adam = checkpoint.network, resume_adam(checkpoint, 0.001)
        epochs = Training(network, adam, second, split, test).run()
        assert {epoch.learning_rate for epoch in epochs} == {0.001}
        assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
        networks.append(network)
    assert same(networks[0].state_dict(), networks[1].state_dict())


def test_every_weight_goes_on_with_its_own_moments(split: Split, test: Split, tmp_path: Path) -> None:
    # Fused Adam walks through a weight and its moments in the order they lie in memory, whatever their strides say.
    network = new_network(ARCHITECTURE, 1, 5)
    adam = make_adam(network, 0.01)
    Training(network, adam, replace(SETTINGS, epochs=3), split, test).run()  # 3 x 5 steps
    save_checkpoint(tmp_path / "x.safetensors", network, adam)

    one_batch = replace(SETTINGS, phase=FINETUNE, batch_size=40, learning_rate=0.001)
    plain = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    ((batch, labels),) = plain_batches(split, one_batch, 1)
    functional.cross_entropy(plain.network(batch), labels).backward()

    checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    Training(checkpoint.network, resume_adam(checkpoint, 0.001), one_batch, split, test).run()
    for name, weight in plain.network.named_parameters():
        mean = 0.9 * plain.moments[f"adam.exp_avg.{name}"] + 0.1 * weight.grad
        square = 0.999 * plain.moments[f"adam.exp_avg_sq.{name}"] + 0.001 * weight.grad**2
        step = mean / (1 - 0.9**16) / ((square / (1 - 0.999**16)).sqrt() + 1e-8)
        expected = weight.detach() - 0.001 * step
        torch.testing.assert_close(checkpoint.network.get_parameter(name).detach(), expected, rtol=0, atol=1e-5)


def test_the_second_phase_uses_the_moments_of_the_first(split: Split, test: Split, tmp_path: Path) -> None:
    network = new_network(ARCHITECTURE, 1, 5)
    adam = make_adam(network, 0.01)
    Training(network, adam, SETTINGS, split, test).run()
    save_checkpoint(tmp_path / "x.safetensors", network, adam)
    weights = []
    for resume in (True, False):
        checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
        optimizer = resume_adam(checkpoint, 0.01) if resume else make_adam(checkpoint.network, 0.01)
        Training(checkpoint.network, optimizer, replace(SETTINGS, phase=FINETUNE), split, test).run()
        weights.append(checkpoint.network.state_dict())
    assert not same(*weights)


# The learning rate


@pytest.mark.parametrize(
    ("schedule", "warmup", "done", "factor"),
    [
        ("constant", 0.0, 0.0, 1.0),
        ("constant", 0.0, 1.0, 1.0),
        ("constant", 0.25, 0.125, 0.5),  # half of the rise
        ("constant", 0.25, 0.25, 1.0),
        ("linear", 0.0, 0.0, 1.0),
        ("linear", 0.0, 0.75, 0.25),
        ("linear", 0.0, 1.0, 0.0),
        ("linear", 0.5, 0.125, 0.25),
        ("linear", 0.5, 0.5, 1.0),
        ("linear", 0.5, 0.75, 0.5),  # half of what comes after the rise
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.0, 1.0, 0.0),
        ("cosine", 0.5, 0.25, 0.5),
        ("cosine", 0.5, 1.0, 0.0),
    ],
)
def test_the_rate_rises_and_falls_as_it_is_told(schedule: str, warmup: float, done: float, factor: float) -> None:
    assert rate_factor(schedule, warmup, done) == factor


def test_a_cosine_is_half_way_down_in_the_middle_and_three_quarters_up_at_a_third() -> None:
    assert rate_factor("cosine", 0.0, 0.5) == pytest.approx(0.5, abs=1e-15)
    assert rate_factor("cosine", 0.0, 1 / 3) == pytest.approx(0.75, abs=1e-15)  # (1 + cos 60 degrees) / 2


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_rate_falls_as_with_the_schedulers_of_torch(schedule: str) -> None:
    steps = 40
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler: torch.optim.lr_scheduler.LRScheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    )
    for step in range(steps + 1):
        assert rate_factor(schedule, 0.0, step / steps) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_the_rate_stays_between_0_and_1_and_never_jumps(schedule: str, warmup: float) -> None:
    factors = [rate_factor(schedule, warmup, done / 1000) for done in range(1001)]
    assert min(factors) >= 0
    assert max(factors) == 1
    assert max(abs(after - before) for before, after in pairwise(factors)) < 0.02


def test_every_step_takes_its_own_rate_and_the_record_the_last_one(split: Split, test: Split) -> None:
    rates: list[float] = []
    watching = Watching(
        lambda training, images: rates.append(training.optimizer.param_groups[0]["lr"]) if images else 0
    )
    settings = replace(SETTINGS, epochs=2, learning_rate=0.5, schedule="linear", warmup=0.2)
    epochs = trained(split, test, settings, observer=watching)[1]
    # Ten steps, of which two rise: 0 and 1/2, then 8/8, 7/8 ... 1/8, all of 0.5.
    assert rates == pytest.approx([0, 0.25, 0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625], abs=1e-15)
    assert [epoch.learning_rate for epoch in epochs] == [rates[4], rates[9]]


def test_all_groups_of_adam_take_the_rate(split: Split, test: Split) -> None:
    training = start(new_network(ARCHITECTURE, 1, 0), replace(SETTINGS, schedule="cosine"), split, test)
    training.run()
    assert len({group["lr"] for group in training.optimizer.param_groups}) == 1
    assert len(training.optimizer.param_groups) == 2


# What is minimized


def objective(**changes: Any) -> tuple[Objective, Tensor, Tensor]:
    """The loss of a small network with seven images and their labels."""
    random = torch.Generator().manual_seed(0)
    network = new_network(ARCHITECTURE, 1, 0)
    nn.init.normal_(network.classifier.weight, generator=random)
    images = torch.randn(7, 1, 4, 4, generator=random)
    return Objective(network, replace(SETTINGS, **changes)), images, torch.tensor([0, 1, 2, 0, 1, 2, 0])


def test_the_loss_is_the_sum_of_the_cross_entropies_and_comes_with_the_number_of_correct_images() -> None:
    module, images, labels = objective()
    loss, correct = module(images, labels)
    scores = module.network(images).detach()
    shares = scores.double().exp() / scores.double().exp().sum(1, keepdim=True)
    assert loss.item() == pytest.approx(-sum(math.log(shares[i, label]) for i, label in enumerate(labels)), rel=1e-6)
    assert int(correct) == sum(int(scores[i].argmax() == label) for i, label in enumerate(labels))
    assert 0 < int(correct) < 7


def test_label_smoothing_spreads_its_share_of_the_label_over_all_classes() -> None:
    module, images, labels = objective(label_smoothing=0.3)
    logarithms = torch.log_softmax(module.network(images).detach().double(), 1)
    # Of three classes each gets 0.1, and the right one 0.7 more.
    expected = -sum(0.7 * logarithms[i, label] + 0.1 * logarithms[i].sum() for i, label in enumerate(labels))
    assert module(images, labels)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_smoothing_equal_scores_costs_nothing_more() -> None:
    module, images, labels = objective(label_smoothing=0.3)
    nn.init.zeros_(module.network.classifier.weight)
    assert module(images, labels)[0].item() == pytest.approx(7 * math.log(3), rel=1e-6)


@pytest.mark.parametrize(
    ("k", "spikes"),
    [
        # Activations 2.6 and 1.3 before rounding, of one neuron each.
        (0, 3 + 2),  # 3, then 1.5, a tie, which goes to 2
        (1, 5 + 2),  # 2.5, then 1.25, a tie between 1.0 and 1.5, which goes to 1.0: 2 halves
        (2, 10 + 5),  # 2.5 and 1.25
        ("fp32", 2.6 + 1.3),  # as they are
    ],
)
def test_the_penalty_is_the_spikes_per_neuron_that_the_activations_stand_for(k: Precision, spikes: float) -> None:
    architecture = Architecture.parse("1C1-1", image_size=1, image_channels=1, classes=2)
    network = QuantizedCNN(architecture, k).double().eval()
    for block in network.blocks:
        set_normalization(block, [1.0], [0.0], [0.0], [1.0])
    with torch.no_grad():
        network.blocks[0].convolution.weight.fill_(2.6)
        network.blocks[1].convolution.weight.fill_(0.5)
        network.classifier.weight.zero_()
    module = Objective(network, replace(SETTINGS, activation_penalty=0.1))
    loss, _ = module(torch.ones(3, 1, 1, 1).double(), torch.tensor([0, 1, 1]))
    # Three equal images, two equal scores, two neurons.
    assert loss.item() == pytest.approx(3 * (math.log(2) + 0.1 * spikes / 2), rel=1e-6)


@pytest.mark.parametrize("k", ["fp32", 2])
def test_the_penalty_counts_what_leaves_every_block(k: Precision) -> None:
    module, images, labels = objective(activation_penalty=0.25)
    network = new_network(ARCHITECTURE, k, 0)
    total = 0.0
    values = images
    for block in network.blocks:
        values = block(values)
        total += values.double().sum().item()
    plain = functional.cross_entropy(network.classify(values), labels, reduction="sum")
    per_unit = 1 if k == "fp32" else 4
    # 4 channels of 4 x 4, 4 and 6 of 2 x 2, 5 of one.
    expected = float(plain.detach()) + 0.25 * per_unit * total / (64 + 16 + 24 + 5)
    assert Objective(network, module.settings)(images, labels)[0].item() == pytest.approx(expected, rel=1e-6)


def test_without_a_penalty_activations_cost_nothing() -> None:
    free, images, labels = objective(activation_penalty=0.0)
    dear = objective(activation_penalty=1e-30)[0]
    assert torch.equal(free(images, labels)[0], dear(images, labels)[0])


def test_a_penalty_teaches_digits_with_fewer_activations(tmp_path: Path) -> None:
    training_images, test = splits(load_source("digits", downloads=tmp_path), CPU)
    spikes, accuracies = [], []
    for penalty in (0.0, 0.2):
        architecture = Architecture.parse("8C3-P2-16C3-P2-16", image_size=8, image_channels=1)
        network = new_network(architecture, 1, 0)
        settings = replace(
            SETTINGS, epochs=3, batch_size=50, augmentation=Augmentation(8, flip=False), activation_penalty=penalty
        )
        accuracies.append(start(network, settings, training_images, test).run()[-1].test_accuracy)
        network.eval()
        with torch.no_grad():
            maps = network.activations(augmentation.central_images(test.images, 8))
            spikes.append(2 * sum(float(layer.sum()) for layer in maps) / len(test) / architecture.neurons)
    assert spikes[1] < 0.7 * spikes[0]
    assert min(accuracies) > 0.8


# Averaged weights


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_averages_are_those_of_a_plain_loop(decay: float, split: Split, test: Split) -> None:
    settings = replace(SETTINGS, epochs=2, averaging=decay)
    averages: dict[str, Tensor] = {}
    accuracies: list[float] = []
    averaged = new_network(ARCHITECTURE, "fp32", 0)
    steps = 0

    def stepped(training: Training, images: int) -> None:
        nonlocal steps
        now = min(
            decay, steps / (steps + 10)
        )  # 0, 1/11, 2/12 ... up to the decay: what averages start with is forgotten
        steps += images > 0
        for name, value in training.network.state_dict().items() if images else ():
            if name in averages and value.is_floating_point():
                averages[name] = now * averages[name] + (1 - now) * value.double()
            elif name not in averages:
                averages[name] = value.double()  # the first step is where averages start

    def measured(training: Training, epoch: Epoch) -> None:
        averaged.load_state_dict(averages)
        accuracies.append(measure(averaged, test, 4)[0])

    network = new_network(ARCHITECTURE, "fp32", 5)
    epochs = start(network, settings, split, test).run(Watching(stepped, measured))
    assert [epoch.test_accuracy for epoch in epochs] == accuracies
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), averages[name], rtol=1e-5, atol=1e-6)
    means = [name for name in averages if name.endswith("running_mean")]
    assert len(means) == 4
    assert all(averages[name].abs().max() > 0 for name in means)


def test_the_average_soon_forgets_the_variances_that_batch_normalization_begins_with(split: Split, test: Split) -> None:
    # They begin at 1 and become about a hundredth of it: with 0.98 from the first step on, 0.98^100 = 13 % of the 1
    # would be left after 100 steps, ten times what there is to average.
    training = start(new_network(ARCHITECTURE, "fp32", 5), replace(SETTINGS, epochs=20, averaging=0.98), split, test)
    raw: dict[str, Tensor] = {}

    def measured(training: Training, epoch: Epoch) -> None:
        raw.update({name: value.clone() for name, value in training.network.state_dict().items()})

    training.run(Watching(measured=measured))
    for name, value in training.network.state_dict().items():
        if name.endswith("running_var"):
            assert float((value / raw[name]).median()) < 2


def test_averaging_leaves_the_steps_themselves_alone(split: Split, test: Split) -> None:
    last: list[Weights] = []
    results: list[Weights] = []
    curves: list[list[Epoch]] = []

    def measured(training: Training, epoch: Epoch) -> None:
        last.append({name: value.clone() for name, value in training.network.state_dict().items()})

    for decay in (0.0, 0.9):
        weights, epochs = trained(split, test, replace(SETTINGS, averaging=decay), observer=Watching(measured=measured))
        results.append(weights)
        curves.append(epochs)
    assert same(last[0], last[1])
    assert same(results[0], last[0])
    assert not same(results[1], last[1])
    assert (curves[0][0].loss, curves[0][0].train_accuracy) == (curves[1][0].loss, curves[1][0].train_accuracy)


def test_what_is_measured_is_the_network_that_training_leaves_behind(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 5)
    settings = replace(SETTINGS, epochs=3, averaging=0.9)
    (*_, epoch) = start(network, settings, split, test, first(split, 15)).run()
    assert epoch.test_accuracy == measure(network, test, 4)[0]
    assert epoch.validation_accuracy == measure(network, first(split, 15), 4)[0]


# Going on from a state

EVERYTHING = replace(
    SETTINGS,
    epochs=2,
    batch_size=16,
    augmentation=Augmentation(4, padding=1, cutout=1),
    schedule="cosine",
    warmup=0.25,
    weight_decay=0.1,
    label_smoothing=0.1,
    averaging=0.8,
    activation_penalty=0.01,
)


class Keeping(Unobserved):
    """Copies every state there is: after each step, between the batches that are measured, after each epoch."""

    def __init__(self) -> None:
        self.states: list[tuple[dict[str, Tensor], str]] = []

    def stepped(self, training: Training, images: int) -> None:
        tensors, progress = training.state()
        self.states.append(
            ({name: value.contiguous().clone() for name, value in tensors.items()}, json.dumps(progress))
        )

    def measured(self, training: Training, epoch: Epoch) -> None:
        self.stepped(training, 0)


@pytest.mark.parametrize("settings", [replace(SETTINGS, epochs=2, batch_size=16), EVERYTHING])
def test_training_goes_on_from_every_state_to_the_same_last_bit(settings: Settings, split: Split, test: Split) -> None:
    kept, held = hold_out(split, 10, seed=3)
    assert held is not None
    keeping = Keeping()
    whole = start(new_network(ARCHITECTURE, 1, 5), settings, kept, test, held)
    records = whole.run(keeping)
    tensors, _ = whole.state()
    assert len(keeping.states) == 2 * (2 + 2 + 1)  # 16 and 14 images; validation and test images; the epoch
    for state, progress in keeping.states:
        resumed = start(new_network(ARCHITECTURE, 1, 99), settings, kept, test, held)
        resumed.restore(state, json.loads(progress))
        assert untimed(resumed.run()) == untimed(records), progress
        again, _ = resumed.state()
        assert list(again) == list(tensors)
        for name, value in tensors.items():
            assert torch.equal(again[name], value), (name, progress)


def test_going_on_from_the_end_does_nothing_more(split: Split, test: Split) -> None:
    keeping = Keeping()
    trained(split, test, EVERYTHING, observer=keeping)
    resumed = start(new_network(ARCHITECTURE, 1, 99), EVERYTHING, split, test)
    state, progress = keeping.states[-1]
    resumed.restore(state, json.loads(progress))
    assert resumed.finished
    steps: list[int] = []
    assert len(resumed.run(Watching(lambda training, images: steps.append(images)))) == 2
    assert steps == []


def test_restoring_a_state_leaves_it_as_it_was(split: Split, test: Split) -> None:
    keeping = Keeping()
    trained(split, test, EVERYTHING, observer=keeping)
    state, progress = keeping.states[1]
    before = {name: value.clone() for name, value in state.items()}
    resumed = start(new_network(ARCHITECTURE, 1, 99), EVERYTHING, split, test)
    resumed.restore(state, json.loads(progress))
    resumed.run()
    assert same(state, before)


def test_the_time_before_an_interruption_counts(split: Split, test: Split) -> None:
    keeping = Keeping()
    trained(split, test, replace(SETTINGS, epochs=1), observer=keeping)
    state, progress = keeping.states[2]
    resumed = start(new_network(ARCHITECTURE, 1, 99), SETTINGS, split, test)
    resumed.restore(state, json.loads(progress) | {"seconds": 1000.0})
    assert 1000 < resumed.run()[0].seconds < 1100


def test_a_state_tells_where_the_training_stands(split: Split, test: Split) -> None:
    keeping = Keeping()
    epochs = trained(split, test, replace(SETTINGS, epochs=2, batch_size=20), observer=keeping)[1]
    places = [json.loads(progress) for _, progress in keeping.states]
    # Two steps, a batch that is measured, the end of the epoch; twice.
    assert [place["step"] for place in places] == [1, 2, 2, 0] * 2
    assert [len(place["records"]) for place in places] == [0, 0, 0, 1, 1, 1, 1, 2]
    assert [Epoch(**record) for record in places[-1]["records"]] == epochs
    assert places[3]["records"] == [asdict(epochs[0])]


# bf16


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("mode", [True, False])
def test_activations_in_bf16_are_exact_multiples_of_the_step(k: int, mode: bool) -> None:
    network = new_network(ARCHITECTURE, k, 0).train(mode)
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
    network = new_network(ARCHITECTURE, 1, 5)
    training = start(network, replace(EVERYTHING, autocast=True), split, test)
    dtypes: set[torch.dtype] = set()
    for block in network.blocks:
        block.register_forward_hook(lambda module, given, out: dtypes.add(out.dtype))
    epochs = training.run()
    assert dtypes == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in network.state_dict().values() if value.is_floating_point())
    assert all(value.dtype == torch.float32 for value in adam_tensors(network, training.optimizer).values())
    assert all(math.isfinite(epoch.loss) for epoch in epochs)
    assert training.objective(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))[0].dtype == torch.float32


def test_bf16_changes_the_weights_a_little_and_its_accuracy_is_measured_as_it_computes(
    split: Split, test: Split
) -> None:
    weights, _ = trained(split, test)
    network = new_network(ARCHITECTURE, 1, 5)
    (epoch,) = start(network, replace(SETTINGS, autocast=True), split, test).run()
    assert not same(network.state_dict(), weights)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach(), weights[name], rtol=0, atol=0.1)  # five steps of 0.01
    with torch.autocast("cpu", torch.bfloat16):
        predictions = predict(network, test.images, 4).argmax(1)
    assert epoch.test_accuracy == int((predictions == test.labels).sum()) / 20


# Compiled


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_training_gives_the_same_curve(split: Split, test: Split) -> None:
    architecture = Architecture.parse("2C3-3", image_size=4, image_channels=1, classes=3)
    curves = []
    for compile in (False, True):
        settings = replace(SETTINGS, epochs=2, compile=compile)
        curves.append(start(new_network(architecture, 1, 5), settings, split, test).run())
    for plain, compiled in zip(*curves, strict=True):
        assert compiled.loss == pytest.approx(plain.loss, rel=1e-5)
        assert (compiled.train_accuracy, compiled.test_accuracy) == (plain.train_accuracy, plain.test_accuracy)


# What a profile says of a phase


def test_each_phase_takes_its_own_epochs_rate_and_schedule_and_the_first_one_the_warmup() -> None:
    train = {"recipe": "strong", "epochs": 7, "learning_rate": 2e-3, "batch_size": 64, "averaging": 0.9}
    train |= {"activation_penalty": 0.5}
    finetune = {"epochs": 3, "learning_rate": 1e-5, "schedule": "linear"}
    data = {"source": "cifar10", "crop": 32}
    profile = make_params(train=train, finetune=finetune, data=data).profiles["paper"]
    both = {"seed": 11, "batch_size": 64, "weight_decay": 0.05, "label_smoothing": 0.1, "averaging": 0.9}
    both |= {"activation_penalty": 0.5, "autocast": True, "compile": False}
    varied = Augmentation(32, flip=True, padding=4, brightness=0.0, contrast=0.0, cutout=8)
    first_phase = {"epochs": 7, "learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.2}
    second_phase = {"epochs": 3, "learning_rate": 1e-5, "schedule": "linear", "warmup": 0.0}
    for phase, own in ((TRAIN, first_phase), (FINETUNE, second_phase)):
        settings = phase_settings(profile, phase, 11, autocast=True, compile=False)
        assert settings == Settings(phase=phase, augmentation=varied, **both, **own)


def test_the_rate_rises_in_the_first_phase_that_there_is() -> None:
    train = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 50, "warmup": 0.25, "schedule": "cosine"}
    profile = make_params(train=train, pretrain={"epochs": 3, "learning_rate": 4e-3}).profiles["paper"]
    phases = [phase_settings(profile, phase, 0, autocast=False, compile=False) for phase in (PRETRAIN, TRAIN, FINETUNE)]
    assert [settings.epochs for settings in phases] == [3, 2, 100]
    assert [settings.learning_rate for settings in phases] == [4e-3, 1e-3, 1e-4]
    assert [settings.schedule for settings in phases] == ["constant", "cosine", "constant"]
    assert [settings.warmup for settings in phases] == [0.25, 0.0, 0.0]
    assert {(settings.batch_size, settings.augmentation) for settings in phases} == {(50, phases[1].augmentation)}


def test_the_defaults_of_a_phase_are_the_published_protocol() -> None:
    profile = make_params().profiles["paper"]
    for phase, rate in ((TRAIN, 1e-3), (FINETUNE, 1e-4)):
        expected = Settings(phase, 100, rate, 200, 0, Augmentation(24))
        assert phase_settings(profile, phase, 0, autocast=False, compile=False) == expected
    recipe = RECIPES["paper"]["train"]
    names = ("flip", "padding", "brightness", "contrast", "cutout")
    assert {name: getattr(Augmentation(24), name) for name in names} == {name: recipe[name] for name in names}


def test_a_state_with_a_small_last_batch_that_more_processes_leave_out_counts_the_other_batches(
    split: Split, test: Split
) -> None:
    # 35 images in batches of 8: the fifth has 3, which two processes would leave out; 32 images have four batches.
    states: list[tuple[dict[str, Tensor], dict[str, Any]]] = []

    def stepped(training: Training, images: int) -> None:
        if training.step == 5 and images:
            tensors, progress = training.state()
            states.append(({name: value.clone() for name, value in tensors.items()}, dict(progress)))

    start(new_network(ARCHITECTURE, 1, 5), SETTINGS, first(split, 35), test).run(Watching(stepped))
    ((tensors, progress),) = states
    tensors["correct"] = torch.tensor([8, 8, 8, 8, 3])
    training = start(new_network(ARCHITECTURE, 1, 5), SETTINGS, first(split, 32), test)
    training.restore(tensors, progress)
    assert (training.step, training.seen, training.accuracy) == (4, 32, 1.0)
    assert training.loss == pytest.approx(float(tensors["losses"][:4].sum()) / 32)
