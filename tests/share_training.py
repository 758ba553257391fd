"""Run by torchrun in test_distributed_training.py: train small networks in several ways and write the results.

torchrun --nproc-per-node N tests/share_training.py FOLDER

The folder holds a state to resume from as state.pt, and the images of a stage. results.pt becomes a list of the results
of each process. Then one of them fails while the others train.
"""

from __future__ import annotations

import copy
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from conftest import PARAMS, changed, labelled, with_averages
from quantspike.data.dataset import Dataset, build_dataset
from quantspike.distributed import Group, process_group
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.params import Params, Recipe
from quantspike.paths import Run, grid_runs
from quantspike.training.evaluation import splits
from quantspike.training.loop import Callback, Epoch, Settings, Training
from quantspike.training.optimizer import Optimizer
from quantspike.workflow import training as workflow

State = tuple[dict[str, Tensor], list[dict[str, Any]]]

ROWS = Architecture.parse("4C3-P2-6C3-5", image_size=4, image_channels=1, classes=3)
SETTINGS = Settings(
    phase=0,
    epochs=2,
    learning_rate=0.01,
    seed=5,
    crop=4,
    recipe=Recipe(
        optimizer="adam",
        batch_size=16,  # of 40 images: 16, 16 and 8, which three processes share unevenly
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
ONE_STEP = changed(SETTINGS, epochs=1, batch_size=35, learning_rate=1.0)
"""With plain descent at rate 1, the gradient is what the weights lose in the step."""


def rows() -> Dataset:
    """Return 40 training and 20 test images with a bright row."""
    return build_dataset(labelled(40, 1), labelled(20, 2), ("top", "middle", "bottom"), kind="images", name="rows")


def small_network(frozen: bool) -> QuantizedCNN:
    """Return an untrained network; frozen, it normalizes by its averages, so that no image depends on another."""
    network = with_averages(new_network(ROWS, "fp32", 0), rows())
    for module in network.modules() if frozen else ():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return network


def small_training(
    settings: Settings, group: Group, network: QuantizedCNN | None = None, images: int = 40, optimizer: Any = None
) -> Training:
    """Return a training before its first step; of its last test images not every process gets a share."""
    network = small_network(frozen=True) if network is None else network
    training, test = splits(rows(), torch.device("cpu"))
    optimizer = optimizer or Optimizer(network, settings.recipe.optimizer)
    return Training(network, optimizer, settings, training.part(slice(images)), test, group)


class Descent(Optimizer):
    """Plain gradient descent."""

    def __init__(self, network: QuantizedCNN) -> None:
        self._descent = torch.optim.SGD(network.parameters())

    def step(self, learning_rate: float, *, bf16: bool = False) -> None:
        self._descent.param_groups[0]["lr"] = learning_rate
        self._descent.step()


def gradients(frozen: bool, group: Group) -> tuple[dict[str, Tensor], Epoch]:
    """Return the gradients for 35 images, and the record of the epoch that is a single step."""
    network = small_network(frozen)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    (record,) = small_training(ONE_STEP, group, network, 35, Descent(network)).run()
    return {name: before[name] - value.detach() for name, value in network.named_parameters()}, record


def weights(training: Training) -> dict[str, Tensor]:
    """Return parameters, running averages and the optimizer's moments."""
    return {**training.network.state_dict(), **training.optimizer.tensors()}


def two_phases(group: Group) -> dict[str, Any]:
    """Train one network twice, with batch normalization over each process's own images."""
    network = small_network(frozen=False)
    optimizer = Optimizer(network, "muon")
    small_training(SETTINGS, group, network, optimizer=optimizer).run()
    second = small_training(changed(SETTINGS, phase=1, learning_rate=0.001), group, network, optimizer=optimizer)
    return {"records": second.run(), "weights": weights(second)}


def as_integers(group: Group) -> dict[str, Any]:
    """Train one network as integers, with a penalty on its synaptic operations."""
    network = with_precision(small_network(frozen=False), 1, weight_bits=8)
    settings = changed(SETTINGS, optimizer="muon", activation_penalty=0.1)
    training = small_training(settings, group, network, optimizer=Optimizer(network, "muon"))
    return {"records": training.run(), "weights": weights(training)}


class Counting(Callback):
    """Notes the images of each step."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def on_step_end(self, training: Training) -> None:
        self.images.append(training.seen - sum(self.images))


def partial_batches(batch_size: int, group: Group) -> dict[str, Any]:
    """Return the images of each step of an epoch, and how many an epoch is said to have."""
    counting = Counting()
    training = small_training(changed(SETTINGS, epochs=1, batch_size=batch_size), group)
    (record,) = training.run([counting])
    return {"steps": counting.images, "images": training.images, "accuracy": record.train_accuracy}


class Spoil(Callback):
    """Makes the loss of the second step NaN in the last process."""

    def on_step_end(self, training: Training) -> None:
        if training.step == 2 and training.group.rank == training.group.size - 1:
            training._losses[1] = torch.nan


def error_of(group: Group, **changes: Any) -> str:
    """Return the error of a training with other settings, in which the loss becomes NaN in one process."""
    images = changes.pop("images", 40)
    try:
        small_training(changed(SETTINGS, **changes), group, images=images).run([Spoil()])
    except QuantspikeError as error:
        return str(error)
    return "no error"


class Keep(Callback):
    """Copies the state after the first epoch."""

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        if epoch.epoch == 1:
            tensors, records = training.state()
            self.state: State = {name: value.clone() for name, value in tensors.items()}, records


def whole(group: Group) -> dict[str, Any]:
    """Train without an interruption, and return the state after the first epoch as well."""
    training, keep = small_training(SETTINGS, group), Keep()
    return {"records": training.run([keep]), "weights": weights(training), "state": keep.state}


def resumed(state: State, group: Group) -> dict[str, Any]:
    """Resume from a state; return that state again and the end of the training."""
    training = small_training(SETTINGS, group)
    training.restore(*copy.deepcopy(state))
    restored = copy.deepcopy(training.state())
    return {"state": restored, "records": training.run(), "weights": weights(training)}


def baseline(folder: Path) -> Run:
    """Return the baseline of the small params file, with two phases."""
    content = copy.deepcopy(PARAMS)
    phases = [{"epochs": epochs, "learning_rate": 0.003} for epochs in (2, 1)]
    content["profiles"]["tiny"] |= {"width": 0.25, "baseline": phases}
    return grid_runs(Params.model_validate(content), folder)[0]


def run_stage(folder: Path, group: Group) -> None:
    """Run the stage `baseline`, untracked, with the processes of a group that exists already."""
    with (
        patch.dict(os.environ, QUANTSPIKE_TRACKING="off"),
        patch.object(workflow, "process_group", lambda: nullcontext(group)),
    ):
        workflow.train_stage(baseline(folder / str(group.size)), "cpu", "baseline")


def results(folder: Path, group: Group) -> dict[str, Any]:
    """Return everything, as this process sees it."""
    too_small = {"batch_size": 2 * group.size - 1}, {"batch_size": 8, "images": 2 * group.size - 1}
    state = folder / "state.pt"
    return {
        "frozen": gradients(True, group),
        "normalized": gradients(False, group),
        "two phases": two_phases(group),
        "as integers": as_integers(group),
        "partial": {size: partial_batches(size, group) for size in (17, 18, 40)},
        "refused": [error_of(group, **changes) for changes in too_small],
        "diverged": error_of(group),
        "whole": whole(group),
        "resumed": resumed(torch.load(state), group) if state.exists() else None,
    }


class Crash(Callback):
    """Fails in the last process, with all others in the midst of a training."""

    def on_step_end(self, training: Training) -> None:
        if training.epoch == 2 and training.group.rank == training.group.size - 1:
            raise RuntimeError("a defect in one process")


if __name__ == "__main__":
    with process_group() as group:
        folder = Path(sys.argv[1])
        gathered = group.gather(results(folder, group))
        run_stage(folder, group)
        if group.rank == 0:
            torch.save(gathered, folder / "results.pt")
        small_training(changed(SETTINGS, epochs=10**6), group).run([Crash()])
