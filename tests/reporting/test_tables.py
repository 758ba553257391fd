"""Tables made of results: runs and summary by hand-computed numbers, long tables, and where to stop a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_results import change_json, data_set, make_grid, make_params, make_run
from quantspike.errors import QuantspikeError
from quantspike.paths import Run, grid_runs
from quantspike.reporting.results import RunResult, read_all
from quantspike.reporting.tables import (
    RUNS_COLUMNS,
    SUMMARY_COLUMNS,
    runs_table,
    sources_table,
    stopping_step,
    summary_table,
    write_table,
)

KEYS = ["profile", "model", "k", "seed"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """CNN 1 at every k with one seed; not to be changed."""
    return make_grid(make_params(), tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def results(project: list[Run]) -> list[RunResult]:
    return read_all(project)


@pytest.fixture
def seeds(tmp_path: Path) -> list[Run]:
    """k = 0 with three seeds, after three baselines."""
    return make_grid(make_params(k=(0,), seed=(0, 1, 2)), tmp_path)


def test_the_file_of_runs_keeps_whole_numbers_whole_and_gaps_empty(results: list[RunResult], tmp_path: Path) -> None:
    write_table(tmp_path / "runs.csv", runs_table(results))
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert (
        lines[0]
        == ",".join(RUNS_COLUMNS)
        == (
            "profile,model,k,seed,images,ann_accuracy,integer_accuracy,snn_accuracy,ann_agreement,differing_predictions,"
            "stable_step,settled_step,unsettled_at_T,equal,positive_spikes,negative_spikes,synops,least_synops,ann_macs,"
            "published_ann_accuracy,published_snn_accuracy,published_stable_step,published_synops,"
            "published_positive_spikes,published_negative_spikes"
        )
    )
    assert lines[1] == "paper,cnn1,fp32,0,10000,0.9266,,,,,,,,,,,,,399190016,0.9266,,,,,"
    assert lines[2] == (
        "paper,cnn1,0,0,10000,0.926,0.9264,0.9264,0.989,0,29,56,0,10000,"
        "160000.0,41000.0,270000000.0,189000000.0,399190016,,0.9264,29,270161535,160087,41371"
    )
    # k = 2 is not settled at T: neither stable nor settled step, and 10,000 x 22 / 122 unsettled images.
    assert ",0,,,1803," in lines[4]


def test_the_summary_of_single_seeds_is_that_of_the_runs_without_spread(
    results: list[RunResult], tmp_path: Path
) -> None:
    table = summary_table(results)
    assert tuple(table.columns) == SUMMARY_COLUMNS
    assert table["k"].tolist() == ["fp32", "0", "1", "2"]
    assert table["seeds"].tolist() == [1] * 4
    assert table[[name for name in SUMMARY_COLUMNS if name.endswith("_std")]].isna().all(axis=None)
    assert table["snn_accuracy_mean"].tolist()[1:] == [0.9264, 0.9286, 0.9308]
    write_table(tmp_path / "summary.csv", table)
    line = (tmp_path / "summary.csv").read_text().splitlines()[2]
    assert line.startswith("paper,cnn1,0,1,10000,0.926,,0.9264,,0.9264,,0.989,,29.0,,56.0,,160000.0,,")
    assert ",0,0,10000,10000,399190016,,0.9264,29,270161535,160087,41371," in line


def test_means_and_spread_are_over_the_seeds(seeds: list[Run]) -> None:
    full, row = (row for _, row in summary_table(read_all(seeds)).iterrows())
    # 0.9266, 0.9281, 0.9266 for the baselines
    assert full["ann_accuracy_mean"] == pytest.approx(0.9271)
    # 0.9260, 0.9275, 0.9260: mean 2.7795 / 3; squares of 0.0005, 0.0010, 0.0005 are 1.5e-6; / 2, root: 0.000866.
    assert row["ann_accuracy_mean"] == pytest.approx(0.9265)
    assert row["ann_accuracy_std"] == pytest.approx(0.00086603, rel=1e-5)
    # 160,000 times 1, 1.02 and 1.04: mean 163,200, deviations -3,200, 0, 3,200: sqrt(2 * 3,200^2 / 2) = 3,200
    assert (row["positive_spikes_mean"], row["positive_spikes_std"]) == (pytest.approx(163_200), pytest.approx(3_200))
    assert row["positive_spikes_difference"] == pytest.approx(163_200 - 160_087)
    assert (row["snn_accuracy_mean"], row["snn_accuracy_difference"]) == (pytest.approx(0.9269), pytest.approx(0.0005))


def test_images_are_summed_over_the_seeds_and_one_that_is_not_settled_at_T_leaves_no_step(seeds: list[Run]) -> None:
    change_json(seeds[4].metrics / "simulate.json", differing_predictions=2, unsettled_at_T=5, settled_step=None)
    change_json(seeds[4].metrics / "simulate.json", stable_step=None)
    change_json(seeds[5].metrics / "simulate.json", differing_predictions=1)
    row = summary_table(read_all(seeds)).iloc[1]
    counts = ["images", "simulated_images", "differing_predictions", "unsettled_at_T", "equal"]
    assert row[counts].tolist() == [10_000, 30_000, 3, 5, 30_000]
    steps = ("settled_step_mean", "settled_step_std", "stable_step_mean", "stable_step_std", "stable_step_difference")
    assert row[list(steps)].isna().all()


def test_seeds_on_different_images_are_not_averaged(tmp_path: Path) -> None:
    first, second = grid_runs(make_params(k=(0,), seed=(0, 1)), tmp_path)[2:]
    make_run(first)
    make_run(second, data_set("images"))
    message = (
        r"paper-cnn1-0-0 was run on CIFAR-10 \(official archive\) \(SHA-256 cifar10c\), paper-cnn1-0-1 on "
        r"images of photos\.tar\.gz \(SHA-256 imagesim\), so they cannot be averaged: run dvc repro"
    )
    with pytest.raises(QuantspikeError, match=message):
        summary_table(read_all([first, second]))


def test_the_sources_table_changes_with_any_result_file(seeds: list[Run]) -> None:
    results = read_all(seeds)
    before = sources_table(results)
    assert len(before) == 3 * 2 + 3 * 9
    certificate = seeds[4].metrics / "certificate.json"
    certificate.write_text(certificate.read_text() + "\n")
    changed = before[before["sha256"] != sources_table(results)["sha256"]]
    assert changed[["run", "file"]].to_numpy().tolist() == [["paper-cnn1-0-1", "certificate.json"]]


# Where to stop


@pytest.mark.parametrize(
    ("curve", "loss", "step"),
    [
        ([0.10, 0.50, 0.85, 0.895, 0.899, 0.90], 0.05, 3),
        ([0.1, 0.9, 0.7, 0.9, 0.9], 0.01, 4),  # step 2 is close, step 3 is not
        ([0.2, 0.97, 0.95, 0.90], 0.001, 2),  # above the last one is close enough
        ([0.97, 0.95, 0.90], 0.001, 1),
        ([0.9253, 0.9254, 0.9264], 0.001, 2),  # exactly the loss, though 0.9264 - 0.9254 > 0.001 in binary
        ([0.1, 0.2, 0.3], 0.01, 3),
        ([0.9] * 7, 0.0, 1),
        ([0.3], 0.001, 1),
        (pd.Series([0.1, 0.9, 0.9], index=[1, 2, 3]), 0.01, 2),
    ],
)
def test_the_stopping_step_is_where_the_accuracy_begins_to_stay_close(curve: Any, loss: float, step: int) -> None:
    assert stopping_step(curve, loss) == step


@given(correct=st.lists(st.integers(9_800, 10_000), min_size=1, max_size=30), loss=st.sampled_from((0, 10, 50, 100)))
def test_a_slow_search_in_whole_numbers_finds_the_same_step(correct: list[int], loss: int) -> None:
    close = [correct[-1] - one <= loss for one in correct]
    (first, *_) = [step for step in range(1, len(correct) + 1) if all(close[step - 1 :])]
    assert stopping_step([one / 10_000 for one in correct], loss / 10_000) == first
