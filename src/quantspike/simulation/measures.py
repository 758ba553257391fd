"""From a trace to the numbers that are reported: curves, totals, the certificate and the published logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.files import write_csv, write_json, write_text
from quantspike.networks.architecture import Architecture
from quantspike.params import Simulate
from quantspike.simulation.trace import Integers, Trace

Columns = dict[str, list[Any]]


def curves(trace: Trace, labels: Integers) -> Columns:
    """Return one row per step, for simulate.csv: shares of the images, and cumulative counts per image.

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


def delay_curves(traces: Mapping[int, Trace], labels: Integers) -> Columns:
    """Return one row per layer delay and step, for simulate_delays.csv; see `curves`."""
    tables = {delay: curves(trace, labels) for delay, trace in traces.items()}
    names = next(iter(tables.values()))
    return {
        "layer_delay": [delay for delay, table in tables.items() for _ in table["step"]],
        **{name: [value for table in tables.values() for value in table[name]] for name in names},
    }


def layer_curves(trace: Trace, architecture: Architecture) -> Columns:
    """Return one row per step and layer, for simulate_layers.csv; SOPs belong to the layer whose spikes cause them."""
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
    """Return the first step, from 1, after which the accuracy no longer changes: the published "Time Steps"."""
    changes = np.flatnonzero(accuracy != accuracy[-1])
    return int(changes[-1]) + 2 if len(changes) else 1


def totals(trace: Trace, labels: Integers, ann_predictions: Integers, layer_delay: int) -> dict[str, Any]:
    """Return the values at step T and of the settled network, for simulate.json.

    There is no stable step if an image is not settled at T, since the accuracy may change later.

    Args:
        trace: N images over T steps.
        labels: int64 [N].
        ann_predictions: the trained network's classes, int64 [N].
        layer_delay: D of this trace.
    """
    table = curves(trace, labels)
    settled = trace.settled[-1]
    last = {name: table[name][-1] for name in ("positive_spikes", "negative_spikes", "net_spikes", "synops")}
    return {
        "images": trace.images,
        "steps": trace.steps,
        "layer_delay": layer_delay,
        "integer_accuracy": float((trace.integer_predictions == labels).mean()),
        "accuracy": table["accuracy"][-1],
        "ann_agreement": float((trace.integer_predictions == ann_predictions).mean()),
        "differing_predictions": int((trace.final_predictions != trace.integer_predictions).sum()),
        "stable_step": stable_step(np.array(table["accuracy"])) if settled.all() else None,
        "settled_step": int(trace.settled_step.max()) if settled.all() else None,
        "unsettled_at_T": int((~settled).sum()),
        "largest_counts": trace.largest_counts.tolist(),
        **last,
        "least_synops": float(trace.least_synops.mean()),
    }


def certificate(trace: Trace, architecture: Architecture, settle_limit: int) -> dict[str, Any]:
    """Return the proof that the spiking network is the integer network, for certificate.json.

    `equal` counts the settled images whose net counts all equal the integer network's. An image that has not
    settled is never counted as equal.
    """
    settled = trace.settled_step > 0
    return {
        "images": trace.images,
        "layers": len(architecture.layers),
        "neurons": architecture.neurons,
        "settle_limit": settle_limit,
        "settled_by_limit": int(settled.sum()),
        "unsettled_at_limit": int((~settled).sum()),
        "first_settling_step": int(trace.settled_step[settled].min()) if settled.any() else None,
        "last_settling_step": int(trace.settled_step.max()) if settled.any() else None,
        "equal": int(settled.sum()) - trace.mismatching_images,
        "mismatches": trace.mismatching_images,
        "first_mismatch": asdict(trace.first_mismatch) if trace.first_mismatch else None,
    }


def write_measures(
    folder: Path,
    traces: Mapping[int, Trace],
    architecture: Architecture,
    labels: Integers,
    ann_predictions: Integers,
    settings: Simulate,
) -> None:
    """Write all measures and the certificate into a run's metrics folder; all but simulate_delays.csv of the first D.

    Args:
        folder: where simulate.csv, simulate_delays.csv, simulate_layers.csv, simulate.json and certificate.json go.
        traces: by layer delay D: N images over T steps.
        architecture: the network's layers.
        labels: int64 [N].
        ann_predictions: the trained network's classes, int64 [N].
        settings: of the simulation.
    """
    layer_delay, trace = next(iter(traces.items()))
    write_csv(folder / "simulate.csv", curves(trace, labels))
    write_csv(folder / "simulate_delays.csv", delay_curves(traces, labels))
    write_csv(folder / "simulate_layers.csv", layer_curves(trace, architecture))
    write_json(folder / "simulate.json", totals(trace, labels, ann_predictions, layer_delay))
    write_json(folder / "certificate.json", certificate(trace, architecture, settings.settle_limit))


def write_logs(folder: Path, trace: Trace, labels: Integers, log_batch: int) -> None:
    """Write the published log format: one number per line, for each batch in turn one line per step.

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
    """Return the result in one sentence, for the terminal."""
    settled = int((trace.settled_step > 0).sum())
    text = (
        f"{settled - trace.mismatching_images} of {trace.images} images settled by step {trace.settled_step.max()}, "
        "equal to the integer network in every net count"
    )
    if late := trace.images - settled:
        text += f"; {late} not settled by settle_limit"
    if unsettled := int((~trace.settled[-1]).sum()):
        text += f"; {unsettled} not settled at T = {trace.steps}: simulate.steps is too small for a stable step"
    return text


def check_proved(traces: Mapping[int, Trace]) -> None:
    """Check that every settled image has the integer network's counts, whatever the layer delay D.

    Args:
        traces: by D.

    Raises:
        QuantspikeError: an image settled on other counts; the first neuron is named.
    """
    for delay, trace in traces.items():
        if wrong := trace.first_mismatch:
            raise QuantspikeError(
                f"layer delay {delay}: {trace.mismatching_images} images settled on counts that are not the integer "
                f"network's, first image {wrong.image}, layer {wrong.layer}, channel {wrong.channel}, y {wrong.y}, "
                f"x {wrong.x}: {wrong.spiking} as spikes, {wrong.integer} in the integer network. "
                "This is a defect of the program or of the machine's arithmetic: please report it"
            )
