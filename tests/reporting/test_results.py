"""Result files read back, and everything that can be wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import strategies as st

from hostile import JSON, fuzz, mutations
from make_results import change_json, data_set, make_grid, make_params, make_run
from quantspike.errors import QuantspikeError
from quantspike.paths import Run, find_run
from quantspike.reporting.published import LAYERS
from quantspike.reporting.results import (
    SPIKING_FILES,
    SpikingResult,
    missing_files,
    outdated,
    read_all,
    read_finished,
    read_run,
)
from quantspike.reporting.summary import console_table


@pytest.fixture
def grid(tmp_path: Path) -> list[Run]:
    return make_grid(make_params(), tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run of k = 0."""
    run = find_run(make_params(), "paper", "cnn1", 0, 0, tmp_path)
    make_run(run)
    return run


def test_a_spiking_run_is_read_in_full(grid: list[Run]) -> None:
    result = read_all(grid)[2]
    assert isinstance(result, SpikingResult)
    assert result.run.k == 1
    assert (result.evaluation.accuracy, result.evaluation.correct) == (0.9282, 9282)
    assert result.evaluation.data.name == "CIFAR-10 (official archive)"
    assert result.conversion.weight_bits == 12
    assert (result.simulation.stable_step, result.simulation.settled_step) == (62, 89)
    assert result.simulation.largest_counts == [6] * 10  # 3 x 2^k in every layer of the made-up networks
    assert result.certificate.equal == 10_000
    assert result.certificate.model_copy(update={"settled_by_limit": 9_990, "mismatches": 3}).equal == 9_987
    assert result.steps["step"].tolist() == list(range(1, 101))
    assert len(result.layers) == 100 * 10
    assert result.architecture.text == "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"


def test_every_layer_delay_has_its_cost(tmp_path: Path) -> None:
    run = find_run(make_params(simulate__layer_delay=[1, 0, 6]), "paper", "cnn1", 0, 0, tmp_path)
    make_run(run)
    result = read_run(run)
    assert isinstance(result, SpikingResult)
    # 56 steps and 9 more for each step of delay: 110 are beyond T. 270 million SOPs, of which 30% divided by 1 + D.
    assert {delay: (step, round(synops)) for delay, (step, synops) in result.cost_by_delay.items()} == {
        1: (65, 229_500_000),
        0: (56, 270_000_000),
        6: (None, 200_571_429),
    }
    assert outdated(result) == []
    assert (result.simulation.layer_delay, result.simulation.settled_step) == (1, 65)
    assert result.simulation.least_synops == pytest.approx(0.7 * 270e6)
    assert result.steps["synops"].iloc[-1] == result.simulation.synops


def test_epochs_count_on_over_the_two_phases_of_a_k(grid: list[Run]) -> None:
    training = read_run(grid[1]).training
    assert training["epoch"].tolist() == list(range(1, 201))
    assert training["phase"].tolist() == ["train"] * 100 + ["finetune"] * 100


def test_a_baseline_has_a_training_of_its_own_and_no_spikes(grid: list[Run]) -> None:
    result = read_run(grid[0])
    assert not isinstance(result, SpikingResult)
    assert result.training["phase"].tolist() == ["baseline"] * 200
    assert result.training["learning_rate"].tolist() == [1e-3] * 100 + [1e-4] * 100


def test_a_run_that_starts_from_the_baseline_needs_no_file_of_the_baseline(tmp_path: Path) -> None:
    run = find_run(make_params(train__start="baseline"), "paper", "cnn1", 1, 0, tmp_path)
    make_run(run)
    assert read_all([run])[0].training["phase"].tolist() == ["train"] * 100 + ["finetune"] * 100


def test_official_images_are_compared_with_the_published_figures(grid: list[Run]) -> None:
    results = read_all(grid)
    assert all(result.published is not None for result in results)
    published = results[2].published
    assert published is not None
    assert (published.snn_accuracy, published.stable_step) == (0.9277, 57)


