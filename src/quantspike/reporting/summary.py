"""The results as people and tools read them: CSV, Markdown and LaTeX tables, and a table for the terminal.

Every function but `console_table` raises `QuantspikeError` if the seeds of a row were run on different images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from quantspike import files
from quantspike.reporting.published import SOURCE, protocol_differences
from quantspike.reporting.results import DataSet, Provenance, RunResult, spiking_results
from quantspike.reporting.tables import aligned, runs_table, summary_table, write_table

Row = dict[str, Any]
"""A row of the summary or of the table of runs, `None` where it is empty."""

Column = tuple[str, Callable[[Row], str]]
"""Title of a column, unit included, and the text of its cell."""

TextTable = list[list[str]]
"""A table as it is shown: the titles, then the cells of each row."""

NOTHING = "-"
"""A cell without a value."""


def write_summary(results: Sequence[RunResult], folder: Path) -> None:
    """Write summary.csv, .md and .tex, one row per profile, model and k, and runs.csv, one row per run."""
    summary, texts = summary_table(results), {"summary.md": markdown(results), "summary.tex": latex(results)}
    write_table(folder / "summary.csv", summary)
    write_table(folder / "runs.csv", runs_table(results))
    for name, text in texts.items():
        files.write_text(folder / name, text)


def markdown(results: Sequence[RunResult]) -> str:
    """Return a section per profile: the paper tables, what they were made from, and how exact the conversion is."""
    lines = ["# Results", "", *_LEGEND, ""]
    for profile, group in _by_profile(results):
        lines += _paper_section(profile, group, level=2)
        if spiking := [row for row in _records(summary_table(group)) if row["equal"] is not None]:
            columns = _conversion_columns(spiking, _one_number(group))
            lines += ["Conversion and settling:", "", *_markdown_table(_text_table(columns, spiking))]
    return "\n".join(lines).rstrip() + "\n"


def paper_sections(results: Sequence[RunResult], level: int) -> str:
    """Return the paper tables of each profile and their notes, under a Markdown heading of this level."""
    sections = [_paper_section(profile, group, level) for profile, group in _by_profile(results)]
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def latex(results: Sequence[RunResult]) -> str:
    """Return the paper tables of each profile as floats, labels `tab:quantspike-<profile>` and `...-costs`.

    The notes of a profile are comments above its tables.
    """
    parts = ["% Made by quantspike. The preamble needs \\usepackage{booktabs,adjustbox}."]
    for profile, group in _by_profile(results):
        accuracy, *costs = _paper_tables(group)
        parts.append("\n".join(f"% {sentence}" for sentence in _notes(group)))
        parts.append(_latex_float(accuracy, f"Profile {profile}. {_how_to_read(group)}", f"tab:quantspike-{profile}"))
        for table in costs:
            parts.append(_latex_float(table, f"Profile {profile}: costs per image.", f"tab:quantspike-{profile}-costs"))
    return "\n\n".join(parts) + "\n"


def console_table(results: Sequence[RunResult]) -> str:
    """Return the main columns, one row per run, aligned, for a terminal of 120 columns; accuracies in percent."""
    rows = _records(runs_table(results))
    columns = [*_CONSOLE, ("SOPs (M)", _number("synops", 1e6, _digits(rows, "synops", 1e6)))]
    if _compared(results):
        columns.append(("publ. %", _number("published_snn_accuracy", 0.01, 2)))
    note = f"\nstable: {_NOT_STABLE}" if _unstable(results) else ""
    return aligned(_text_table(columns, rows), _WORDS) + note


def _paper_tables(results: Sequence[RunResult]) -> list[TextTable]:
    """Return the table of one profile for a paper, one row per model and k.

    Published figures make it too wide for a page: then there are two, accuracy and time, then costs.
    """
    rows = [row | _one_accuracy(row) for row in _records(summary_table(results))]
    return [_text_table(columns, rows) for columns in _paper_columns(rows, _one_number(results))]


def _by_profile(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    return [(profile, list(group)) for profile, group in groupby(results, key=lambda result: result.run.profile)]


def _records(table: pd.DataFrame) -> list[Row]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def _text_table(columns: Sequence[Column], rows: Sequence[Row]) -> TextTable:
    return [[title for title, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]


def _paper_section(profile: str, results: Sequence[RunResult], level: int) -> list[str]:
    lines = [f"{'#' * level} Profile `{profile}`", ""]
    for table in _paper_tables(results):
        lines += _markdown_table(table)
    for sentence in (_how_to_read(results), *_notes(results)):
        lines += [sentence, ""]
    return lines


def _one_number(results: Sequence[RunResult]) -> bool:
    """Return whether trained, integer and spiking network of every k are one, so that one accuracy says it all."""
    return bool(spiking := spiking_results(results)) and all(
        result.run.settings.finetune.integer_aware
        and result.simulation.ann_agreement == 1
        and result.evaluation.accuracy == result.simulation.integer_accuracy == result.simulation.accuracy
        for result in spiking
    )


def _unstable(results: Sequence[RunResult]) -> bool:
    return any(result.simulation.stable_step is None for result in spiking_results(results))


def _how_to_read(results: Sequence[RunResult]) -> str:
    """Return what the columns of a profile's paper tables mean."""
    runs = [len(list(group)) for _, group in groupby(results, key=lambda result: (result.run.model, result.run.k))]
    spread, together = "One run per row (n = 1), hence no spread.", ""
    if max(runs) > 1:
        n = f"n = {runs[0]}" if len(set(runs)) == 1 else "n"
        spread = f"Mean ± standard deviation (divisor n - 1) over {n} runs that differ in their seed."
        together = " (of all runs together)"
    published = " Δ: this project's figure minus the published one." if _compared(results) else ""
    settings = results[0].run.settings.simulate
    first, *others = settings.layer_delay
    also = f"Layer delay: D = {first}; also simulated: {', '.join(map(str, others))}. " if others else ""
    networks, proved = f"SNN: the spiking network after {settings.steps} steps.", "SNN = integer"
    if _one_number(results):
        networks = f"Trained, integer and spiking network (after {settings.steps} steps) are one, with one accuracy."
        proved = "Proved"
    none = f", {_NOT_STABLE}" if _unstable(results) else ""
    return (
        f"{spread} {networks} {also}{proved}: test images{together} on which every net spike count is proved equal to "
        f"the integer network's. Stable: the first step from which the accuracy no longer changes{none}. Spikes, SOPs "
        f"and MACs are per image; MACs, as published, include positions in the padding, SOPs only synapses that "
        f"exist.{published}"
    )


