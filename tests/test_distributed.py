"""Devices, and simulations that several processes share, really started by torchrun: the trace of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import share_simulations
from quantspike.distributed import Group, resolve_device
from quantspike.errors import QuantspikeError


def test_processes_that_share_the_images_find_what_one_finds(tmp_path: Path) -> None:
    path = tmp_path / "traces.pt"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run([*torchrun, share_simulations.__file__, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shared, alone = torch.load(path, weights_only=False), share_simulations.results(Group())
    error = "image 4, layer 2, channel 1: the membrane reaches 1073741824"
    assert [found.pop("error")[: len(error)] for found in (alone, shared)] == [error, error]
    assert shared.keys() == alone.keys()
    for name, traces in shared.items():
        assert list(traces) == list(alone[name]) == [1, 0]
        for delay, trace in traces.items():
            for field, values in trace.items():
                assert np.array_equal(values, alone[name][delay][field]), f"{name}, {delay}: {field}"


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shards_follow_each_other_and_are_as_even_as_can_be(n: int, size: int) -> None:
    shards = [Group(rank, size).shard(n) for rank in range(size)]
    assert [i for shard in shards for i in range(n)[shard]] == list(range(n))
    lengths = [shard.stop - shard.start for shard in shards]
    assert max(lengths) - min(lengths) <= 1


def test_each_process_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    third = Group(rank=2, size=4, local_rank=1)
    assert third.own_device(torch.device("cpu")) == torch.device("cpu")
    assert third.own_device(torch.device("cuda")) == torch.device("cuda:1")
    assert Group().own_device(torch.device("cuda")) == torch.device("cuda:0")
    assert Group().own_device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize(("device", "local_rank"), [("cuda", 2), ("cuda:0", 0)])
def test_processes_do_not_share_a_gpu(device: str, local_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = f"each process needs a GPU of its own, but device is '{device}' and torch sees 2 GPUs here: set device to"
    with pytest.raises(QuantspikeError, match=message):
        Group(rank=2, size=4, local_rank=local_rank).own_device(torch.device(device))


@pytest.mark.parametrize(("available", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_if_there_is_one(available: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto").type == kind


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_an_existing_device_may_be_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_does_not_exist_is_refused(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(QuantspikeError, match=f"device is '{name}', but torch sees {count} GPUs here; set device to"):
        resolve_device(name)