@pytest.mark.parametrize(
    ("k", "changes", "kind"),
    [(0, {}, "digits"), (0, {}, "images"), (0, {"width": 0.25}, "cifar10"), (3, {}, "cifar10")],
    ids=["other images", "images of CIFAR-10 from a folder", "a narrower network", "a k that was not published"],
)
def test_other_results_are_not_compared(tmp_path: Path, k: int, changes: dict[str, Any], kind: str) -> None:
    run = find_run(make_params(**changes), "paper", "cnn1", k, 0, tmp_path)
    make_run(run, data_set(kind))
    assert read_all([run])[0].published is None


def test_unfinished_runs_are_named_and_left_out(grid: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read_finished(grid)) == 4
    assert capsys.readouterr().err == ""
    (grid[1].metrics / "simulate.json").unlink()
    assert missing_files(grid[1]) == [grid[1].metrics / "simulate.json"]
    assert [result.run.k for result in read_finished(grid)] == ["fp32", 1, 2]
    note = "note: left out 1 of 4 runs, not finished: paper-cnn1-0-0; dvc repro runs them\n"
    assert capsys.readouterr().err == note
    with pytest.raises(QuantspikeError, match=r"^not finished: paper-cnn1-0-0 \(.*simulate\.json does not exist\)"):
        read_all(grid)


