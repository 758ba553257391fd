"""Run by torchrun in test_distributed_training.py: trains small networks in several ways, and writes what came of it.

torchrun --nproc-per-node N tests/share_training.py FOLDER [until-stopped]

The folder holds digits.safetensors, and as state-NAME.pt states to go on from. found-N.pt becomes a list of what each
of the N processes found; until-stopped lets a training follow that ends by a signal, and stopped-RANK.json tells where.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conftest import labelled, with_averages
from quantspike.adam import adam_tensors, make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import Augmentation
from quantspike.data import Dataset, build_dataset, load_dataset
from quantspike.distributed import Group, processes
from quantspike.errors import QuantspikeError
from quantspike.measuring import Split, splits
from quantspike.networks import QuantizedCNN, new_network
from quantspike.phases import run_phase
from quantspike.resume import ResumeStore
from quantspike.stopping import Stopped
from quantspike.training import TRAIN, Epoch, NotFiniteError, Settings, Training

State = tuple[dict[str, Tensor], dict[str, Any]]

ROWS = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)
DIGITS = Architecture.parse("4C3-P2-8C3-P2-16", image_size=8, image_channels=1)
SETTINGS = Settings(TRAIN, epochs=1, learning_rate=0.01, batch_size=8, seed=5, augmentation=Augmentation(crop=4))
ONE_STEP = replace(SETTINGS, batch_size=35, learning_rate=1.0, label_smoothing=0.1, activation_penalty=0.05)
"""With plain descent at rate 1, the gradient is what the weights lose in the step."""

SEVERAL_STEPS = replace(SETTINGS, epochs=2, batch_size=16)
"""Of 40 images: 16, 16 and 8 at a time, which three processes share unevenly."""

ON_DIGITS = replace(SETTINGS, epochs=3, batch_size=50, augmentation=Augmentation(8, False, 0, 0, 0, 0))
SEEDS = range(3)


def rows() -> Dataset:
    """40 training and 20 test images that bear a bright row."""
    return build_dataset(labelled(40, 1), labelled(20, 2), ("top", "middle", "bottom"), kind="images", name="rows")


def small_network(frozen: bool, k: Any = "fp32") -> QuantizedCNN:
    """An untrained network. Frozen, its batch normalization goes by averages and looks at one image at a time."""
    network = with_averages(new_network(ROWS, k, 0), rows())
    for module in network.modules() if frozen else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # it stays as it is
    return network


def small_training(settings: Settings, group: Group, *, frozen: bool = False, images: int = 40) -> Training:
    """By Adam, before its first step; the validation image is a single one, which not every process can have."""
    network = small_network(frozen)
    optimizer = make_adam(network, settings.learning_rate)
    training, test = splits(rows(), torch.device("cpu"))
    validation = Split(test.images[:1], test.labels[:1])
    return Training(network, optimizer, settings, training.part(slice(images)), test, validation, group)


def gradients(frozen: bool, group: Group) -> tuple[dict[str, Tensor], Epoch]:
    """Of 35 images, all parameters' gradients and the record of the epoch that is a single step."""
    network = small_network(frozen)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    training, test = splits(rows(), torch.device("cpu"))
    descent = torch.optim.SGD(network.parameters(), lr=1.0)
    phase = Training(network, descent, ONE_STEP, training.part(slice(35)), test, group=group)
    (record,) = phase.run()
    return {name: before[name] - value.detach() for name, value in network.named_parameters()}, record


class Counting:
    """Notes how many images each step has."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def stepped(self, training: Training, images: int) -> None:
        self.images += [images] if images else []

    def measured(self, training: Training, epoch: Epoch) -> None:
        pass


class Enough(Exception):
    """Ends a training in its midst."""


class StopAt:
    """Ends a training after a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.place = (epoch, step)

    def stepped(self, training: Training, images: int) -> None:
        if (training.epoch, training.step) == self.place:
            raise Enough

    def measured(self, training: Training, epoch: Epoch) -> None:
        pass


def interrupted(group: Group) -> dict[str, Any]:
    """State after two of three steps of the second epoch, and the loss shown before and after it was taken."""
    training = small_training(SEVERAL_STEPS, group, frozen=True)
    with suppress(Enough):
        training.run(StopAt(2, 2))
    shown = (training.loss, training.accuracy)
    state = copied(training.state())
    return {"state": state, "shown": shown, "shown after": (training.loss, training.accuracy)}


