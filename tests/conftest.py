"""What several tests share: a tiny data set, a tiny params file, and one thread for all."""

from __future__ import annotations

import os

# Before torch is imported: one thread gives the same sums everywhere, here and in the stages that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

import hostile  # noqa: F401 (sets how many examples are drawn)
from quantspike.data.dataset import Dataset, Labelled, build_dataset
from quantspike.data.preparation import central_images
from quantspike.networks.cnn import QuantizedCNN
from quantspike.params import Recipe
from quantspike.training.loop import Settings

if TYPE_CHECKING:
    from tracking_processes import Server

PARAMS: dict[str, Any] = {
    "grid": {"profile": ["tiny"], "model": ["small"], "k": [1], "seed": [0]},
    "models": {"small": {"layers": "8C3-P2-16C3-P2-16"}},
    "profiles": {
        "tiny": {
            "data": {"source": "digits", "crop": 8, "held_out": 0},
            "width": 0.5,
            "recipe": {
                "optimizer": "adam",
                "batch_size": 50,
                "label_smoothing": 0,
                "shift": 4,
                "flip": "none",
                "brightness": 63,
                "contrast": 0.8,
                "clip": None,
                "arithmetic": "fp32",
            },
            "baseline": [{"epochs": 1, "learning_rate": 0.003}],
            "train": {"start": "scratch", "epochs": 1, "learning_rate": 0.003, "activation_penalty": 0},
            "finetune": {"epochs": 1, "learning_rate": 0.0003, "integer_aware": False},
            "convert": {"weight_bits": 12},
            "simulate": {
                "steps": 20,
                "settle_limit": 200,
                "layer_delay": [0, 3],
                "engine": "auto",
                "batch_size": 100,
                "log_batch": 100,
            },
        }
    },
    "energy": {"fp32_mac": 4.6, "int8_mac": 0.23, "int32_add": 0.1, "on_chip": 5.0, "dram": 640.0},
    "device": "cpu",
}
"""A grid of a baseline and one k, which train in about a second."""


def changed(settings: Settings, **changes: Any) -> Settings:
    """Return settings of a phase with changes, those of the recipe included."""
    recipe = {name: changes.pop(name) for name in list(changes) if name in Recipe.model_fields}
    return replace(settings, recipe=settings.recipe.model_copy(update=recipe), **changes)


Edit = Callable[..., Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the file that takes longest, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(autouse=True, scope="session")
def _no_store_of_the_user() -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and "TELEMETRY" not in name]:
        del os.environ[name]


@pytest.fixture
def params_content() -> dict[str, Any]:
    """The content of a small params file, free to be changed."""
    return copy.deepcopy(PARAMS)


@pytest.fixture
def write_params(tmp_path: Path, params_content: dict[str, Any]) -> Edit:
    """A function that writes the small params file with changes: `write_params({"grid.k": [2], "device": None})`.

    Numbers in a place are indices, as in `profiles.tiny.baseline.0.epochs`; None removes a key.
    """

    def write(changes: dict[str, Any] | None = None) -> Path:
        for place, value in (changes or {}).items():
            *sections, name = place.split(".")
            section: Any = params_content
            for part in sections:
                section = section[int(part) if part.isdecimal() else part]
            if value is None:
                del section[name]
            else:
                section[name] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params_content), encoding="utf-8")
        return path

    return write


def labelled(n: int, seed: int, channels: int = 1, size: int = 6, classes: int = 3) -> Labelled:
    """Return noise whose brightest row tells the class: uint8 images [n, C, size, size] and int64 labels [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    images = random.integers(0, 160, (n, channels, size, size), dtype=np.uint8)
    images[np.arange(n), :, 1 + labels] += 90
    return images, labels


def with_averages(network: QuantizedCNN, dataset: Dataset) -> QuantizedCNN:
    """Return the network after batch normalization has seen the training images, so that activations vary."""
    images = central_images(torch.from_numpy(dataset.train_images), network.architecture.image_size)
    network.train()
    with torch.no_grad():
        for _ in range(60):  # 0.9^60 = 0.002 of what the averages were
            network(images)
    return network


@pytest.fixture
def tiny_dataset() -> Dataset:
    """40 training and 20 test images of 6 x 6 in three classes."""
    return build_dataset(labelled(40, 1), labelled(20, 2), ("top", "middle", "bottom"), kind="images", name="rows")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database; made once, since MLflow takes three seconds for it."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def starting_mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    """An MLflow server that does not answer yet; started once and early, since that takes it five seconds."""
    from tracking_processes import starting_server

    with starting_server(tmp_path_factory.mktemp("server"), empty_database) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(starting_mlflow_server: Server) -> Server:
    """An MLflow server."""
    starting_mlflow_server.wait()
    return starting_mlflow_server