def _notes(results: Sequence[RunResult]) -> list[str]:
    """Return what the results of one profile are compared with, made from and trained with."""
    sentences = []
    if _compared(results):
        sentences.append(f"Published figures: {SOURCE}.")
        if differences := _differences(results):
            sentences.append(
                f"Not trained by the published protocol (its values in brackets): {', '.join(differences)}."
            )
    sentences += [f"{images}." for images in _each(results, lambda result: _about_images(result.evaluation.data))]
    trained = _each(results, lambda result: _about_training(result.evaluation.provenance))
    return [*sentences, f"Trained {'; '.join(trained)}."]


def _each(results: Sequence[RunResult], about: Callable[[RunResult], str]) -> list[str]:
    """Return what can be said about results; where they differ, each with the rows that it is true of."""
    rows: dict[str, list[str]] = {}
    for result in results:
        rows.setdefault(about(result), []).append(f"{result.run.model} k = {result.run.k}")
    return [text if len(rows) == 1 else f"{text} ({', '.join(dict.fromkeys(of))})" for text, of in rows.items()]


def _compared(results: Sequence[RunResult]) -> bool:
    return any(result.published is not None for result in results)


def _differences(results: Sequence[RunResult]) -> list[str]:
    """Return how settings and machines of one profile's results differ from the published protocol."""
    bf16 = any(result.evaluation.provenance.arithmetic == "bf16" for result in results)
    return protocol_differences(results[0].run.settings) + (["arithmetic bf16 (fp32)"] if bf16 else [])


def _about_training(provenance: Provenance) -> str:
    processes = "1 process" if provenance.processes == 1 else f"{provenance.processes} processes"
    if provenance.threads is not None:
        processes += f" of {provenance.threads} thread{'s' * (provenance.threads > 1)}"
    return f"in {provenance.arithmetic} on {provenance.device}, {processes}, torch {provenance.torch}"


def _about_images(data: DataSet) -> str:
    published = "" if data.kind == "cifar10" else ", of which no figures were published"
    return (
        f"Made from {data.name} (SHA-256 {data.sha256[:8]}), {data.train_images:,} images for training and "
        f"{data.test_images:,} for testing{published}"
    )