def resumed(state: State, group: Group) -> dict[str, Any]:
    """The state again, once this group has taken it over; then what the training's end is."""
    training = small_training(SEVERAL_STEPS, group, frozen=True)
    training.restore(*state)
    found: dict[str, Any] = {
        "place": (training.epoch, training.step),
        "state": copied(training.state()),
        "shown": (training.loss, training.accuracy),
    }
    found["records"] = training.run() if len(training.records) < SEVERAL_STEPS.epochs else []
    return found | {"weights": weights(training)}


def copied(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state[0].items()}, state[1]


def weights(training: Training) -> dict[str, Tensor]:
    """Parameters, running averages and Adam's moments."""
    return {**training.network.state_dict(), **adam_tensors(training.network, training.optimizer)}


def whole_phase(group: Group) -> dict[str, Any]:
    """Two epochs with batch normalization over each process's own images, and a running average of the weights."""
    training = small_training(replace(SEVERAL_STEPS, averaging=0.9), group)
    records = training.run()
    return {"weights": weights(training), "records": records}


def partial_batch(batch_size: int, group: Group) -> dict[str, Any]:
    """Images of each step of two epochs, and how many an epoch is said to have."""
    training, counting = small_training(replace(SETTINGS, epochs=2, batch_size=batch_size), group), Counting()
    training.run(counting)
    return {"steps": counting.images, "images": training.images, "records": training.records}


class Astray(Counting):
    """Makes the last process's loss of the first step not a number, after the second step."""

    def stepped(self, training: Training, images: int) -> None:
        if training.step == 2 and training.group.rank == training.group.size - 1:
            training._losses[0] = torch.nan


def going_astray(group: Group) -> str:
    """What is said when the loss of one process is not finite."""
    try:
        small_training(SEVERAL_STEPS, group).run(Astray())
    except NotFiniteError as error:
        return str(error)
    return "no error"


def refusal(batch_size: int, images: int, group: Group) -> str:
    """What is said where processes would get less than two images."""
    try:
        small_training(replace(SETTINGS, batch_size=batch_size), group, images=images)
    except QuantspikeError as error:
        return str(error)
    return "no error"


def accuracy_on_digits(path: Path, seed: int, group: Group) -> float:
    """Test accuracy after some epochs on half of the training images."""
    network, (training, test) = new_network(DIGITS, 1, seed), splits(load_dataset(path), torch.device("cpu"))
    settings = replace(ON_DIGITS, seed=seed)
    optimizer = make_adam(network, settings.learning_rate)
    half = training.part(slice(700))
    return Training(network, optimizer, settings, half, test, group=group).run()[-1].test_accuracy


def results(folder: Path, group: Group) -> dict[str, Any]:
    """All of it, as this process finds it."""
    states = {path.stem.removeprefix("state-"): torch.load(path) for path in sorted(folder.glob("state-*.pt"))}
    return {
        "frozen": gradients(True, group),
        "normalized": gradients(False, group),
        "whole": whole_phase(group),
        "partial": {size: partial_batch(size, group) for size in (18, 37, 40)},
        "refused": [refusal(2 * group.size - 1, 40, group), refusal(8, 2 * group.size - 1, group)],
        "astray": going_astray(group),
        "interrupted": interrupted(group),
        "resumed": {name: resumed(state, group) for name, state in states.items()},
        "digits": [accuracy_on_digits(folder / "digits.safetensors", seed, group) for seed in SEEDS if group.size < 3],
    }


def resume_store(folder: Path) -> ResumeStore:
    return ResumeStore(folder / "resume", "train", "0" * 16)


def train_until_stopped(folder: Path, group: Group) -> None:
    training = small_training(replace(SEVERAL_STEPS, epochs=10**6), group, frozen=True)
    try:
        run_phase(training, resume_store(folder), checkpoint_minutes=1000.0)
    except Stopped as stop:
        place = {"message": str(stop), "status": stop.status, "epoch": training.epoch, "step": training.step}
        (folder / f"stopped-{group.rank}.json").write_text(json.dumps(place))


if __name__ == "__main__":
    with processes() as group:
        folder = Path(sys.argv[1])
        found = group.gather(results(folder, group))
        if group.rank == 0:
            torch.save(found, folder / f"found-{group.size}.pt")
        if "until-stopped" in sys.argv:
            train_until_stopped(folder, group)
