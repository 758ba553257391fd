"""Training curves as a table."""

from __future__ import annotations

from pathlib import Path

from quantspike.curves import write_epochs
from quantspike.training import Epoch

PLAIN = Epoch(1, 2.30258509, 0.125, None, 0.1, 0.001, 12.3456789)
HELD_OUT = Epoch(2, 1.5, 1 / 3, 0.25, 0.5, 0.0001, 0.5)
HEADER = "epoch,loss,train_accuracy,validation_accuracy,test_accuracy,learning_rate,seconds\n"


def test_a_curve_has_a_row_per_epoch_and_an_empty_cell_where_nothing_was_measured(tmp_path: Path) -> None:
    write_epochs(tmp_path / "train.csv", [PLAIN, HELD_OUT])
    rows = "1,2.30259,0.125,,0.1,0.001,12.3457\n2,1.5,0.333333,0.25,0.5,0.0001,0.5\n"
    assert (tmp_path / "train.csv").read_text() == HEADER + rows


def test_a_curve_without_epochs_keeps_its_header(tmp_path: Path) -> None:
    write_epochs(tmp_path / "train.csv", [])
    assert (tmp_path / "train.csv").read_text() == HEADER
