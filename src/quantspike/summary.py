"""The results as people and tools read them: CSV, Markdown and LaTeX tables, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from quantspike import files
from quantspike.latex import NOTHING, TextTable, latex_float
from quantspike.published import SOURCE, departures
from quantspike.results import ChainResult, DataSet, MadeWith
from quantspike.tables import PUBLISHED, runs_table, summary_table, write_table

Row = dict[str, Any]
"""A row of the summary or of the table of runs, `None` where it is empty."""

Column = tuple[str, Callable[[Row], str]]
"""Title of a column, unit included, and the text of its cell."""


def write_summary(results: Sequence[ChainResult], folder: Path) -> None:
    """Writes summary.csv, .md and .tex, one row per profile, model and k, and runs.csv, one row per run.

    Raises:
        QuantspikeError: the seeds of a row were run on different images; then nothing is written.
    """
    summary, texts = summary_table(results), {"summary.md": markdown(results), "summary.tex": latex(results)}
    write_table(folder / "summary.csv", summary)
    write_table(folder / "runs.csv", runs_table(results))
    for name, text in texts.items():
        files.write_text(folder / name, text)


def markdown(results: Sequence[ChainResult]) -> str:
    """A section per profile: the table for a paper, what it was made from, and how exact the conversion is.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    lines = ["# Results", "", *_LEGEND, ""]
    for profile, group in _by_profile(results):
        rows = _records(summary_table(group))
        lines += [*_paper_section(profile, group, level=2), *_conversion(rows)]
        if any(row["seeds"] > 1 for row in rows):
            lines += ["### Every run", "", *_markdown_table(_text_table(_RUNS, _records(runs_table(group))))]
    return "\n".join(lines).rstrip() + "\n"


def paper_sections(results: Sequence[ChainResult], level: int) -> str:
    """The table for a paper of each profile, with what one must know of it, under a Markdown heading of this level.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    sections = [_paper_section(profile, group, level) for profile, group in _by_profile(results)]
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def latex(results: Sequence[ChainResult]) -> str:
    """A float per profile, label `tab:quantspike-<profile>`, cells as in the Markdown; needs booktabs and adjustbox.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    floats = [_latex_float(profile, group) for profile, group in _by_profile(results)]
    return "\n".join(["% Made by quantspike. The preamble needs \\usepackage{booktabs,adjustbox}.", "", *floats])


def paper_tables(results: Sequence[ChainResult]) -> list[TextTable]:
    """What goes into a paper about the runs of one profile: one row per model and k, in the order given.

    One table, or where published figures make it too wide for a page, two: accuracy and time, then costs.

    Raises:
        QuantspikeError: the seeds of a row were run on different images.
    """
    rows = _records(summary_table(results))
    return [_text_table(columns, rows) for columns in _paper_columns(rows)]


def console_table(results: Sequence[ChainResult]) -> str:
    """The chief columns, one row per run, aligned, for a terminal of 120 columns; accuracies in percent."""
    rows = _records(runs_table(results))
    columns = _CONSOLE if any(row["published_snn_accuracy"] for row in rows) else _CONSOLE[:-1]
    return _aligned(_text_table(columns, rows))


def _by_profile(results: Sequence[ChainResult]) -> list[tuple[str, list[ChainResult]]]:
    return [(profile, list(group)) for profile, group in groupby(results, key=lambda result: result.chain.profile)]


def _records(table: pd.DataFrame) -> list[Row]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.astype(object).to_dict(orient="records")
    ]


def _text_table(columns: Sequence[Column], rows: Sequence[Row]) -> TextTable:
    return [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]


def _spikes(row: Row) -> float | None:
    positive = row["positive_spikes"]
    return None if positive is None else float(positive + row["negative_spikes"])


def _paper_section(profile: str, results: Sequence[ChainResult], level: int) -> list[str]:
    lines = [f"{'#' * level} Profile `{profile}`", ""]
    for table in paper_tables(results):
        lines += _markdown_table(table)
    for sentence in _sentences(results):
        lines += [sentence, ""]
    return lines


