"""Tables made of the results of many chains: the summary, and long ones by epoch and by step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from quantspike import files
from quantspike.results import COUNTS, FILES, MEASURES, ChainResult

SUMMARY_COLUMNS: tuple[str, ...] = (
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
    "positive_spikes",
    "negative_spikes",
    "synops",
    "ann_macs",
    "published_ann_accuracy",
    "published_snn_accuracy",
    "published_stable_step",
    "published_synops",
)
"""Columns of the summary table. Accuracies are shares from 0 to 1; spikes, synops and MACs are per image."""

_WHOLE_NUMBERS = (
    "seed",
    "images",
    "differing_predictions",
    "stable_step",
    "settled_step",
    "unsettled",
    "ann_macs",
    "published_stable_step",
    "published_synops",
)
_NAMES = ("profile", "model", "k")


def summary_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per run, in the order given, with `SUMMARY_COLUMNS`; empty where there is nothing."""
    table = pd.DataFrame([_summary_row(result) for result in results], columns=list(SUMMARY_COLUMNS))
    # Int64 keeps whole numbers whole where a column has gaps; plain pandas would turn them into floats.
    types = {name: "Int64" if name in _WHOLE_NUMBERS else "float64" for name in SUMMARY_COLUMNS}
    return table.astype(types | dict.fromkeys(_NAMES, "str"))


def training_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per run and epoch: profile, model, k, seed, phase, epoch (over both phases), then the measures."""
    return _long_table([(result, result.training) for result in results], ("phase", "epoch", *MEASURES))


def steps_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """One row per spiking run and step: profile, model, k, seed, step, accuracy and the cumulative counts per image."""
    spiking = [(result, result.steps) for result in results if result.steps is not None]
    return _long_table(spiking, ("step", "accuracy", *COUNTS))


def sources_table(results: Sequence[ChainResult]) -> pd.DataFrame:
    """The SHA-256 of every result file, one row per file: what tables and figures were made from."""
    rows = [
        {
            "chain": result.chain.key,
            "file": name,
            "sha256": hashlib.sha256((result.chain.metrics / name).read_bytes()).hexdigest(),
        }
        for result in results
        for name in FILES
    ]
    return pd.DataFrame(rows, columns=["chain", "file", "sha256"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as CSV, atomically and with the same line ends on every system."""
    with files.atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _summary_row(result: ChainResult) -> dict[str, Any]:
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
        row |= {name: value for name, value in snn if name in SUMMARY_COLUMNS}
    if other is not None:
        row["published_ann_accuracy"] = other.ann_accuracy
        row["published_snn_accuracy"] = other.snn_accuracy
        row["published_stable_step"] = other.stable_step
        row["published_synops"] = other.synops
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
