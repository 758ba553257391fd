"""The summary as Markdown and LaTeX, which say the same as the CSV, and the table for the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from make_results import change_json, data_set, make_grid, make_params, make_run
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.paths import Run, grid_runs
from quantspike.reporting.results import RunResult, read_all
from quantspike.reporting.summary import console_table, latex, markdown, paper_sections, write_summary
from quantspike.reporting.tables import RUNS_COLUMNS, SUMMARY_COLUMNS


def make_results(root: Path, params: Params | None = None, data: dict[str, Any] | None = None) -> list[RunResult]:
    return read_all(make_grid(params or make_params(), root, data))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    return make_results(tmp_path_factory.mktemp("results"))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Return all tables of a Markdown text: titles, then rows, without the ruler."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    lines = [[line for line in block.splitlines() if not line.startswith("| ---")] for block in blocks]
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block] for block in lines]


def latex_tables(text: str) -> list[list[list[str]]]:
    """Return all tables of a LaTeX text as they print: the second line of titles, then rows."""
    for sign, character in ((r"$\pm$", "±"), (r"$\Delta$", "Δ"), ("$-$", "-"), (r"\%", "%"), (r"\_", "_")):
        text = text.replace(sign, character)
    tables = []
    for body in re.findall(r"\\begin\{tabular\}\{[lr]+\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        lines = [line.removesuffix(r"\\").split("&") for line in body.splitlines() if line.endswith(r"\\")]
        tables.append([[cell.strip() for cell in line] for line in lines[1:]])
    return tables


def test_no_results_write_files_without_rows(tmp_path: Path) -> None:
    write_summary([], tmp_path)
    written = {path.name: path.read_text().splitlines() for path in tmp_path.iterdir()}
    assert written.pop("summary.md")[0] == "# Results"
    assert written.pop("summary.tex") == ["% Made by quantspike. The preamble needs \\usepackage{booktabs,adjustbox}."]
    assert written == {"runs.csv": [",".join(RUNS_COLUMNS)], "summary.csv": [",".join(SUMMARY_COLUMNS)]}
    assert console_table([]).startswith("profile  model  k  seed")


def test_nothing_is_written_about_seeds_on_different_images(tmp_path: Path) -> None:
    runs = grid_runs(make_params(k=(0,), seed=(0, 1)), tmp_path)[2:]
    for run, kind in zip(runs, ("cifar10", "images"), strict=True):
        make_run(run, data_set(kind))
    with pytest.raises(QuantspikeError, match="cannot be averaged"):
        write_summary(read_all(runs), tmp_path / "summary")
    assert not (tmp_path / "summary").exists()


def test_the_paper_tables_have_units_and_published_figures(results: list[RunResult]) -> None:
    accuracy, costs, conversion = markdown_tables(markdown(results))
    assert accuracy[0][:9] == ["model", "k", "n", "ANN (%)", "published", "Δ", "SNN (%)", "published", "Δ"]
    assert accuracy[0][9:] == ["SNN = integer (images)", "stable (step)", "published", "Δ"]
    # ANN 92.82 - 92.77 = +0.05; SNN 92.86 - 92.77 = +0.09; step 62 - 57 = +5
    assert " ".join(accuracy[3]) == "cnn1 1 1 92.82 92.77 +0.05 92.86 92.77 +0.09 10,000/10,000 62 57 +5"
    # SNN 93.08 - 93.10 = -0.02; its ANN was not published
    assert accuracy[4][3:9] == ["93.04", "-", "-", "93.08", "93.10", "-0.02"]
    assert costs[0][3] == "positive spikes (thousand)"
    assert costs[0][-4:] == ["SOPs (million)", "published", "Δ", "ANN's MACs (million)"]
    # thousands: 278.40 - 269.847 = +8.55, 86.10 - 92.767 = -6.67; millions: 442.80 - 414.151 = +28.65
    assert " ".join(costs[3]) == "cnn1 1 1 278.40 269.85 +8.55 86.10 92.77 -6.67 442.80 414.15 +28.65 399.19"
    # The baseline has no spikes.
    assert accuracy[1] == ["cnn1", "fp32", "1", "92.66", "92.66", "+0.00", *["-"] * 7]
    assert costs[1] == ["cnn1", "fp32", "1", *["-"] * 9, "399.19"]
    titles = "model, k, n, integer network (%), integer = ANN (%), SNN ≠ integer (images), settled (step), not settled "
    assert ", ".join(conversion[0]) == f"{titles}at T (images), least SOPs (million)"
    # least: 70% of 270 and of 442.8 million
    rows = ["cnn1 0 1 92.64 98.90 0 56 0 189.00", "cnn1 1 1 92.86 98.90 0 89 0 309.96"]
    assert [" ".join(row) for row in conversion[1:3]] == rows


def expected_row(row: pd.Series[Any]) -> list[str]:
    """Return the cells of both tables as they follow from a line of summary.csv."""
    cells = []
    measures = [("ann_accuracy", 0.01, 2), ("snn_accuracy", 0.01, 2), ("stable_step", 1, 0)]
    measures += [("positive_spikes", 1e3, 2), ("negative_spikes", 1e3, 2), ("synops", 1e6, 2)]
    for name, unit, digits in measures:
        mean, std, other, difference = (
            row[column] for column in (f"{name}_mean", f"{name}_std", f"published_{name}", f"{name}_difference")
        )
        own = digits + (name == "stable_step" and row["seeds"] > 1)
        spread = "" if pd.isna(std) else f" ± {std / unit:,.{own}f}"
        cells.append("-" if pd.isna(mean) else f"{mean / unit:,.{own}f}{spread}")
        cells.append("-" if pd.isna(other) else f"{other / unit:,.{digits}f}")
        cells.append("-" if pd.isna(difference) else f"{round(difference / unit, own) + 0.0:+,.{own}f}")
        if name == "snn_accuracy":
            cells.append("-" if pd.isna(row["equal"]) else f"{row['equal']:,.0f}/{row['simulated_images']:,.0f}")
    return [*cells, f"{row['ann_macs'] / 1e6:,.2f}"]


@pytest.mark.parametrize("seed", [(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def test_csv_markdown_and_latex_agree_cell_by_cell(tmp_path: Path, seed: tuple[int, ...]) -> None:
    params = make_params(k=(0, 2), seed=seed)
    # The same layers under another name have no published figures.
    params.models["my_net"] = params.models["cnn1"]
    params.grid.model.append("my_net")
    write_summary(make_results(tmp_path, params), tmp_path / "summary")
    table = pd.read_csv(tmp_path / "summary" / "summary.csv", dtype={"k": str})
    in_markdown = markdown_tables((tmp_path / "summary" / "summary.md").read_text())[:2]
    in_latex = latex_tables((tmp_path / "summary" / "summary.tex").read_text())
    assert len(table) == 2 * 3
    for place, (_, row) in enumerate(table.iterrows(), start=1):
        accuracy, costs = (lines[place] for lines in in_markdown)
        assert accuracy[:3] == costs[:3] == [row["model"], row["k"], str(len(seed))]
        assert accuracy[3:] + costs[3:] == expected_row(row)
    for lines, other in zip(in_markdown, in_latex, strict=True):
        # Titles have their unit below them in LaTeX.
        assert [re.sub(r".*\((.*)\)", r"\1", title) for title in lines[0]] == other[0]
        assert lines[1:] == other[1:]


@pytest.fixture
def one(tmp_path: Path) -> list[Run]:
    """Runs whose trained, integer and spiking networks are one, with two layer delays."""
    return make_grid(make_params(finetune__integer_aware=True, simulate__layer_delay=[2, 0]), tmp_path)


def test_networks_that_are_one_have_one_accuracy(one: list[Run]) -> None:
    results = read_all(one)
    accuracy, _, conversion = markdown_tables(markdown(results))
    assert accuracy[0][3:] == ["accuracy (%)", "published", "Δ", "proved (images)", "stable (step)", "published", "Δ"]
    # The baseline next to the published ANN, k next to the published SNN: 92.82 - 92.77. k = 0 is stable at step
    # 29 + 2 x 9, published are 29; k = 1 settles at 89 + 2 x 9, after the last step.
    assert " ".join(accuracy[1]) == "cnn1 fp32 1 92.66 92.66 +0.00 - - - -"
    assert accuracy[2][7:] == ["47", "29", "+18"]
    assert " ".join(accuracy[3]) == "cnn1 1 1 92.82 92.77 +0.05 10,000/10,000 - 57 -"
    assert conversion[0][3:6] == ["SNN ≠ integer (images)", "settled (step)", "not settled at T (images)"]
    sentence = "Trained, integer and spiking network (after 100 steps) are one, with one accuracy. "
    assert f"{sentence}Layer delay: D = 2; also simulated: 0. Proved: test images on" in paper_sections(results, 3)
    in_latex = latex_tables(latex(results))[0]
    assert in_latex[0][3:7] == ["%", "published", "Δ", "images"]
    assert in_latex[1:] == accuracy[1:]


@pytest.mark.parametrize("name", ["accuracy", "integer_accuracy", "ann_agreement"])
def test_one_network_that_differs_gives_every_row_both_accuracies(one: list[Run], name: str) -> None:
    change_json(one[2].metrics / "simulate.json", **{name: 0.9283})
    results = read_all(one)
    accuracy, _, conversion = markdown_tables(markdown(results))
    assert (accuracy[0][3], accuracy[0][6], accuracy[0][9]) == ("ANN (%)", "SNN (%)", "SNN = integer (images)")
    assert conversion[0][4] == "integer = ANN (%)"
    assert "are one, with one accuracy" not in latex(results)


def test_the_latex_is_balanced_with_a_float_per_table_and_the_notes_as_comments(tmp_path: Path) -> None:
    params = make_params(seed=(0, 1, 2), train__epochs=2)
    text = latex(make_results(tmp_path, params, data_set(name="images of my_photos & more.tar")))
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    assert text.count("$") % 2 == 0
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:quantspike-paper", "tab:quantspike-paper-costs"]
    assert text.count("\\begin{adjustbox}{max width=\\textwidth}\n\\begin{tabular}{lrrrrrrrrrrrr}\n\\toprule") == 2
    assert text.count("\\bottomrule\n\\end{tabular}\n\\end{adjustbox}\n\\end{table}") == 2
    assert r"\caption{Profile paper. Mean $\pm$ standard deviation (divisor n - 1) over n = 3 runs that differ" in text
    assert "\n% Made from images of my_photos & more.tar (SHA-256 cifar10c), 50,000 images for training" in text
    assert "\n% Not trained by the published protocol (its values in brackets): train.epochs 2 (100).\n" in text


def test_counts_of_a_small_network_keep_their_digits_and_one_table_holds_everything(tmp_path: Path) -> None:
    runs = make_grid(make_params(k=(0, 1)), tmp_path, data_set("digits"))
    change_json(runs[1].metrics / "simulate.json", synops=176_880.9, positive_spikes=950.25)
    table, _ = markdown_tables(markdown(read_all(runs)))
    assert "Δ" not in table[0]
    # 950.25 spikes are 0.95025 thousand, 176,880.9 SOPs 0.1768809 million; the other row has as many digits.
    assert " ".join(table[2]) == "cnn1 0 1 92.60 92.64 360/360 29 0.9503 41.00 0.1769 399.19"
    assert [(row[7], row[9]) for row in table[2:]] == [("0.9503", "0.1769"), ("278.4000", "442.8000")]


@pytest.mark.parametrize("accuracy", [0.92770, 0.92766, 0.92774], ids=["equal", "just below", "just above"])
def test_no_difference_reads_as_minus_zero(tmp_path: Path, accuracy: float) -> None:
    (run,) = grid_runs(make_params(k=(1,)), tmp_path)[1:]
    make_run(run)
    change_json(run.metrics / "simulate.json", accuracy=accuracy, synops=414_151_000, positive_spikes=269_846.0)
    text = markdown(read_all([run]))
    accuracies, costs, _ = markdown_tables(text)
    assert (accuracies[1][8], costs[1][5], costs[1][11]) == ("+0.00", "+0.00", "+0.00")


def test_the_notes_say_what_the_results_are_compared_with_made_from_and_trained_with(results: list[RunResult]) -> None:
    text = paper_sections(results, level=3)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### Profile `paper`"]
    assert markdown_tables(text) == markdown_tables(markdown(results))[:2]
    sentences = text.splitlines()[-7::2]
    assert sentences[0].startswith(
        "One run per row (n = 1), hence no spread. SNN: the spiking network after 100 steps."
    )
    assert sentences[1].startswith("Published figures: Zou et al.")
    assert sentences[2:] == [
        "Made from CIFAR-10 (official archive) (SHA-256 cifar10c), 50,000 images for training and 10,000 for testing.",
        "Trained in fp32 on some processor, 1 process, torch 2.11.0.",
    ]


def test_other_images_and_machines_are_named_with_their_rows(tmp_path: Path) -> None:
    runs = grid_runs(make_params(k=(0, 1)), tmp_path)[1:]
    make_run(runs[0], data_set("digits"))
    make_run(runs[1], arithmetic="bf16", device="some GPU", processes=4, threads=2)
    text = markdown(read_all(runs))
    assert "Made from CIFAR-10 (official archive) (SHA-256 cifar10c), 50,000 images for training and" in text
    digits = "scikit-learn digits (SHA-256 digitsdi), 1,437 images for training and 360 for testing"
    assert f"Made from {digits}, of which no figures were published (cnn1 k = 0).\n" in text
    assert (
        "Trained in fp32 on some processor, 1 process, torch 2.11.0 (cnn1 k = 0); "
        "in bf16 on some GPU, 4 processes of 2 threads, torch 2.11.0 (cnn1 k = 1).\n" in text
    )
    # The published protocol has nothing but fp32.
    assert "Not trained by the published protocol (its values in brackets): arithmetic bf16 (fp32)." in text


def test_every_profile_has_a_section_and_a_latex_table(tmp_path: Path) -> None:
    params = make_params(k=(0,))
    params.profiles["its_own"] = make_params(width=0.5).profiles["paper"]
    params.grid.profile.append("its_own")
    both = make_results(tmp_path, params)
    headings = ["# Results", "## Profile `paper`", "## Profile `its_own`"]
    assert [line for line in markdown(both).splitlines() if line.startswith("#")] == headings
    assert r"\caption{Profile its\_own. One run" in latex(both)


def test_the_console_table_is_aligned_and_fits_the_terminal(results: list[RunResult], tmp_path: Path) -> None:
    lines = console_table(results).splitlines()
    assert [re.sub(" +", " ", line) for line in lines[:3]] == [
        "profile model k seed ANN % integer % SNN % differ stable settled unsettled at T spikes SOPs (M) publ. %",
        "paper cnn1 fp32 0 92.66 - - - - - - - - -",
        "paper cnn1 0 0 92.60 92.64 92.64 0 29 56 0 201,000 270.00 92.64",
    ]
    # Text is on the left, numbers end where their title ends.
    assert lines[2].index("cnn1") == lines[0].index("model")
    assert lines[2].index("92.60") + len("92.60") == lines[0].index("ANN %") + len("ANN %")
    assert {len(line) for line in lines[:-1]} == {len(lines[0])}
    assert len(lines[0]) <= 120
    assert "publ" not in console_table(make_results(tmp_path, data=data_set("digits")))


def test_a_network_that_is_not_settled_at_the_last_step_has_no_stable_step_and_a_note(results: list[RunResult]) -> None:
    note = "none where images are not settled after the last step: simulate.steps is too small for them"
    settled = [result for result in results if result.run.k != 2]
    for shown in (markdown, latex, console_table):
        assert note in shown(results)
        assert note not in shown(settled)
    # k = 2: 10,000 x 22 / 122 images are not settled, but all of them by the settling limit.
    accuracy, _, conversion = markdown_tables(markdown(results))
    assert accuracy[4][9:13] == ["10,000/10,000", "-", "94", "-"]
    assert conversion[3][6:8] == ["-", "1,803"]
    assert console_table(results).splitlines()[4].split()[7:11] == ["0", "-", "-", "1,803"]
