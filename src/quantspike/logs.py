"""Reads simulation logs in the published format, whoever wrote them: `python -m quantspike.logs FOLDER ...`.

reads:   accuracy.txt, spike_num.txt, spike_collect.txt and sop_num.txt in each FOLDER, or in its folders k0, k1, ...
writes:  with --plot OUT, the figures accuracy_speed, sparsity, sops and frontier into OUT, all logs in one picture

One number per line, for each batch in turn one line per step; within a batch: images classified correctly at
that step, cumulative spikes, cumulative net spikes, cumulative synaptic operations (SOPs).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.params import LARGEST_K
from quantspike.published import LAYERS

Integers = NDArray[np.int64]

CORRECT, SPIKES, NET_SPIKES, SYNOPS = FILES = ("accuracy.txt", "spike_num.txt", "spike_collect.txt", "sop_num.txt")
"""What a folder of logs holds."""

_BOM = b"\xef\xbb\xbf"
_LARGEST = int(np.iinfo(np.int64).max)
_NOT_PLAIN = re.compile(rb"[^0-9\r\n-]")
# Without limits on the exponent, a line of ten characters could ask for a number of a billion digits.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_AGAIN = "write or copy the logs again"


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


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m quantspike.logs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="logs, or a folder of k0, k1, ...")
    parser.add_argument("--images", type=_from_one, required=True, metavar="N", help="images in each simulation")
    parser.add_argument("--steps", type=_from_one, required=True, metavar="T", help="steps of each simulation")
    parser.add_argument("--batch", type=_from_one, metavar="B", help="images in each batch but the last, to be checked")
    parser.add_argument("--plot", type=Path, metavar="OUT", help="folder for figures of all these logs together")
    parser.add_argument("--model", choices=sorted(LAYERS), help="published network beside which they are drawn")
    options = parser.parse_args()
    try:
        # Each folder once, however often and by whatever path it is named.
        found = {folder.resolve(): folder for given in options.folders for folder in find_logs(given)}
        logs = [read_logs(folder, options.images, options.steps, options.batch) for folder in found.values()]
        if options.plot is not None:
            plot(logs, options.plot, options.model)
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(table(logs))
    for log in logs:
        if options.batch is None and log.images % log.batches:
            print(
                f"note: {log.folder} has {log.batches} batches, which cannot share {log.images} images equally; "
                "if that is not so, the logs were cut short: name the size of the batches with --batch",
                file=sys.stderr,
            )
    print(f"\nAfter step {options.steps}; spikes and SOPs per image, averages of {options.images:,} images.")
    if options.plot is not None:
        print(f"Figures: {options.plot}/")


def table(logs: Sequence[Logs]) -> str:
    """One line per simulation, aligned, under a line of titles: the values at the last step, counts per image."""
    lines = [("folder", "accuracy %", "stable step", "positive spikes", "negative spikes", "SOPs", "batches")]
    for name, log in zip(_short_names([log.folder for log in logs]), logs, strict=True):
        # Python divides its own integers exactly before it rounds, whatever their size.
        per_image = [int(counts[-1]) / log.images for counts in (log.positive_spikes, log.negative_spikes, log.synops)]
        accuracy = f"{100 * log.accuracy[-1]:.2f}"
        positive, negative, synops = (f"{count:,.0f}" for count in per_image)
        lines.append((name, accuracy, str(log.stable_step), positive, negative, synops, f"{log.batches:,}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        ).rstrip()
        for name, *cells in lines
    )


def plot(logs: Sequence[Logs], folder: Path, model: str | None = None) -> None:
    """Draws the figures that logs suffice for, all of them together, as PNG and SVG.

    Args:
        logs: of the same images and steps; a folder named k<k> tells its precision, and so its colour.
        folder: where the figures go.
        model: the published network that they belong to, for its neurons, multiply-accumulates and curves.

    Raises:
        QuantspikeError: the file system refuses a write.
    """
    from quantspike.figures import LOG_FIGURES, compare_logs, save  # matplotlib, which reading logs does not need

    comparison = compare_logs(_labelled(logs), model)
    for name, draw in LOG_FIGURES.items():
        save(draw(comparison), folder, name)


def _labelled(logs: Sequence[Logs]) -> list[tuple[Logs, int | None, str]]:
    """Each with its k, and with what tells it apart from others of the same k."""
    names = [log.folder.absolute().name for log in logs]
    matches = [re.fullmatch(r"k([0-9]{1,2})", name) for name in names]
    precisions = [int(match[1]) if match and int(match[1]) <= LARGEST_K else None for match in matches]
    short = _short_names([log.folder for log in logs])
    told = [(k, _origin(name, f"k{k}")) for k, name in zip(precisions, short, strict=True)]
    labelled = []
    for log, (k, origin), name in zip(logs, told, short, strict=True):
        unique = k is not None and precisions.count(k) == 1
        # What was left out of a name may be all that told it from another.
        labelled.append((log, k, "" if unique else origin if told.count((k, origin)) == 1 else name))
    return labelled


def _origin(name: str, k: str) -> str:
    """What of a folder's name tells whose logs they are: without `k1`, and without `logs` as this project has it."""
    parts = [part for part in name.split("/") if part != k]
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1] == "logs" else parts) or name


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
            f"{folder} lacks {', '.join(missing)}: expected {', '.join(FILES)}, found {_enumerated(names)}; {_AGAIN}"
        )
    flat = {folder / name: read_numbers(folder / name) for name in FILES}
    batches = _count_batches(flat, images, steps)
    _check_batches(folder, batches, images, steps, batch)
    logs = [_Log(path, numbers.reshape(batches, steps)) for path, numbers in flat.items()]
    _check_counts(logs)
    correct, spikes, net, synops = logs
    _check_signs(spikes, net)
    _check_correct(correct, images)
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
        raise QuantspikeError(f"{path}, line 1: the file is empty: expected one number per line; {_AGAIN}")
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
            raise QuantspikeError(f"{path}, line {index + 1}: {error}; {_AGAIN}") from None
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
    if value.adjusted() > 18 or abs(value) > _LARGEST:
        raise ValueError(f"expected a whole number of 64 bits, at most {_LARGEST}, found {shown}")
    if value != value.to_integral_value():
        raise ValueError(f"expected a whole number, found the fraction {shown}")
    return int(value)


