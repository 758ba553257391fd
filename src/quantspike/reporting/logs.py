"""Simulation logs in the published format, from this project or others: find, read, check, and show as a table.

A folder holds accuracy.txt, spike_num.txt, spike_collect.txt and sop_num.txt. They have one number per line, for each
batch in turn one line per step; within a batch: images classified correctly at that step, cumulative spikes, cumulative
net spikes, cumulative synaptic operations (SOPs). Of networks without negative spikes, spike_collect.txt is absent.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.params import LARGEST_K
from quantspike.reporting.tables import aligned

CORRECT, SPIKES, NET_SPIKES, SYNOPS = FILES = ("accuracy.txt", "spike_num.txt", "spike_collect.txt", "sop_num.txt")
"""What a folder of logs holds; without negative spikes, `NET_SPIKES` is absent."""

_LONGEST_LINE = 64
"""Bytes on average; a number takes 25 at most, as `numpy.savetxt` writes it."""

_AGAIN = "write or copy the logs again"

Integers = NDArray[np.int64]


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
    def stable_step(self) -> int:
        """First step, from 1, from which the accuracy no longer changes: the published "Time Steps"."""
        # As `measures.stable_step`, which reporting does not import.
        changes = np.flatnonzero(self.correct != self.correct[-1])
        return int(changes[-1]) + 2 if len(changes) else 1

    def curve(self) -> pd.DataFrame:
        """Return one row per step: step (from 1), accuracy (0 to 1) and the cumulative counts per image."""
        return pd.DataFrame(
            {
                "step": np.arange(1, self.steps + 1),
                "accuracy": self.accuracy,
                "positive_spikes": self.positive_spikes / self.images,
                "negative_spikes": self.negative_spikes / self.images,
                "net_spikes": (self.positive_spikes - self.negative_spikes) / self.images,
                "synops": self.synops / self.images,
            }
        )


def find_logs(folder: Path) -> list[Path]:
    """Return the folders of logs that a folder stands for: itself, and those in it, k2 before k10.

    Folders with any of the files count, and those named k0, k1, ... or k0B1, ...; `read_logs` refuses what they lack.

    Raises:
        QuantspikeError: the folder is absent, or it has neither logs nor such folders.
    """
    names = _listing(folder)
    itself = [folder] if any(name in names for name in FILES) else []
    inside = [name for name in names if re.fullmatch(r"k[0-9]+(B[0-9]+)?/", name) or _has_logs(folder / name)]
    found = [*itself, *(folder / name for name in sorted(inside, key=_by_number))]
    if not found:
        raise QuantspikeError(
            f"{folder} holds no logs: expected {', '.join(FILES)} or folders with them, "
            f"found {_enumerated(names)}; name the folder that holds them"
        )
    return found


def read_logs(folder: Path, images: int, steps: int, batch: int | None = None) -> Logs:
    """Read the files of a folder; whole numbers may be written as floats, in any number of batches.

    The files do not tell their number of steps. A wrong `steps` shows in numbers that fall within a batch or in more
    correct images than there are; one that divides the true number can go unnoticed if the accuracy is low.

    Args:
        folder: the folder.
        images: images that were simulated, from 1.
        steps: lines of each batch, from 1.
        batch: images in each batch but the last, which may hold fewer. Without it, logs that were cut short between
            two batches are taken as complete.

    Raises:
        QuantspikeError: a file is missing or damaged, or the files contradict each other, `images` or `steps`;
            file and line are named.
    """
    lines = {folder / name: _read_lines(folder / name, images * steps) for name in _files(folder)}
    batches = _count_batches({path: len(numbers) for path, numbers in lines.items()}, images, steps, batch)
    logs = {path.name: _Log.parse(path, text, batches) for path, text in lines.items()}
    correct, spikes, synops = (logs[name] for name in (CORRECT, SPIKES, SYNOPS))
    net = logs.get(NET_SPIKES, spikes)
    _check_correct(correct, images)
    _check_cumulative(spikes)
    _check_cumulative(synops)
    _check_signs(spikes, net)
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


def table(logs: Sequence[Logs]) -> str:
    """Return one aligned line per simulation, under a line of titles: the last step's values, counts per image."""
    rows = [["folder", "accuracy %", "stable step", "positive spikes", "negative spikes", "SOPs", "batches"]]
    for name, log in zip(_short_names(logs), logs, strict=True):
        counts = [f"{int(n[-1]) / log.images:,.0f}" for n in (log.positive_spikes, log.negative_spikes, log.synops)]
        rows.append([name, f"{100 * log.accuracy[-1]:.2f}", str(log.stable_step), *counts, f"{log.batches:,}"])
    return aligned(rows, left=("folder",))


