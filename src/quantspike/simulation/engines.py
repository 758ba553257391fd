"""Which engine runs a simulation. All of them give the same integers."""

from __future__ import annotations

import importlib.util

import torch

from quantspike.devices import resolve_device
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.recording import Engine
from quantspike.simulation.reference import ReferenceEngine

ENGINES = ("auto", "reference", "dense", "events")
"""What `simulate.engine` may name; auto is the fastest one for the device."""

_CPU_ONLY = ("reference", "events")


def engine_device(engine: str, device: str) -> torch.device:
    """The device for an engine: where it runs on the CPU only, `auto` means the CPU.

    Args:
        engine: one of ENGINES.
        device: as in params.yaml.

    Raises:
        QuantspikeError: the engine does not run on the device that is named, or the device is not there.
    """
    if engine in _CPU_ONLY:
        _check_cpu(engine, device)
        return torch.device("cpu")
    return resolve_device(device)


def new_engine(name: str, network: IntegerNetwork, device: torch.device) -> Engine:
    """The engine of that name for a network.

    `auto` takes `dense` on a GPU and `events` on a CPU, unless Numba is missing or the network's sums need more
    than the 32 bits of `events`.

    Args:
        name: one of ENGINES.
        network: the converted network.
        device: where it runs.

    Raises:
        QuantspikeError: the machine lacks the engine, or the network does not fit it.
    """
    if name in _CPU_ONLY:
        _check_cpu(name, str(device))
    if name == "reference":
        return ReferenceEngine(network)
    has_numba = importlib.util.find_spec("numba") is not None
    if name == "events" and not has_numba:
        raise QuantspikeError(
            "simulate.engine is 'events', which needs Numba, and that is not installed: "
            "pip install numba, or set the engine to dense or auto"
        )
    if name == "dense" or device.type != "cpu" or not has_numba:
        return DenseEngine(network, device)
    # Numba takes a second to import, which only this engine should cost.
    from quantspike.simulation.events import EventEngine, fits

    if name == "auto" and not fits(network):
        return DenseEngine(network, device)
    return EventEngine(network)


def _check_cpu(engine: str, device: str) -> None:
    if device.startswith("cuda"):
        raise QuantspikeError(
            f"simulate.engine is {engine!r}, which runs on the CPU only, but device is {device!r}; "
            "set device to cpu or auto, or the engine to dense or auto"
        )