@dataclass(frozen=True, eq=False)
class _Log:
    """One file: its path and its numbers, int64 [batches, T]."""

    path: Path
    numbers: Integers

    def defect(self, index: int, text: str) -> QuantspikeError:
        """An error that names the line of a number, counted from 0 over all batches."""
        batch, step = divmod(index, self.numbers.shape[1])
        return QuantspikeError(f"{self.path}, line {index + 1} (batch {batch + 1}, step {step + 1}): {text}")


def _first(wrong: NDArray[np.bool_]) -> int | None:
    """Index of the first number, counted over all batches, for which `wrong` [batches, T] holds."""
    return int(wrong.argmax()) if wrong.any() else None


def _count_batches(flat: dict[Path, Integers], images: int, steps: int) -> int:
    lines = {path: len(numbers) for path, numbers in flat.items()}
    path, count = min(lines.items(), key=lambda item: item[1])
    if set(lines.values()) != {count}:
        others = ", ".join(f"{other.name} {n}" for other, n in lines.items() if other != path)
        raise QuantspikeError(
            f"{path}, line {count}: the file ends here, the others after other numbers of lines ({others}); "
            f"all four have a line per batch and step: {_AGAIN}, whole"
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


def _check_counts(logs: Sequence[_Log]) -> None:
    """Sizes and signs of all numbers, and that what is cumulative never falls within a batch."""
    for log in logs:
        batches, steps = log.numbers.shape
        # Half of what int64 holds, as spikes and net spikes are added up before they are halved.
        limit = _LARGEST // (2 * batches)
        if (index := _first((log.numbers > limit) | (log.numbers < -limit))) is not None:
            found = log.numbers.flat[index]
            raise log.defect(index, f"{found} is too large to be added up over {batches} batches in 64 bits; {_AGAIN}")
        if log.path.name != NET_SPIKES and (index := _first(log.numbers < 0)) is not None:
            raise log.defect(index, f"expected a count from 0, found {log.numbers.flat[index]}; {_AGAIN}")
        if log.path.name in (SPIKES, SYNOPS) and (index := _first(_steps_up(log.numbers) < 0)) is not None:
            raise log.defect(
                index,
                f"{log.numbers.flat[index]} follows {log.numbers.flat[index - 1]}, but cumulative numbers never fall "
                f"within a batch: a number is damaged or cut off, or --steps is not {steps}",
            )


def _steps_up(numbers: Integers) -> Integers:
    """What each step adds: int64 [batches, T]; numbers begin at 0 in each batch."""
    return np.diff(numbers, axis=1, prepend=0)


def _check_signs(spikes: _Log, net: _Log) -> None:
    """Whether spikes and net spikes are sum and difference of two counts that never fall."""
    if (index := _first(abs(net.numbers) > spikes.numbers)) is not None:
        raise net.defect(
            index,
            f"expected net spikes no larger than the {spikes.numbers.flat[index]} spikes in the same line of "
            f"{SPIKES}, found {net.numbers.flat[index]}; {_AGAIN}",
        )
    if (index := _first((spikes.numbers + net.numbers) % 2 == 1)) is not None:
        raise net.defect(
            index,
            f"{net.numbers.flat[index]} net spikes cannot come from {spikes.numbers.flat[index]} spikes (same line of "
            f"{SPIKES}), since their sum, twice the positive spikes, is odd; {_AGAIN}",
        )
    spiked, changed = _steps_up(spikes.numbers), _steps_up(net.numbers)
    if (index := _first(abs(changed) > spiked)) is not None:
        raise net.defect(
            index,
            f"net spikes change by {changed.flat[index]} in a step of {spiked.flat[index]} spikes ({SPIKES}): a number "
            f"is damaged or cut off, or --steps is not {net.numbers.shape[1]}",
        )


def _check_correct(log: _Log, images: int) -> None:
    """Whether batches of one size, the last one perhaps smaller, can have so many correct images."""
    batches, steps = log.numbers.shape
    advice = f"a number is damaged, --images is more than {images}, or --steps more than {steps}"
    # All batches but the last are full, and the last one holds an image at least.
    most = images if batches == 1 else (images - 1) // (batches - 1)
    if (index := _first(log.numbers > most)) is not None:
        raise log.defect(
            index,
            f"{log.numbers.flat[index]} correct images, but with {images} images in {batches} batches none holds more "
            f"than {most}; {advice}",
        )
    totals = log.numbers.cumsum(axis=0)
    if (index := _first(totals > images)) is not None:
        raise log.defect(
            index, f"up to this batch {totals.flat[index]} images are correct at this step, of {images}; {advice}"
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


def _short_names(folders: Sequence[Path]) -> list[str]:
    """What tells folders apart: their paths without the folder that all of them lie in."""
    whole = [folder.absolute() for folder in folders]
    common = os.path.commonpath([folder.parent for folder in whole])
    return [folder.relative_to(common).as_posix() for folder in whole]


def _from_one(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
