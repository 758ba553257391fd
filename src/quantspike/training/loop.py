"""The training loop: batches in, weights changed, a record per epoch out. It knows nothing of files.

An epoch depends on the weights, the optimizer's moments and its number alone: it draws all its random choices at its
start from a stream of its own. So training resumes after any epoch as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from quantspike.distributed import Group
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import fan_outs
from quantspike.networks.cnn import QuantizedCNN
from quantspike.params import Recipe
from quantspike.training.augmentation import Draws, augment, draw
from quantspike.training.evaluation import Split, channels_last, predict
from quantspike.training.optimizer import Optimizer

_CHECK_EVERY = 25
"""Steps between checks of the losses, for which a GPU has to be waited for."""


@dataclass(frozen=True)
class Settings:
    """What one phase of training does; names and units are those of params.yaml.

    Attributes:
        phase: how many phases the network was trained for before; each has random streams of its own.
        seed: the run's seed.
        activation_penalty: for quantized networks only.
        bf16: whether convolutions, the classifier and Muon multiply in bf16.
    """

    phase: int
    epochs: int
    learning_rate: float
    seed: int
    crop: int
    recipe: Recipe
    activation_penalty: float
    bf16: bool


@dataclass(frozen=True)
class Epoch:
    """One row of the training curve; accuracies from 0 to 1.

    Attributes:
        epoch: counted from 1 in each phase.
        loss: what was minimized, mean over the epoch's augmented training images.
        train_accuracy: share of those images that were classified correctly.
        test_accuracy: share of the test images. It is recorded and chooses nothing.
        learning_rate: at the start of the epoch.
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    learning_rate: float


class Callback:
    """Called while training runs; the methods do nothing unless overridden."""

    def on_step_end(self, training: Training) -> None:
        """Act after each step."""

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        """Act after each epoch, in every process."""


