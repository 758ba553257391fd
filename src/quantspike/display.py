"""Training as people see it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from tqdm import tqdm

from quantspike.training import Epoch, Training

_LINE_SECONDS = 60.0
_LOOK_SECONDS = 0.5


class Display:
    """Shows loss, accuracy, images per second and the time left of a phase.

    On a terminal that is a bar; elsewhere a line a minute. Each epoch is a line in both. Of several processes, the
    first one shows it.
    """

    def __init__(self, training: Training) -> None:
        """Begins where the training stands."""
        self._silent = training.group.rank != 0
        self._start = self._looked = self._line = time.perf_counter()
        self._done = self._first = _images_done(training)
        self._bar = tqdm(
            total=training.settings.epochs * training.images,
            initial=self._done,
            unit=" images",
            smoothing=0.02,
            leave=False,
            disable=True if self._silent else None,  # None: unless it is a terminal
        )

    def stepped(self, training: Training, images: int) -> None:
        """After each step, with its number of images."""
        self._done += images
        if self._silent:
            return
        now = time.perf_counter()
        self._bar.update(images)
        if now - self._looked >= _LOOK_SECONDS and not self._bar.disable:
            self._looked = now
            self._bar.set_description(f"epoch {training.epoch}/{training.settings.epochs}", refresh=False)
            self._bar.set_postfix(loss=f"{training.loss:.3f}", accuracy=f"{training.accuracy:.1%}")
        if now - self._line >= _LINE_SECONDS and self._bar.disable:
            self._line = now
            place = f"epoch {training.epoch}/{training.settings.epochs}, step {training.step}/{training.steps}"
            print(
                f"{place}  loss {training.loss:.4f}  train {training.accuracy:7.2%}{self._speed(training)}", flush=True
            )

    def measured(self, training: Training, epoch: Epoch) -> None:
        """After each epoch."""
        if self._silent:
            return
        self._line = time.perf_counter()
        tqdm.write(f"{describe(epoch, training.settings.epochs)}{self._speed(training)}", file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    @property
    def images_per_second(self) -> float:
        """Since the start, measurements included."""
        return (self._done - self._first) / max(time.perf_counter() - self._start, 1e-9)

    def _speed(self, training: Training) -> str:
        """Images per second and the time left at that speed."""
        speed = self.images_per_second
        if speed == 0:
            return ""
        left = (training.settings.epochs * training.images - self._done) / speed
        return f"  {speed:,.0f} images/s  {timedelta(seconds=round(left))} left"


def describe(epoch: Epoch, epochs: int) -> str:
    """One epoch, of so many, as a line."""
    held_out = "" if epoch.validation_accuracy is None else f"  validation {epoch.validation_accuracy:7.2%}"
    return (
        f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:7.2%}{held_out}"
        f"  test {epoch.test_accuracy:7.2%}  {epoch.seconds:.1f} s"
    )


def _images_done(training: Training) -> int:
    return len(training.records) * training.images + training.seen
