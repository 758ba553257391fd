"""Tables made of the results of many chains: the summary, and long ones by epoch and by step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any

import pandas as pd

from quantspike import files
from quantspike.errors import QuantspikeError
from quantspike.results import COUNTS, MEASURES, ChainResult, result_files
from quantspike.stopping_points import LOSSES, stopping_step

PUBLISHED: tuple[str, ...] = (
    "ann_accuracy",
    "snn_accuracy",
    "stable_step",
    "synops",
    "positive_spikes",
    "negative_spikes",
)
"""Measures of which there are published figures."""

RUNS_COLUMNS: tuple[str, ...] = (
    "profile",
    "model",
    "k",
    "seed",
    "images",
    "ann_accuracy",
    "integer_accuracy",
    "snn_accuracy",
    "ann_agreement",
    "differing_predictions",
    "stable_step",
    "settled_step",
    "unsettled",
    "equal",
    "positive_spikes",
    "negative_spikes",
    "synops",
    "ann_macs",
    *(f"published_{name}" for name in PUBLISHED),
)
"""Columns of the table of runs. Accuracies are shares from 0 to 1; spikes, synops and MACs are per image; `equal`
counts the images that came to rest with every net spike count equal to the integer network's."""

AVERAGED: tuple[str, ...] = (
    "ann_accuracy",
    "integer_accuracy",
    "snn_accuracy",
    "ann_agreement",
    "stable_step",
    "settled_step",
    "positive_spikes",
    "negative_spikes",
    "synops",
)
"""Measures of which the summary has mean and standard deviation."""

SUMMARY_COLUMNS: tuple[str, ...] = (
    "profile",
    "model",
    "k",
    "seeds",
    "images",
    *(f"{name}_{statistic}" for name in AVERAGED for statistic in ("mean", "std")),
    "differing_predictions",
    "unsettled",
    "equal",
    "simulated_images",
    "ann_macs",
    *(f"published_{name}" for name in PUBLISHED),
    *(f"{name}_difference" for name in PUBLISHED),
)
"""Columns of the summary: units as in `RUNS_COLUMNS`. The three counts of images are sums over the seeds, out of
`simulated_images` (images times seeds); a difference is the mean minus the published figure."""

_WHOLE_NUMBERS = (
    "seed",
    "seeds",
    "images",
    "differing_predictions",
    "unsettled",
    "equal",
    "simulated_images",
    "stable_step",
    "settled_step",
    "ann_macs",
    "published_stable_step",
    "published_synops",
    "published_positive_spikes",
    "published_negative_spikes",
)
_NAMES = ("profile", "model", "k")


def runs_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per run, in the order given, with `RUNS_COLUMNS`; empty where there is nothing."""
    return _typed([_run_row(result) for result in results], RUNS_COLUMNS)


def summary_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per profile, model and k, in the order given, with `SUMMARY_COLUMNS`: means and spread over the seeds.

    Standard deviations divide by n - 1 and are empty for a single seed. `settled_step` is empty if any seed has an
    image that never came to rest.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    _check_images(results)
    groups = runs_table(results).groupby(list(_NAMES), sort=False)
    return _typed([_summary_row(group) for _, group in groups], SUMMARY_COLUMNS)


def training_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per run and epoch: profile, model, k, seed, phase, epoch (over all phases), then the measures."""
    return _long_table([(result, result.training) for result in results], ("phase", "epoch", *MEASURES))


def steps_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per spiking run and step: profile, model, k, seed, step, accuracy and the cumulative counts per image."""
    spiking = [(result, result.steps) for result in results if result.steps is not None]
    return _long_table(spiking, ("step", "accuracy", *COUNTS))


def layers_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per spiking run and layer after the last step: profile, model, k, seed, layer, token, neurons, counts.

    Counts are per image; `token` is the layer's part of the layer string.
    """
    last = []
    for result in results:
        if result.layers is not None:
            table = result.layers[result.layers["step"] == result.layers["step"].max()]
            tokens = [result.architecture.layers[place - 1].token for place in table["layer"]]
            last.append((result, table.assign(token=tokens)))
    return _long_table(last, ("layer", "token", "neurons", *COUNTS))


