"""Logs of a simulation in the published format, read from their folder and added up over all batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.logs.checks import (
    AGAIN,
    CORRECT,
    FILES,
    LARGEST,
    Integers,
    Log,
    check_correct,
    check_counts,
    check_signs,
)

_BOM = b"\xef\xbb\xbf"
_NOT_PLAIN = re.compile(rb"[^0-9\r\n-]")
# Without limits on the exponent, a line of ten characters could ask for a number of a billion digits.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")


@dataclass(frozen=True, eq=False)
class Logs:
    """What one simulation of `steps` steps (T) did, summed over all its images.

    Attributes:
        folder: where it was read from.
        images: number of images.
        steps: T.
        batches: number of batches that the images were simulated in.
        correct: images classified correctly at each step, int64 [T].
        positive_spikes: spikes of +1 up to each step, int64 [T].
        negative_spikes: spikes of -1, likewise.
        synops: synaptic operations, likewise.
    """

    folder: Path
    images: int
    steps: int
    batches: int
    correct: Integers
    positive_spikes: Integers
    negative_spikes: Integers
    synops: Integers

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of the images classified correctly at each step, 0 to 1, [T]."""
        return self.correct / self.images

    @property
    def net_spikes(self) -> Integers:
        """Positive minus negative spikes up to each step, of all images together, int64 [T]."""
        return self.positive_spikes - self.negative_spikes

    @property
    def stable_step(self) -> int:
        """First step, from 1, from which the accuracy no longer changes: the published "Time Steps"."""
        # `measures.stable_step` is the same; importing it would load torch, which takes longer than reading logs.
        changes = np.flatnonzero(self.correct != self.correct[-1])
        return int(changes[-1]) + 2 if len(changes) else 1

    def curve(self) -> pd.DataFrame:
        """One row per step: step (from 1), accuracy (0 to 1) and, cumulative and averaged per image, the counts."""
        return pd.DataFrame(
            {
                "step": np.arange(1, self.steps + 1),
                "accuracy": self.accuracy,
                "positive_spikes": self.positive_spikes / self.images,
                "negative_spikes": self.negative_spikes / self.images,
                "net_spikes": self.net_spikes / self.images,
                "synops": self.synops / self.images,
            }
        )


def find_logs(folder: Path) -> list[Path]:
    """The folders of logs that a folder stands for: itself, and those named k0, k1, ... in it, in that order.

    What lies in a folder of such a name is not looked at: where its logs are not whole, `read_logs` says so.

    Raises:
        QuantspikeError: the folder is absent, or there are neither logs nor such folders in it.
    """
    names = _listing(folder)
    itself = [folder] if any(name in names for name in FILES) else []
    numbered = {name: int(match[1]) for name in names if (match := re.fullmatch(r"k([0-9]+)/", name))}
    found = [*itself, *(folder / name for name in sorted(numbered, key=lambda name: numbered[name]))]
    if not found:
        raise QuantspikeError(
            f"{folder} holds no logs: expected {', '.join(FILES)} or folders k0, k1, ... with them, "
            f"found {_enumerated(names)}; name the folder that they lie in"
        )
    return found