def _markdown_table(table: TextTable) -> list[str]:
    ruler = ["---" if title in _WORDS else "---:" for title in table[0]]
    return [f"| {' | '.join(line)} |" for line in (table[0], ruler, *table[1:])] + [""]


def _latex_float(table: TextTable, caption: str, label: str) -> str:
    """Return a table environment; a title such as `SOPs (million)` takes two lines, quantity and unit."""
    titles, *rows = ([_latex_math(cell) for cell in line] for line in table)
    styler = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(_two_lines(titles))).style
    text = (
        styler.hide(axis="index")
        .format(escape="latex-math")
        .format_index(escape="latex-math", axis="columns")
        .to_latex(
            hrules=True,
            position_float="centering",
            multicol_align="c",
            column_format="".join("l" if title in _WORDS else "r" for title in titles),
            caption=_latex_math(caption).replace("_", r"\_"),
            label=label,
        )
    )
    # Several seeds next to published figures are wider than a page.
    box = "\\begin{adjustbox}{max width=\\textwidth}\n\\begin{tabular}"
    boxed = text.replace(r"\begin{tabular}", box).replace(r"\end{tabular}", "\\end{tabular}\n\\end{adjustbox}")
    return boxed.rstrip()


def _latex_math(text: str) -> str:
    """Write signs that LaTeX has in formulas only as such."""
    return re.sub(r"^-(?=\d)", "$-$", text).replace("±", r"$\pm$").replace("Δ", r"$\Delta$")


def _two_lines(titles: Sequence[str]) -> list[tuple[str, str]]:
    """Return quantity and unit of each title; one without a unit goes under the quantity to its left."""
    lines = [("", "")]
    for title in titles:
        with_unit = re.fullmatch(r"(.+) \((.+)\)", title)
        lines.append((with_unit[1], with_unit[2]) if with_unit else (lines[-1][0], title))
    return lines[1:]


def _plain(name: str) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else str(row[name])


def _number(name: str, unit: float = 1, digits: int = 0) -> Callable[[Row], str]:
    return lambda row: NOTHING if row[name] is None else f"{row[name] / unit:,.{digits}f}"


def _digits(rows: Sequence[Row], name: str, unit: float) -> int:
    """Return the decimal places of a column: more if the network of one row is so small that it needs them."""
    return 4 if any(row[name] is not None and 0 < row[name] < unit for row in rows) else 2


def _mean(name: str, unit: float, digits: int) -> Callable[[Row], str]:
    """Show the mean and, where there are several seeds, the standard deviation."""

    def cell(row: Row) -> str:
        mean, std = row[f"{name}_mean"], row[f"{name}_std"]
        if mean is None:
            return NOTHING
        shown = digits + _more_digits(row, digits)
        return f"{mean / unit:,.{shown}f}" + ("" if std is None else f" ± {std / unit:,.{shown}f}")

    return cell


def _more_digits(row: Row, digits: int) -> int:
    """Return 1 for the mean of several whole numbers, which has a fraction."""
    return int(digits == 0 and row["seeds"] > 1)


def _measure(rows: Sequence[Row], name: str, title: str, unit: float, digits: int) -> list[Column]:
    """Return a measure and, if any row has them, the published figure and the difference."""

    def difference(row: Row) -> str:
        if (value := row[f"{name}_difference"]) is None:
            return NOTHING
        shown = digits + _more_digits(row, digits)
        # Rounded before it is signed, so that nothing reads -0.00.
        return f"{round(value / unit, shown) + 0.0:+,.{shown}f}"

    columns: list[Column] = [(title, _mean(name, unit, digits))]
    if any(row[f"published_{name}"] is not None for row in rows):
        columns += [("published", _number(f"published_{name}", unit, digits)), ("Δ", difference)]
    return columns


def _one_accuracy(row: Row) -> Row:
    """Return the columns of the accuracy where it is one: the spiking network's, of a baseline the trained one's."""
    name = "ann_accuracy" if row["equal"] is None else "snn_accuracy"
    return {f"{before}accuracy{after}": row[f"{before}{name}{after}"] for before, after in _STATISTICS}


