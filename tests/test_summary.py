"""The summary as CSV, Markdown and LaTeX, which say the same, and the table for the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from make_results import data_set, make_chain, make_made_with, make_params
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.paths import Chain, chains
from quantspike.results import ChainResult, read_all
from quantspike.summary import console_table, latex, markdown, paper_sections, paper_tables, write_summary
from quantspike.tables import RUNS_COLUMNS, SUMMARY_COLUMNS, summary_table, write_table


def make_results(
    root: Path, params: Params | None = None, data: dict[str, Any] | None = None, epochs: tuple[int, int] = (100, 100)
) -> list[ChainResult]:
    params = params or make_params()
    grid = chains(params, root)
    for chain in grid:
        make_chain(chain, data, epochs=epochs)
    return read_all(grid, params)


@pytest.fixture
def results(tmp_path: Path) -> list[ChainResult]:
    return make_results(tmp_path)


@pytest.fixture
def seeds(tmp_path: Path) -> list[ChainResult]:
    return make_results(tmp_path, make_params(seed=(0, 1, 2)))


def change_snn(chain: Chain, **changes: Any) -> None:
    path = chain.metrics / "snn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """All tables of a Markdown text: titles, then rows, without the ruler."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    return [[split_row(line) for line in block.splitlines() if not line.startswith("| ---")] for block in blocks]


