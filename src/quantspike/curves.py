"""Training curves as CSV files and as lines on the terminal."""

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


def print_epoch(epoch: Epoch) -> None:
    """Prints one epoch as a line."""
    held_out = "" if epoch.validation_accuracy is None else f"  validation {epoch.validation_accuracy:7.2%}"
    print(
        f"epoch {epoch.epoch:3d}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:7.2%}{held_out}"
        f"  test {epoch.test_accuracy:7.2%}  {epoch.seconds:.1f} s",
        flush=True,
    )


def _rounded(value: float | None) -> float | str | None:
    return f"{value:.6g}" if isinstance(value, float) else value
