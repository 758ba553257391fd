"""Where the files of a run lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantspike.params import load_params
from quantspike.paths import Chain, chains, dataset_file, plots_folder


def test_every_folder_of_a_chain_bears_its_name() -> None:
    chain = Chain("paper", "cnn1", 2, 0, Path("project"))
    assert (chain.name, chain.key) == ("cnn1-2-0", "paper-cnn1-2-0")
    assert chain.metrics == Path("project/metrics/paper/cnn1-2-0")
    assert chain.data == Path("project/data/paper/cnn1-2-0")
    assert chain.integer_network == Path("project/data/paper/cnn1-2-0/integer/network.safetensors")
    assert chain.dataset == Path("project/data/paper/images.safetensors")


def test_files_lie_below_the_current_folder_unless_told_otherwise() -> None:
    assert Chain("demo", "cnn2", "fp32", 3).data == Path("data/demo/cnn2-fp32-3")
    assert dataset_file("demo") == Path("data/demo/images.safetensors")
    assert plots_folder("demo", "cnn2") == Path("plots/demo/cnn2")
    assert plots_folder("demo", "cnn2", Path("elsewhere")) == Path("elsewhere/plots/demo/cnn2")


@pytest.mark.parametrize(("k", "quantized"), [("fp32", False), (0, True), (2, True)])
def test_a_chain_is_quantized_for_every_k_even_0(k: int, quantized: bool) -> None:
    assert Chain("demo", "cnn1", k, 0).quantized is quantized


def test_the_grid_is_walked_in_the_order_of_the_params_file(write_params: Callable[..., Path], tmp_path: Path) -> None:
    params = load_params(write_params({"run.k": ["fp32", 2, 0], "run.seed": [7, 1]}))
    grid = chains(params, tmp_path)
    names = ["small-fp32-7", "small-fp32-1", "small-2-7", "small-2-1", "small-0-7", "small-0-1"]
    assert [chain.name for chain in grid] == names
    assert {chain.root for chain in grid} == {tmp_path}


def test_no_two_chains_share_a_folder(write_params: Callable[..., Path]) -> None:
    changes = {
        "models.small_1": {"layers": "8C3-16"},
        "run.model": ["small", "small_1"],
        "run.k": [0, 1, 10],
        "run.seed": [0, 1, 10],
    }
    grid = chains(load_params(write_params(changes)))
    assert len({chain.metrics for chain in grid}) == len({chain.key for chain in grid}) == 18
