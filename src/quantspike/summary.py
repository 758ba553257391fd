"""The results as people and tools read them: summary.csv, summary.json, summary.md and a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from quantspike import files
from quantspike.published import SOURCE, departures
from quantspike.results import ChainResult, DataSet, MadeWith
from quantspike.tables import SUMMARY_COLUMNS, summary_table, write_table

NOTHING = "-"

Row = dict[str, Any]
"""One run: a row of the summary table, `None` where it is empty, and the number of images that are proved `equal`."""

Column = tuple[str, Callable[[Row], str]]
"""Title of a column, unit included, and the text of its cell."""


def write_summary(results: Sequence[ChainResult], folder: Path) -> None:
    """Writes summary.csv, summary.json and summary.md: one row or entry per run, in the order given."""
    write_table(folder / "summary.csv", summary_table(results))
    files.write_json(folder / "summary.json", summary_records(results))
    files.write_text(folder / "summary.md", markdown(results))


def summary_records(results: Sequence[ChainResult]) -> list[Row]:
    """One record per run with the columns of the summary table, `None` where there is nothing."""
    return [{name: row[name] for name in SUMMARY_COLUMNS} for row in _rows(results)]


def markdown(results: Sequence[ChainResult]) -> str:
    """A section per profile: what images, a table of the runs, and the published figures beside them."""
    lines = ["# Results", "", *_LEGEND, ""]
    for profile, group in groupby(results, key=lambda result: result.chain.profile):
        lines += _profile_section(profile, list(group))
    return "\n".join(lines).rstrip() + "\n"


def console_table(results: Sequence[ChainResult]) -> str:
    """The chief columns, aligned, for a terminal of 120 columns; accuracies in percent, counts per image."""
    rows = _rows(results)
    columns = _CONSOLE if any(row["published_snn_accuracy"] for row in rows) else _CONSOLE[:-1]
    return _aligned([[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)])


def _rows(results: Sequence[ChainResult]) -> list[Row]:
    table = summary_table(results).astype(object)
    equal = [None if result.certificate is None else result.certificate.equal for result in results]
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.assign(equal=pd.Series(equal, dtype=object)).to_dict(orient="records")
    ]


def _spikes(row: Row) -> float | None:
    positive = row["positive_spikes"]
    return None if positive is None else float(positive + row["negative_spikes"])


def _profile_section(profile: str, results: list[ChainResult]) -> list[str]:
    rows = _rows(results)
    lines = [f"## Profile `{profile}`", "", *_markdown_table(_RESULTS, rows)]
    compared = [row for result, row in zip(results, rows, strict=True) if result.published is not None]
    if compared:
        lines += ["Beside the published figures (difference = this project's figure minus the published one):", ""]
        lines += [*_markdown_table(_COMPARISON, compared), f"Published figures: {SOURCE}.", ""]
        if changed := [*departures(results[0].settings), *_machine_departures(results)]:
            lines += [f"Not trained by the published protocol (its values in brackets): {', '.join(changed)}.", ""]
    data_sets = {result.ann.data.sha256: result.ann.data for result in results}
    for data in data_sets.values():
        lines += [_about_images(data, bool(compared)), ""]
    trained = dict.fromkeys(_about_training(result.ann.made_with) for result in results)
    return [*lines, f"Trained {'; '.join(trained)}.", ""]


def _machine_departures(results: list[ChainResult]) -> list[str]:
    """What the machines of the results did otherwise than the published protocol says."""
    bf16 = any(result.ann.made_with.arithmetic == "bf16" for result in results)
    return ["arithmetic bf16 (fp32)"] if bf16 else []


def _about_training(made_with: MadeWith) -> str:
    processes = "1 process" if made_with.processes == 1 else f"{made_with.processes} processes"
    return f"in {made_with.arithmetic} on {made_with.device}, {processes}, torch {made_with.torch}"


def _about_images(data: DataSet, compared: bool) -> str:
    made_from = f"Made from {data.name}, {data.train_images:,} for training and {data.test_images:,} for testing."
    if data.kind == "cifar10":
        return made_from
    if not compared:
        return f"{made_from} No published figures belong to these images and networks."
    return (
        f"{made_from} They are **not the official CIFAR-10 archive** but its images encoded anew, "
        "so the published figures are not directly comparable."
    )


def _markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    cells = [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    ruler = ["---" if title in _TEXT_COLUMNS else "---:" for title, _ in columns]
    return [f"| {' | '.join(line)} |" for line in (cells[0], ruler, *cells[1:])] + [""]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [title in _TEXT_COLUMNS for title in lines[0]]
    padded = (
        [cell.ljust(width) if left else cell.rjust(width) for cell, width, left in zip(line, widths, text, strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _plain(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else str(row[name])


def _percent(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else f"{100 * row[name]:.2f}"


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else f"{row[name]:,.0f}"


def _in_units(name: str, unit: float) -> Callable[[Row], str]:
    """In thousands or millions; of a small network, which has less than one of them, with more digits."""

    def cell(row: Row) -> str:
        if row[name] is None:
            return NOTHING
        value = row[name] / unit
        return f"{value:,.2f}" if value >= 1 else f"{value:.4f}"

    return cell


def _beside(name: str, other: str, unit: float = 1.0, digits: int = 0) -> Callable[[Row], str]:
    """This project's figure minus the published one, with its sign."""

    def cell(row: Row) -> str:
        if row[name] is None or row[other] is None:
            return NOTHING
        # Rounded before it is signed, so that nothing reads -0.00.
        difference = round((row[name] - row[other]) / unit, digits) + 0.0
        return f"{difference:+,.{digits}f}"

    return cell


