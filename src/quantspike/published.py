"""The published results that stand beside the project's own, and when the two may be compared.

Source of every figure: Zou et al., "Towards a Lossless Conversion for Spiking Neural Networks with Negative
Spike Dynamics", Advanced Intelligent Systems, 2023: CIFAR-10, averages per image over the 10,000 test images.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType

import pandas as pd

from quantspike.params import Params, Precision, Profile
from quantspike.recipes import RECIPES

SOURCE = (
    'Zou et al., "Towards a Lossless Conversion for Spiking Neural Networks with Negative Spike Dynamics", '
    "Advanced Intelligent Systems, 2023"
)

LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "cnn1": "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024",
        "cnn2": "128C3-256C3-P2-512C3-P2-1024C3-512C3-P2-1024-512",
    }
)
"""The published networks as layer strings, at width 1."""

CROP = 24
"""Side of the images that the published networks see, in pixels."""

CLASSES = frozenset(("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"))
"""The classes of CIFAR-10."""

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000


@dataclass(frozen=True)
class Published:
    """One published network; `None` where nothing was published.

    Attributes:
        model: `cnn1` or `cnn2`.
        k: `fp32`, or the precision of the activations.
        ann_accuracy: accuracy of the network before conversion, 0 to 1.
        snn_accuracy: accuracy of the spiking network after the last step, 0 to 1.
        stable_step: first step from which the accuracy no longer changes (the "Time Steps").
        synops: synaptic operations per image.
        positive_spikes: positive spikes per image.
        negative_spikes: negative spikes per image.
    """

    model: str
    k: Precision
    ann_accuracy: float | None
    snn_accuracy: float | None
    stable_step: int | None
    synops: int | None
    positive_spikes: int | None
    negative_spikes: int | None


def _load() -> dict[tuple[str, Precision], Published]:
    text = resources.files("quantspike").joinpath("published.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    rows = (_row(fields) for fields in csv.DictReader(lines))
    return {(row.model, row.k): row for row in rows}


def _row(fields: dict[str, str]) -> Published:
    def share(name: str) -> float | None:
        return float(fields[name]) if fields[name] else None

    def count(name: str) -> int | None:
        return int(fields[name]) if fields[name] else None

    return Published(
        model=fields["model"],
        k="fp32" if fields["k"] == "fp32" else int(fields["k"]),
        ann_accuracy=share("ann_accuracy"),
        snn_accuracy=share("snn_accuracy"),
        stable_step=count("stable_step"),
        synops=count("synops"),
        positive_spikes=count("positive_spikes"),
        negative_spikes=count("negative_spikes"),
    )


PUBLISHED: Mapping[tuple[str, Precision], Published] = MappingProxyType(_load())
"""Every published network, by model and k."""


def published(model: str, k: Precision) -> Published | None:
    """The published figures of a network, or `None` if that precision was not published."""
    return PUBLISHED.get((model, k))


def published_curve(model: str, k: Precision) -> pd.DataFrame | None:
    """The published course of a simulation, one row per step, or `None` if there is none.

    Columns: step, accuracy (0 to 1) and, cumulative and per image, synops, positive_spikes, negative_spikes.
    """
    curves = _curves()
    curve = curves[(curves["model"] == model) & (curves["k"] == k)].reset_index(drop=True)
    if curve.empty:
        return None
    # s = positive + negative and n = positive - negative are published.
    curve = curve.assign(
        positive_spikes=(curve["spikes"] + curve["net_spikes"]) / 2,
        negative_spikes=(curve["spikes"] - curve["net_spikes"]) / 2,
    )
    return curve[["step", "accuracy", "synops", "positive_spikes", "negative_spikes"]]


@cache
def _curves() -> pd.DataFrame:
    """All published curves, read once; nobody else gets hold of the table, since whoever does could change it."""
    with resources.files("quantspike").joinpath("published_curves.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#")


def is_published_network(params: Params, profile: str, model: str) -> bool:
    """Whether a model of params.yaml is the published network of that name, at its width and image size."""
    settings = params.profiles[profile]
    same_layers = params.models[model].layers == LAYERS.get(model)
    return same_layers and settings.width == 1.0 and settings.data.crop == CROP


def is_published_data(kind: str, classes: Collection[str], train_images: int, test_images: int) -> bool:
    """Whether a data set stands for CIFAR-10: the official archive, or all its images encoded anew."""
    whole = (train_images, test_images) == (TRAIN_IMAGES, TEST_IMAGES)
    return kind in ("cifar10", "images") and whole and len(classes) == len(CLASSES) and set(classes) == CLASSES


def departures(profile: Profile) -> list[str]:
    """Settings of a profile that differ from the published protocol, each as `setting value (published value)`."""
    pretrain, train, finetune, recipe = profile.pretrain, profile.train, profile.finetune, RECIPES["paper"]
    settings = (
        ("pretrain.epochs", pretrain.epochs, 0),
        ("train.recipe", train.recipe, "paper"),
        ("train.epochs", train.epochs, 100),
        ("train.learning_rate", train.learning_rate, 1e-3),
        ("train.batch_size", train.batch_size, 200),
        ("train.validation", train.validation, 0),
        *((f"train.{name}", getattr(train, name), value) for name, value in recipe["train"].items()),
        ("train.activation_penalty", train.activation_penalty, 0.0),
        ("finetune.epochs", finetune.epochs, 100),
        ("finetune.learning_rate", finetune.learning_rate, 1e-4),
        *((f"finetune.{name}", getattr(finetune, name), value) for name, value in recipe["finetune"].items()),
        ("simulate.steps", profile.simulate.steps, 100),
    )
    return [f"{name} {_shown(ours)} ({_shown(theirs)})" for name, ours, theirs in settings if ours != theirs]


def _shown(value: float | bool | str) -> str:
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
