"""The training loop: batches in, weights changed, a record per epoch out. It knows nothing of files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from quantspike import augmentation
from quantspike.data import Dataset
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN

TRAIN, FINETUNE = 0, 1
"""The two phases: each draws its randomness from streams of its own."""

_TEST_BATCH = 250


@dataclass(frozen=True)
class Split:
    """Images and their labels on the training device.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Schedule:
    """What one phase does.

    Attributes:
        phase: TRAIN or FINETUNE.
        epochs: passes over the training images.
        batch_size: images per step.
        crop: side of the square that the network sees, in pixels.
        flip: whether half of the training images are mirrored.
        seed: the run's seed.
    """

    phase: int
    epochs: int
    batch_size: int
    crop: int
    flip: bool
    seed: int


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve; accuracies from 0 to 1.

    Attributes:
        epoch: counted from 1 in each phase.
        loss: mean cross-entropy over the epoch's training batches, as they were trained on.
        train_accuracy: share of those same augmented images that were classified correctly.
        validation_accuracy: share of the held-out training images, None if none are held out.
        test_accuracy: share of the test images. It is recorded and chooses nothing.
        learning_rate: Adam's rate.
        seconds: wall time, both measurements included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float | None
    test_accuracy: float
    learning_rate: float
    seconds: float


def make_adam(network: QuantizedCNN, learning_rate: float) -> torch.optim.Adam:
    """Adam as published: betas 0.9 and 0.999, eps 1e-8, no weight decay."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def splits(dataset: Dataset, device: torch.device) -> tuple[Split, Split]:
    """Training and test images of a data set, put on a device once and for all."""
    training = Split(torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels))
    test = Split(torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels))
    return training.to(device), test.to(device)


def hold_out(images: Split, count: int, seed: int) -> tuple[Split, Split | None]:
    """Takes `count` images, drawn by the seed, out of the training images.

    Raises:
        QuantspikeError: fewer than two images would be left to train on.
    """
    if count == 0:
        return images, None
    if count > len(images) - 2:
        raise QuantspikeError(
            f"train.validation is {count}, but of {len(images)} training images at most {len(images) - 2} "
            "can be held out"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(images.labels.device)
    held, kept = order[:count], order[count:]
    return Split(images.images[kept], images.labels[kept]), Split(images.images[held], images.labels[held])


def train(
    network: QuantizedCNN,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    training: Split,
    test: Split,
    validation: Split | None = None,
    report: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains a network in place; the weights that count are those after the last epoch.

    Args:
        network: on the device of the images.
        optimizer: over the network's parameters.
        schedule: epochs, batches and seed.
        training: images to learn from.
        test: images measured after each epoch, never learned from and never used to choose.
        validation: images held out of the training set, measured like the test images.
        report: called after each epoch with its record.

    Returns:
        A record per epoch.

    Raises:
        QuantspikeError: the loss, or a weight after the last epoch, is no longer finite.
    """
    records = []
    for epoch in range(1, schedule.epochs + 1):
        start = time.perf_counter()
        loss, accuracy = _one_epoch(network, optimizer, schedule, epoch, training)
        record = Epoch(
            epoch=epoch,
            loss=loss,
            train_accuracy=accuracy,
            validation_accuracy=None if validation is None else measure(network, validation, schedule.crop)[0],
            test_accuracy=measure(network, test, schedule.crop)[0],
            learning_rate=optimizer.param_groups[0]["lr"],
            seconds=time.perf_counter() - start,
        )
        records.append(record)
        if report:
            report(record)
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise QuantspikeError(f"{name} is no longer finite after the last epoch: try a tenth of the learning rate")
    return records


def measure(network: QuantizedCNN, split: Split, crop: int) -> tuple[float, float]:
    """Accuracy, from 0 to 1, and mean cross-entropy of a network over images."""
    scores = predict(network, split.images, crop)
    labels = split.labels.to(scores.device)
    accuracy = (scores.argmax(1) == labels).double().mean().item()
    return accuracy, functional.cross_entropy(scores.double(), labels).item()


def predict(network: QuantizedCNN, images: Tensor, crop: int) -> Tensor:
    """Class scores of test images, as the network gives them in evaluation mode.

    Args:
        network: left in the mode it was in.
        images: uint8 [N, C, H, W].
        crop: side of the central square, in pixels.

    Returns:
        float32 [N, classes].
    """
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            batches = [
                network(_channels_last(augmentation.central_images(part, crop)))
                for part in torch.split(images, _TEST_BATCH)
            ]
            return torch.cat(batches)
    finally:
        network.train(was_training)


def epoch_generator(seed: int, phase: int, epoch: int, device: torch.device) -> torch.Generator:
    """The randomness of one epoch, independent of all that came before it.

    An epoch's stream depends on nothing but its arguments, so training that goes on after an
    interruption sees what it would have seen.
    """
    state = np.random.SeedSequence([seed, phase, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def _one_epoch(
    network: QuantizedCNN, optimizer: torch.optim.Optimizer, schedule: Schedule, epoch: int, training: Split
) -> tuple[float, float]:
    """Mean loss and share of correct predictions over the batches as they were trained on."""
    network.train()
    total_loss, correct, seen = 0.0, 0, 0
    batches = _batches(training, schedule, epoch)
    steps = math.ceil(len(training) / schedule.batch_size)
    bar = tqdm(batches, total=steps, desc=f"epoch {epoch}/{schedule.epochs}", unit="batch", leave=False, disable=None)
    for step, (images, labels) in enumerate(bar, start=1):
        scores = network(images)
        loss = functional.cross_entropy(scores, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise QuantspikeError(
                f"the loss became {value} in epoch {epoch}, step {step}: the learning rate "
                f"{optimizer.param_groups[0]['lr']:g} may be too high; try a tenth of it or a larger batch"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += value * len(labels)
        correct += int((scores.detach().argmax(1) == labels).sum())
        seen += len(labels)
        bar.set_postfix(loss=f"{total_loss / seen:.3f}", accuracy=f"{correct / seen:.3f}")
    return total_loss / seen, correct / seen


def _batches(training: Split, schedule: Schedule, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images once, shuffled and augmented: float32 [B, C, crop, crop] and int64 [B]."""
    device = training.labels.device
    generator = epoch_generator(schedule.seed, schedule.phase, epoch, device)
    order = torch.randperm(len(training), generator=generator, device=device)
    for chosen in torch.split(order, schedule.batch_size):
        if len(chosen) == 1:
            return  # one image alone has no variance for batch normalization to work with
        images = training.images[chosen]
        draws = augmentation.draw(len(chosen), images.shape[2], schedule.crop, flip=schedule.flip, generator=generator)
        yield _channels_last(augmentation.augment(images, draws, schedule.crop)), training.labels[chosen]


def _channels_last(images: Tensor) -> Tensor:
    # The same values in the memory order that convolutions run fastest on: twice as fast on the CPU.
    return images.contiguous(memory_format=torch.channels_last)