class Objective(nn.Module):
    """A network with the loss that is minimized.

    Forward: standardized images [N, C, H, W] and labels [N] -> the sum of the loss over the images, and how many
    of them were classified correctly.
    """

    def __init__(self, network: QuantizedCNN, settings: Settings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        fans, layers = fan_outs(network.architecture), network.architecture.layers
        synapses = sum(int(fan.sum()) * layer.out_channels for fan, layer in zip(fans, layers, strict=True))
        self._shares = [torch.from_numpy(fan / synapses).float() for fan in fans]

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.bf16):
            scores, synops = self._scores(images)
        smoothing = self.settings.recipe.label_smoothing
        loss = functional.cross_entropy(scores.float(), labels, reduction="sum", label_smoothing=smoothing)
        loss = loss + self.settings.activation_penalty * synops
        return loss, (scores.detach().argmax(1) == labels).sum()

    def _scores(self, images: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return class scores and, if they are penalized, the synaptic operations as a share of the synapses."""
        network = self.network
        if not self.settings.activation_penalty or network.k == "fp32":
            return network(images), 0.0
        activations = list(network.activations(images))
        # Activations of an integer-aware network are counts already.
        per_unit = 2.0**network.k if network.weight_bits is None else 1.0
        synops = [
            (layer.sum(dim=(0, 1), dtype=torch.float32) * share.to(images.device)).sum() * per_unit
            for layer, share in zip(activations, self._shares, strict=True)
        ]
        return network.classify(activations[-1]), torch.stack(synops).sum()


class Training:
    """One phase of training.

    Attributes:
        network: the weights that are trained, in place.
        optimizer: changes them.
        settings: what the phase does.
        group: the processes that share every batch.
        records: the epochs that are complete.
        devices: the hardware that each of them was trained on.
        steps: steps of an epoch.
        step: steps done in the current epoch.
    """

    def __init__(
        self,
        network: QuantizedCNN,
        optimizer: Optimizer,
        settings: Settings,
        training: Split,
        test: Split,
        group: Group = Group(),  # noqa: B008 (it is frozen)
    ) -> None:
        """Prepare the first step.

        Args:
            network: on the device of the images.
            optimizer: over the network's parameters.
            settings: what to do.
            training: images to learn from.
            test: images measured after each epoch, never learned from and never used to choose.
            group: processes that share every batch; all have the same images and the same network.

        Raises:
            QuantspikeError: a batch leaves some process fewer than two images.
        """
        self.network, self.optimizer, self.settings, self.group = network, optimizer, settings, group
        self._training, self._test = training, test
        self.device = training.labels.device
        self._objective = _shared(Objective(network, settings), group, self.device)
        # A batch must leave each process two images or more: one alone has no variance to be normalized by.
        whole, rest = divmod(len(training), settings.recipe.batch_size)
        self.steps = whole + (rest >= 2 * group.size)
        if settings.recipe.batch_size < 2 * group.size or self.steps == 0:
            needed = f"{group.size} processes need {2 * group.size} at least: take fewer processes or a larger batch"
            raise QuantspikeError(
                f"recipe.batch_size is {settings.recipe.batch_size} and there are {len(training)} training images, but "
                f"{'1 process needs 2 at least' if group.size == 1 else needed}"
            )
        self.records: list[Epoch] = []
        self.devices: list[str] = []
        self.step = 0
        self._losses = torch.zeros(self.steps, dtype=torch.float64, device=self.device)
        self._correct = torch.zeros(self.steps, dtype=torch.int64, device=self.device)

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1."""
        return len(self.records) + 1

    @property
    def learning_rate(self) -> float:
        """Learning rate of the current step: constant with Adam; with Muon it falls linearly to 0 over the phase."""
        if self.settings.recipe.optimizer == "adam":
            return self.settings.learning_rate
        done = (len(self.records) + self.step / self.steps) / self.settings.epochs
        return self.settings.learning_rate * (1 - done)

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return min(self.steps * self.settings.recipe.batch_size, len(self._training))

    @property
    def seen(self) -> int:
        """Images trained on in the current epoch."""
        return min(self.step * self.settings.recipe.batch_size, len(self._training))

    @property
    def loss(self) -> float:
        """Mean loss of the current epoch so far; with several processes, this process's estimate."""
        return float(self._losses.sum()) * self.group.size / max(self.seen, 1)

    @property
    def accuracy(self) -> float:
        """Accuracy of the current epoch so far, from 0 to 1; estimated likewise."""
        return float(self._correct.sum()) * self.group.size / max(self.seen, 1)

    def run(self, callbacks: Sequence[Callback] = ()) -> list[Epoch]:
        """Train until every epoch is complete; the weights that count are the last ones.

        Raises:
            QuantspikeError: a loss or a weight became NaN or infinite.
        """
        while len(self.records) < self.settings.epochs:
            record = self._run_epoch(callbacks)
            for callback in callbacks:
                callback.on_epoch_end(self, record)
        return self.records

    def state(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Return what resuming after the last complete epoch needs: tensors by name, and the records as JSON."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        records = [asdict(epoch) | {"device": device} for epoch, device in zip(self.records, self.devices, strict=True)]
        return tensors | self.optimizer.tensors(), records

    def restore(self, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]]) -> None:
        """Return to a state, whatever number of processes it was taken with."""
        prefix = "network."
        network = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        self.network.load_state_dict(network)
        self.optimizer.restore(tensors)
        self.devices = [record["device"] for record in records]
        self.records = [Epoch(**{name: record[name] for name in record if name != "device"}) for record in records]

    def _run_epoch(self, callbacks: Sequence[Callback]) -> Epoch:
        self.network.train()
        self.step = 0
        self._losses.zero_()
        self._correct.zero_()
        learning_rate = self.learning_rate
        order, draws = self._draw()
        while self.step < self.steps:
            first = self.step * self.settings.recipe.batch_size
            batch = slice(first, min(first + self.settings.recipe.batch_size, len(order)))
            self._run_step(order[batch], draws.part(batch))
            self.step += 1
            if self.step % _CHECK_EVERY == 0 or self.step == self.steps:
                self._check_losses()
            for callback in callbacks:
                callback.on_step_end(self)
        return self._finish_epoch(learning_rate)

    def _run_step(self, chosen: Tensor, draws: Draws) -> None:
        """Learn from this process's share of a batch; the gradient is the mean over the whole batch."""
        shard = self.group.shard(len(chosen))
        images = self._training.images[chosen[shard]]
        batch = channels_last(augment(images, draws.part(shard), self.settings.crop))
        loss, correct = self._objective(batch, self._training.labels[chosen[shard]])
        self.network.zero_grad(set_to_none=True)
        # DDP averages over the processes, each of which has the sum over its own images.
        (loss * (self.group.size / len(chosen))).backward()
        self.optimizer.step(self.learning_rate, bf16=self.settings.bf16)
        self._losses[self.step] = loss.detach()
        self._correct[self.step] = correct

    def _finish_epoch(self, learning_rate: float) -> Epoch:
        """Synchronize, check and measure the network, and record the epoch."""
        for buffer in self.network.buffers():  # running averages; weights are equal in all processes already
            self.group.broadcast(buffer)
        self._check_weights()
        losses, correct = self.group.all_reduce_sum(self._losses), self.group.all_reduce_sum(self._correct)
        record = Epoch(
            epoch=self.epoch,
            loss=losses.sum().item() / self.seen,
            train_accuracy=correct.sum().item() / self.seen,
            test_accuracy=self._measure(self._test),
            learning_rate=learning_rate,
        )
        self.records.append(record)
        self.devices.append(device_name(self.device))
        return record

    def _draw(self) -> tuple[Tensor, Draws]:
        """Draw the order of the images in the current epoch, and the choices for each of them."""
        generator = epoch_generator(self.settings.seed, self.settings.phase, self.epoch, self.device)
        count, size = len(self._training), self._training.images.shape[2]
        order = torch.randperm(count, generator=generator, device=self.device)
        draws = draw(count, size, self.settings.crop, self.settings.recipe, generator)
        if self.settings.recipe.flip == "alternating":
            # One choice per image and phase, from the stream of an epoch that is never trained.
            fixed = epoch_generator(self.settings.seed, self.settings.phase, 0, self.device)
            first = torch.rand(count, generator=fixed, device=self.device) < 0.5
            draws = replace(draws, flips=first[order] ^ (self.epoch % 2 == 0))
        return order, draws

    def _measure(self, split: Split) -> float:
        """Return the accuracy over images shared between the processes."""
        own = split.part(self.group.shard(len(split)))
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        if len(own):  # there may be fewer images than processes
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                scores = predict(self.network, own.images, self.settings.crop)
            correct += (scores.argmax(1) == own.labels).sum()
        return self.group.all_reduce_sum(correct).item() / len(split)

    def _check_losses(self) -> None:
        losses = self.group.all_reduce_sum(self._losses)
        if not bool(torch.isfinite(losses).all()):
            step = int((~torch.isfinite(losses)).nonzero()[0])
            raise self._diverged(f"the loss became {float(losses[step])} in epoch {self.epoch}, step {step + 1}")

    def _check_weights(self) -> None:
        for name, value in self.network.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"{name} became NaN or infinite in epoch {self.epoch}")

    def _diverged(self, what: str) -> QuantspikeError:
        learning_rate = self.settings.learning_rate
        return QuantspikeError(
            f"{what}: the learning rate {learning_rate:g} may be too high; try a tenth of it or a larger batch"
        )


def use_bf16(arithmetic: str, device: torch.device) -> bool:
    """Return whether training multiplies in bf16: for `auto`, where the hardware does so itself.

    Where the hardware does not, torch emulates bf16, which is slower than fp32.
    """
    if arithmetic != "auto":
        return arithmetic == "bf16"
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current GPU
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def device_name(device: torch.device) -> str:
    """Return the name of the hardware."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities()["cpu_name"]


def _shared(objective: Objective, group: Group, device: torch.device) -> nn.Module:
    """Share gradients, and on GPUs batch normalization, between the processes; parameters stay the same objects."""
    if group.size == 1:
        return objective
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(objective.network)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)


def epoch_generator(seed: int, phase: int, epoch: int, device: torch.device) -> torch.Generator:
    """Return the randomness of one epoch, which depends on the arguments only and not on earlier epochs."""
    state = np.random.SeedSequence([seed, phase, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