def read_logs(folder: Path, images: int, steps: int, batch: int | None = None) -> Logs:
    """Reads the four files of a folder; whole numbers may be written as floats, in any number of batches.

    Nothing in the files tells their number of steps. A wrong `steps` shows in numbers that fall within a batch or in
    more correct images than there are; one that divides the true number may go unnoticed if the accuracy is low.

    Args:
        folder: where they are.
        images: images that were simulated, from 1.
        steps: lines of each batch, from 1.
        batch: images in each batch but the last, which may hold fewer. Without it, logs that were cut short between
            two batches are taken for whole.

    Raises:
        QuantspikeError: a file is missing or damaged, or the files contradict each other, `images` or `steps`;
            file and line are named.
    """
    for option, value in (("--images", images), ("--steps", steps), ("--batch", 1 if batch is None else batch)):
        if value < 1:
            raise QuantspikeError(f"{option} must be a whole number from 1, found {value}")
    names = _listing(folder)
    if missing := [name for name in FILES if name not in names]:
        raise QuantspikeError(
            f"{folder} lacks {', '.join(missing)}: expected {', '.join(FILES)}, found {_enumerated(names)}; {AGAIN}"
        )
    flat = {folder / name: read_numbers(folder / name) for name in FILES}
    batches = _count_batches(flat, images, steps)
    _check_batches(folder, batches, images, steps, batch)
    logs = [Log(path, numbers.reshape(batches, steps)) for path, numbers in flat.items()]
    check_counts(logs)
    correct, spikes, net, synops = logs
    check_signs(spikes, net)
    check_correct(correct, images)
    return Logs(
        folder=folder,
        images=images,
        steps=steps,
        batches=batches,
        correct=correct.numbers.sum(axis=0),
        positive_spikes=((spikes.numbers + net.numbers) // 2).sum(axis=0),
        negative_spikes=((spikes.numbers - net.numbers) // 2).sum(axis=0),
        synops=synops.numbers.sum(axis=0),
    )


def read_numbers(path: Path) -> Integers:
    """Reads a file of whole numbers, one per line, into int64 [lines]. Blank lines at the end do not count.

    Raises:
        QuantspikeError: the file cannot be read, is empty, or a line is not a whole number that fits into int64.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuantspikeError(f"{path} could not be read: {error}; check the file and its permissions") from error
    content = content.removeprefix(_BOM).rstrip(b" \t\r\n")
    if not content:
        raise QuantspikeError(f"{path}, line 1: the file is empty: expected one number per line; {AGAIN}")
    plain = plain_numbers(content)
    return exact_numbers(content, path) if plain is None else plain


def plain_numbers(content: bytes) -> Integers | None:
    """The fast way, for lines of digits and signs alone: int64 [lines], or `None` if there is anything else."""
    if _NOT_PLAIN.search(content):
        return None
    lines = content.splitlines()
    try:
        return np.fromiter(map(int, lines), np.int64, len(lines))
    except (ValueError, OverflowError):
        return None


def exact_numbers(content: bytes, path: Path) -> Integers:
    """The slow way, which takes every form of a whole number and tells what is wrong with a line: int64 [lines].

    Raises:
        QuantspikeError: a line is not a whole number that fits into int64; `path` is named.
    """
    lines = content.splitlines()
    numbers = np.empty(len(lines), np.int64)
    for index, line in enumerate(lines):
        try:
            numbers[index] = _whole_number(line)
        except ValueError as error:
            raise QuantspikeError(f"{path}, line {index + 1}: {error}; {AGAIN}") from None
    return numbers


def _whole_number(line: bytes) -> int:
    """The number of a line, without any rounding; ValueError tells what is there instead."""
    try:
        text = line.decode("utf-8").strip(" \t")
    except UnicodeDecodeError:
        raise ValueError("expected a whole number, found bytes that are not UTF-8 text") from None
    shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
    if not text:
        raise ValueError("expected a whole number, found a blank line")
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"expected one whole number, found {shown}")
    value = Decimal(text)
    if not value:
        return 0
    # The size comes before the conversion: 1e999999999 is a whole number too.
    if value.adjusted() > 18 or abs(value) > LARGEST:
        raise ValueError(f"expected a whole number of 64 bits, at most {LARGEST}, found {shown}")
    if value != value.to_integral_value():
        raise ValueError(f"expected a whole number, found the fraction {shown}")
    return int(value)


def _count_batches(flat: dict[Path, Integers], images: int, steps: int) -> int:
    lines = {path: len(numbers) for path, numbers in flat.items()}
    path, count = min(lines.items(), key=lambda item: item[1])
    if set(lines.values()) != {count}:
        others = ", ".join(f"{other.name} {n}" for other, n in lines.items() if other != path)
        raise QuantspikeError(
            f"{path}, line {count}: the file ends here, the others after other numbers of lines ({others}); "
            f"all four have a line per batch and step: {AGAIN}, whole"
        )
    batches, rest = divmod(count, steps)
    if rest:
        raise QuantspikeError(
            f"{path}, line {count}: the file ends at step {rest} of batch {batches + 1}: {count} lines are no whole "
            f"number of batches of {steps} steps; the logs were cut short, or --steps is not {steps}"
        )
    if batches > images:
        raise QuantspikeError(
            f"{path}, line {images * steps + 1}: batch {images + 1} begins here, but there are {images} images; "
            f"--images is more than {images}, or --steps more than {steps}"
        )
    return batches


def _check_batches(folder: Path, batches: int, images: int, steps: int, batch: int | None) -> None:
    expected = batches if batch is None else -(-images // batch)
    if batches != expected:
        raise QuantspikeError(
            f"{folder / CORRECT}, line {batches * steps}: the file ends after {batches} batches, but {images} images "
            f"in batches of {batch} make {expected}; the logs were cut short, or --batch is not {batch}"
        )


def _listing(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; those of folders end with a slash."""
    try:
        return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    except FileNotFoundError:
        raise QuantspikeError(f"{folder} is not there: name a folder of logs") from None
    except NotADirectoryError:
        raise QuantspikeError(f"{folder} is a file: name the folder that it lies in") from None
    except OSError as error:
        raise QuantspikeError(f"{folder} could not be read: {error}; check its permissions") from error


def _enumerated(names: Sequence[str]) -> str:
    if len(names) > 8:
        return f"{', '.join(names[:8])} and {len(names) - 8} more"
    return ", ".join(names) or "nothing"
