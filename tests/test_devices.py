"""Names of devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from quantspike.devices import multiplies_bf16, resolve_device
from quantspike.errors import QuantspikeError


def test_the_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("available", "kind"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_a_gpu_if_there_is_one(available: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto").type == kind


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_that_is_there_may_be_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device(name)


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(QuantspikeError, match=f"device is '{name}', but torch sees {count} GPUs here; set device to"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True}, True),  # Arm
        ({"avx512_bf16": False, "amx_bf16": False, "cpu_name": "x"}, False),
        ({}, False),
    ],
)
def test_a_cpu_multiplies_bf16_if_it_has_instructions_for_it(
    capabilities: dict[str, bool | str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bf16(torch.device("cpu")) is expected


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if there were two GPUs, of which only the second one multiplies bf16; the list holds the current one."""
    current = [0]

    @contextmanager
    def as_current(device: torch.device) -> Iterator[None]:
        before = current[0]
        current[0] = before if device.index is None else device.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", as_current)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or current[0] == 1
    )
    return current


def test_a_gpu_that_emulates_bf16_does_not_count(two_gpus: list[int]) -> None:
    assert multiplies_bf16(torch.device("cuda", 0)) is False
    assert multiplies_bf16(torch.device("cuda", 1)) is True


@pytest.mark.parametrize("current", [0, 1])
def test_of_several_gpus_the_one_that_is_asked_about_counts_and_not_the_current_one(
    current: int, two_gpus: list[int]
) -> None:
    two_gpus[0] = current
    assert [multiplies_bf16(torch.device("cuda", number)) for number in (0, 1)] == [False, True]
    assert multiplies_bf16(torch.device("cuda")) is bool(current)
    assert two_gpus == [current]