def _paper_columns(rows: Sequence[Row], one: bool) -> list[list[Column]]:
    """Return the columns of one table or two; `one` is whether there is one accuracy per row."""
    networks = {"accuracy": "accuracy (%)"} if one else {"ann_accuracy": "ANN (%)", "snn_accuracy": "SNN (%)"}
    accuracy = [
        *(column for name, title in networks.items() for column in _measure(rows, name, title, 0.01, 2)),
        ("proved (images)" if one else "SNN = integer (images)", _equal),
        *_measure(rows, "stable_step", "stable (step)", 1, 0),
    ]
    costs = [
        column
        for name, title, unit in _COSTS
        for column in _measure(rows, name, title, unit, _digits(rows, f"{name}_mean", unit))
    ]
    costs.append(("ANN's MACs (million)", _number("ann_macs", 1e6, _digits(rows, "ann_macs", 1e6))))
    if any(title == "published" for title, _ in accuracy + costs):
        return [[*_NETWORK, *accuracy], [*_NETWORK, *costs]]
    return [[*_NETWORK, *accuracy, *costs]]


def _conversion_columns(rows: Sequence[Row], one: bool) -> list[Column]:
    least = ("least SOPs (million)", _mean("least_synops", 1e6, _digits(rows, "least_synops_mean", 1e6)))
    return [*_NETWORK, *(() if one else _AGREEMENT), *_SETTLING, least]


def _equal(row: Row) -> str:
    return NOTHING if row["equal"] is None else f"{row['equal']:,}/{row['simulated_images']:,}"


def _spikes(row: Row) -> str:
    positive = row["positive_spikes"]
    return NOTHING if positive is None else f"{positive + row['negative_spikes']:,.0f}"


_NOT_STABLE = "none where images are not settled after the last step: simulate.steps is too small for them"

_WORDS = ("profile", "model")
"""Titles of the columns that hold words; the others hold numbers."""

_NETWORK: tuple[Column, ...] = (("model", _plain("model")), ("k", _plain("k")), ("n", _plain("seeds")))

_COSTS = (
    ("positive_spikes", "positive spikes (thousand)", 1e3),
    ("negative_spikes", "negative spikes (thousand)", 1e3),
    ("synops", "SOPs (million)", 1e6),
)

_STATISTICS = (("", "_mean"), ("", "_std"), ("published_", ""), ("", "_difference"))
"""What comes before and after the name of a measure in the columns of the summary."""

_AGREEMENT: tuple[Column, ...] = (
    ("integer network (%)", _mean("integer_accuracy", 0.01, 2)),
    ("integer = ANN (%)", _mean("ann_agreement", 0.01, 2)),
)

_SETTLING: tuple[Column, ...] = (
    ("SNN ≠ integer (images)", _number("differing_predictions")),
    ("settled (step)", _mean("settled_step", 1, 0)),
    ("not settled at T (images)", _number("unsettled_at_T")),
)

_CONSOLE: tuple[Column, ...] = (
    ("profile", _plain("profile")),
    ("model", _plain("model")),
    ("k", _plain("k")),
    ("seed", _plain("seed")),
    ("ANN %", _number("ann_accuracy", 0.01, 2)),
    ("integer %", _number("integer_accuracy", 0.01, 2)),
    ("SNN %", _number("snn_accuracy", 0.01, 2)),
    ("differ", _number("differing_predictions")),
    ("stable", _number("stable_step")),
    ("settled", _number("settled_step")),
    ("unsettled at T", _number("unsettled_at_T")),
    ("spikes", _spikes),
)

_LEGEND = (
    "One row per network and k, with mean ± standard deviation over its n seeds; `runs.csv` has every run. ANN: the",
    "trained network. Integer network: what it is converted to. SNN: the integer network run as spikes, after the last",
    'step T (`simulate.steps`). Accuracies are shares of the test images. Under "conversion and settling":',
    "",
    "- integer = ANN: images on which the integer network predicts what the ANN does; left out where they are one",
    "- SNN ≠ integer: images on which the SNN, once settled, does not predict what the integer network does; an image",
    "  that has not settled after step T is run on until it has, up to step `simulate.settle_limit`",
    "- settled: first step with every neuron of every image settled, empty if for any seed there is none up to T;",
    "  not settled at T: images that have not settled after step T, of all seeds together; if there are any, there is",
    "  no stable step. Proved images are those settled by step `simulate.settle_limit`",
    "- least SOPs: if every neuron fired its net count and no negative spike, a lower bound for any order of spikes",
)
