"""Result folders made up by formula: plausible, quick, and the same every time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantspike.architecture import Architecture
from quantspike.operations import macs
from quantspike.params import Params, Precision
from quantspike.paths import Chain
from quantspike.published import LAYERS

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAINING = ["epoch", "loss", "train_accuracy", "validation_accuracy", "test_accuracy", "learning_rate", "seconds"]
CNN1 = Architecture.parse(LAYERS["cnn1"], image_size=24)
COUNTS = ["positive_spikes", "negative_spikes", "net_spikes", "synops", "settled"]


def data_set(kind: str = "cifar10", **changes: Any) -> dict[str, Any]:
    """Fingerprint of a data set, as the evaluate stage writes it."""
    known: dict[str, dict[str, Any]] = {
        "cifar10": {"name": "CIFAR-10 (official archive)", "train_images": 50_000, "test_images": 10_000},
        "images": {"name": "images of photos.tar.gz", "train_images": 50_000, "test_images": 10_000},
        "digits": {"name": "scikit-learn digits", "train_images": 1_437, "test_images": 360},
    }
    classes = [str(digit) for digit in range(10)] if kind == "digits" else CIFAR10
    content = {"kind": kind, **known[kind], "classes": classes, "sha256": kind * 8, "source_md5": None}
    return content | changes


def make_params(
    k: Sequence[Precision] = ("fp32", 0, 1, 2), seed: Sequence[int] = (0,), steps: int = 100, **changes: Any
) -> Params:
    """The published protocol for cnn1 and cnn2 in a profile named paper; `changes` go into that profile."""
    profile: dict[str, Any] = {
        "data": {"source": "cifar10", "crop": 24},
        "pretrain": {"epochs": 0},
        "train": {"epochs": 100, "learning_rate": 1e-3, "batch_size": 200},
        "finetune": {"epochs": 100, "learning_rate": 1e-4},
        "width": 1.0,
        "convert": {"weight_bits": 12},
        "simulate": {"steps": steps},
    }
    return Params.model_validate(
        {
            "run": {"profile": ["paper"], "model": ["cnn1"], "k": list(k), "seed": list(seed)},
            "models": {name: {"layers": layers} for name, layers in LAYERS.items()},
            "profiles": {"paper": profile | changes},
            "energy": {},
        }
    )


def make_made_with(epochs: tuple[int, int] = (100, 100), **changes: Any) -> dict[str, Any]:
    """What a network was trained with: the published protocol, apart from the epochs and from `changes`."""
    settings = make_params().profiles["paper"].training_settings
    settings |= {"train.epochs": epochs[0], "finetune.epochs": epochs[1]}
    content = {
        "settings": settings,
        "arithmetic": "fp32",
        "device": "some processor",
        "processes": 1,
        "torch": "2.11.0",
    }
    return content | changes


def make_chain(
    chain: Chain,
    data: dict[str, Any] | None = None,
    steps: int = 100,
    epochs: tuple[int, int] = (100, 100),
    made_with: dict[str, Any] | None = None,
    architecture: Architecture = CNN1,
) -> None:
    """Fills the metrics folder of a chain, with curves of the published shape; epochs of both phases."""
    data, made_with = data or data_set(), made_with or make_made_with(epochs)
    size = {"macs": macs(architecture), "neurons": architecture.neurons, "weights": weights(architecture)}
    accuracy = 0.9266 if chain.k == "fp32" else 0.926 + 0.0022 * chain.k
    accuracy = round(accuracy + 0.0015 * ((chain.seed * 2) % 3 - 1) * (chain.seed > 0), 4)
    for phase, loss, rate, n in (("train", 1.5, 1e-3, epochs[0]), ("finetune", 0.3, 1e-4, epochs[1])):
        rows = [[e, loss / e, 1 - loss / (e + 2), "", accuracy - loss / (e + 9), rate, 9.5] for e in range(1, n + 1)]
        _write_csv(chain.metrics / f"{phase}.csv", TRAINING, rows)
    ann = {"images": data["test_images"], "accuracy": accuracy, "correct": round(accuracy * data["test_images"])}
    ann |= {"loss": 0.4, **size, "data": data, "made_with": made_with}
    _write_json(chain.metrics / "ann.json", ann)
    if isinstance(chain.k, int):
        _make_spiking(chain, chain.k, accuracy, steps, data["test_images"], architecture)
    else:
        _write_json(chain.metrics / "conversion.json", {"converted": False})
        for name in ("snn", "certificate"):
            _write_json(chain.metrics / f"{name}.json", {"simulated": False})
        _write_csv(chain.metrics / "snn.csv", ["step", "accuracy", *COUNTS], [])
        _write_csv(chain.metrics / "layers.csv", ["step", "layer", "neurons", *COUNTS], [])


def make_pretraining(chain: Chain, epochs: int) -> None:
    """Gives the chains of all k of a network the curve of the pre-training that they share."""
    rows = [[e, 3.0 / e, 1 - 1 / (e + 2), "", 1 - 1 / (e + 1), 1e-3, 9.5] for e in range(1, epochs + 1)]
    _write_csv(chain.full_precision.metrics / "pretrain.csv", TRAINING, rows)


def weights(architecture: Architecture) -> int:
    """Weights of all layers and of the classifier."""
    kernels = sum(layer.out_channels * layer.in_channels * layer.kernel**2 for layer in architecture.layers)
    return kernels + architecture.layers[-1].out_channels * architecture.classes


def _make_spiking(chain: Chain, k: int, accuracy: float, steps: int, images: int, architecture: Architecture) -> None:
    final = accuracy + 0.0004
    stable = min(steps, 29 + 33 * k)
    curve = [_at_step(step, k, final, stable) for step in range(1, steps + 1)]
    # Spikes go with the neurons and synaptic operations with the synapses; 2% more for each seed.
    scale = 1 + 0.02 * chain.seed
    per_neuron, per_mac = architecture.neurons / CNN1.neurons, macs(architecture) / macs(CNN1)
    counts = [
        [scale * size * value for size, value in zip((*[per_neuron] * 3, per_mac), _counts(step, k), strict=True)]
        + [min(1.0, step / stable)]
        for step in range(1, steps + 1)
    ]
    rows = [[step, value, *count] for step, (value, count) in enumerate(zip(curve, counts, strict=True), start=1)]
    _write_csv(chain.metrics / "snn.csv", ["step", "accuracy", *COUNTS], rows)
    # Every layer has the same part of everything: of CNN 1's, a tenth.
    layers = [
        [row[0], place, layer.neurons, *[value / len(architecture.layers) for value in row[2:6]], row[6]]
        for row in rows
        for place, layer in enumerate(architecture.layers, start=1)
    ]
    _write_csv(chain.metrics / "layers.csv", ["step", "layer", "neurons", *COUNTS], layers)
    conversion: dict[str, Any] = {"converted": True, "k": k, "weight_bits": 12, "neurons": architecture.neurons}
    conversion |= {"weights": weights(architecture), "layers": []}
    _write_json(chain.metrics / "conversion.json", conversion)
    snn: dict[str, Any] = {
        "simulated": True,
        "images": images,
        "steps": steps,
        "settle_limit": 1000,
        "integer_accuracy": curve[-1],
    }
    largest = [3 * 2**k] * len(architecture.layers)
    snn |= {"accuracy": curve[-1], "ann_agreement": 0.989, "differing_predictions": 0, "stable_step": stable}
    snn |= {"settled_step": None if k == 2 else stable + 27, "unsettled": 0, "largest_counts": largest}
    snn |= dict(zip(COUNTS[:4], counts[-1], strict=False))
    _write_json(chain.metrics / "snn.json", snn)
    proof = {"images": images, "settle_limit": 1000, "settled": images, "mismatches": 0}
    _write_json(chain.metrics / "certificate.json", proof)


def _at_step(step: int, k: int, final: float, stable: int) -> float:
    """From chance to the final accuracy, later for finer activations, with a ripple until it is stable."""
    if step >= stable:
        return round(final, 4)
    climb = 1 / (1 + math.exp(-2.2 * (math.log2(step) - 0.6 - 1.2 * k)))
    ripple = 0.0006 * math.sin(3 * step) if climb > 0.99 else 0.0
    return round(0.1 + (final - 0.1) * climb + ripple, 4)


def _counts(step: int, k: int) -> list[float]:
    """Positive, negative and net spikes and synaptic operations per image up to a step."""
    filled = 1 - math.exp(-step / (2.5 + 1.5 * k))
    positive, negative = 160_000 * 1.74**k * filled, 41_000 * 2.1**k * filled**2
    return [positive, negative, positive - negative, 270e6 * 1.64**k * filled]


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    lines = [",".join(columns), *(",".join(str(value) for value in row) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