def stops_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """Where to stop: one row per spiking run and accuracy that one is willing to lose.

    Columns: profile, model, k, seed, loss (0 to 1), the first step from which the accuracy stays within that of the
    last one, and the accuracy and cumulative counts per image at that step.
    """
    rows = []
    for result in results:
        if (steps := result.steps) is not None:
            places = [stopping_step(steps["accuracy"], loss) - 1 for loss in LOSSES]
            rows.append((result, steps.iloc[places].assign(loss=LOSSES)))
    return _long_table(rows, ("loss", "step", "accuracy", *COUNTS))


def sources_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """The SHA-256 of every result file, one row per file: what tables and figures were made from."""
    rows = [
        {
            "chain": result.chain.key,
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for result in results
        for path in result_files(result.chain, result.settings)
    ]
    return pd.DataFrame(rows, columns=["chain", "file", "sha256"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically and with the same line ends on every system."""
    with files.atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _typed(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    # Int64 keeps whole numbers whole where a column has gaps; plain pandas would turn them into floats.
    types = {name: "Int64" if name in _WHOLE_NUMBERS else "float64" for name in columns}
    return pd.DataFrame(rows, columns=list(columns)).astype(types | dict.fromkeys(_NAMES, "str"))


def _run_row(result: ChainResult) -> dict[str, Any]:
    chain, ann, snn, other = result.chain, result.ann, result.snn, result.published
    row: dict[str, Any] = {
        "profile": chain.profile,
        "model": chain.model,
        "k": str(chain.k),
        "seed": chain.seed,
        "images": ann.images,
        "ann_accuracy": ann.accuracy,
        "ann_macs": ann.macs,
    }
    if snn is not None:
        row["snn_accuracy"] = snn.accuracy
        row |= {name: value for name, value in snn if name in RUNS_COLUMNS}
    if result.certificate is not None:
        row["equal"] = result.certificate.equal
    if other is not None:
        row |= {f"published_{name}": getattr(other, name) for name in PUBLISHED}
    return row


def _check_images(results: Sequence[ChainResult]) -> None:
    """A mean over seeds is one of trainings, not of data sets."""
    first: dict[tuple[str, str, str], ChainResult] = {}
    for result in results:
        chain, data = result.chain, result.ann.data
        other = first.setdefault((chain.profile, chain.model, str(chain.k)), result)
        if other.ann.data.sha256 != data.sha256:
            raise QuantspikeError(
                f"{other.chain.key} was run on {other.ann.data.name} (SHA-256 {other.ann.data.sha256[:8]}), "
                f"{chain.key} on {data.name} (SHA-256 {data.sha256[:8]}): their mean would say nothing; "
                "run dvc repro, so that all seeds see the same images"
            )


def _summary_row(runs: pd.DataFrame) -> dict[str, Any]:
    """Means, spread and sums over the runs of one profile, model and k."""
    known = ("profile", "model", "k", "images", "ann_macs", *(f"published_{name}" for name in PUBLISHED))
    row: dict[str, Any] = {name: runs[name].iloc[0] for name in known} | {"seeds": len(runs)}
    # A mean over those seeds alone that have a value would be another quantity.
    for name in (name for name in AVERAGED if runs[name].notna().all()):
        values = [float(value) for value in runs[name]]
        row[f"{name}_mean"] = fmean(values)
        row[f"{name}_std"] = stdev(values) if len(values) > 1 else None
    if runs["snn_accuracy"].notna().all():
        row |= {name: runs[name].sum() for name in ("differing_predictions", "unsettled", "equal")}
        row["simulated_images"] = runs["images"].sum()
    for name in PUBLISHED:
        other = row[f"published_{name}"]
        if f"{name}_mean" in row and not pd.isna(other):
            row[f"{name}_difference"] = row[f"{name}_mean"] - float(other)
    return row


def _long_table(parts: list[tuple[ChainResult, pd.DataFrame]], columns: tuple[str, ...]) -> pd.DataFrame:
    keys = ("profile", "model", "k", "seed")
    labelled = [
        table.assign(
            profile=result.chain.profile, model=result.chain.model, k=str(result.chain.k), seed=result.chain.seed
        )
        for result, table in parts
    ]
    names = [*keys, *columns]
    return pd.concat(labelled, ignore_index=True)[names] if labelled else pd.DataFrame(columns=names)


TABLES: Mapping[str, Callable[[Sequence[ChainResult]], pd.DataFrame]] = MappingProxyType(
    {
        "steps": steps_table,
        "layers": layers_table,
        "stops": stops_table,
        "training": training_table,
        "runs": runs_table,
        "sources": sources_table,
    }
)
"""The tables behind the figures of one network, by the names of their files."""
