"""The published results that are shown next to the project's own, and when the two may be compared.

Source of every figure: Zou et al., "Towards a Lossless Conversion for Spiking Neural Networks with Negative
Spike Dynamics", Advanced Intelligent Systems, 2023: CIFAR-10, averages per image over the 10,000 test images.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

import pandas as pd
from pydantic import BaseModel, ConfigDict

from quantspike.params import Precision, Profile, Setting
from quantspike.paths import Run

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

PROTOCOL: Mapping[str, Setting] = MappingProxyType(
    {
        "baseline": "100 epochs at 0.001 + 100 epochs at 0.0001",
        "recipe.optimizer": "adam",
        "recipe.batch_size": 200,
        "recipe.label_smoothing": 0,
        "recipe.shift": 4,
        "recipe.flip": "random",
        "recipe.brightness": 63,
        "recipe.contrast": 0.8,
        "recipe.clip": None,
        "train.start": "scratch",
        "train.epochs": 100,
        "train.learning_rate": 1e-3,
        "train.activation_penalty": 0,
        "finetune.epochs": 100,
        "finetune.learning_rate": 1e-4,
        "finetune.integer_aware": False,
        "simulate.steps": 100,
        "simulate.layer_delay": 0,
    }
)
"""The published settings, under the names of `Profile.training_settings`."""


class Published(BaseModel):
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

    model_config = ConfigDict(frozen=True)

    model: str
    k: Precision
    ann_accuracy: float | None
    snn_accuracy: float | None
    stable_step: int | None
    synops: int | None
    positive_spikes: int | None
    negative_spikes: int | None


def _load() -> dict[tuple[str, Precision], Published]:
    text = resources.files("quantspike.reporting").joinpath("published.csv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    rows = [
        Published.model_validate({name: value or None for name, value in row.items()}) for row in csv.DictReader(lines)
    ]
    return {(row.model, row.k): row for row in rows}


PUBLISHED: Mapping[tuple[str, Precision], Published] = MappingProxyType(_load())
"""Every published network, by model and k; nothing was published for other k."""


def published_curve(model: str, k: Precision) -> pd.DataFrame | None:
    """Return the published curves of a simulation, one row per step, or `None` if there are none.

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
    """Return all published curves, read once; callers get copies, since a table can be changed."""
    with resources.files("quantspike.reporting").joinpath("published_curves.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, comment="#")


def is_published_network(run: Run) -> bool:
    """Return whether a run's network is the published one of that name, at its width and image size."""
    settings = run.settings
    return run.layers == LAYERS.get(run.model) and settings.width == 1.0 and settings.data.crop == CROP


def protocol_differences(settings: Profile) -> list[str]:
    """Return the settings that differ from the published protocol, each as `setting value (published value)`."""
    phases = " + ".join(f"{phase.epochs} epochs at {phase.learning_rate:g}" for phase in settings.baseline)
    simulated = {"simulate.steps": settings.simulate.steps, "simulate.layer_delay": settings.simulate.layer_delay[0]}
    ours = settings.training_settings("finetune") | {"baseline": phases} | simulated
    return [
        f"{name} {_shown(ours[name])} ({_shown(theirs)})" for name, theirs in PROTOCOL.items() if ours[name] != theirs
    ]


def _shown(value: Setting) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:g}"
