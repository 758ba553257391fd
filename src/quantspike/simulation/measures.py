"""From a trace to the numbers that are reported: curves, totals, the certificate and the published logs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.files import write_csv, write_json, write_text
from quantspike.params import Simulate
from quantspike.simulation.recording import Integers
from quantspike.simulation.trace import Trace

CURVE_COLUMNS = ("step", "accuracy", "positive_spikes", "negative_spikes", "net_spikes", "synops", "settled")
LAYER_COLUMNS = ("step", "layer", "neurons", "positive_spikes", "negative_spikes", "net_spikes", "synops", "settled")

Columns = dict[str, list[Any]]


def curves(trace: Trace, labels: Integers) -> Columns:
    """One row per step: accuracy and settled as shares, counts cumulative and averaged per image.

    Args:
        trace: N images over T steps.
        labels: int64 [N].
    """
    return {
        "step": list(range(1, trace.steps + 1)),
        "accuracy": (trace.predictions == labels).mean(axis=1).tolist(),
        "positive_spikes": trace.positive_spikes.mean(axis=1).tolist(),
        "negative_spikes": trace.negative_spikes.mean(axis=1).tolist(),
        "net_spikes": (trace.positive_spikes - trace.negative_spikes).mean(axis=1).tolist(),
        "synops": trace.synops.mean(axis=1).tolist(),
        "settled": trace.settled.mean(axis=1).tolist(),
    }


def layer_curves(trace: Trace, architecture: Architecture) -> Columns:
    """The same per layer, counted from 1; SOPs are booked to the layer whose spikes cause them."""
    layers = len(architecture.layers)
    return {
        "step": np.repeat(np.arange(1, trace.steps + 1), layers).tolist(),
        "layer": np.tile(np.arange(1, layers + 1), trace.steps).tolist(),
        "neurons": np.tile([layer.neurons for layer in architecture.layers], trace.steps).tolist(),
        "positive_spikes": (trace.layer_positive.ravel() / trace.images).tolist(),
        "negative_spikes": (trace.layer_negative.ravel() / trace.images).tolist(),
        "net_spikes": ((trace.layer_positive - trace.layer_negative).ravel() / trace.images).tolist(),
        "synops": (trace.layer_synops.ravel() / trace.images).tolist(),
        "settled": (trace.layer_settled.ravel() / trace.images).tolist(),
    }


def stable_step(accuracy: NDArray[np.float64]) -> int:
    """First step, from 1, from which the accuracy no longer changes: the published "Time Steps"."""
    changes = np.flatnonzero(accuracy != accuracy[-1])
    return int(changes[-1]) + 2 if len(changes) else 1


def totals(trace: Trace, labels: Integers, ann_predictions: Integers) -> dict[str, Any]:
    """The values at step T and what was found at rest, for snn.json.

    Args:
        trace: N images over T steps.
        labels: int64 [N].
        ann_predictions: the trained network's classes, int64 [N].
    """
    table = curves(trace, labels)
    at_rest = trace.settled[-1]
    last = {name: table[name][-1] for name in ("positive_spikes", "negative_spikes", "net_spikes", "synops")}
    return {
        "simulated": True,
        "images": trace.images,
        "steps": trace.steps,
        "integer_accuracy": float((trace.integer_predictions == labels).mean()),
        "accuracy": table["accuracy"][-1],
        "ann_agreement": float((trace.integer_predictions == ann_predictions).mean()),
        "differing_predictions": int((trace.final_predictions != trace.integer_predictions).sum()),
        "stable_step": stable_step(np.array(table["accuracy"])),
        "settled_step": int(trace.settled_step.max()) if at_rest.all() else None,
        "unsettled": int((~at_rest).sum()),
        "largest_counts": trace.largest_counts.tolist(),
        **last,
    }


def headline(ann_accuracy: float, found: dict[str, Any]) -> dict[str, float]:
    """The few numbers that `dvc metrics show` and `diff` compare across chains, for metrics.json.

    Args:
        ann_accuracy: of the trained network, from 0 to 1.
        found: what `totals` gives, or `{"simulated": False}`.

    Returns:
        Accuracies from 0 to 1, spikes of both signs and SOPs per image.
    """
    numbers: dict[str, float] = {"ann_accuracy": ann_accuracy}
    if found["simulated"]:
        numbers |= {
            "snn_accuracy": found["accuracy"],
            "stable_step": found["stable_step"],
            "spikes": found["positive_spikes"] + found["negative_spikes"],
            "synops": found["synops"],
        }
    return numbers


def certificate(trace: Trace, architecture: Architecture, settle_limit: int) -> dict[str, Any]:
    """The proof, image by image, that the spiking network is the integer network: for certificate.json.

    `equal` counts images that came to rest with every net count of every layer equal to the integer
    network's. An image that has not settled is never counted as equal.
    """
    settled = trace.settled_step > 0
    return {
        "images": trace.images,
        "layers": len(architecture.layers),
        "neurons": architecture.neurons,
        "settle_limit": settle_limit,
        "settled": int(settled.sum()),
        "unsettled_at_limit": int((~settled).sum()),
        "first_settling_step": int(trace.settled_step[settled].min()) if settled.any() else None,
        "last_settling_step": int(trace.settled_step.max()) if settled.any() else None,
        "equal": int(settled.sum()) - trace.mismatching_images,
        "mismatches": trace.mismatching_images,
        "first_mismatch": asdict(trace.first_mismatch) if trace.first_mismatch else None,
    }


def write_measures(
    folder: Path,
    trace: Trace,
    architecture: Architecture,
    labels: Integers,
    ann_predictions: Integers,
    settings: Simulate,
) -> None:
    """Writes everything that was measured, the certificate included, into a chain's metrics folder.

    Args:
        folder: where snn.csv, layers.csv, snn.json, certificate.json and metrics.json go.
        trace: N images over T steps.
        architecture: the network's layers.
        labels: int64 [N].
        ann_predictions: the trained network's classes, int64 [N].
        settings: what the trace was made with.
    """
    write_csv(folder / "snn.csv", curves(trace, labels))
    write_csv(folder / "layers.csv", layer_curves(trace, architecture))
    write_json(folder / "certificate.json", certificate(trace, architecture, settings.settle_limit))
    found = totals(trace, labels, ann_predictions)
    write_json(folder / "snn.json", found)
    write_json(folder / "metrics.json", headline(float((ann_predictions == labels).mean()), found))


def write_no_measures(folder: Path, ann_accuracy: float) -> None:
    """Writes the same files for a network without spikes: tables without rows, `simulated` false.

    Args:
        folder: as above.
        ann_accuracy: of the trained network, from 0 to 1.
    """
    write_csv(folder / "snn.csv", {name: [] for name in CURVE_COLUMNS})
    write_csv(folder / "layers.csv", {name: [] for name in LAYER_COLUMNS})
    nothing = {"simulated": False}
    write_json(folder / "certificate.json", nothing)
    write_json(folder / "snn.json", nothing)
    write_json(folder / "metrics.json", headline(ann_accuracy, nothing))


def write_logs(folder: Path, trace: Trace, labels: Integers, log_batch: int) -> None:
    """Writes the published log format: one number per line, for each batch in turn one line per step.

    Within a batch: images classified correctly at that step, cumulative spikes, cumulative net
    spikes, cumulative SOPs.

    Args:
        folder: where accuracy.txt, spike_num.txt, spike_collect.txt and sop_num.txt go.
        trace: N images over T steps.
        labels: int64 [N].
        log_batch: images per batch; the last batch may hold fewer.
    """
    values = {
        "accuracy.txt": (trace.predictions == labels).astype(np.int64),
        "spike_num.txt": trace.positive_spikes + trace.negative_spikes,
        "spike_collect.txt": trace.positive_spikes - trace.negative_spikes,
        "sop_num.txt": trace.synops,
    }
    starts = np.arange(0, trace.images, log_batch)
    for name, by_image in values.items():
        by_batch = np.add.reduceat(by_image, starts, axis=1)
        write_text(folder / name, "".join(f"{value}\n" for value in by_batch.T.ravel()))


def verdict(trace: Trace) -> str:
    """One sentence for the terminal."""
    settled = trace.settled_step > 0
    waiting = f"{int((~settled).sum())} of {trace.images} images had not come to rest by the settling limit"
    if not settled.any():
        return waiting
    equal = int(settled.sum()) - trace.mismatching_images
    text = (
        f"{equal} of {trace.images} images came to rest by step {trace.settled_step.max()}, "
        "equal to the integer network in every net count"
    )
    return text if settled.all() else f"{text}; {waiting}"


def check_proved(trace: Trace) -> None:
    """Makes a simulation fail that did not give the integer network's counts.

    Raises:
        QuantspikeError: an image came to rest on other counts; the first neuron is named.
    """
    if wrong := trace.first_mismatch:
        raise QuantspikeError(
            f"{trace.mismatching_images} images came to rest on counts that are not the integer network's, first "
            f"image {wrong.image}, layer {wrong.layer}, channel {wrong.channel}, y {wrong.y}, x {wrong.x}: "
            f"{wrong.spiking} as spikes, {wrong.integer} in the integer network; certificate.json holds the details. "
            "This is a defect of the program or of the machine's arithmetic: please report it"
        )