def test_reading_all_of_nothing_is_refused() -> None:
    with pytest.raises(QuantspikeError, match=r"the grid of params\.yaml holds no such run"):
        read_all([])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"train__epochs": 7}, "train.epochs: expected 7, found 100"),
        ({"finetune__learning_rate": 5e-5}, "finetune.learning_rate: expected 5e-05, found 0.0001"),
        ({"recipe__flip": "none"}, "recipe.flip: expected none, found random"),
        ({"train__start": "baseline"}, "train.start: expected baseline, found scratch"),
        ({"convert__weight_bits": 8}, "weight_bits in convert.json: expected 8, found 12"),
        ({"simulate__steps": 50}, "simulate.steps: expected 50, found 100"),
        ({"simulate__layer_delay": [4, 0]}, "simulate.layer_delay: expected [4, 0], found [0]"),
        ({"simulate__layer_delay": [0, 4]}, "simulate.layer_delay: expected [0, 4], found [0]"),
        ({"simulate__settle_limit": 500}, "simulate.settle_limit: expected 500, found 1000"),
    ],
)
def test_results_of_different_settings_are_left_out(
    run: Run, changes: dict[str, Any], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    today = replace(run, settings=make_params(**changes).profiles["paper"])
    assert difference in outdated(read_run(today))
    with pytest.raises(
        QuantspikeError, match=r"paper-cnn1-0-0 has results of different settings \(.*\); run dvc repro"
    ):
        read_all([today])
    assert read_finished([today]) == []
    note = "note: left out 1 of 1 runs, different settings: paper-cnn1-0-0; dvc repro runs them\n"
    assert capsys.readouterr().err == note


def test_a_baseline_is_outdated_by_its_phases_but_not_by_the_settings_of_a_k(run: Run) -> None:
    make_run(run.baseline)
    one_phase = make_params(baseline=[{"epochs": 100, "learning_rate": 1e-3}], train__epochs=7)
    today = replace(run.baseline, settings=one_phase.profiles["paper"])
    assert outdated(read_run(today)) == [
        "baseline.1.epochs: expected none, found 100",
        "baseline.1.learning_rate: expected none, found 0.0001",
    ]


def test_a_network_of_other_layers_is_outdated_not_damaged(run: Run) -> None:
    # CNN 2 in place of CNN 1, of ten layers too: its simulate_layers.csv is not blamed.
    today = replace(run, layers=LAYERS["cnn2"])
    assert outdated(read_run(today)) == ["neurons of cnn1: expected 411648, found 336128"]


def test_a_folder_copied_from_another_run_is_outdated(run: Run) -> None:
    other = replace(run, k=2, seed=1)
    run.metrics.rename(other.metrics)
    assert outdated(read_run(other)) == ["seed: expected 1, found 0", "k: expected 2, found 0"]


@pytest.mark.parametrize("name", SPIKING_FILES)
def test_a_missing_or_damaged_file_is_named(run: Run, name: str) -> None:
    (run.metrics / name).write_bytes(b"\x80\x00")
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged \(.*\): delete it and run dvc repro"):
        read_run(run)
    (run.metrics / name).unlink()
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} does not exist: run the stage that writes it"):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("evaluate.json", {"accuracy": 92.6}, "accuracy: Input should be less than or equal to 1"),
        ("evaluate.json", {"images": "many"}, "images: Input should be a valid integer"),
        ("evaluate.json", {"data": {"kind": "digits"}}, "data.name: Field required"),
        ("convert.json", {"weight_bits": None}, "weight_bits: Input should be a valid integer"),
        ("simulate.json", {"largest_counts": [3, -1]}, "largest_counts.1: Input should be greater than or equal to 0"),
        ("simulate.json", {"largest_counts": [3] * 9}, "9 largest_counts, expected one for each of the 10 layers"),
        ("simulate.json", {"stable_step": 0}, "stable_step: Input should be greater than or equal to 1"),
        ("simulate.json", {"images": 9_000}, "9000 images, but evaluate.json has 10000"),
        ("simulate.json", {"positive_spikes": 10**400}, "positive_spikes: Input should be a valid number"),
        ("simulate.json", {"steps": 10**16}, "steps: Input should be less than or equal to 9007199254740992"),
        ("evaluate.json", {"macs": 10**400}, "macs: Input should be less than or equal to 9007199254740992"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(run: Run, name: str, changes: dict[str, Any], message: str) -> None:
    change_json(run.metrics / name, **changes)
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged \({re.escape(message)}.*\): delete it"):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train.csv", lambda table: table.drop(index=1), "epoch must count from 1 to 100, line by line"),
        ("train.csv", lambda table: table[:-1], "epoch must count from 1 to 100, line by line"),
        ("finetune.csv", lambda table: table[:0], "epoch must count from 1 to 100, line by line"),
        ("simulate.csv", lambda table: table[:-1], "step must count from 1 to 100, line by line"),
        (
            "simulate.csv",
            lambda table: table.drop(columns="settled"),
            "it has the columns .*,synops, expected .*,settled",
        ),
        (
            "simulate.csv",
            lambda table: table.assign(accuracy=None),
            "accuracy must be a number from 0 to 1 in every line",
        ),
        *(
            ("simulate.csv", lambda table, value=value: table.assign(accuracy=value), "accuracy must be a number from")
            for value in ("high", "inf", "1e400", "1" + "0" * 400, "True", 1.01, -0.01)
        ),
        ("simulate.csv", lambda table: table.assign(synops=-1), "synops must be a number from 0 to 9007199254740992"),
        ("simulate.csv", lambda table: table.assign(net_spikes=-1e300), "net_spikes must be a number from -9007199254"),
        ("train.csv", lambda table: table.assign(loss=""), "loss must be a number from 0"),
        (
            "simulate_delays.csv",
            lambda table: table[:-1],
            "expected steps 1 to 100 of each layer_delay in turn, 0 first",
        ),
        (
            "simulate_delays.csv",
            lambda table: table.assign(layer_delay=1),
            "expected steps 1 to 100 of each layer_delay",
        ),
        ("simulate_layers.csv", lambda table: table[:-1], "expected 100 steps with a line for each of the 10 layers"),
        ("simulate_layers.csv", lambda table: table[::-1], "expected 100 steps with a line for each of the 10 layers"),
        ("simulate_layers.csv", lambda table: table.assign(neurons=1), "expected 100 steps with a line for each"),
    ],
)
def test_a_table_that_cannot_be_what_was_written_is_refused(
    run: Run, name: str, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    change(pd.read_csv(run.metrics / name)).to_csv(run.metrics / name, index=False)
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged \({message}"):
        read_run(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "the whole file: Input should be a valid dict"),
        (b'{"steps":' * 100_000, "RecursionError: maximum recursion depth exceeded"),
        (b"[" * 100_000, "RecursionError: maximum recursion depth exceeded"),
        (b'{"steps": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    ],
    ids=["a list", "deep objects", "deep lists", "5000 digits"],
)
def test_json_of_another_shape_is_damaged(run: Run, content: bytes, message: str) -> None:
    (run.metrics / "simulate.json").write_bytes(content)
    with pytest.raises(QuantspikeError, match=rf"simulate\.json is damaged \({message}"):
        read_run(run)


@pytest.mark.parametrize(("layers", "name"), [("cnn1", "simulate_layers.csv"), ("cnn2", "simulate.csv")])
def test_a_number_of_steps_is_compared_with_the_lines_before_it_takes_memory(run: Run, layers: str, name: str) -> None:
    change_json(run.metrics / "simulate.json", steps=10**12)
    # The layers of a network of another size are not compared.
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged \(.* 1000000000000"):
        read_run(replace(run, layers=LAYERS[layers]))


@pytest.mark.parametrize("cut", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in SPIKING_FILES if name.endswith(".csv")])
def test_a_table_that_is_cut_off_within_its_last_line_is_damaged(run: Run, name: str, cut: int) -> None:
    path = run.metrics / name
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged \(its last line is cut off\)"):
        read_run(run)


@pytest.mark.parametrize("more", ["0,{}", "{},0"])
def test_lines_with_more_cells_than_titles_are_damaged(run: Run, more: str) -> None:
    path = run.metrics / "simulate.csv"
    head, *lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in (head, *map(more.format, lines))))
    with pytest.raises(
        QuantspikeError, match=r"simulate\.csv is damaged \(it has the columns .* as many cells in every"
    ):
        read_run(run)


