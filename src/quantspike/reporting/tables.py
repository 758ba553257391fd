"""Tables made of the results of many runs: the summary, and long ones by step and layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from quantspike import files
from quantspike.errors import QuantspikeError
from quantspike.reporting.results import RunResult, SpikingResult, result_files

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
    "unsettled_at_T",
    "equal",
    "positive_spikes",
    "negative_spikes",
    "synops",
    "least_synops",
    "ann_macs",
    *(f"published_{name}" for name in PUBLISHED),
)
"""Columns of the table of runs; k is `fp32` for a baseline. Accuracies are shares from 0 to 1; spikes, synops and MACs
are per image; `unsettled_at_T` counts the images not settled after the last step T, with which there is no
`stable_step`; `equal` those that settled by `settle_limit` with every net spike count equal to the integer network's;
`least_synops` is what the net counts alone would take."""

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
    "least_synops",
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
    "unsettled_at_T",
    "equal",
    "simulated_images",
    "ann_macs",
    *(f"published_{name}" for name in PUBLISHED),
    *(f"{name}_difference" for name in PUBLISHED),
)
"""Columns of the summary: units as in `RUNS_COLUMNS`. The three counts of images are sums over the seeds, out of
`simulated_images` (images times seeds); a difference is the mean minus the published figure."""


LOSSES = (0.001, 0.005, 0.01)
"""Accuracies that one may be willing to lose, as shares of the test images: 0.1, 0.5 and 1 percentage points."""


def stopping_step(accuracy: ArrayLike, loss: float) -> int:
    """Return the first step, from 1, from which the accuracy stays above the last one minus `loss`, or equal to it.

    Args:
        accuracy: after each step, from 0 to 1, [T].
        loss: largest distance below the last accuracy, from 0 to 1.
    """
    curve = np.asarray(accuracy, np.float64)
    # Rounded, since 0.9264 - 0.9254 is not quite 0.001 in binary.
    too_low = np.flatnonzero(np.round(curve[-1] - curve, 9) > loss)
    return int(too_low[-1]) + 2 if len(too_low) else 1


def runs_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per run, in the order given, with `RUNS_COLUMNS`; a cell without a value is empty."""
    # As objects, whole numbers stay whole where a column has gaps; pandas would turn them into floats.
    return pd.DataFrame([_run_row(result) for result in results], columns=list(RUNS_COLUMNS), dtype=object)


def summary_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return one row per profile, model and k, in the order given, with `SUMMARY_COLUMNS`.

    Standard deviations divide by n - 1 and are empty for a single seed. `stable_step` and `settled_step` are empty
    if an image of any seed is not settled at T.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    _check_images(results)
    groups = runs_table(results).groupby(["profile", "model", "k"], sort=False)
    rows = [_summary_row(group) for _, group in groups]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS), dtype=object)


def sources_table(results: Sequence[RunResult]) -> pd.DataFrame:
    """Return the SHA-256 of every result file, one row per file: what tables and figures were made from."""
    rows = [
        (result.run.key, path.name, files.file_sha256(path)) for result in results for path in result_files(result.run)
    ]
    return pd.DataFrame(rows, columns=["run", "file", "sha256"])


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, atomically and with the same line ends on every system."""
    with files.atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def aligned(table: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """Return a table as text, columns two blanks apart and numbers to the right.

    Args:
        table: titles, then the cells of each row.
        left: titles of the columns that hold words.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    forms = ["<" if title in left else ">" for title in table[0]]
    lines = ([f"{cell:{form}{width}}" for cell, form, width in zip(row, forms, widths, strict=True)] for row in table)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _run_row(result: RunResult) -> dict[str, Any]:
    run, evaluation = result.run, result.evaluation
    row: dict[str, Any] = {
        "profile": run.profile,
        "model": run.model,
        "k": str(run.k),
        "seed": run.seed,
        "images": evaluation.images,
        "ann_accuracy": evaluation.accuracy,
        "ann_macs": evaluation.macs,
    }
    if isinstance(result, SpikingResult):
        row |= {name: value for name, value in result.simulation if name in RUNS_COLUMNS}
        row |= {"snn_accuracy": result.simulation.accuracy, "equal": result.certificate.equal}
    if result.published is not None:
        row |= {f"published_{name}": getattr(result.published, name) for name in PUBLISHED}
    return row


def _check_images(results: Sequence[RunResult]) -> None:
    """Refuse seeds on different images: their mean would mix data sets."""
    first: dict[tuple[str, str, str], RunResult] = {}
    for result in results:
        run, data = result.run, result.evaluation.data
        other = first.setdefault((run.profile, run.model, str(run.k)), result)
        others = other.evaluation.data
        if others.sha256 != data.sha256:
            raise QuantspikeError(
                f"{other.run.key} was run on {others.name} (SHA-256 {others.sha256[:8]}), {run.key} on {data.name} "
                f"(SHA-256 {data.sha256[:8]}), so they cannot be averaged: run dvc repro"
            )


def _summary_row(runs: pd.DataFrame) -> dict[str, Any]:
    """Return means, spread and sums over the runs of one profile, model and k."""
    known = ("profile", "model", "k", "images", "ann_macs", *(f"published_{name}" for name in PUBLISHED))
    row: dict[str, Any] = {name: runs[name].iloc[0] for name in known} | {"seeds": len(runs)}
    # A mean over only those seeds that have a value would be another quantity.
    for name in (name for name in AVERAGED if runs[name].notna().all()):
        values = [float(value) for value in runs[name]]
        row[f"{name}_mean"] = fmean(values)
        row[f"{name}_std"] = stdev(values) if len(values) > 1 else None
    if runs["snn_accuracy"].notna().all():
        row |= {name: runs[name].sum() for name in ("differing_predictions", "unsettled_at_T", "equal")}
        row["simulated_images"] = runs["images"].sum()
    for name in PUBLISHED:
        other = row[f"published_{name}"]
        if f"{name}_mean" in row and not pd.isna(other):
            row[f"{name}_difference"] = row[f"{name}_mean"] - float(other)
    return row