def latex_tables(text: str) -> list[list[list[str]]]:
    """All tables of a LaTeX text, read independently of what wrote it: the second line of titles, then rows."""
    tables = []
    for body in re.findall(r"\\begin\{tabular\}\{[lr]+\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        lines = [line.removesuffix(r"\\").split("&") for line in body.splitlines() if line.endswith(r"\\")]
        tables.append([[cell.strip() for cell in line] for line in lines[1:]])
    return tables


def shown(cell: str) -> str:
    """What a LaTeX cell prints, written as in Markdown."""
    for sign, character in ((r"$\pm$", "±"), (r"$\Delta$", "Δ"), ("$-$", "-"), (r"\%", "%"), (r"\_", "_")):
        cell = cell.replace(sign, character)
    return "-" if cell == "--" else cell


def test_all_four_files_are_written(results: list[ChainResult], tmp_path: Path) -> None:
    write_summary(results, tmp_path / "metrics")
    files = sorted(path.name for path in (tmp_path / "metrics").glob("*.*"))
    assert files == ["runs.csv", "summary.csv", "summary.md", "summary.tex"]
    assert (tmp_path / "metrics" / "runs.csv").read_text().splitlines()[0] == ",".join(RUNS_COLUMNS)
    assert (tmp_path / "metrics" / "summary.csv").read_text().splitlines()[0] == ",".join(SUMMARY_COLUMNS)


def test_no_results_write_files_without_rows(tmp_path: Path) -> None:
    write_summary([], tmp_path)
    for name in ("summary.csv", "runs.csv", "summary.tex"):
        assert len((tmp_path / name).read_text().splitlines()) == 1
    assert (tmp_path / "summary.md").read_text().startswith("# Results\n")


def test_the_summary_has_a_row_per_network_and_k_in_grid_order(seeds: list[ChainResult]) -> None:
    table = summary_table(seeds)
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert table["k"].tolist() == ["fp32", "0", "1", "2"]
    assert table["seeds"].tolist() == [3] * 4


def test_means_and_spread_are_over_the_seeds(seeds: list[ChainResult]) -> None:
    row = summary_table(seeds).set_index("k").loc["0"]
    # 0.9260, 0.9275, 0.9260: mean 2.7795 / 3; squares of 0.0005, 0.0010, 0.0005 are 1.5e-6; / 2, root: 0.000866.
    assert row["ann_accuracy_mean"] == pytest.approx(0.9265)
    assert row["ann_accuracy_std"] == pytest.approx(0.00086603, rel=1e-5)
    # 160,000 times 1, 1.02 and 1.04: mean 163,200, deviations -3,200, 0, 3,200: sqrt(2 * 3,200^2 / 2) = 3,200
    assert (row["positive_spikes_mean"], row["positive_spikes_std"]) == (pytest.approx(163_200), pytest.approx(3_200))
    assert row["positive_spikes_difference"] == pytest.approx(163_200 - 160_087)
    assert (row["snn_accuracy_mean"], row["snn_accuracy_difference"]) == (pytest.approx(0.9269), pytest.approx(0.0005))


def test_images_are_summed_over_the_seeds(seeds: list[ChainResult], tmp_path: Path) -> None:
    change_snn(seeds[4].chain, differing_predictions=2, unsettled=5)
    change_snn(seeds[5].chain, differing_predictions=1, unsettled=0)
    params = make_params(seed=(0, 1, 2))
    row = summary_table(read_all(chains(params, tmp_path), params)).set_index("k").loc["0"]
    counts = ["images", "simulated_images", "differing_predictions", "unsettled", "equal"]
    assert row[counts].tolist() == [10_000, 30_000, 3, 5, 30_000]


def test_a_single_seed_has_no_spread(results: list[ChainResult]) -> None:
    table = summary_table(results)
    assert table["seeds"].tolist() == [1] * 4
    assert table[[name for name in SUMMARY_COLUMNS if name.endswith("_std")]].isna().all(axis=None)
    assert table["snn_accuracy_mean"].tolist()[1:] == [0.9264, 0.9286, 0.9308]


def test_a_seed_that_did_not_come_to_rest_leaves_no_settled_step(seeds: list[ChainResult], tmp_path: Path) -> None:
    change_snn(seeds[4].chain, settled_step=None, unsettled=1)
    params = make_params(seed=(0, 1, 2))
    table = summary_table(read_all(chains(params, tmp_path), params)).set_index("k")
    assert table.loc["0", ["settled_step_mean", "settled_step_std"]].isna().all()
    assert table.loc["1", "settled_step_mean"] == 89


def test_seeds_of_one_row_on_different_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    params = make_params(k=(0,), seed=(0, 1))
    grid = chains(params, tmp_path)
    make_chain(grid[0])
    make_chain(grid[1], data_set("images"))
    message = (
        r"paper-cnn1-0-0 was run on CIFAR-10 \(official archive\) \(SHA-256 cifar10c\), paper-cnn1-0-1 on "
        r"images of photos\.tar\.gz \(SHA-256 imagesim\): their mean would say nothing; run dvc repro"
    )
    with pytest.raises(QuantspikeError, match=message):
        write_summary(read_all(grid, params), tmp_path / "summary")
    assert not (tmp_path / "summary").exists()


def test_rows_on_different_images_are_told_apart(tmp_path: Path) -> None:
    params = make_params(k=(0, 1))
    grid = chains(params, tmp_path)
    make_chain(grid[0])
    make_chain(grid[1], data_set("digits"))
    text = markdown(read_all(grid, params))
    assert "cnn1 k = 0: Made from CIFAR-10 (official archive), 50,000" in text
    assert "cnn1 k = 1: Made from scikit-learn digits, 1,437 for training and 360 for testing. No published" in text


def test_the_paper_table_has_units_and_the_published_figures_beside(results: list[ChainResult]) -> None:
    accuracy, costs, _ = markdown_tables(markdown(results))
    assert accuracy[0][:9] == ["model", "k", "n", "ANN (%)", "published", "Δ", "SNN (%)", "published", "Δ"]
    assert accuracy[0][9:] == ["SNN = integer (images)", "stable (step)", "published", "Δ"]
    # ANN 92.82 - 92.77 = +0.05; SNN 92.86 - 92.77 = +0.09; step 62 - 57 = +5
    row = "cnn1 1 1 92.82 92.77 +0.05 92.86 92.77 +0.09 10,000/10,000 62 57 +5"
    assert " ".join(accuracy[3]) == row
    # SNN 93.08 - 93.10 = -0.02; its ANN was not published
    assert accuracy[4][3:9] == ["93.04", "-", "-", "93.08", "93.10", "-0.02"]
    # thousands: 278.40 - 269.847 = +8.55, 86.10 - 92.767 = -6.67; millions: 442.80 - 414.151 = +28.65
    assert " ".join(costs[3]) == "cnn1 1 1 278.40 269.85 +8.55 86.10 92.77 -6.67 442.80 414.15 +28.65 399.19"
    assert costs[0][3] == "positive spikes (thousand)"
    assert costs[0][-4:] == ["SOPs (million)", "published", "Δ", "ANN's MACs (million)"]


def test_several_seeds_show_mean_and_spread(seeds: list[ChainResult]) -> None:
    accuracy, costs, *_ = markdown_tables(markdown(seeds))
    # ANN 92.87 - 92.77; steps of several runs have a digit more; 10,000 images of each of 3 seeds
    row = "cnn1 1 3 92.87 ± 0.09 92.77 +0.10 92.91 ± 0.09 92.77 +0.14 30,000/30,000 62.0 ± 0.0 57 +5.0"
    assert " ".join(accuracy[3]) == row
    assert costs[3][3:6] == ["283.97 ± 5.57", "269.85", "+14.12"]


def test_full_precision_has_no_spiking_cells(results: list[ChainResult]) -> None:
    accuracy, costs, conversion = markdown_tables(markdown(results))
    assert accuracy[1] == ["cnn1", "fp32", "1", "92.66", "92.66", "+0.00", *["-"] * 7]
    assert costs[1] == ["cnn1", "fp32", "1", *["-"] * 9, "399.19"]
    assert [row[1] for row in conversion[1:]] == ["0", "1", "2"]


def test_the_conversion_is_reported_below(results: list[ChainResult]) -> None:
    conversion = markdown_tables(markdown(results))[2]
    assert dict(zip(conversion[0], conversion[1], strict=True)) == {
        "model": "cnn1",
        "k": "0",
        "n": "1",
        "integer network (%)": "92.64",
        "integer = ANN (%)": "98.90",
        "SNN ≠ integer (images)": "0",
        "settled (step)": "56",
        "not settled (images)": "0",
    }


def test_every_run_has_a_row_where_there_are_several_seeds(seeds: list[ChainResult]) -> None:
    runs = markdown_tables(markdown(seeds))[3]
    assert len(runs) == 1 + 12
    assert dict(zip(runs[0], runs[5], strict=True)) == {
        "model": "cnn1",
        "k": "0",
        "seed": "1",
        "ANN (%)": "92.75",
        "integer network (%)": "92.79",
        "SNN (%)": "92.79",
        "integer = ANN (%)": "98.90",
        "SNN ≠ integer (images)": "0",
        "stable (step)": "29",
        "settled (step)": "56",
        "not settled (images)": "0",
        "proved equal (images)": "10,000",
        "positive spikes (thousand)": "163.20",
        "negative spikes (thousand)": "41.82",
        "SOPs (million)": "275.40",
        "ANN's MACs (million)": "399.19",
    }


def test_single_runs_are_not_shown_twice(results: list[ChainResult]) -> None:
    assert "Every run" not in markdown(results)


def expected_cell(row: pd.Series[Any], name: str, unit: float, digits: int) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    if pd.isna(mean):
        return "-"
    return f"{mean / unit:,.{digits}f}" + ("" if pd.isna(std) else f" ± {std / unit:,.{digits}f}")


def expected_row(row: pd.Series[Any]) -> list[str]:
    """The cells of both tables as they follow from a line of summary.csv."""
    cells = []
    measures = [("ann_accuracy", 0.01, 2), ("snn_accuracy", 0.01, 2), ("stable_step", 1, 0)]
    measures += [("positive_spikes", 1e3, 2), ("negative_spikes", 1e3, 2), ("synops", 1e6, 2)]
    for name, unit, digits in measures:
        other, difference = row[f"published_{name}"], row[f"{name}_difference"]
        own_digits = digits + (name == "stable_step" and row["seeds"] > 1)
        signed = "-" if pd.isna(difference) else f"{round(difference / unit, own_digits) + 0.0:+,.{own_digits}f}"
        published = "-" if pd.isna(other) else f"{other / unit:,.{digits}f}"
        cells += [expected_cell(row, name, unit, own_digits), published, signed]
        if name == "snn_accuracy":
            cells.append("-" if pd.isna(row["equal"]) else f"{row['equal']:,.0f}/{row['simulated_images']:,.0f}")
    return [*cells, f"{row['ann_macs'] / 1e6:,.2f}"]


@pytest.mark.parametrize("seed", [(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def test_csv_markdown_and_latex_agree_cell_by_cell(tmp_path: Path, seed: tuple[int, ...]) -> None:
    params = make_params(seed=seed)
    # The same layers under another name: there are no published figures beside it.
    params.models["my_net"] = params.models["cnn1"]
    params.run.model.append("my_net")
    write_summary(make_results(tmp_path, params), tmp_path / "summary")
    table = pd.read_csv(tmp_path / "summary" / "summary.csv", dtype={"k": str})
    in_markdown = markdown_tables((tmp_path / "summary" / "summary.md").read_text())[:2]
    in_latex = latex_tables((tmp_path / "summary" / "summary.tex").read_text())
    assert len(table) == 2 * 4
    assert [len(lines) for lines in in_markdown + in_latex] == [1 + len(table)] * 4
    for place, row in table.iterrows():
        name = [row["model"], row["k"], str(len(seed))]
        accuracy, costs = (lines[1 + int(str(place))] for lines in in_markdown)
        assert (accuracy[:3], costs[:3]) == (name, name)
        assert accuracy[3:] + costs[3:] == expected_row(row)
    for lines, other in zip(in_markdown, in_latex, strict=True):
        # Titles have their unit below them in LaTeX.
        assert [re.sub(r".*\((.*)\)", r"\1", title) for title in lines[0]] == [shown(cell) for cell in other[0]]
        assert lines[1:] == [[shown(cell) for cell in row] for row in other[1:]]


@pytest.mark.parametrize("seed", [(0,), (0, 1, 2)], ids=["one seed", "three seeds"])
def test_the_latex_is_balanced_and_every_row_has_all_columns(tmp_path: Path, seed: tuple[int, ...]) -> None:
    text = latex(make_results(tmp_path, make_params(seed=seed)))
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert text.replace(r"\$", "").count("$") % 2 == 0
    assert text.startswith("% Made by quantspike. The preamble needs \\usepackage{booktabs,adjustbox}.\n")
    assert text.count(r"\begin{table}") == 1
    # No table is wider than the page.
    assert (
        text.count("\\begin{adjustbox}{max width=\\textwidth}\n\\begin{tabular}") == text.count(r"\begin{tabular}") == 2
    )
    assert text.count("\\end{tabular}\n\\end{adjustbox}\n") == 2
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        spans = [sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)) for line in lines]
        assert [line.count(" & ") + 1 + span for line, span in zip(lines, spans, strict=True)] == [len(columns)] * 6
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_the_caption_says_what_was_run_and_with_what_it_is_compared(tmp_path: Path) -> None:
    params = make_params(seed=(0, 1, 2), train={"epochs": 2, "learning_rate": 1e-3, "batch_size": 200})
    text = latex(make_results(tmp_path, params, data_set("images", name="images of my_photos & more.tar"), (2, 100)))
    (caption,) = re.findall(r"\\caption\{(.*)\}\n\\label\{tab:quantspike-paper\}", text)
    assert r"over n = 3 runs that differ in their seed" in caption
    assert r"Made from images of my\_photos \& more.tar, 50,000 for training and 10,000 for testing." in caption
    assert "They are not the official CIFAR-10 archive but its images encoded anew" in caption
    assert "Zou et al., ``Towards a Lossless Conversion" in caption
    assert "(its values in brackets): train.epochs 2 (100)." in caption


def test_counts_of_a_small_network_keep_their_digits(tmp_path: Path) -> None:
    params = make_params(k=(0, 1))
    grid = chains(params, tmp_path)
    for chain in grid:
        make_chain(chain, data_set("digits"))
    change_snn(grid[0], synops=176_880.9, positive_spikes=950.25)
    (table,) = paper_tables(read_all(grid, params))
    # 950.25 spikes are 0.95025 thousand, 176,880.9 SOPs 0.1768809 million; the other row follows suit.
    assert [(row[7], row[9]) for row in table[1:]] == [("0.9503", "0.1769"), ("278.4000", "442.8000")]


def test_without_published_figures_one_table_holds_everything(tmp_path: Path) -> None:
    (table,) = paper_tables(make_results(tmp_path, data=data_set("digits")))
    assert " ".join(table[2]) == "cnn1 0 1 92.60 92.64 360/360 29 160.00 41.00 270.00 399.19"
    assert "Δ" not in table[0]


@pytest.mark.parametrize("accuracy", [0.92770, 0.92766, 0.92774], ids=["equal", "just below", "just above"])
def test_no_difference_reads_as_minus_zero(tmp_path: Path, accuracy: float) -> None:
    params = make_params(k=(1,))
    grid = chains(params, tmp_path)
    make_chain(grid[0])
    change_snn(grid[0], accuracy=accuracy, synops=414_151_000, positive_spikes=269_846.0)
    results = read_all(grid, params)
    accuracies, costs = paper_tables(results)
    assert (accuracies[1][8], costs[1][5], costs[1][11]) == ("+0.00", "+0.00", "+0.00")
    for text in (markdown(results), latex(results)):
        assert "-0.00" not in text
        assert "$-$0.00" not in text


def test_official_images_are_named_without_reserve(results: list[ChainResult]) -> None:
    text = markdown(results)
    assert "Made from CIFAR-10 (official archive), 50,000 for training and 10,000 for testing." in text
    assert "not directly comparable" not in text
    assert "Not trained by the published protocol" not in text
    assert "Zou et al." in text


def test_the_machine_of_the_training_is_named(results: list[ChainResult]) -> None:
    assert "Trained in fp32 on some processor, 1 process, torch 2.11.0.\n" in markdown(results)


def test_a_training_in_bf16_departs_from_the_published_protocol(tmp_path: Path) -> None:
    params = make_params(k=(0, 1))
    grid = chains(params, tmp_path)
    make_chain(grid[0])
    make_chain(grid[1], made_with=make_made_with(arithmetic="bf16", device="some GPU", processes=4))
    text = markdown(read_all(grid, params))
    assert "Not trained by the published protocol (its values in brackets): arithmetic bf16 (fp32)." in text
    assert (
        "Trained in fp32 on some processor, 1 process, torch 2.11.0; "
        "in bf16 on some GPU, 4 processes, torch 2.11.0.\n" in text
    )


def test_seeds_of_one_row_from_different_machines_are_said_to_be(tmp_path: Path) -> None:
    params = make_params(k=(0, 1), seed=(0, 1))
    grid = chains(params, tmp_path)
    for chain in grid:
        make_chain(chain)
    make_chain(grid[3], made_with=make_made_with(device="some GPU"))
    text = markdown(read_all(grid, params))
    assert "on some GPU, 1 process, torch 2.11.0. Not all seeds of a row were trained alike in cnn1 k = 1.\n" in text


def test_images_encoded_anew_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    text = markdown(make_results(tmp_path, data=data_set("images")))
    assert "Made from images of photos.tar.gz" in text
    assert "**not the official CIFAR-10 archive**" in text
    assert "the published figures are not directly comparable" in text
    assert "Δ" in text


def test_other_images_have_no_published_figures(tmp_path: Path) -> None:
    text = markdown(make_results(tmp_path, data=data_set("digits")))
    assert "Made from scikit-learn digits, 1,437 for training and 360 for testing." in text
    assert "No published figures belong to these images" in text
    assert "Zou" not in text


def test_a_shorter_training_is_named_beside_the_published_figures(tmp_path: Path) -> None:
    params = make_params(train={"epochs": 2, "learning_rate": 1e-3, "batch_size": 200})
    text = markdown(make_results(tmp_path, params, epochs=(2, 100)))
    assert "Not trained by the published protocol (its values in brackets): train.epochs 2 (100)." in text


def test_every_profile_has_a_section_and_a_latex_table(results: list[ChainResult], tmp_path: Path) -> None:
    params = make_params()
    params.profiles["other"] = params.profiles["paper"]
    params.run.profile.append("other")
    both = make_results(tmp_path, params)
    headings = ["# Results", "## Profile `paper`", "## Profile `other`"]
    assert [line for line in markdown(both).splitlines() if line.startswith("#")] == headings
    assert re.findall(r"\\label\{(.*)\}", latex(both)) == ["tab:quantspike-paper", "tab:quantspike-other"]


def test_a_section_for_another_page_has_the_paper_table_and_its_sentences_alone(seeds: list[ChainResult]) -> None:
    text = paper_sections(seeds, level=3)
    assert [line for line in text.splitlines() if line.startswith("#")] == ["### Profile `paper`"]
    assert markdown_tables(text) == markdown_tables(markdown(seeds))[:2]
    assert "Made from CIFAR-10 (official archive)" in text
    assert "over n = 3 runs" in text


def test_the_summary_file_keeps_whole_numbers_whole(results: list[ChainResult], tmp_path: Path) -> None:
    write_table(tmp_path / "summary.csv", summary_table(results))
    line = (tmp_path / "summary.csv").read_text().splitlines()[2]
    assert line.startswith("paper,cnn1,0,1,10000,0.926,,0.9264,,0.9264,,0.989,,29.0,,56.0,,160000.0,,")
    assert ",0,0,10000,10000,399190016,,0.9264,29,270161535,160087,41371," in line


def test_the_console_table_is_aligned_and_fits_the_terminal(results: list[ChainResult]) -> None:
    lines = console_table(results).splitlines()
    assert [re.sub(" +", " ", line) for line in lines[:3]] == [
        "profile model k seed ANN % integer % SNN % differ stable settled unsettled spikes SOPs (M) publ. SNN %",
        "paper cnn1 fp32 0 92.66 - - - - - - - - -",
        "paper cnn1 0 0 92.60 92.64 92.64 0 29 56 0 201,000 270.00 92.64",
    ]
    # Text stands to the left, numbers end where their title ends.
    assert lines[2].index("cnn1") == lines[0].index("model")
    assert lines[2].index("92.60") + len("92.60") == lines[0].index("ANN %") + len("ANN %")
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 120


def test_the_console_table_leaves_out_published_figures_where_there_are_none(tmp_path: Path) -> None:
    assert "publ" not in console_table(make_results(tmp_path, data=data_set("digits")))


def test_a_console_table_without_runs_is_its_header(tmp_path: Path) -> None:
    assert console_table([]).startswith("profile  model  k  seed")
