"""The tables behind the figures, with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from draw_figures import results_of
from quantspike.results import COUNTS, ChainResult
from quantspike.stopping_points import LOSSES
from quantspike.tables import TABLES, layers_table, steps_table, stops_table, write_table

KEYS = ["profile", "model", "k", "seed"]


def spiking(accuracy: list[float]) -> ChainResult:
    """A chain of k = 1 with this accuracy after each step; the counts of step t are t times 10, 2, 8, 100 and 0.1."""
    (result,) = results_of("one k")
    steps = pd.DataFrame({"step": range(1, len(accuracy) + 1), "accuracy": accuracy})
    for name, value in zip(COUNTS, (10.0, 2.0, 8.0, 100.0, 0.1), strict=True):
        steps[name] = value * steps["step"]
    return replace(result, steps=steps)


def test_stops_are_the_first_steps_from_which_the_accuracy_stays_close() -> None:
    # The last accuracy is 0.92: from step 5 on it is within 0.001, from step 4 on within 0.005 and within 0.01: step 2
    # is, but step 3 is not.
    table = stops_table([spiking([0.5, 0.915, 0.8, 0.916, 0.9195, 0.92])])
    assert list(table.columns) == [*KEYS, "loss", "step", "accuracy", *COUNTS]
    assert table["loss"].tolist() == list(LOSSES) == [0.001, 0.005, 0.01]
    assert table["step"].tolist() == [5, 4, 4]
    assert table["accuracy"].tolist() == [0.9195, 0.916, 0.916]
    assert table["positive_spikes"].tolist() == [50, 40, 40]
    assert table["negative_spikes"].tolist() == [10, 8, 8]
    assert table["net_spikes"].tolist() == [40, 32, 32]
    assert table["synops"].tolist() == [500, 400, 400]
    assert table["settled"].tolist() == pytest.approx([0.5, 0.4, 0.4])
    assert table[KEYS].to_numpy().tolist() == [["paper", "cnn1", "1", 0]] * 3


def test_a_distance_of_exactly_the_loss_is_near_enough_to_stop() -> None:
    # 0.9264 - 0.9254 is 0.001, though not in binary.
    assert stops_table([spiking([0.9, 0.9254, 0.9264])])["step"].tolist() == [2, 2, 2]


def test_a_simulation_of_one_step_is_stopped_there() -> None:
    assert stops_table([spiking([0.3])])["step"].tolist() == [1, 1, 1]


def test_stops_are_of_each_seed_and_never_of_full_precision() -> None:
    table = stops_table(results_of("seeds of digits"))
    assert list(zip(table["k"], table["seed"], strict=True)) == [
        (k, seed) for k in ("0", "2") for seed in (0, 1, 2) for _ in LOSSES
    ]


def test_the_layers_table_is_the_last_step_of_each_layer_with_its_token() -> None:
    table = layers_table(results_of("published"))
    assert list(table.columns) == [*KEYS, "layer", "token", "neurons", *COUNTS]
    # Full precision has no spikes; 3 x 10 layers.
    assert table["k"].tolist() == ["0"] * 10 + ["1"] * 10 + ["2"] * 10
    assert table["layer"].tolist() == list(range(1, 11)) * 3
    assert table["token"].tolist() == ["96C3", "256C3", "P2", "384C3", "P2", "384C3", "256C3", "P2", "1024", "1024"] * 3
    # By hand: 96 x 24 x 24 neurons in the first layer, 256 x 12 x 12 in the third.
    assert table["neurons"].tolist()[:3] == [55_296, 147_456, 36_864]
    # A tenth of 270 million x (1 - exp(-100 / 2.5)) each
    assert table["synops"].tolist()[:10] == pytest.approx([27e6] * 10)


def test_layers_of_an_average_are_those_of_the_last_step_whatever_its_number() -> None:
    (result,) = results_of("one k")
    assert result.layers is not None
    early = replace(result, layers=result.layers[result.layers["step"] <= 7])
    seventh = result.layers[result.layers["step"] == 7]
    assert layers_table([early])["synops"].tolist() == seventh["synops"].tolist()
    assert layers_table([early])["token"].tolist()[0] == "24C3"  # 96 channels at a quarter of the width


def test_layers_add_up_to_the_last_step() -> None:
    layers, steps = (table(results_of("seeds of digits")) for table in (layers_table, steps_table))
    sums = layers.groupby(["k", "seed"])[list(COUNTS[:4])].sum()
    last = steps[steps["step"] == 100].set_index(["k", "seed"])[list(COUNTS[:4])]
    pd.testing.assert_frame_equal(sums, last)


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"sources"}))
def test_every_table_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    table = TABLES[name](results_of("seeds of digits"))
    write_table(tmp_path / f"{name}.csv", table)
    read = pd.read_csv(tmp_path / f"{name}.csv", dtype={"k": str})
    assert list(read.columns) == list(table.columns)
    assert len(read) == len(table) > 0
    assert list(read.columns)[:3] == KEYS[:3]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_nothing_has_its_titles_and_no_row(name: str) -> None:
    empty = TABLES[name]([])
    assert len(empty) == 0
    if name != "sources":
        assert list(empty.columns) == list(TABLES[name](results_of("one k")).columns)


def test_full_precision_alone_has_titles_but_no_row_where_spikes_are_counted() -> None:
    for name in ("steps", "layers", "stops"):
        table = TABLES[name](results_of("fp32"))
        assert (len(table), list(table.columns)) == (0, list(TABLES[name](results_of("one k")).columns))
