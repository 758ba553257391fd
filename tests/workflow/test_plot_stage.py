"""The plot stage: what it writes, from which results."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from make_results import data_set, make_grid, make_params, make_run
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.paths import grid_runs
from quantspike.reporting.figures import FIGURES

STAGE: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "stages" / "plot.py")))


def small_params() -> Params:
    """Return params of a small network on digits, with short trainings and curves."""
    phases = [{"epochs": 2, "learning_rate": 1e-3}, {"epochs": 1, "learning_rate": 1e-4}]
    settings: dict[str, Any] = {"train__epochs": 2, "finetune__epochs": 1, "simulate__steps": 5}
    return make_params(
        k=(1,), baseline=phases, width=0.25, data={"source": "digits", "crop": 8, "held_out": 0}, **settings
    )


def draw(root: Path) -> Path:
    """Run the stage on the results of small params, and return the folder that it fills."""
    params = small_params()
    make_grid(params, root, data_set("digits"))
    STAGE.main(params, root, "paper", "cnn1")
    return root / "plots" / "paper" / "cnn1"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("project"))


def test_it_writes_every_figure_twice_and_their_sources(drawn: Path) -> None:
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in drawn.iterdir()} == figures | {"sources.csv"}
    # Of the baseline and of k = 1
    files = pd.read_csv(drawn / "sources.csv").groupby("run").size()
    assert files.to_dict() == {"paper-cnn1-fp32-0": 2, "paper-cnn1-1-0": 9}


def test_the_same_results_give_the_same_bytes_whatever_the_caller_has_set(drawn: Path, tmp_path: Path) -> None:
    theirs = {"font.size": 30, "savefig.dpi": 50, "svg.fonttype": "none", "axes.facecolor": "red", "axes.linewidth": 9}
    with mpl.rc_context(theirs):
        again = draw(tmp_path)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in drawn.iterdir()
    }


def test_an_unfinished_run_is_named_and_nothing_is_drawn(tmp_path: Path) -> None:
    params = small_params()
    make_run(grid_runs(params, tmp_path)[0], data_set("digits"))
    with pytest.raises(QuantspikeError, match="paper-cnn1-1-0"):
        STAGE.main(params, tmp_path, "paper", "cnn1")
    assert not (tmp_path / "plots").exists()


def test_a_network_outside_the_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="holds no such run"):
        STAGE.main(small_params(), tmp_path, "paper", "cnn2")
