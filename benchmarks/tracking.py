"""Times what it costs a training to be shown in MLflow while it runs.

    python benchmarks/tracking.py --json tracking.json

The same epoch is trained again and again, in turns with and without a thread that sends its progress, as the stages
do it (run_phase). Four answers, from the plainest to the one that other work on the machine disturbs least: by how
much the epoch is longer by the clock; in processor time of the whole process; by how much those steps are longer during
which something is sent (delay); and the processor time of the thread alone. Random images: what training costs does not
depend on what they show. MLflow is loaded once, during an epoch of its own, which is reported apart. Needs Linux, for
the clock of a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import Augmentation
from quantspike.devices import multiplies_bf16, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.files import write_json
from quantspike.measuring import Split
from quantspike.networks import new_network
from quantspike.phases import run_phase
from quantspike.resume import ResumeStore
from quantspike.tracking import LiveRun
from quantspike.training import TRAIN, Settings, Training
from training import CNN1, machine

_SIZE = 32
_SECONDS_TO_OPEN = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=CNN1, help="layer string (default: CNN 1)")
    parser.add_argument("--width", type=float, default=0.25, help="share of its channels (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=24, help="side the network sees, pixels (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8000, help="images per epoch (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=200, help="images per step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, help="epochs with and without it (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu or cuda (default: what there is)")
    parser.add_argument("--uri", help="where to send it (default: a new SQLite file)")
    parser.add_argument("--json", type=Path, help="where the result goes as well")
    options = parser.parse_args()
    if options.rounds < 1 or options.batch < 2 or options.images < 10 * options.batch:
        parser.error("rounds must be 1 or more, batch 2 or more, and images ten batches or more")
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = Benchmark(options, Path(folder)).result()
    except QuantspikeError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


@dataclass(frozen=True)
class Cost:
    """What one epoch took: seconds by the clock and of all processors; of these what went to the thread that sends, and
    by how much the steps were longer during which it was at work."""

    clock: float
    processor: float
    thread: float = 0.0
    delay: float = 0.0


class Shown(LiveRun):
    """A training that is shown; notes what its epoch took, before the last points are sent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._steps: list[float] = []
        self._sent: list[tuple[float, float]] = []
        super().__init__(*arguments, **options)

    def due(self) -> bool:
        """Is asked after each step."""
        self._steps.append(time.perf_counter())
        return super().due()

    def _done(self, task: Callable[[], None]) -> bool:
        start = time.perf_counter()
        try:
            return super()._done(task)
        finally:
            self._sent.append((start, time.perf_counter()))

    def delay(self) -> float:
        """By how many seconds the steps during which something was sent were longer than the others, together.

        Rather too much than too little: a step that something else made longer is likelier to meet a send.
        """
        steps = list(zip(self._steps[:-1], self._steps[1:], strict=True))
        disturbed = [step for step in steps if any(step[0] < end and start < step[1] for start, end in self._sent)]
        others = [end - start for start, end in steps if (start, end) not in disturbed]
        usual = statistics.median(others or [end - start for start, end in steps])
        return sum(end - start - usual for start, end in disturbed)

    def close(self, status: str = "FINISHED") -> None:
        self.processor, self.thread = time.process_time(), self.thread_time()
        super().close(status)

    def thread_time(self) -> float:
        """Processor seconds of the thread so far."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))


class NotShown:
    """In the place of it, where nobody is told anything."""

    epochs_before = 0

    def thread_time(self) -> float:
        return 0.0

    def due(self) -> bool:
        return False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def close(self, status: str = "FINISHED") -> None:
        self.processor = time.process_time()


class Benchmark:
    """Epochs with and without MLflow."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._uri = options.uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._device = resolve_device(options.device)
        random = torch.Generator().manual_seed(0)
        shape = (options.images, 3, _SIZE, _SIZE)
        images = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        self._images = Split(images, torch.arange(options.images) % 10).to(self._device)
        self._told: list[str] = []
        self._epochs = 0

    def result(self) -> dict[str, Any]:
        """Medians and ranges over the rounds; a share is that by which the epoch became longer."""
        self._epoch(NotShown())  # the first steps build what later ones find
        loading = self._epoch(self._shown())
        pairs = [self._round(number) for number in range(self._options.rounds)]
        if self._told:
            raise QuantspikeError(self._told[0])
        plain = statistics.median(without.clock for without, _ in pairs)
        fastest, fastest_shown = (min(costs, key=lambda cost: cost.clock) for costs in zip(*pairs, strict=True))
        return {
            "machine": machine(self._device) | {"load": os.getloadavg()[1]},
            "n": {"rounds": self._options.rounds, "images": self._options.images, "batch": self._options.batch},
            "network": {"layers": self._options.layers, "width": self._options.width, "crop": self._options.crop},
            "epoch_seconds": {"without": plain, "with": statistics.median(shown.clock for _, shown in pairs)},
            "share": _spread([shown.clock / without.clock - 1 for without, shown in pairs]),
            # The least disturbed ones of either kind, where other work goes on beside it.
            "share_of_the_fastest": fastest_shown.clock / fastest.clock - 1,
            "processor_share": _spread([shown.processor / without.processor - 1 for without, shown in pairs]),
            "delay_share": _spread([shown.delay / shown.clock for _, shown in pairs]),
            "thread_share": _spread([shown.thread / shown.clock for _, shown in pairs]),
            "epoch_while_mlflow_is_loaded": {"seconds_longer": loading.clock - plain},
        }

    def _round(self, number: int) -> tuple[Cost, Cost]:
        """An epoch without and one with MLflow; they take turns in coming first."""
        costs = {}
        for name in ("without", "with") if number % 2 else ("with", "without"):
            observer = self._shown() if name == "with" else NotShown()
            time.sleep(_SECONDS_TO_OPEN)  # until the run is found, as it is in all but a training's first seconds
            costs[name] = self._epoch(observer)
        return costs["without"], costs["with"]

    def _shown(self) -> Shown:
        key = "benchmark-cnn1-1-0"
        return Shown(self._uri, key, key, {}, {}, fresh=False, tell=self._told.append, patience=0.0)

    def _epoch(self, observer: Shown | NotShown) -> Cost:
        """Trains the same epoch again."""
        options = self._options
        self._epochs += 1
        architecture = Architecture.parse(options.layers, image_size=options.crop, width=options.width)
        network = new_network(architecture, 1, 0).to(self._device)
        settings = Settings(
            phase=TRAIN,
            epochs=1,
            learning_rate=1e-3,
            batch_size=options.batch,
            seed=0,
            augmentation=Augmentation(options.crop),
            autocast=multiplies_bf16(self._device),
        )
        optimizer = make_adam(network, settings.learning_rate)
        training = Training(network, optimizer, settings, self._images, self._images.part(slice(1)))
        store = ResumeStore(self._folder, "train", str(self._epochs))
        start, thread = time.process_time(), observer.thread_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            (record,) = run_phase(training, store, 1e9, lambda resumed: observer)
        store.discard()
        processor = observer.processor - start
        if isinstance(observer, NotShown):
            return Cost(record.seconds, processor)
        return Cost(record.seconds, processor, observer.thread - thread, observer.delay())


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "range": [min(values), max(values)]}


if __name__ == "__main__":
    main()