_TEXT_COLUMNS = ("profile", "model")

_RUN: tuple[Column, ...] = (("model", _plain("model")), ("k", _plain("k")), ("seed", _plain("seed")))

_RESULTS: tuple[Column, ...] = (
    *_RUN,
    ("ANN (%)", _percent("ann_accuracy")),
    ("integer network (%)", _percent("integer_accuracy")),
    ("SNN (%)", _percent("snn_accuracy")),
    ("integer = ANN (%)", _percent("ann_agreement")),
    ("SNN ≠ integer (images)", _number("differing_predictions")),
    ("stable (step)", _number("stable_step")),
    ("settled (step)", _number("settled_step")),
    ("not settled (images)", _number("unsettled")),
    ("proved equal (images)", _number("equal")),
    ("positive spikes (thousand)", _in_units("positive_spikes", 1e3)),
    ("negative spikes (thousand)", _in_units("negative_spikes", 1e3)),
    ("SOPs (million)", _in_units("synops", 1e6)),
    ("ANN's MACs (million)", _in_units("ann_macs", 1e6)),
)

_COMPARISON: tuple[Column, ...] = (
    *_RUN,
    ("ANN (%)", _percent("ann_accuracy")),
    ("published (%)", _percent("published_ann_accuracy")),
    ("difference (points)", _beside("ann_accuracy", "published_ann_accuracy", 0.01, 2)),
    ("SNN (%)", _percent("snn_accuracy")),
    ("published (%)", _percent("published_snn_accuracy")),
    ("difference (points)", _beside("snn_accuracy", "published_snn_accuracy", 0.01, 2)),
    ("stable (step)", _number("stable_step")),
    ("published (step)", _number("published_stable_step")),
    ("difference (steps)", _beside("stable_step", "published_stable_step")),
    ("SOPs (million)", _in_units("synops", 1e6)),
    ("published (million)", _in_units("published_synops", 1e6)),
    ("difference (million)", _beside("synops", "published_synops", 1e6, 2)),
)

_CONSOLE: tuple[Column, ...] = (
    ("profile", _plain("profile")),
    *_RUN,
    ("ANN %", _percent("ann_accuracy")),
    ("integer %", _percent("integer_accuracy")),
    ("SNN %", _percent("snn_accuracy")),
    ("differ", _number("differing_predictions")),
    ("stable", _number("stable_step")),
    ("settled", _number("settled_step")),
    ("unsettled", _number("unsettled")),
    ("spikes", lambda row: NOTHING if (spikes := _spikes(row)) is None else f"{spikes:,.0f}"),
    ("SOPs (M)", _in_units("synops", 1e6)),
    ("publ. SNN %", _percent("published_snn_accuracy")),
)

_LEGEND = (
    "One row per run. ANN: the trained network. Integer network: what it is converted to. SNN: the integer network",
    "run as spikes, after the last step T (`simulate.steps`). Accuracies are shares of the test images; spikes,",
    "synaptic operations (SOPs) and multiply-accumulates (MACs) are averages per image.",
    "",
    "- integer = ANN: images on which the integer network predicts what the ANN does",
    "- SNN ≠ integer: images on which the SNN, once at rest, does not predict what the integer network does; an",
    "  image that is not at rest after step T is run on until it is, up to step `simulate.settle_limit`",
    "- stable: first step from which the accuracy no longer changes",
    "- settled: first step with every neuron of every image at rest; not settled: images not at rest after step T",
    "- proved equal: images that came to rest, by step `simulate.settle_limit` at the latest, with every net spike",
    "  count of every neuron equal to the integer network's",
)
