"""Training curves as a table and as lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantspike.curves import print_epoch, write_epochs
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


def test_an_epoch_is_a_line_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_epoch(PLAIN)
    print_epoch(HELD_OUT)
    assert capsys.readouterr().out.splitlines() == [
        "epoch   1  loss 2.3026  train  12.50%  test  10.00%  12.3 s",
        "epoch   2  loss 1.5000  train  33.33%  validation  25.00%  test  50.00%  0.5 s",
    ]
