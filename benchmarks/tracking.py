"""Measure what live tracking in MLflow costs a training.

    python benchmarks/tracking.py --data path/to/cifar-10-batches-py --json tracking.json

Epochs of a quarter of CNN 1 are trained in turns with and without sending their progress to a new SQLite file. Printed
are, as shares of an epoch, by how much it is longer by the clock, and the processor time of the thread that sends,
medians and ranges over the rounds. MLflow is loaded once, during an epoch before the first round, whose seconds are
printed too. Needs Linux, for the clock of a thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import at_least, machine, new_parser, report, spread
from quantspike.distributed import resolve_device
from quantspike.errors import QuantspikeError
from quantspike.tracking.live import LiveRun
from quantspike.workflow.callbacks import Track
from trained_networks import load_images
from training import OurLoop, add_training_options

LAYERS = "24C3-64C3-P2-96C3-P2-96C3-64C3-P2-256-256"


def main() -> None:
    parser = new_parser(__doc__)
    add_training_options(parser, layers=LAYERS, steps=40)
    parser.add_argument("--pause", type=at_least(0), default=6, help="seconds to send the last points of an epoch")
    report(measure, parser.parse_args())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return medians and ranges over the rounds."""
    device = resolve_device(options.device)
    loop = OurLoop(load_images(options.data), device, options)
    loop.run_epoch()  # the first steps allocate and build what later ones use
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{Path(folder, 'mlflow.db')}"
        live = LiveRun(uri, "benchmark", "benchmark", {}, {}, fresh=True, tell=problems.append, patience=0)
        tracked_loop = TrackedLoop(loop, live, options.pause)
        loading, _ = tracked_loop.run_epoch()
        rounds = [(*tracked_loop.run_epoch(), loop.run_epoch()[0]) for _ in range(options.rounds)]
        live.close()
    if problems:
        raise QuantspikeError(problems[0])
    return {
        "machine": machine(device),
        "n": {"rounds": options.rounds, "images_per_round": options.steps * options.batch, "batch": options.batch},
        "layers": options.layers,
        "epoch_seconds": {
            "loading_mlflow": loading,
            "tracked": statistics.median(tracked for tracked, _, _ in rounds),
            "not_tracked": statistics.median(plain for _, _, plain in rounds),
        },
        "share_longer": spread([tracked / plain - 1 for tracked, _, plain in rounds]),
        "share_of_thread": spread([thread / tracked for tracked, thread, _ in rounds]),
    }


class TrackedLoop:
    """A training loop whose progress is sent as the stages send it."""

    def __init__(self, loop: OurLoop, live: LiveRun, pause: int) -> None:
        self._loop, self._pause = loop, pause
        self._track = Track(live, "train", epochs_before=0)
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "mlflow")
        self._clock = time.pthread_getcpuclockid(thread.ident or 0)

    def run_epoch(self) -> tuple[float, float]:
        """Return the seconds of an epoch, and the processor seconds of the thread until its points are sent."""
        before = time.clock_gettime(self._clock)
        seconds, _ = self._loop.run_epoch([self._track])
        time.sleep(self._pause)
        return seconds, time.clock_gettime(self._clock) - before


if __name__ == "__main__":
    main()