def _conversion(rows: Sequence[Row]) -> list[str]:
    spiking = [row for row in rows if row["snn_accuracy_mean"] is not None]
    if not spiking:
        return []
    return [
        "The conversion, and when the spikes come to rest:",
        "",
        *_markdown_table(_text_table(_CONVERSION, spiking)),
    ]


def _sentences(results: Sequence[ChainResult]) -> list[str]:
    """What one must know of the runs of one profile to read their table, in Markdown."""
    compared = any(result.published is not None for result in results)
    sentences = [_how_to_read(results, compared)]
    if compared:
        sentences.append(f"Published figures: {SOURCE}.")
        if changed := [*departures(results[0].settings), *_machine_departures(results)]:
            sentences.append(f"Not trained by the published protocol (its values in brackets): {', '.join(changed)}.")
    data_sets = {result.ann.data.sha256: result.ann.data for result in results}
    for data in data_sets.values():
        of_these = [result for result in results if result.ann.data.sha256 == data.sha256]
        rows = f"{_row_names(of_these)}: " if len(data_sets) > 1 else ""
        sentences.append(rows + _about_images(data, any(result.published is not None for result in of_these)))
    trained = dict.fromkeys(_about_training(result.ann.made_with) for result in results)
    return [*sentences, f"Trained {'; '.join(trained)}." + _mixed_machines(results)]


def _how_to_read(results: Sequence[ChainResult], compared: bool) -> str:
    runs = [len(list(group)) for _, group in groupby(results, key=lambda result: (result.chain.model, result.chain.k))]
    spread, together = "One run per row (n = 1), hence no spread.", ""
    if max(runs) > 1:
        n = f"n = {runs[0]}" if len(set(runs)) == 1 else "n"
        spread = f"Mean ± standard deviation (divisor n - 1) over {n} runs that differ in their seed."
        together = " (of all runs together)"
    published = " Δ: this project's figure minus the published one." if compared else ""
    return (
        f"{spread} SNN: the spiking network after {results[0].settings.simulate.steps} steps. SNN = integer: test "
        f"images{together} on which every net spike count is proved equal to the integer network's. Stable: the first "
        f"step from which the accuracy no longer changes. Spikes, SOPs and MACs are per image; MACs, as published, "
        f"include positions in the padding, SOPs only synapses that exist.{published}"
    )


def _row_names(results: Sequence[ChainResult]) -> str:
    return ", ".join(dict.fromkeys(f"{result.chain.model} k = {result.chain.k}" for result in results))


def _mixed_machines(results: Sequence[ChainResult]) -> str:
    """Names the rows whose seeds were not all trained in the same way on the same kind of machine."""
    first = {(r.chain.model, r.chain.k): _about_training(r.ann.made_with) for r in reversed(results)}
    mixed = [r for r in results if _about_training(r.ann.made_with) != first[r.chain.model, r.chain.k]]
    return f" Not all seeds of a row were trained alike in {_row_names(mixed)}." if mixed else ""


def _latex_float(profile: str, results: Sequence[ChainResult]) -> str:
    # The sentences are Markdown.
    caption = " ".join([f"Profile {profile}.", *_sentences(results)]).replace("**", "").replace("`", "")
    return latex_float(paper_tables(results), caption, f"tab:quantspike-{profile}", _TEXT_COLUMNS)


def _machine_departures(results: Sequence[ChainResult]) -> list[str]:
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


def _markdown_table(table: TextTable) -> list[str]:
    ruler = ["---" if title in _TEXT_COLUMNS else "---:" for title in table[0]]
    return [f"| {' | '.join(line)} |" for line in (table[0], ruler, *table[1:])] + [""]


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


def _signed(difference: float, digits: int) -> str:
    # Rounded before it is signed, so that nothing reads -0.00.
    return f"{round(difference, digits) + 0.0:+,.{digits}f}"


def _mean(name: str, unit: float, digits: int) -> Callable[[Row], str]:
    """Mean and, where there are several seeds, standard deviation."""

    def cell(row: Row) -> str:
        mean, std = row[f"{name}_mean"], row[f"{name}_std"]
        if mean is None:
            return NOTHING
        shown = digits + _more_digits(row, digits)
        return f"{mean / unit:,.{shown}f}" + ("" if std is None else f" ± {std / unit:,.{shown}f}")

    return cell