# Fuzzing


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of a few steps and epochs; not to be changed."""
    short = {"baseline": [{"epochs": 1, "learning_rate": 1e-3}], "train__epochs": 2, "finetune__epochs": 1}
    params = make_params(simulate__steps=3, simulate__layer_delay=[0, 1], **short)
    run = find_run(params, "paper", "cnn1", 0, 0, tmp_path_factory.mktemp("small"))
    make_run(run)
    return run


def check_read(run: Run, name: str, content: bytes) -> None:
    """Check that a run with this file is read and shown, or that the file is named; then put its own content back."""
    path = run.metrics / name
    valid = path.read_bytes()
    path.write_bytes(content)
    message = ""
    try:
        result = read_run(run)
        assert isinstance(outdated(result), list)
        assert console_table([result])
    except QuantspikeError as error:
        message = str(error)
    finally:
        path.write_bytes(valid)
    assert not message or re.match(rf"{re.escape(str(run.metrics))}/\w+\.(csv|json) is damaged \(", message)


@fuzz(data=st.data(), name=st.sampled_from(SPIKING_FILES))
def test_whatever_happens_to_the_bytes_of_a_file_it_is_read_or_named(
    small: Run, data: st.DataObject, name: str
) -> None:
    check_read(small, name, data.draw(mutations((small.metrics / name).read_bytes())))


@fuzz(data=st.data(), name=st.sampled_from([name for name in SPIKING_FILES if name.endswith(".json")]))
def test_whatever_json_a_file_or_one_of_its_values_is_it_is_read_or_named(
    small: Run, data: st.DataObject, name: str
) -> None:
    valid = json.loads((small.metrics / name).read_bytes())
    key, value = data.draw(st.sampled_from(["", *valid])), data.draw(JSON)
    check_read(small, name, json.dumps(valid | {key: value} if key else value).encode())
