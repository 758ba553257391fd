"""Result files made up by formula: plausible, quick, and the same every time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantspike import files
from quantspike.networks.architecture import Architecture, architecture_of, macs
from quantspike.params import Params
from quantspike.paths import Run, grid_runs
from quantspike.reporting.published import LAYERS
from quantspike.reporting.results import COUNTS, MEASURES

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CNN1 = Architecture.parse(LAYERS["cnn1"], image_size=24)

PAPER: dict[str, Any] = {
    "data": {"source": "cifar10", "crop": 24, "held_out": 0},
    "width": 1.0,
    "recipe": {
        "optimizer": "adam",
        "batch_size": 200,
        "label_smoothing": 0,
        "shift": 4,
        "flip": "random",
        "brightness": 63,
        "contrast": 0.8,
        "clip": None,
        "arithmetic": "auto",
    },
    "baseline": [{"epochs": 100, "learning_rate": 1e-3}, {"epochs": 100, "learning_rate": 1e-4}],
    "train": {"start": "scratch", "epochs": 100, "learning_rate": 1e-3, "activation_penalty": 0},
    "finetune": {"epochs": 100, "learning_rate": 1e-4, "integer_aware": False},
    "convert": {"weight_bits": 12},
    "simulate": {
        "steps": 100,
        "settle_limit": 1000,
        "layer_delay": [0],
        "engine": "auto",
        "batch_size": 50,
        "log_batch": 50,
    },
}
"""The published protocol."""

ENERGY = {"fp32_mac": 4.6, "int8_mac": 0.23, "int32_add": 0.1, "on_chip": 5.0, "dram": 640.0}
"""The prices of params.yaml."""


def data_set(kind: str = "cifar10", **changes: Any) -> dict[str, Any]:
    """Return the fingerprint of a data set, as the evaluate stage writes it."""
    known: dict[str, dict[str, Any]] = {
        "cifar10": {"name": "CIFAR-10 (official archive)", "train_images": 50_000, "test_images": 10_000},
        "images": {"name": "images of photos.tar.gz", "train_images": 50_000, "test_images": 10_000},
        "digits": {"name": "scikit-learn digits", "train_images": 1_437, "test_images": 360},
    }
    classes = [str(digit) for digit in range(10)] if kind == "digits" else CIFAR10
    content = {"kind": kind, **known[kind], "classes": classes, "sha256": kind * 8, "source_md5": None}
    return content | changes


def make_params(k: Sequence[int] = (0, 1, 2), seed: Sequence[int] = (0,), **changes: Any) -> Params:
    """Return params with a profile named paper: the published protocol for cnn1 and cnn2, cnn1 in the grid.

    Args:
        k: of the grid; the baseline is always there.
        seed: of the grid.
        changes: by dotted names of settings of the profile, with two underscores for each dot, such as
            `train__epochs=2`, or whole sections, such as `baseline=[...]`.
    """
    profile = json.loads(json.dumps(PAPER))
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = profile[sections[0]] if sections else profile
        place[key] = value
    return Params.model_validate(
        {
            "grid": {"profile": ["paper"], "model": ["cnn1"], "k": list(k), "seed": list(seed)},
            "models": {name: {"layers": layers} for name, layers in LAYERS.items()},
            "profiles": {"paper": profile},
            "energy": ENERGY,
        }
    )


def make_run(run: Run, data: Mapping[str, Any] | None = None, **provenance: Any) -> None:
    """Fill the metrics folder of a run, a baseline or not, with curves of the published shape.

    Args:
        run: the run; its settings give epochs, steps and layers.
        data: fingerprint of the data set, by default CIFAR-10's.
        provenance: what to change in its provenance, such as `processes=2`.
    """
    data = data or data_set()
    architecture = architecture_of(run, classes=len(data["classes"]))
    accuracy = 0.9266 if run.k == "fp32" else 0.926 + 0.0022 * run.k
    accuracy = round(accuracy + 0.0015 * ((run.seed * 2) % 3 - 1) * (run.seed > 0), 4)
    _make_training(run, accuracy)
    settings = run.settings.training_settings("baseline" if run.k == "fp32" else "finetune")
    settings |= {"seed": run.seed, "data.sha256": data["sha256"]}
    machine = {"arithmetic": "fp32", "device": "some processor", "processes": 1, "torch": "2.11.0"}
    evaluation = {
        "images": data["test_images"],
        "correct": round(accuracy * data["test_images"]),
        "accuracy": accuracy,
        "loss": 0.4,
        "macs": macs(architecture),
        "neurons": architecture.neurons,
        "weights": weights(architecture),
        "data": data,
        "provenance": {"settings": settings, **machine, **provenance},
    }
    files.write_json(run.metrics / ("baseline.json" if run.k == "fp32" else "evaluate.json"), evaluation)
    if run.k != "fp32":
        _make_spiking(run, run.k, accuracy, data["test_images"], architecture)


def make_grid(params: Params, root: Path, data: Mapping[str, Any] | None = None) -> list[Run]:
    """Fill the metrics folders of all runs of the grid, and return the runs."""
    runs = grid_runs(params, root)
    for run in runs:
        make_run(run, data)
    return runs


def change_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    files.write_json(path, json.loads(path.read_text()) | changes)


def weights(architecture: Architecture) -> int:
    """Return the weights of all layers and of the classifier."""
    kernels = sum(layer.out_channels * layer.in_channels * layer.kernel**2 for layer in architecture.layers)
    return kernels + architecture.layers[-1].out_channels * architecture.classes


def _make_training(run: Run, accuracy: float) -> None:
    """Write one CSV for a baseline, whose phases count on in it, or one for each of the two phases."""
    settings = run.settings
    phases = (
        {"baseline": settings.baseline}
        if run.k == "fp32"
        else {"train": [settings.train], "finetune": [settings.finetune]}
    )
    for name, parts in phases.items():
        rates = [part.learning_rate for part in parts for _ in range(part.epochs)]
        loss = 0.3 if name == "finetune" else 1.5
        rows = [
            (epoch, loss / epoch, 1 - loss / (epoch + 2), accuracy - loss / (epoch + 9), rate)
            for epoch, rate in enumerate(rates, start=1)
        ]
        _write_csv(run.metrics / f"{name}.csv", ["epoch", *MEASURES], rows)


def _make_spiking(run: Run, k: int, accuracy: float, images: int, architecture: Architecture) -> None:
    steps, delays = run.settings.simulate.steps, run.settings.simulate.layer_delay
    one = run.settings.finetune.integer_aware
    final = accuracy if one else accuracy + 0.0004
    stable = min(steps, 29 + 33 * k)
    settled = stable + 27
    # Spikes go with the neurons and synaptic operations with the synapses; 2% more for each seed.
    per_neuron, per_mac = architecture.neurons / CNN1.neurons, macs(architecture) / macs(CNN1)
    scales = [(1 + 0.02 * run.seed) * size for size in (*[per_neuron] * 3, per_mac)]

    def at_step(step: int, delay: int) -> tuple[float, ...]:
        # A layer that waits makes all images settle 9 steps later, with a part of the negative spikes.
        counts = [scale * count for scale, count in zip(scales, _counts(step, k, delay), strict=True)]
        climb = _at_step(max(step - 9 * delay, 1), k, final, stable)
        return (step, climb, *counts, min(1.0, step / (settled + 9 * delay)))

    by_delay = [(delay, *at_step(step, delay)) for delay in delays for step in range(1, steps + 1)]
    rows = [row[1:] for row in by_delay[:steps]]
    _write_csv(run.metrics / "simulate.csv", ["step", "accuracy", *COUNTS], rows)
    _write_csv(run.metrics / "simulate_delays.csv", ["layer_delay", "step", "accuracy", *COUNTS], by_delay)
    # Every layer has the same part of everything: of CNN 1's, a tenth.
    layers = [
        (row[0], index, layer.neurons, *[value / len(architecture.layers) for value in row[2:6]], row[6])
        for row in rows
        for index, layer in enumerate(architecture.layers, start=1)
    ]
    _write_csv(run.metrics / "simulate_layers.csv", ["step", "layer", "neurons", *COUNTS], layers)
    bits, limit = run.settings.convert.weight_bits, run.settings.simulate.settle_limit
    files.write_json(
        run.metrics / "convert.json",
        {"k": k, "weight_bits": bits, "neurons": architecture.neurons, "weights": weights(architecture), "layers": []},
    )
    simulation = {
        "images": images,
        "steps": steps,
        "layer_delay": delays[0],
        "integer_accuracy": rows[-1][1],
        "accuracy": rows[-1][1],
        "ann_agreement": 1.0 if one else 0.989,
        "differing_predictions": 0,
        "stable_step": min(steps, stable + 9 * delays[0]) if rows[-1][6] == 1 else None,
        "settled_step": settled + 9 * delays[0] if rows[-1][6] == 1 else None,
        "unsettled_at_T": round((1 - rows[-1][6]) * images),
        "largest_counts": [3 * 2**k] * len(architecture.layers),
        **dict(zip(COUNTS[:4], rows[-1][2:6], strict=True)),
        "least_synops": 0.7 * 270e6 * 1.64**k * scales[3],
    }
    files.write_json(run.metrics / "simulate.json", simulation)
    certificate = {"images": images, "settle_limit": limit, "settled_by_limit": images, "mismatches": 0}
    files.write_json(run.metrics / "certificate.json", certificate)


def _at_step(step: int, k: int, final: float, stable: int) -> float:
    """From chance to the final accuracy, later for finer activations, with a ripple until it is stable."""
    if step >= stable:
        return round(final, 4)
    climb = 1 / (1 + math.exp(-2.2 * (math.log2(step) - 0.6 - 1.2 * k)))
    ripple = 0.0006 * math.sin(3 * step) if climb > 0.99 else 0.0
    return round(0.1 + (final - 0.1) * climb + ripple, 4)


def _counts(step: int, k: int, delay: int) -> list[float]:
    """Positive, negative and net spikes and synaptic operations per image up to a step, 70% of them for net spikes."""
    filled = 1 - math.exp(-step / (2.5 + 1.5 * k))
    positive, negative = 160_000 * 1.74**k * filled, 41_000 * 2.1**k * filled**2
    spared = negative * delay / (1 + delay)
    synops = 270e6 * 1.64**k * filled * (0.7 + 0.3 / (1 + delay))
    return [positive - spared, negative - spared, positive - negative, synops]


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    files.write_csv(path, dict(zip(columns, zip(*rows, strict=True), strict=True)))
