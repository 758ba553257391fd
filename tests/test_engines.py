"""Which engine runs, and where."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from make_networks import integer_network
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.simulation import engines
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.engines import engine_device, new_engine
from quantspike.simulation.events import EventEngine
from quantspike.simulation.reference import ReferenceEngine

CPU = torch.device("cpu")


@pytest.fixture
def network() -> IntegerNetwork:
    return integer_network("2C1-1", [([1, 1], [0, 0], [2, 2]), ([10, -4], [0], [4])], [[1], [2]])


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks as if Numba were not installed."""
    find_spec = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "numba" else find_spec(name, package)

    monkeypatch.setattr(engines.importlib.util, "find_spec", find)


@pytest.mark.parametrize("engine", ["reference", "events"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_engine_of_the_cpu_is_refused_on_a_gpu(engine: str, device: str) -> None:
    message = rf"simulate.engine is '{engine}', which runs on the CPU only, but device is '{device}'; set device to cpu"
    with pytest.raises(QuantspikeError, match=message):
        engine_device(engine, device)


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("engine", ["reference", "events"])
def test_an_engine_of_the_cpu_runs_there_whether_there_is_a_gpu_or_not(
    engine: str, device: str, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert engine_device(engine, device) == CPU


@pytest.mark.parametrize("engine", ["auto", "dense"])
def test_the_other_engines_run_on_the_device_that_is_named_or_found(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_device(engine, "cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert engine_device(engine, "auto").type == "cuda"
    assert engine_device(engine, "cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("engine", ["auto", "dense"])
def test_a_gpu_that_is_not_there_is_refused(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(QuantspikeError, match=r"device is 'cuda', but torch sees 0 GPUs here"):
        engine_device(engine, "cuda")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("auto", EventEngine), ("events", EventEngine), ("dense", DenseEngine), ("reference", ReferenceEngine)],
)
def test_the_engine_that_is_named_runs_and_on_a_cpu_auto_is_spike_by_spike(
    name: str, kind: type, network: IntegerNetwork
) -> None:
    assert type(new_engine(name, network, CPU)) is kind


@pytest.mark.usefixtures("without_numba")
def test_without_numba_auto_is_dense_and_events_is_refused(network: IntegerNetwork) -> None:
    assert type(new_engine("auto", network, CPU)) is DenseEngine
    assert type(new_engine("dense", network, CPU)) is DenseEngine
    assert type(new_engine("reference", network, CPU)) is ReferenceEngine
    message = r"simulate.engine is 'events', which needs Numba, and that is not installed: pip install numba, or set"
    with pytest.raises(QuantspikeError, match=message):
        new_engine("events", network, CPU)


@pytest.mark.parametrize("name", ["auto", "dense"])
def test_for_a_gpu_the_dense_engine_is_made_there(
    name: str, network: IntegerNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "DenseEngine", lambda *arguments: arguments)
    assert new_engine(name, network, torch.device("cuda:1")) == (network, torch.device("cuda:1"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_is_dense(network: IntegerNetwork) -> None:
    assert type(new_engine("auto", network, torch.device("cuda"))) is DenseEngine
