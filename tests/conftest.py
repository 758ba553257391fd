"""What several tests share: a tiny data set, a tiny params file, and one thread for all."""

from __future__ import annotations

import os

# Before torch is imported: one thread gives the same sums everywhere, here and in the stages that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from quantspike import augmentation
from quantspike.class_folders import Labelled
from quantspike.data import Dataset, build_dataset
from quantspike.networks import QuantizedCNN
from quantspike.tracking import publish
from tracking_processes import Server, starting_server

PARAMS: dict[str, Any] = {
    "run": {"profile": ["tiny"], "model": ["small"], "k": ["fp32", 1], "seed": [0]},
    "models": {"small": {"layers": "8C3-P2-16C3-P2-16"}},
    "profiles": {
        "tiny": {
            "data": {"source": "digits", "crop": 8},
            "width": 0.5,
            "pretrain": {"epochs": 0},
            "train": {"epochs": 1, "learning_rate": 0.003, "batch_size": 50, "validation": 100, "flip": False},
            "finetune": {"epochs": 1, "learning_rate": 0.0003},
            "convert": {"weight_bits": 12},
            "simulate": {"steps": 20, "settle_limit": 200, "batch_size": 100, "log_batch": 100},
        }
    },
    "energy": {},
    "device": "cpu",
}
"""A grid of two chains that train in about a second."""

Edit = Callable[..., Path]


@pytest.fixture
def params_content() -> dict[str, Any]:
    """The content of a small params file, free to be changed."""
    return copy.deepcopy(PARAMS)


@pytest.fixture
def write_params(tmp_path: Path, params_content: dict[str, Any]) -> Edit:
    """Writes the small params file with changes: `write_params({"run.k": [1], "device": None})`; None removes a key."""

    def write(changes: dict[str, Any] | None = None) -> Path:
        for place, value in (changes or {}).items():
            *sections, name = place.split(".")
            section = params_content
            for part in sections:
                section = section[part]
            if value is None:
                del section[name]
            else:
                section[name] = value
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(params_content), encoding="utf-8")
        return path

    return write


def labelled(n: int, seed: int, channels: int = 1, size: int = 6, classes: int = 3) -> Labelled:
    """Noise whose brightest row tells the class, so that it can be learned: uint8 [n, C, size, size], int64 [n]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, n)
    images = random.integers(0, 160, (n, channels, size, size), dtype=np.uint8)
    images[np.arange(n), :, 1 + labels] += 90
    return images, labels


def with_averages(network: QuantizedCNN, dataset: Dataset) -> QuantizedCNN:
    """Lets batch normalization see the training images, so that an untrained network has activations to speak of."""
    images = augmentation.central_images(torch.from_numpy(dataset.train_images), network.architecture.image_size)
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
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    publish([], uri=f"sqlite:///{path}", experiment="another one")
    return path


@pytest.fixture(scope="session")
def starting_mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    """An MLflow server that does not answer yet; started once and early, since that takes it five seconds."""
    with starting_server(tmp_path_factory.mktemp("server"), empty_database) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(starting_mlflow_server: Server) -> Server:
    """An MLflow server."""
    starting_mlflow_server.wait()
    return starting_mlflow_server
