"""The training loop: batches in, weights changed, a record per epoch out. It knows nothing of files.

A step depends on the weights, Adam's moments and its number alone: each epoch draws all its random choices at its
start from a stream of its own, and the rate follows from the step. So training goes on from any step, with any
number of processes, as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quantspike import augmentation
from quantspike.adam import adam_tensors, restore_adam
from quantspike.augmentation import Augmentation, Draws
from quantspike.distributed import Group
from quantspike.errors import QuantspikeError
from quantspike.measuring import Split, channels_last, predict
from quantspike.networks import QuantizedCNN
from quantspike.params import Finetune, Pretrain, Profile, Train

TRAIN, FINETUNE, PRETRAIN = 0, 1, 2
"""The phases: each draws its randomness from streams of its own."""

_CHECK_EVERY = 25
"""Steps between looks at the losses on a GPU, which has to be waited for."""


@dataclass(frozen=True)
class Settings:
    """What one phase does; the names are those of params.yaml.

    Attributes:
        phase: PRETRAIN, TRAIN or FINETUNE.
        seed: the run's seed.
        autocast: whether convolutions and the classifier multiply in bf16.
        compile: whether torch.compile builds the forward and backward pass.
    """

    phase: int
    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    augmentation: Augmentation
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.0
    activation_penalty: float = 0.0
    autocast: bool = False
    compile: bool = False


def phase_settings(profile: Profile, phase: int, seed: int, *, autocast: bool, compile: bool) -> Settings:
    """What a profile says of one of its phases."""
    train, pretrain = profile.train, profile.pretrain
    sections: dict[int, Pretrain | Train | Finetune]
    sections = {PRETRAIN: pretrain, TRAIN: train, FINETUNE: profile.finetune}
    section, first = sections[phase], PRETRAIN if pretrain.epochs else TRAIN
    return Settings(
        phase=phase,
        epochs=section.epochs,
        learning_rate=section.learning_rate,
        batch_size=train.batch_size,
        seed=seed,
        augmentation=Augmentation(
            profile.data.crop, train.flip, train.padding, train.brightness, train.contrast, train.cutout
        ),
        schedule=section.schedule,
        warmup=train.warmup if phase == first else 0.0,
        weight_decay=train.weight_decay,
        label_smoothing=train.label_smoothing,
        averaging=train.averaging,
        activation_penalty=train.activation_penalty,
        autocast=autocast,
        compile=compile,
    )


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve; accuracies from 0 to 1.

    Attributes:
        epoch: counted from 1 in each phase.
        loss: what was minimized, mean over the epoch's training images, as they were trained on.
        train_accuracy: share of those same augmented images that were classified correctly.
        validation_accuracy: share of the held-out training images, None if none are held out.
        test_accuracy: share of the test images. It is recorded and chooses nothing.
        learning_rate: Adam's rate at the last step.
        seconds: wall time, both measurements included.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float | None
    test_accuracy: float
    learning_rate: float
    seconds: float


class NotFiniteError(QuantspikeError):
    """A loss or a weight is infinite or not a number."""


class Observer(Protocol):
    """Who is told how training goes, and may end it."""

    def stepped(self, training: Training, images: int) -> None:
        """After each step with its number of images, and with 0 between batches that are only measured."""

    def measured(self, training: Training, epoch: Epoch) -> None:
        """After each epoch."""


class Unobserved:
    """Nobody is told."""

    def stepped(self, training: Training, images: int) -> None:
        """Nothing."""

    def measured(self, training: Training, epoch: Epoch) -> None:
        """Nothing."""


def rate_factor(schedule: str, warmup: float, done: float) -> float:
    """The learning rate at a point of a phase, as a share of the highest.

    Args:
        schedule: `constant`, `linear` or `cosine`.
        warmup: share of the phase in which the rate rises from 0.
        done: share of the phase that is over, from 0 to 1.
    """
    if done < warmup:
        return done / warmup
    after = (done - warmup) / (1 - warmup)
    falling = {"constant": 1.0, "linear": 1 - after, "cosine": (1 + math.cos(math.pi * after)) / 2}
    return falling[schedule]


class Objective(nn.Module):
    """A network with the loss that is minimized.

    Forward: standardized images [N, C, H, W] and labels [N] -> the sum of the loss over the images, and how many
    of them were classified correctly.
    """

    def __init__(self, network: QuantizedCNN, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.autocast):
            scores, spikes = self._scores(images)
        loss = functional.cross_entropy(
            scores.float(), labels, reduction="sum", label_smoothing=self.settings.label_smoothing
        )
        if self.settings.activation_penalty:
            loss = loss + self.settings.activation_penalty * spikes / self.network.architecture.neurons
        return loss, (scores.detach().argmax(1) == labels).sum()

    def _scores(self, images: Tensor) -> tuple[Tensor, Tensor | float]:
        """Class scores, and the spikes that all activations stand for if they are to be paid for."""
        if not self.settings.activation_penalty:
            return self.network(images), 0.0
        activations = list(self.network.activations(images))
        per_unit = 1.0 if self.network.k == "fp32" else 2.0**self.network.k
        spikes = torch.stack([layer.sum(dtype=torch.float32) for layer in activations]).sum() * per_unit
        return self.network.classify(activations[-1]), spikes


class Training:
    """One phase of training, step by step.

    Attributes:
        network: the weights that are trained.
        objective: the network with its loss, shared between the processes and compiled where that is wanted.
        optimizer: Adam over them.
        settings: what the phase does.
        records: the epochs that are complete.
        step: steps done in the epoch at work.
        seconds: wall time spent on the epoch at work.
    """

    def __init__(
        self,
        network: QuantizedCNN,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        training: Split,
        test: Split,
        validation: Split | None = None,
        group: Group = Group(),  # noqa: B008 (it is frozen)
    ) -> None:
        """Gets ready for the first step.

        Args:
            network: on the device of the images; trained in place.
            optimizer: over the network's parameters.
            settings: what to do.
            training: images to learn from.
            test: images measured after each epoch, never learned from and never used to choose.
            validation: images held out of the training set, measured like the test images.
            group: the processes that share every batch; all have the same images and the same network.
        """
        self.optimizer, self.settings, self.group = optimizer, settings, group
        self._training, self._test, self._validation = training, test, validation
        self.device = training.labels.device
        self.network = _synchronized(network, group, self.device)
        self.objective = _parallel(Objective(self.network, settings), group, self.device)
        average = _young_average(settings.averaging)
        self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True) if settings.averaging else None
        # A batch must leave each process two images or more: one alone has no variance to be normalized by.
        whole, rest = divmod(len(training), settings.batch_size)
        self.steps = whole + (rest >= 2 * group.size)
        if settings.batch_size < 2 * group.size or self.steps == 0:
            needed = f"{group.size} processes need {2 * group.size} at least: take fewer processes or a larger batch"
            raise QuantspikeError(
                f"train.batch_size is {settings.batch_size} and there are {len(training)} training images, but "
                f"{'1 process needs 2 at least' if group.size == 1 else needed}"
            )
        self.records: list[Epoch] = []
        self.step = 0
        self.seconds = 0.0
        self._losses = torch.zeros(self.steps, dtype=torch.float64, device=self.device)
        self._correct = torch.zeros(self.steps, dtype=torch.int64, device=self.device)
        self._set_rate()

    @property
    def epoch(self) -> int:
        """Number of the epoch at work, from 1."""
        return len(self.records) + 1

    @property
    def finished(self) -> bool:
        """Whether every epoch is complete."""
        return len(self.records) == self.settings.epochs

    @property
    def seen(self) -> int:
        """Images trained on in the epoch at work."""
        return min(self.step * self.settings.batch_size, len(self._training))

    @property
    def images(self) -> int:
        """Images trained on in a whole epoch."""
        return min(self.steps * self.settings.batch_size, len(self._training))

    @property
    def loss(self) -> float:
        """Mean over the images trained on in the epoch at work; of several processes, estimated by the first."""
        return float(self._losses.sum()) * self.group.size / max(self.seen, 1)

    @property
    def accuracy(self) -> float:
        """Share of the same images classified correctly, from 0 to 1."""
        return float(self._correct.sum()) * self.group.size / max(self.seen, 1)

    def run(self, observer: Observer = Unobserved()) -> list[Epoch]:  # noqa: B008 (it has no state)
        """Trains from wherever the phase stands to its end; the weights that count are the last ones.

        Raises:
            NotFiniteError: the loss, or a weight, is no longer finite.
        """
        while not self.finished:
            self._one_epoch(observer)
        if self._average is not None:
            self.network.load_state_dict(self._average.module.state_dict())
        return self.records

    def check_finite(self) -> None:
        """Makes sure that nothing has gone astray so far, in any process; all of them must call it.

        Raises:
            NotFiniteError: a loss or a weight is not finite.
        """
        losses = self.group.sum(self._losses)
        astray = (~torch.isfinite(losses)).nonzero()
        if len(astray):
            step = int(astray[0])
            raise NotFiniteError(
                f"the loss became {float(losses[step])} in epoch {self.epoch}, step {step + 1}: {self._advice()}"
            )
        own = [name for name, value in self.network.state_dict().items() if not torch.isfinite(value).all()]
        # Without synchronization, running averages are each process's own.
        if self.group.maximum(bool(own)):
            name = own[0] if own else "a running average of another process"
            raise NotFiniteError(
                f"{name} is no longer finite after epoch {self.epoch}, step {self.step}: {self._advice()}"
            )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a later process needs to go on: tensors, and the rest as JSON has it. All processes must call it."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= adam_tensors(self.network, self.optimizer)
        if self._average is not None:
            tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        tensors |= {"losses": self.group.sum(self._losses), "correct": self.group.sum(self._correct)}
        progress = {"records": [asdict(epoch) for epoch in self.records], "step": self.step, "seconds": self.seconds}
        return tensors, progress

    def restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Goes back to a state, whatever number of processes it was taken with."""
        self.network.load_state_dict(_under("network.", tensors))
        restore_adam(self.network, self.optimizer, tensors)
        if self._average is not None:
            self._average.load_state_dict(_under("average.", tensors))
        # Each process takes an equal part of the sums, so that any of them can still estimate the whole.
        # Their number decides whether a small last batch is left out, so there may be a step more or less.
        common = min(self.steps, len(tensors["losses"]))
        self._losses[:common] = tensors["losses"][:common].to(self.device) / self.group.size
        # Whole numbers are shared by their sums so far, so that what is left over of each step does not add up.
        correct = tensors["correct"][:common].to(self.device).cumsum(0)
        rank, size = self.group.rank, self.group.size
        so_far = correct * (rank + 1) // size - correct * rank // size
        self._correct[:common] = so_far.diff(prepend=so_far.new_zeros(1))
        self.records = [Epoch(**record) for record in progress["records"]]
        self.step, self.seconds = min(progress["step"], self.steps), progress["seconds"]
        self._set_rate()

    def _one_epoch(self, observer: Observer) -> None:
        self.network.train()
        order, draws = self._draw()
        start = time.perf_counter() - self.seconds
        while self.step < self.steps:
            first = self.step * self.settings.batch_size
            batch = slice(first, min(first + self.settings.batch_size, len(order)))
            self._one_step(order[batch], draws.part(batch))
            self.step += 1
            self.seconds = time.perf_counter() - start
            if self.device.type == "cpu" or self.step % _CHECK_EVERY == 0 or self.step == self.steps:
                self._check_losses()
            observer.stepped(self, batch.stop - batch.start)
        self.check_finite()
        self._synchronize_averages()
        losses, correct = self.group.sum(self._losses), self.group.sum(self._correct)
        validation, test = self._measure(self._validation, observer), self._measure(self._test, observer)
        assert test is not None
        record = Epoch(
            epoch=self.epoch,
            loss=losses.sum().item() / self.seen,
            train_accuracy=correct.sum().item() / self.seen,
            validation_accuracy=validation,
            test_accuracy=test,
            learning_rate=self._rate(self.steps - 1),
            seconds=time.perf_counter() - start,
        )
        self.records.append(record)
        self.step, self.seconds = 0, 0.0
        self._losses.zero_()
        self._correct.zero_()
        observer.measured(self, record)

    def _one_step(self, chosen: Tensor, draws: Draws) -> None:
        """Learns from this process's share of a batch, whose gradient is the mean over all of the batch."""
        share = self.group.share(len(chosen))
        images = self._training.images[chosen[share]]
        batch = channels_last(augmentation.augment(images, draws.part(share), self.settings.augmentation))
        self._set_rate()
        loss, correct = self.objective(batch, self._training.labels[chosen[share]])
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over the processes, of which each has the sum over its own images.
        (loss * (self.group.size / len(chosen))).backward()
        self.optimizer.step()
        self._losses[self.step] = loss.detach()
        self._correct[self.step] = correct
        if self._average is not None:
            self._average.update_parameters(self.network)

    def _draw(self) -> tuple[Tensor, Draws]:
        """The order of the images in the epoch at work, and the choices for each place in it."""
        generator = epoch_generator(self.settings.seed, self.settings.phase, self.epoch, self.device)
        count, size = len(self._training), self._training.images.shape[2]
        order = torch.randperm(count, generator=generator, device=self.device)
        return order, augmentation.draw(count, size, self.settings.augmentation, generator)

    def _rate(self, step: int) -> float:
        """The learning rate of a step of the epoch at work, counted from 0."""
        done = (len(self.records) * self.steps + step) / (self.settings.epochs * self.steps)
        return self.settings.learning_rate * rate_factor(self.settings.schedule, self.settings.warmup, done)

    def _set_rate(self) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self._rate(self.step)

    def _measure(self, split: Split | None, observer: Observer) -> float | None:
        """Accuracy of the weights that would count now, over images shared between the processes."""
        if split is None:
            return None
        own = split.part(self.group.share(len(split)))
        network = self.network if self._average is None else self._average.module

        def between() -> None:
            # Processes that agree on every step have different numbers of batches to measure.
            if self.group.size == 1:
                observer.stepped(self, 0)

        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        if len(own):  # there may be fewer images than processes
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.autocast):
                scores = predict(network, own.images, self.settings.augmentation.crop, between)
            correct += (scores.argmax(1) == own.labels).sum()
        return self.group.sum(correct).item() / len(split)

    def _synchronize_averages(self) -> None:
        """Gives all processes the first one's running averages; weights are equal already."""
        for module in (self.network, self._average):
            for buffer in module.buffers() if module is not None else ():
                self.group.broadcast(buffer)

    def _check_losses(self) -> None:
        if self.group.maximum(not math.isfinite(float(self._losses.sum()))):
            self.check_finite()

    def _advice(self) -> str:
        return f"the learning rate {self.settings.learning_rate:g} may be too high; try a tenth of it or a larger batch"


def _young_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """A running average whose decay grows to `decay`, so that what it began with is soon forgotten.

    Batch normalization's variances begin at 1, a hundred times what they become: with the full decay from the start
    they would outweigh all later ones for hundreds of steps.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:
        now = min(decay, int(count) / (int(count) + 10))
        get_ema_multi_avg_fn(now)(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


def _synchronized(network: QuantizedCNN, group: Group, device: torch.device) -> QuantizedCNN:
    """On GPUs, batch normalization over the images of all processes; the parameters stay the same objects."""
    if group.size > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return network


def _parallel(objective: Objective, group: Group, device: torch.device) -> nn.Module:
    """The objective with gradients that are shared between the processes, compiled if that is wanted."""
    module: nn.Module = objective
    if objective.settings.compile:
        module = torch.compile(objective)  # type: ignore[assignment]
    if group.size > 1:
        module = DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
    return module


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def epoch_generator(seed: int, phase: int, epoch: int, device: torch.device) -> torch.Generator:
    """The randomness of one epoch, independent of all that came before it.

    An epoch's stream depends on nothing but its arguments, so training that goes on after an
    interruption sees what it would have seen.
    """
    state = np.random.SeedSequence([seed, phase, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
