"""Training curves as CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from quantspike.files import write_csv
from quantspike.training import Epoch


def write_epochs(path: Path, epochs: Sequence[Epoch]) -> None:
    """Writes one row per epoch, columns as the fields of `Epoch`, empty where nothing was measured."""
    columns = {field.name: [_rounded(getattr(epoch, field.name)) for epoch in epochs] for field in fields(Epoch)}
    write_csv(path, columns)


def _rounded(value: float | None) -> float | str | None:
    return f"{value:.6g}" if isinstance(value, float) else value
