"""Whether the four files of a simulation's logs can be what they say, and the line that shows that they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError

Integers = NDArray[np.int64]

CORRECT, SPIKES, NET_SPIKES, SYNOPS = FILES = ("accuracy.txt", "spike_num.txt", "spike_collect.txt", "sop_num.txt")
"""What a folder of logs holds."""

LARGEST = int(np.iinfo(np.int64).max)
AGAIN = "write or copy the logs again"


@dataclass(frozen=True, eq=False)
class Log:
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


def check_counts(logs: Sequence[Log]) -> None:
    """Sizes and signs of all numbers, and that what is cumulative never falls within a batch."""
    for log in logs:
        batches, steps = log.numbers.shape
        # Half of what int64 holds, as spikes and net spikes are added up before they are halved.
        limit = LARGEST // (2 * batches)
        if (index := _first((log.numbers > limit) | (log.numbers < -limit))) is not None:
            found = log.numbers.flat[index]
            raise log.defect(index, f"{found} is too large to be added up over {batches} batches in 64 bits; {AGAIN}")
        if log.path.name != NET_SPIKES and (index := _first(log.numbers < 0)) is not None:
            raise log.defect(index, f"expected a count from 0, found {log.numbers.flat[index]}; {AGAIN}")
        if log.path.name in (SPIKES, SYNOPS) and (index := _first(_steps_up(log.numbers) < 0)) is not None:
            raise log.defect(
                index,
                f"{log.numbers.flat[index]} follows {log.numbers.flat[index - 1]}, but cumulative numbers never fall "
                f"within a batch: a number is damaged or cut off, or --steps is not {steps}",
            )


def _steps_up(numbers: Integers) -> Integers:
    """What each step adds: int64 [batches, T]; numbers begin at 0 in each batch."""
    return np.diff(numbers, axis=1, prepend=0)


def check_signs(spikes: Log, net: Log) -> None:
    """Whether spikes and net spikes are sum and difference of two counts that never fall."""
    if (index := _first(abs(net.numbers) > spikes.numbers)) is not None:
        raise net.defect(
            index,
            f"expected net spikes no larger than the {spikes.numbers.flat[index]} spikes in the same line of "
            f"{SPIKES}, found {net.numbers.flat[index]}; {AGAIN}",
        )
    if (index := _first((spikes.numbers + net.numbers) % 2 == 1)) is not None:
        raise net.defect(
            index,
            f"{net.numbers.flat[index]} net spikes cannot come from {spikes.numbers.flat[index]} spikes (same line of "
            f"{SPIKES}), since their sum, twice the positive spikes, is odd; {AGAIN}",
        )
    spiked, changed = _steps_up(spikes.numbers), _steps_up(net.numbers)
    if (index := _first(abs(changed) > spiked)) is not None:
        raise net.defect(
            index,
            f"net spikes change by {changed.flat[index]} in a step of {spiked.flat[index]} spikes ({SPIKES}): a number "
            f"is damaged or cut off, or --steps is not {net.numbers.shape[1]}",
        )


def check_correct(log: Log, images: int) -> None:
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
