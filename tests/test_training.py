"""The training loop: what is learned from, what is only measured, and that a seed decides everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantspike import augmentation, training
from quantspike.architecture import Architecture
from quantspike.checkpoints import load_checkpoint, resume_adam, save_checkpoint
from quantspike.data import Dataset
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN, new_network
from quantspike.training import FINETUNE, TRAIN, Epoch, Schedule, Split, epoch_generator, hold_out, make_adam, measure

SCHEDULE = Schedule(phase=TRAIN, epochs=1, batch_size=8, crop=4, flip=True, seed=5)
ARCHITECTURE = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)

Weights = dict[str, Tensor]


@pytest.fixture
def split(tiny_dataset: Dataset) -> Split:
    """40 training images of 6 x 6."""
    return training.splits(tiny_dataset, torch.device("cpu"))[0]


@pytest.fixture
def test(tiny_dataset: Dataset) -> Split:
    """20 test images."""
    return training.splits(tiny_dataset, torch.device("cpu"))[1]


def first(split: Split, n: int) -> Split:
    return Split(split.images[:n], split.labels[:n])


def trained(
    split: Split,
    test: Split,
    schedule: Schedule = SCHEDULE,
    validation: Split | None = None,
    report: Callable[[Epoch], None] | None = None,
) -> tuple[Weights, list[Epoch]]:
    """Weights and curve of a fresh network after one phase."""
    network = new_network(ARCHITECTURE, 1, schedule.seed)
    epochs = training.train(network, make_adam(network, 0.01), schedule, split, test, validation, report)
    return network.state_dict(), epochs


def same(first: Weights, second: Weights) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


# What a step does


def test_the_loop_does_what_a_plain_loop_with_adam_does(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 5).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, fused=True)
    losses, correct = [], 0
    for epoch in (1, 2):
        losses, correct = [], 0
        generator = epoch_generator(5, TRAIN, epoch, torch.device("cpu"))
        order = torch.randperm(40, generator=generator)
        for start in range(0, 40, 16):  # 16, 16 and 8 images
            chosen = order[start : start + 16]
            draws = augmentation.draw(len(chosen), 6, 4, flip=True, generator=generator)
            batch = augmentation.augment(split.images[chosen], draws, 4).contiguous(memory_format=torch.channels_last)
            scores = network(batch)
            loss = functional.cross_entropy(scores, split.labels[chosen])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item() * len(chosen))
            correct += int((scores.argmax(1) == split.labels[chosen]).sum())
    weights, epochs = trained(split, test, replace(SCHEDULE, epochs=2, batch_size=16))
    assert same(weights, network.state_dict())
    assert epochs[-1].loss == pytest.approx(sum(losses) / 40, rel=1e-12)
    assert epochs[-1].train_accuracy == correct / 40


def test_adam_moves_weights_by_the_published_formula() -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    adam = make_adam(network, 1e-3)
    weight = network.classifier.weight
    expected = weight.detach().double().clone()
    mean, square = torch.zeros_like(expected), torch.zeros_like(expected)
    random = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        gradient = weight.grad.double()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        expected -= 1e-3 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        adam.step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-7)


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
    schedule = replace(SCHEDULE, epochs=25, crop=6, flip=False)
    epochs = training.train(network, make_adam(network, 0.02), schedule, split, test)
    assert epochs[-1].loss < 0.3 * epochs[0].loss
    assert epochs[-1].test_accuracy > 0.8


# Batches


def batches_of(split: Split, test: Split, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The stored images that go into each batch of a phase."""
    seen: list[Tensor] = []
    original = augmentation.augment

    def watching(images: Tensor, *arguments: object) -> Tensor:
        seen.append(images)
        return original(images, *arguments)

    monkeypatch.setattr(augmentation, "augment", watching)
    trained(split, test, schedule)
    return seen