def _more_digits(row: Row, digits: int) -> int:
    """The mean of several whole numbers is none."""
    return int(digits == 0 and row["seeds"] > 1)


def _measure(rows: Sequence[Row], name: str, title: str, unit: float, digits: int) -> list[Column]:
    """A measure, and beside it the published figure and the difference, if any of the rows has them."""

    def other(row: Row) -> str:
        value = row[f"published_{name}"]
        return NOTHING if value is None else f"{value / unit:,.{digits}f}"

    def difference(row: Row) -> str:
        value = row[f"{name}_difference"]
        return NOTHING if value is None else _signed(value / unit, digits + _more_digits(row, digits))

    columns: list[Column] = [(title, _mean(name, unit, digits))]
    if name in PUBLISHED and any(row[f"published_{name}"] is not None for row in rows):
        columns += [("published", other), ("Δ", difference)]
    return columns


def _count(rows: Sequence[Row], name: str, title: str, unit: float) -> list[Column]:
    """A count per image; all rows with more digits if the network of one is so small that it needs them."""
    means = [row[f"{name}_mean"] for row in rows]
    small = any(mean is not None and 0 < mean < unit for mean in means)
    return _measure(rows, name, title, unit, 4 if small else 2)


def _paper_columns(rows: Sequence[Row]) -> list[list[Column]]:
    accuracy = [
        *_measure(rows, "ann_accuracy", "ANN (%)", 0.01, 2),
        *_measure(rows, "snn_accuracy", "SNN (%)", 0.01, 2),
        ("SNN = integer (images)", _equal),
        *_measure(rows, "stable_step", "stable (step)", 1, 0),
    ]
    costs = [
        *_count(rows, "positive_spikes", "positive spikes (thousand)", 1e3),
        *_count(rows, "negative_spikes", "negative spikes (thousand)", 1e3),
        *_count(rows, "synops", "SOPs (million)", 1e6),
        ("ANN's MACs (million)", _in_units("ann_macs", 1e6)),
    ]
    if any(title == "published" for title, _ in accuracy + costs):
        return [[*_NETWORK, *accuracy], [*_NETWORK, *costs]]
    return [[*_NETWORK, *accuracy, *costs]]


def _equal(row: Row) -> str:
    return NOTHING if row["equal"] is None else f"{row['equal']:,}/{row['simulated_images']:,}"


_TEXT_COLUMNS = ("profile", "model")

_NETWORK: tuple[Column, ...] = (("model", _plain("model")), ("k", _plain("k")), ("n", _plain("seeds")))

_CONVERSION: tuple[Column, ...] = (
    *_NETWORK,
    ("integer network (%)", _mean("integer_accuracy", 0.01, 2)),
    ("integer = ANN (%)", _mean("ann_agreement", 0.01, 2)),
    ("SNN ≠ integer (images)", _number("differing_predictions")),
    ("settled (step)", _mean("settled_step", 1, 0)),
    ("not settled (images)", _number("unsettled")),
)

_RUN: tuple[Column, ...] = (("model", _plain("model")), ("k", _plain("k")), ("seed", _plain("seed")))

_RUNS: tuple[Column, ...] = (
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
    "One row per network and k, with mean ± standard deviation over its n seeds; `runs.csv` has every run. ANN: the",
    "trained network. Integer network: what it is converted to. SNN: the integer network run as spikes, after the last",
    "step T (`simulate.steps`). Accuracies are shares of the test images; spikes, synaptic operations (SOPs) and",
    "multiply-accumulates (MACs) are averages per image. Images are counted over all seeds together.",
    "",
    "- SNN = integer: images that came to rest, by step `simulate.settle_limit` at the latest, with every net spike",
    "  count of every neuron equal to the integer network's",
    "- stable: first step from which the accuracy no longer changes",
    "- Δ: this project's figure minus the published one",
    "- integer = ANN: images on which the integer network predicts what the ANN does",
    "- SNN ≠ integer: images on which the SNN, once at rest, does not predict what the integer network does; an",
    "  image that is not at rest after step T is run on until it is, up to step `simulate.settle_limit`",
    "- settled: first step with every neuron of every image at rest, empty if for any seed there is none up to T;",
    "  not settled: images not at rest after step T",
)
