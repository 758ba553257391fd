"""Simulations that several processes share, really started by torchrun: the trace of one process, bit by bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import share_simulations
from quantspike.distributed import Group

SCRIPT = Path(share_simulations.__file__)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What a single process finds."""
    return share_simulations.results(Group())


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_the_images_find_what_one_finds(count: int, alone: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "traces.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    done = subprocess.run([*torchrun, str(SCRIPT), str(path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = torch.load(path, weights_only=False)
    assert list(found) == list(alone)
    assert found.pop("error").startswith("image 4, layer 2, channel 1: the membrane reaches 1073741824")
    for name, trace in found.items():
        for field, values in trace.items():
            assert np.array_equal(values, alone[name][field]), f"{name}: {field}"


def test_a_single_process_reports_the_same_error(alone: dict[str, Any]) -> None:
    assert alone["error"].startswith("image 4, layer 2, channel 1: the membrane reaches 1073741824")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_follow_each_other_and_are_as_even_as_can_be(n: int, size: int) -> None:
    shares = [Group(rank, size).share(n) for rank in range(size)]
    assert [i for share in shares for i in range(n)[share]] == list(range(n))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_alone_needs_nobody_to_gather() -> None:
    assert Group().gather("part") == ["part"]


def test_only_a_gpu_without_a_number_is_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    third = Group(rank=2, size=4, local_rank=2)
    assert third.own_device(torch.device("cpu")) == torch.device("cpu")
    assert third.own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert third.own_device(torch.device("cuda")) == torch.device("cuda:0")
