"""What happens while a network is trained: progress is shown, the state is saved, and points go to MLflow."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from tqdm import tqdm

from quantspike.errors import QuantspikeError
from quantspike.params import TrainingStage
from quantspike.paths import Run
from quantspike.tracking.store import enabled
from quantspike.training.checkpoints import ResumeStore
from quantspike.training.loop import Callback, Epoch, Training

if TYPE_CHECKING:
    from quantspike.tracking.live import LiveRun


class Progress(Callback):
    """Show a bar on a terminal, and print a line per epoch."""

    def __init__(self, training: Training) -> None:
        self._epochs = training.settings.epochs
        self._bar = tqdm(
            total=self._epochs * training.images,
            initial=len(training.records) * training.images,
            unit=" images",
            smoothing=0.02,
            leave=False,
            disable=None if training.group.rank == 0 else True,  # None: unless it is a terminal
        )

    def on_step_end(self, training: Training) -> None:
        """Move the bar on."""
        done = len(training.records) * training.images + training.seen
        if self._bar.update(done - self._bar.n):  # it was drawn; asking for the loss makes a GPU wait
            self._bar.set_postfix(loss=f"{training.loss:.3f}", accuracy=f"{training.accuracy:.1%}", refresh=False)

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        """Print the epoch."""
        if training.group.rank == 0:
            tqdm.write(describe(epoch, self._epochs), file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def describe(epoch: Epoch, epochs: int) -> str:
    """Return an epoch as a line; `epochs` is the number of all."""
    return (
        f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:7.2%}"
        f"  test {epoch.test_accuracy:7.2%}"
    )


class SaveState(Callback):
    """Save the whole state after each epoch, so that a killed training loses at most the current epoch."""

    def __init__(self, store: ResumeStore) -> None:
        self._store = store

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        """Write the state; a full disk is a warning, since training itself can continue."""
        if training.group.rank != 0:
            return
        try:
            self._store.save(*training.state())
        except QuantspikeError as error:
            tqdm.write(f"warning: {error}; training continues without this state", file=sys.stderr)


class Track(Callback):
    """Send points to MLflow: of each epoch, and every few seconds within one."""

    def __init__(self, live: LiveRun, stage: str, epochs_before: int) -> None:
        self._live, self._stage, self._epochs_before = live, stage, epochs_before

    def on_step_end(self, training: Training) -> None:
        """Send loss and accuracy of the current epoch so far, if the last point is some seconds old."""
        if self._live.due():
            step = training.steps * (self._epochs_before + training.epoch - 1) + training.step
            self._live.log({"live/loss": training.loss, "live/accuracy": training.accuracy}, step)

    def on_epoch_end(self, training: Training, epoch: Epoch) -> None:
        """Send the epoch under the names that its published curves have."""
        values = {name: value for name, value in asdict(epoch).items() if name != "epoch" and value is not None}
        points = {f"{self._stage}/{name}": value for name, value in values.items()}
        self._live.log(points, self._epochs_before + epoch.epoch)


@contextmanager
def live_tracking(run: Run, stage: TrainingStage, training: Training, resumed: bool) -> Iterator[list[Callback]]:
    """Yield a callback that shows the training in MLflow; none where MLflow is not installed or tracking is off.

    Args:
        run: the run that is trained.
        stage: `baseline`, `train` or `finetune`.
        training: the phase, before its first step.
        resumed: whether it continues from a saved state.
    """
    if training.group.rank != 0 or not enabled() or importlib.util.find_spec("mlflow") is None:
        yield []
        return
    from quantspike.workflow.publishing import live_run  # pandas, which training does not need

    phases = run.settings.baseline[: training.settings.phase] if stage == "baseline" else [run.settings.train]
    epochs_before = 0 if stage == "train" else sum(phase.epochs for phase in phases)
    fresh = epochs_before == 0 and not resumed
    live = live_run(run, fresh=fresh, tell=lambda text: tqdm.write(text, file=sys.stderr))
    status = "FAILED"
    try:
        yield [Track(live, stage, epochs_before)]
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        live.close(status)