def labelled(logs: Sequence[Logs]) -> list[tuple[Logs, int | None, str]]:
    """Return each with its k, from a folder named k<k>, and a name, empty if no other has the same k."""
    matches = [re.fullmatch(r"k([0-9]{1,2})", log.folder.absolute().name) for log in logs]
    precisions = [int(match[1]) if match and int(match[1]) <= LARGEST_K else None for match in matches]
    return [
        (log, k, "" if k is not None and precisions.count(k) == 1 else name)
        for log, k, name in zip(logs, precisions, _short_names(logs), strict=True)
    ]


def _short_names(logs: Sequence[Logs]) -> list[str]:
    """Return what tells folders apart: their paths without the folder that holds all of them."""
    folders = [log.folder.absolute() for log in logs]
    common = os.path.commonpath([folder.parent for folder in folders])
    return [folder.relative_to(common).as_posix() for folder in folders]


@dataclass(frozen=True, eq=False)
class _Log:
    """One file: its path and its numbers, int64 [batches, T]."""

    path: Path
    numbers: Integers

    @classmethod
    def parse(cls, path: Path, lines: Sequence[str], batches: int) -> _Log:
        # Floats are exact up to 2^53, and the sum over all batches of spikes and net spikes has to fit 64 bits.
        largest = min(2**53, 2**62 // batches)
        numbers = [_whole_number(line) for line in lines]
        for index, number in enumerate(numbers):
            if number is None or abs(number) > largest:
                found = lines[index] if len(lines[index]) <= 40 else f"{lines[index][:37]}..."
                raise QuantspikeError(
                    f"{path}, line {index + 1}: expected a whole number of at most {largest}, found {found!r}; {_AGAIN}"
                )
        return cls(path, np.array(numbers, np.int64).reshape(batches, -1))

    @property
    def added(self) -> Integers:
        """What each step adds, int64 [batches, T]; numbers start at 0 in each batch."""
        return np.diff(self.numbers, axis=1, prepend=0)

    def refuse(self, wrong: NDArray[np.bool_], reason: str) -> None:
        """Refuse the first number for which `wrong` [batches, T] holds, if any, naming its line."""
        if wrong.any():
            index = int(wrong.argmax())
            batch, step = divmod(index, self.numbers.shape[1])
            raise QuantspikeError(
                f"{self.path}, line {index + 1} (batch {batch + 1}, step {step + 1}): found "
                f"{self.numbers.flat[index]}, but {reason}"
            )


def _whole_number(line: str) -> int | None:
    if not re.fullmatch(r"[-+.0-9eE\s]*", line):  # Python also reads 1_2 and other digits
        return None
    try:
        value = float(line)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _check_correct(log: _Log, images: int) -> None:
    """Check that batches of one size, the last one perhaps smaller, can have so many correct images."""
    batches, steps = log.numbers.shape
    advice = f"a number is damaged, --images is more than {images}, or --steps more than {steps}"
    # All batches but the last are full, and the last one holds at least one image.
    most = images if batches == 1 else (images - 1) // (batches - 1)
    wrong = (log.numbers < 0) | (log.numbers > most)
    log.refuse(wrong, f"of {images} images in {batches} batches, each has 0 to {most} correct ones: {advice}")
    total = log.numbers.cumsum(axis=0)
    log.refuse(total > images, f"with the batches before, more than {images} images are correct at this step: {advice}")


def _check_cumulative(log: _Log) -> None:
    log.refuse(
        log.added < 0,
        "cumulative numbers start from 0 and never fall within a batch: a number is damaged, or --steps is not "
        f"{log.numbers.shape[1]}",
    )


def _check_signs(spikes: _Log, net: _Log) -> None:
    """Check that spikes and net spikes are sum and difference of two counts that never fall."""
    net.refuse(
        abs(net.added) > spikes.added,
        f"net spikes cannot change by more than the new spikes ({SPIKES}): a number is damaged, or --steps is not "
        f"{net.numbers.shape[1]}",
    )
    net.refuse(
        (spikes.numbers + net.numbers) % 2 == 1,
        f"spikes ({SPIKES}) and net spikes are both even or both odd: a number is damaged; {_AGAIN}",
    )


def _files(folder: Path) -> list[str]:
    """Return the names of a folder's logs, and say so if it has no net spikes: then no spike is negative."""
    names = _listing(folder)
    if missing := [name for name in FILES if name not in names and name != NET_SPIKES]:
        raise QuantspikeError(
            f"{folder} lacks {', '.join(missing)}: expected {', '.join(FILES)}, found {_enumerated(names)}; {_AGAIN}"
        )
    if NET_SPIKES not in names:
        print(f"note: {folder} has no {NET_SPIKES}: read as a network without negative spikes", file=sys.stderr)
    return [name for name in FILES if name in names]


def _read_lines(path: Path, most: int) -> list[str]:
    """Return the lines of a file without blank ones at its end, if it has at most so many."""
    try:
        if (size := path.stat().st_size) > _LONGEST_LINE * most:
            raise QuantspikeError(
                f"{path} has {size:,} bytes, too many for the {most:,} lines that there can be: it is not a log, or "
                "--images or --steps is too small"
            )
        text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip()
    except OSError as error:
        raise QuantspikeError(f"{path} could not be read: {error}; check the file and its permissions") from error
    if not text:
        raise QuantspikeError(f"{path}, line 1: the file is empty: expected one number per line; {_AGAIN}")
    return text.split("\n")


def _count_batches(lines: dict[Path, int], images: int, steps: int, batch: int | None) -> int:
    path, count = min(lines.items(), key=lambda item: item[1])
    if set(lines.values()) != {count}:
        others = ", ".join(f"{other.name} {n}" for other, n in lines.items() if other != path)
        raise QuantspikeError(
            f"{path}, line {count}: the file ends here, but the other files have {others} lines; all of them have a "
            f"line per batch and step: {_AGAIN}"
        )
    batches, rest = divmod(count, steps)
    if rest:
        raise QuantspikeError(
            f"{path}, line {count}: the file ends at step {rest} of batch {batches + 1}: {count} lines are not batches "
            f"of {steps} steps; the logs were cut short, or --steps is not {steps}"
        )
    if batches > images:
        raise QuantspikeError(
            f"{path}, line {images * steps + 1}: batch {images + 1} begins here, but there are {images} images; "
            f"--images is more than {images}, or --steps more than {steps}"
        )
    if batch is not None and batches != (expected := -(-images // batch)):
        raise QuantspikeError(
            f"{path}, line {count}: the file ends after {batches} batches, but {images} images in batches of {batch} "
            f"make {expected}; the logs were cut short, or --batch is not {batch}"
        )
    return batches


def _listing(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; those of folders end with a slash."""
    try:
        return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    except OSError as error:
        raise QuantspikeError(f"{folder} could not be read: {error}; name a folder of logs") from error


def _has_logs(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in FILES)


def _by_number(name: str) -> list[str | int]:
    """Return what sorts names with their numbers by size: text and numbers in turn."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]


def _enumerated(names: Sequence[str]) -> str:
    return (", ".join(names[:8]) or "nothing") + (f" and {len(names) - 8} more" if len(names) > 8 else "")
