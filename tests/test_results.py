"""Result folders read back, and the tables made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from make_results import data_set, make_chain, make_made_with, make_params, make_pretraining
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.paths import Chain, chains
from quantspike.results import FILES, ChainResult, missing_files, read_all, read_chain, read_finished
from quantspike.tables import (
    RUNS_COLUMNS,
    runs_table,
    sources_table,
    steps_table,
    training_table,
    write_table,
)

PAPER = {"epochs": 100, "learning_rate": 1e-3, "batch_size": 200}


def make_grid(root: Path, params: Params, data: dict[str, Any] | None = None, steps: int = 100) -> list[Chain]:
    grid = chains(params, root)
    for chain in grid:
        make_chain(chain, data, steps)
    return grid


@pytest.fixture
def params() -> Params:
    return make_params()


@pytest.fixture
def grid(tmp_path: Path, params: Params) -> list[Chain]:
    return make_grid(tmp_path, params)


@pytest.fixture
def results(grid: list[Chain], params: Params) -> list[ChainResult]:
    return read_all(grid, params)


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_spiking_chain_is_read_in_full(results: list[ChainResult]) -> None:
    result = results[2]
    assert result.chain.k == 1
    assert result.ann.accuracy == 0.9282
    assert result.ann.data.name == "CIFAR-10 (official archive)"
    assert result.conversion is not None
    assert result.conversion.weight_bits == 12
    assert result.snn is not None
    assert (result.snn.stable_step, result.snn.settled_step) == (62, 89)
    assert result.certificate is not None
    assert result.certificate.equal == 10_000
    assert result.steps is not None
    assert result.steps["step"].tolist() == list(range(1, 101))
    assert result.layers is not None
    assert len(result.layers) == 100 * 10
    # 3 x 2^k in every layer of the made-up networks
    assert result.snn.largest_counts == [6] * 10
    assert result.architecture.text == "96C3-256C3-P2-384C3-P2-384C3-256C3-P2-1024-1024"


def test_full_precision_has_no_spiking_parts(results: list[ChainResult]) -> None:
    full = results[0]
    assert full.chain.k == "fp32"
    parts = (full.conversion, full.snn, full.certificate, full.steps, full.layers)
    assert parts == (None, None, None, None, None)


def test_epochs_count_on_over_both_phases(results: list[ChainResult]) -> None:
    training = results[0].training
    # A hundred epochs in each phase.
    assert training["epoch"].tolist() == list(range(1, 201))
    assert training["phase"].tolist() == ["train"] * 100 + ["finetune"] * 100
    assert training["validation_accuracy"].isna().all()


def test_what_every_k_shares_comes_first_in_its_training(tmp_path: Path) -> None:
    phases = {
        "pretrain": {"epochs": 3},
        "train": PAPER | {"epochs": 2},
        "finetune": {"epochs": 1, "learning_rate": 1e-4},
    }
    params = make_params(k=("fp32", 1), **phases)
    made_with = make_made_with(settings=params.profiles["paper"].training_settings)
    grid = chains(params, tmp_path)
    for chain in grid:
        make_chain(chain, epochs=(2, 1), made_with=made_with)
    shared = tmp_path / "metrics" / "paper" / "cnn1-fp32-0" / "pretrain.csv"
    assert [missing_files(chain, params) for chain in grid] == [[shared], [shared]]
    make_pretraining(grid[1], epochs=3)
    for result in (results := read_all(grid, params)):
        assert result.training["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
        assert result.training["phase"].tolist() == ["pretrain"] * 3 + ["train"] * 2 + ["finetune"]
        assert result.training["loss"].tolist()[:4] == [3.0, 1.5, 1.0, 1.5]  # 3 / epoch, then 1.5 / epoch
    make_pretraining(grid[1], epochs=2)
    with pytest.raises(QuantspikeError, match=r"pretrain\.csv: epoch must count from 1 to 3, line by line"):
        read_all(grid, params)
    make_pretraining(grid[1], epochs=3)
    before = sources_table(results)
    shared.write_text(shared.read_text().replace("3.0", "3.5"))
    changed = before[before["sha256"] != sources_table(results)["sha256"]]
    assert changed["file"].tolist() == ["pretrain.csv"] * 2


def test_the_runs_have_the_columns_in_their_order_and_the_grid_s_rows(results: list[ChainResult]) -> None:
    table = runs_table(results)
    assert tuple(table.columns) == RUNS_COLUMNS
    assert table["k"].tolist() == ["fp32", "0", "1", "2"]
    assert table["snn_accuracy"].tolist()[1:] == [0.9264, 0.9286, 0.9308]


def test_the_file_of_runs_keeps_whole_numbers_whole_and_gaps_empty(results: list[ChainResult], tmp_path: Path) -> None:
    write_table(tmp_path / "runs.csv", runs_table(results))
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert lines[0] == ",".join(RUNS_COLUMNS)
    assert lines[1] == "paper,cnn1,fp32,0,10000,0.9266,,,,,,,,,,,,399190016,0.9266,,,,,"
    assert lines[2] == (
        "paper,cnn1,0,0,10000,0.926,0.9264,0.9264,0.989,0,29,56,0,10000,"
        "160000.0,41000.0,270000000.0,399190016,,0.9264,29,270161535,160087,41371"
    )
    # k = 2 never settled: nothing between its stable step, 95, and its 0 unsettled images.
    assert ",95,,0," in lines[4]


def test_the_sources_table_changes_with_any_result_file(results: list[ChainResult]) -> None:
    before = sources_table(results)
    assert len(before) == 4 * len(FILES)
    certificate = results[1].chain.metrics / "certificate.json"
    certificate.write_text(certificate.read_text() + "\n")
    changed = before[before["sha256"] != sources_table(results)["sha256"]]
    assert changed[["chain", "file"]].to_numpy().tolist() == [["paper-cnn1-0-0", "certificate.json"]]


def test_no_results_give_a_table_without_rows() -> None:
    assert tuple(runs_table([]).columns) == RUNS_COLUMNS
    assert len(runs_table([])) == len(training_table([])) == len(steps_table([])) == 0


def test_the_training_table_has_a_row_per_run_and_epoch(results: list[ChainResult]) -> None:
    table = training_table(results)
    assert list(table.columns)[:7] == ["profile", "model", "k", "seed", "phase", "epoch", "loss"]
    assert len(table) == 4 * 200


def test_the_steps_table_has_a_row_per_spiking_run_and_step(results: list[ChainResult]) -> None:
    table = steps_table(results)
    columns = "profile,model,k,seed,step,accuracy,positive_spikes,negative_spikes,net_spikes,synops,settled"
    assert ",".join(table.columns) == columns
    assert len(table) == 3 * 100
    assert sorted(set(table["k"])) == ["0", "1", "2"]


def test_long_tables_of_full_precision_alone_keep_their_header(results: list[ChainResult]) -> None:
    assert list(steps_table(results[:1]).columns) == list(steps_table(results).columns)


def test_the_published_row_stands_beside_the_official_images(results: list[ChainResult]) -> None:
    row = runs_table(results).iloc[2]
    assert (row["published_snn_accuracy"], row["published_stable_step"]) == (0.9277, 57)


def test_the_published_row_stands_beside_the_same_images_encoded_anew(tmp_path: Path, params: Params) -> None:
    (full, *_) = read_all(make_grid(tmp_path, params, data_set("images")), params)
    assert full.published is not None


@pytest.mark.parametrize(
    "data",
    [data_set("digits"), data_set("images", test_images=9_000), data_set("images", classes=list("abcdefghij"))],
    ids=["digits", "fewer images", "other classes"],
)
def test_other_images_get_no_published_row(tmp_path: Path, params: Params, data: dict[str, Any]) -> None:
    results = read_all(make_grid(tmp_path, params, data), params)
    assert [result.published for result in results] == [None] * 4


def test_a_narrower_network_gets_no_published_row(tmp_path: Path) -> None:
    params = make_params(width=0.25)
    made_with = make_made_with()
    made_with["settings"]["width"] = 0.25
    chain = Chain("paper", "cnn1", 0, 0, tmp_path)
    make_chain(chain, made_with=made_with, architecture=params.architecture("paper", "cnn1"))
    assert read_all([chain], params)[0].published is None


def test_a_precision_that_was_not_published_gets_no_published_row(tmp_path: Path) -> None:
    params = make_params(k=(3,))
    assert read_all(make_grid(tmp_path, params), params)[0].published is None


def test_unfinished_chains_are_named_and_left_out(
    grid: list[Chain], params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    (grid[1].metrics / "snn.json").unlink()
    assert missing_files(grid[1], params) == [grid[1].metrics / "snn.json"]
    assert [result.chain.k for result in read_finished(grid, params)] == ["fp32", 1, 2]
    note = "note: left out, since not finished: 1 of 4 chains (paper-cnn1-0-0); dvc repro runs them\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"train": PAPER | {"epochs": 7}}, "train.epochs is 7, it had 100"),
        ({"finetune": {"epochs": 100, "learning_rate": 5e-5}}, "finetune.learning_rate is 5e-05, it had 0.0001"),
        ({"width": 0.5}, "width is 0.5, it had 1.0"),
        ({"train": PAPER | {"recipe": "strong"}}, "train.recipe is strong, it had paper"),
        ({"train": PAPER | {"cutout": 8}}, "train.cutout is 8, it had 0"),
        ({"convert": {"weight_bits": 8}}, "convert.weight_bits is 8, it had 12"),
        ({"simulate": {"steps": 50}}, "simulate.steps is 50, it had 100"),
        ({"simulate": {"settle_limit": 500}}, "simulate.settle_limit is 500, it had 1000"),
    ],
)
def test_results_of_other_settings_are_not_shown_under_those_of_today(
    grid: list[Chain], changes: dict[str, Any], difference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    today = make_params(**changes)
    with pytest.raises(QuantspikeError, match=rf"made with other settings \({difference}\); run dvc repro"):
        read_all(grid[1:], today)
    assert [result.chain for result in read_finished(grid[1:2], today)] == []
    note = "note: left out, since of other settings: 1 of 1 chains (paper-cnn1-0-0); dvc repro runs them\n"
    assert capsys.readouterr().err == note


def test_results_of_other_layers_are_not_shown_under_those_of_today(grid: list[Chain], params: Params) -> None:
    # CNN 2 in the place of CNN 1: 411,648 neurons for 336,128. Its layers.csv, of ten layers as well, is not blamed.
    today = params.model_copy(update={"models": {"cnn1": params.models["cnn2"]}})
    message = r"made with other settings \(neurons of cnn1 is 411648, it had 336128\); run dvc repro"
    with pytest.raises(QuantspikeError, match=message):
        read_all(grid[1:], today)


def test_a_finished_grid_gives_no_warning(
    grid: list[Chain], params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read_finished(grid, params)) == 4
    assert capsys.readouterr().err == ""


def test_a_chain_that_was_never_run_lacks_every_file(tmp_path: Path) -> None:
    assert len(missing_files(Chain("paper", "cnn1", 0, 0, tmp_path), make_params())) == len(FILES)


def test_reading_all_names_the_unfinished_chain(grid: list[Chain], params: Params) -> None:
    (grid[2].metrics / "ann.json").unlink()
    with pytest.raises(QuantspikeError, match=r"not finished: paper-cnn1-1-0 \(.*ann\.json is not there\); run dvc"):
        read_all(grid, params)


def test_reading_all_of_nothing_is_refused(params: Params) -> None:
    with pytest.raises(QuantspikeError, match=r"the grid .* holds no such chain"):
        read_all([], params)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(grid: list[Chain], params: Params, name: str) -> None:
    (grid[1].metrics / name).unlink()
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is not there"):
        read_chain(grid[1], params)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(grid: list[Chain], params: Params, name: str) -> None:
    (grid[1].metrics / name).write_bytes(b"\x80\x00")
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged: .*delete it and run dvc repro"):
        read_chain(grid[1], params)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".csv")])
def test_an_empty_table_is_damaged(grid: list[Chain], params: Params, name: str) -> None:
    (grid[1].metrics / name).write_text("")
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is damaged"):
        read_chain(grid[1], params)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ann.json", {"accuracy": 92.6}, "accuracy: Input should be less than or equal to 1"),
        ("ann.json", {"images": "many"}, "images: Input should be a valid integer"),
        ("ann.json", {"data": {"kind": "digits"}}, "data.name: Field required"),
        ("snn.json", {"largest_counts": [3, -1]}, "largest_counts.1: Input should be greater than or equal to 0"),
        ("snn.json", {"stable_step": 0}, "stable_step: Input should be greater than or equal to 1"),
        ("conversion.json", {"weight_bits": None}, "weight_bits: Input should be a valid integer"),
    ],
)
def test_a_value_of_another_shape_is_named(
    grid: list[Chain], params: Params, name: str, changes: dict[str, Any], message: str
) -> None:
    change_json(grid[1].metrics / name, **changes)
    with pytest.raises(QuantspikeError, match=rf"{re.escape(name)} is of another shape: {re.escape(message)}"):
        read_chain(grid[1], params)


def test_a_simulation_without_largest_counts_is_of_another_shape(grid: list[Chain], params: Params) -> None:
    path = grid[1].metrics / "snn.json"
    content = json.loads(path.read_text())
    del content["largest_counts"]
    path.write_text(json.dumps(content))
    with pytest.raises(QuantspikeError, match=r"snn\.json is of another shape: largest_counts: Field required; delete"):
        read_chain(grid[1], params)


@pytest.mark.parametrize("counts", [[3] * 9, [3] * 11])
def test_largest_counts_of_another_number_of_layers_are_refused(
    grid: list[Chain], params: Params, counts: list[int]
) -> None:
    change_json(grid[1].metrics / "snn.json", largest_counts=counts)
    message = rf"snn\.json has {len(counts)} largest_counts, expected one for each of the 10 layers; delete it"
    with pytest.raises(QuantspikeError, match=message):
        read_chain(grid[1], params)


def test_a_json_file_that_holds_a_list_is_of_another_shape(grid: list[Chain], params: Params) -> None:
    (grid[1].metrics / "snn.json").write_text("[]")
    with pytest.raises(QuantspikeError, match=r"snn\.json is of another shape: the file as a whole"):
        read_chain(grid[1], params)


def test_spikes_for_full_precision_are_refused(grid: list[Chain], params: Params) -> None:
    change_json(grid[0].metrics / "snn.json", simulated=True)
    with pytest.raises(QuantspikeError, match=r'snn\.json must hold only \{"simulated": false\} for k = fp32'):
        read_chain(grid[0], params)


def test_an_integer_precision_without_spikes_is_refused(grid: list[Chain], params: Params) -> None:
    change_json(grid[1].metrics / "conversion.json", converted=False)
    with pytest.raises(QuantspikeError, match=r"conversion\.json must hold something else .* for k = 0"):
        read_chain(grid[1], params)


def test_a_conversion_for_another_k_is_refused(grid: list[Chain], params: Params) -> None:
    change_json(grid[1].metrics / "conversion.json", k=3)
    with pytest.raises(QuantspikeError, match=r"conversion\.json is of k = 3, not 0"):
        read_chain(grid[1], params)


def test_evaluation_and_simulation_must_be_about_the_same_number_of_images(grid: list[Chain], params: Params) -> None:
    change_json(grid[1].metrics / "snn.json", images=9_000)
    with pytest.raises(QuantspikeError, match=r"snn\.json is about 9000 images, but .*ann\.json about 10000"):
        read_chain(grid[1], params)


def change_table(path: Path, change: Any) -> None:
    change(pd.read_csv(path)).to_csv(path, index=False)


def test_a_table_with_other_columns_is_refused(grid: list[Chain], params: Params) -> None:
    change_table(grid[1].metrics / "snn.csv", lambda table: table.drop(columns="settled"))
    with pytest.raises(QuantspikeError, match=r"snn\.csv has the columns .*,synops, expected .*,settled"):
        read_chain(grid[1], params)


def test_a_table_that_ends_early_is_refused(grid: list[Chain], params: Params) -> None:
    change_table(grid[1].metrics / "snn.csv", lambda table: table[:-1])
    with pytest.raises(QuantspikeError, match=r"snn\.csv: step must count from 1 to 100, line by line"):
        read_chain(grid[1], params)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table[:-1],
        lambda table: table.iloc[[1, 0, *range(2, len(table))]],
        lambda table: table.assign(neurons=1),
        lambda table: table[table["layer"] < 10],
    ],
    ids=["a line short", "two layers exchanged", "other neurons", "a layer less"],
)
def test_layers_must_be_those_of_the_network_in_turn(grid: list[Chain], params: Params, change: Any) -> None:
    change_table(grid[1].metrics / "layers.csv", change)
    with pytest.raises(
        QuantspikeError, match=r"layers\.csv must have a line for each of the 10 layers in turn; delete"
    ):
        read_chain(grid[1], params)


def test_a_skipped_epoch_is_refused(grid: list[Chain], params: Params) -> None:
    change_table(grid[1].metrics / "train.csv", lambda table: table.drop(index=1))
    with pytest.raises(QuantspikeError, match=r"train\.csv: epoch must count from 1 to 99"):
        read_chain(grid[1], params)


@pytest.mark.parametrize("value", ["", "high"], ids=["empty", "text"])
def test_a_cell_that_is_no_number_is_refused(grid: list[Chain], params: Params, value: str) -> None:
    change_table(grid[1].metrics / "snn.csv", lambda table: table.astype(object).replace({"accuracy": {0.9264: value}}))
    with pytest.raises(QuantspikeError, match=r"snn\.csv: accuracy must be a number in every line"):
        read_chain(grid[1], params)