@pytest.mark.parametrize(
    ("images", "size", "expected"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 4]), (3, 4, [3]), (9, 8, [8])]
)
def test_a_last_partial_batch_is_used_unless_it_is_a_single_image(
    images: int, size: int, expected: list[int], split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(first(split, images), test, replace(SCHEDULE, batch_size=size), monkeypatch)
    assert [len(batch) for batch in batches] == expected


def test_every_epoch_sees_every_image_once_in_another_order(
    split: Split, test: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = batches_of(split, test, replace(SCHEDULE, epochs=2, batch_size=16), monkeypatch)
    orders = [torch.cat(part).flatten(1).tolist() for part in (batches[:3], batches[3:])]
    assert orders[0] != orders[1] != split.images.flatten(1).tolist()
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(split.images.flatten(1).tolist())


def test_the_mean_loss_counts_every_image_once(split: Split, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 4.0, 10.0])  # batches of 4, 4 and 2 images: (4 + 16 + 20) / 10 = 4
    original = functional.cross_entropy

    def fixed(scores: Tensor, labels: Tensor) -> Tensor:
        loss = original(scores, labels)
        return loss * 0 + next(losses) if scores.requires_grad else loss

    monkeypatch.setattr(functional, "cross_entropy", fixed)
    epochs = trained(first(split, 10), test, replace(SCHEDULE, batch_size=4))[1]
    assert epochs[0].loss == 4.0


# Seeds


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(split: Split, test: Split) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    weights, epochs = trained(split, test, replace(SCHEDULE, epochs=2))
    torch.manual_seed(2)
    np.random.seed(2)
    again, epochs_again = trained(split, test, replace(SCHEDULE, epochs=2))
    assert same(weights, again)
    assert [replace(epoch, seconds=0) for epoch in epochs] == [replace(epoch, seconds=0) for epoch in epochs_again]


def test_another_seed_gives_other_weights(split: Split, test: Split) -> None:
    assert not same(trained(split, test)[0], trained(split, test, replace(SCHEDULE, seed=6))[0])


def test_training_leaves_the_global_generator_alone(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    before = torch.get_rng_state()
    training.train(network, make_adam(network, 0.01), SCHEDULE, split, test)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_phase_and_epoch_each_have_a_stream_of_their_own() -> None:
    cpu = torch.device("cpu")
    places = [
        (seed, phase, epoch) for seed in (0, 1, 2**32 - 1) for phase in (TRAIN, FINETUNE) for epoch in (1, 2, 100)
    ]
    streams = {tuple(torch.rand(4, generator=epoch_generator(*place, cpu)).tolist()) for place in places}
    assert len(streams) == len(places)
    again = [torch.rand(4, generator=epoch_generator(7, TRAIN, 3, cpu)).tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_a_longer_training_begins_like_a_shorter_one(split: Split, test: Split) -> None:
    short, long = (trained(split, test, replace(SCHEDULE, epochs=epochs))[1] for epochs in (1, 3))
    assert replace(long[0], seconds=0) == replace(short[0], seconds=0)


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
    weights = trained(split, test, replace(SCHEDULE, epochs=2))[0]
    assert same(weights, trained(split, other, replace(SCHEDULE, epochs=2))[0])
    assert same(weights, trained(split, test, replace(SCHEDULE, epochs=2), validation=other)[0])


def test_held_out_images_do_not_change_the_weights_either(split: Split, test: Split) -> None:
    kept, held = hold_out(split, 10, seed=3)
    assert held is not None
    altered = Split(torch.zeros_like(held.images), held.labels)
    assert same(trained(kept, test, validation=held)[0], trained(kept, test, validation=altered)[0])


def test_each_accuracy_is_that_of_its_own_images(split: Split, test: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, held = hold_out(split, 10, seed=3)
    assert held is not None
    shares = {id(test): 0.25, id(held): 0.75}
    monkeypatch.setattr(training, "measure", lambda network, images, crop: (shares[id(images)], 0.0))
    (epoch,) = trained(kept, test, validation=held)[1]
    assert (epoch.test_accuracy, epoch.validation_accuracy) == (0.25, 0.75)


def test_accuracies_are_measured_after_the_last_step_of_an_epoch(split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    epochs = training.train(network, make_adam(network, 0.01), replace(SCHEDULE, epochs=2), split, test, split)
    assert epochs[-1].test_accuracy == measure(network, test, 4)[0]
    assert epochs[-1].validation_accuracy == measure(network, split, 4)[0]


# Records and errors


def test_each_epoch_is_reported_as_it_ends(split: Split, test: Split) -> None:
    reported: list[Epoch] = []
    _, epochs = trained(split, test, replace(SCHEDULE, epochs=3), report=reported.append)
    assert reported == epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    assert {epoch.learning_rate for epoch in epochs} == {0.01}
    assert all(epoch.seconds > 0 for epoch in epochs)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_with_advice(value: float, split: Split, test: Split) -> None:
    network = new_network(ARCHITECTURE, 1, 0)
    nn.init.constant_(network.classifier.weight, value)
    message = r"the loss became nan in epoch 1, step 1: the learning rate 0\.5 may be too high; try a tenth of it"
    with pytest.raises(QuantspikeError, match=message):
        training.train(network, make_adam(network, 0.5), SCHEDULE, split, test)


# Going on with the second phase


@pytest.mark.parametrize("k", ["fp32", 1])
def test_training_goes_on_from_a_file_as_if_it_had_never_stopped(
    k: int, split: Split, test: Split, tmp_path: Path
) -> None:
    second = replace(SCHEDULE, phase=FINETUNE, epochs=3)
    networks: list[QuantizedCNN] = []
    for through_file in (False, True):
        network = new_network(ARCHITECTURE, k, 5)
        adam = make_adam(network, 0.01)
        training.train(network, adam, SCHEDULE, split, test)
        if through_file:
            save_checkpoint(tmp_path / "x.safetensors", network, adam)
            checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, k)
            network, adam = checkpoint.network, resume_adam(checkpoint, 0.001)
        else:
            adam.param_groups[0]["lr"] = 0.001
        epochs = training.train(network, adam, second, split, test)
        assert {epoch.learning_rate for epoch in epochs} == {0.001}
        assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
        networks.append(network)
    assert same(networks[0].state_dict(), networks[1].state_dict())


def test_every_weight_goes_on_with_its_own_moments(split: Split, test: Split, tmp_path: Path) -> None:
    # Fused Adam walks through a weight and its moments in the order they lie in memory, whatever their strides say.
    network = new_network(ARCHITECTURE, 1, 5)
    adam = make_adam(network, 0.01)
    training.train(network, adam, replace(SCHEDULE, epochs=3), split, test)  # 3 x 5 steps
    save_checkpoint(tmp_path / "x.safetensors", network, adam)

    one_batch = replace(SCHEDULE, phase=FINETUNE, batch_size=40, crop=4)
    plain = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    generator = epoch_generator(5, FINETUNE, 1, torch.device("cpu"))
    order = torch.randperm(40, generator=generator)
    draws = augmentation.draw(40, 6, 4, flip=True, generator=generator)
    batch = augmentation.augment(split.images[order], draws, 4)
    functional.cross_entropy(plain.network(batch), split.labels[order]).backward()

    checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
    training.train(checkpoint.network, resume_adam(checkpoint, 0.001), one_batch, split, test)
    for name, weight in plain.network.named_parameters():
        mean = 0.9 * plain.moments[f"adam.exp_avg.{name}"] + 0.1 * weight.grad
        square = 0.999 * plain.moments[f"adam.exp_avg_sq.{name}"] + 0.001 * weight.grad**2
        step = mean / (1 - 0.9**16) / ((square / (1 - 0.999**16)).sqrt() + 1e-8)
        expected = weight.detach() - 0.001 * step
        torch.testing.assert_close(checkpoint.network.get_parameter(name).detach(), expected, rtol=0, atol=1e-5)


def test_the_second_phase_uses_the_moments_of_the_first(split: Split, test: Split, tmp_path: Path) -> None:
    network = new_network(ARCHITECTURE, 1, 5)
    adam = make_adam(network, 0.01)
    training.train(network, adam, SCHEDULE, split, test)
    save_checkpoint(tmp_path / "x.safetensors", network, adam)
    weights = []
    for resume in (True, False):
        checkpoint = load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)
        optimizer = resume_adam(checkpoint, 0.01) if resume else make_adam(checkpoint.network, 0.01)
        training.train(checkpoint.network, optimizer, replace(SCHEDULE, phase=FINETUNE), split, test)
        weights.append(checkpoint.network.state_dict())
    assert not same(*weights)
