"""summary.csv, summary.json, summary.md and the table for the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from make_results import data_set, make_chain, make_made_with, make_params
from quantspike.params import Params
from quantspike.paths import chains
from quantspike.results import ChainResult, read_all
from quantspike.summary import console_table, markdown, summary_records, write_summary
from quantspike.tables import SUMMARY_COLUMNS


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


def cells(text: str, start: str) -> list[str]:
    """Cells of the first Markdown row that starts like this."""
    return [
        cell.strip() for cell in next(line for line in text.splitlines() if line.startswith(start)).split("|")[1:-1]
    ]


def test_all_three_files_are_written(results: list[ChainResult], tmp_path: Path) -> None:
    write_summary(results, tmp_path / "metrics")
    assert sorted(path.name for path in (tmp_path / "metrics").glob("summary.*")) == [
        "summary.csv",
        "summary.json",
        "summary.md",
    ]
    assert json.loads((tmp_path / "metrics" / "summary.json").read_text()) == summary_records(results)


def test_no_results_write_empty_files(tmp_path: Path) -> None:
    write_summary([], tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == []
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1


def test_a_record_has_the_columns_of_the_table_and_none_where_there_is_nothing(results: list[ChainResult]) -> None:
    records = summary_records(results)
    assert [record["k"] for record in records] == ["fp32", "0", "1", "2"]
    assert all(tuple(record) == SUMMARY_COLUMNS for record in records)
    assert (records[0]["ann_accuracy"], records[0]["snn_accuracy"]) == (0.9266, None)
    assert (records[1]["stable_step"], records[1]["synops"]) == (29, 270e6)


def test_the_markdown_table_has_units_and_a_row_per_run(results: list[ChainResult]) -> None:
    text = markdown(results)
    row = dict(zip(cells(text, "| model"), cells(text, "| cnn1 | 0 |"), strict=True))
    assert row == {
        "model": "cnn1",
        "k": "0",
        "seed": "0",
        "ANN (%)": "92.60",
        "integer network (%)": "92.64",
        "SNN (%)": "92.64",
        "integer = ANN (%)": "98.90",
        "SNN ≠ integer (images)": "0",
        "stable (step)": "29",
        "settled (step)": "56",
        "not settled (images)": "0",
        "proved equal (images)": "10,000",
        "positive spikes (thousand)": "160.00",
        "negative spikes (thousand)": "41.00",
        "SOPs (million)": "270.00",
        "ANN's MACs (million)": "399.19",
    }


def test_counts_of_a_small_network_keep_their_digits(tmp_path: Path) -> None:
    params = make_params(k=(0,))
    grid = chains(params, tmp_path)
    make_chain(grid[0], steps=100)
    path = grid[0].metrics / "snn.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"synops": 176_880.9, "positive_spikes": 950.25}))
    row = cells(markdown(read_all(grid, params)), "| cnn1 | 0 |")
    # 950.25 spikes are 0.95025 thousand, 176,880.9 SOPs 0.1768809 million.
    assert (row[12], row[14]) == ("0.9503", "0.1769")


def test_the_comparison_shows_signed_differences(results: list[ChainResult]) -> None:
    comparison = markdown(results).split("Beside the published figures")[1]
    # ANN 92.82 - 92.77 = +0.05; SNN 92.86 - 92.77 = +0.09; step 62 - 57 = +5; 442.80 - 414.15 = +28.65 million
    row = "cnn1 | 1 | 0 | 92.82 | 92.77 | +0.05 | 92.86 | 92.77 | +0.09 | 62 | 57 | +5 | 442.80 | 414.15 | +28.65"
    assert " | ".join(cells(comparison, "| cnn1 | 1 |")) == row
    # SNN 93.08 - 93.10 = -0.02; its ANN was not published
    assert cells(comparison, "| cnn1 | 2 |")[3:9] == ["93.04", "-", "-", "93.08", "93.10", "-0.02"]


def test_no_difference_reads_as_minus_zero(results: list[ChainResult]) -> None:
    assert "-0.00" not in markdown(results)


def test_official_images_are_named_without_reserve(results: list[ChainResult]) -> None:
    text = markdown(results)
    assert "Made from CIFAR-10 (official archive), 50,000 for training and 10,000 for testing." in text
    assert "not directly comparable" not in text
    assert "Not trained by the published protocol" not in text
    assert "Zou et al." in text


def test_the_machine_of_the_training_is_named(results: list[ChainResult]) -> None:
    assert "Trained in fp32 on some processor, 1 process, torch 2.11.0." in markdown(results)


def test_a_training_in_bf16_departs_from_the_published_protocol(tmp_path: Path) -> None:
    params = make_params(k=(0, 1))
    grid = chains(params, tmp_path)
    make_chain(grid[0])
    make_chain(grid[1], made_with=make_made_with(arithmetic="bf16", device="some GPU", processes=4))
    text = markdown(read_all(grid, params))
    assert "Not trained by the published protocol (its values in brackets): arithmetic bf16 (fp32)." in text
    assert (
        "Trained in fp32 on some processor, 1 process, torch 2.11.0; "
        "in bf16 on some GPU, 4 processes, torch 2.11.0." in text
    )


def test_images_encoded_anew_are_said_not_to_be_comparable(tmp_path: Path) -> None:
    text = markdown(make_results(tmp_path, data=data_set("images")))
    assert "Made from images of photos.tar.gz" in text
    assert "**not the official CIFAR-10 archive**" in text
    assert "the published figures are not directly comparable" in text
    assert "Beside the published figures" in text


def test_other_images_have_no_published_figures(tmp_path: Path) -> None:
    text = markdown(make_results(tmp_path, data=data_set("digits")))
    assert "Made from scikit-learn digits, 1,437 for training and 360 for testing." in text
    assert "No published figures belong to these images" in text
    assert "Zou" not in text


def test_a_shorter_training_is_named_beside_the_published_figures(tmp_path: Path) -> None:
    params = make_params(train={"epochs": 2, "learning_rate": 1e-3, "batch_size": 200})
    text = markdown(make_results(tmp_path, params, epochs=(2, 100)))
    assert "Not trained by the published protocol (its values in brackets): train.epochs 2 (100)." in text


def test_every_profile_has_a_section(results: list[ChainResult]) -> None:
    assert [line for line in markdown(results).splitlines() if line.startswith("#")] == [
        "# Results",
        "## Profile `paper`",
    ]


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
