"""A training as MLflow shows it while it runs: points every few seconds, from a thread of its own, best effort.

Nothing here can stop a training or make it wait: what cannot be delivered is kept for a while and then forgotten,
since `publish` builds the finished chain's run from files.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from quantspike.tracking.store import (
    CHAIN,
    EXPERIMENT,
    LIVE,
    METRICS_A_BATCH,
    PARAMS_A_BATCH,
    SUPERSEDED,
    TrackingError,
    errors_explained,
    find_or_make_experiment,
    one_line,
    open_store,
    shown_uri,
)
from quantspike.tracking.view import view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE = 15.0
"""Seconds before the first point: a training that is over by then is not worth loading MLflow for."""

_PAUSE = 3.0
_LONGEST_PAUSE = 60.0
_SYSTEM_PAUSE = 10.0
_LAST_CHANCE = 5.0
"""Seconds that the end of a training waits for what is not yet delivered."""

_LARGEST_BACKLOG = 20_000

_NOTE = (
    "In training, or stopped there. When the chain is finished, `publish` puts a run with its results in this place."
)

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class LiveRun:
    """Sends a training's progress to MLflow."""

    def __init__(
        self,
        uri: str,
        key: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str | int | float],
        *,
        fresh: bool,
        epochs_before: int = 0,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        patience: float = PATIENCE,
    ) -> None:
        """Starts the thread, which first waits to see whether the training is a long one.

        Args:
            uri: address of the store.
            key: identity of the chain.
            name: what the run is called.
            tags: of the run.
            params: settings that are shown.
            fresh: whether the training begins anew; otherwise the run that it filled before is filled on.
            epochs_before: epochs of earlier phases, from which those of this one are counted on.
            tell: shows one line to the user; called once at most.
            patience: seconds before the first point is sent.
        """
        self._uri, self._key, self._name, self._tags, self._params = uri, key, name, tags, params
        self.epochs_before = epochs_before
        self._fresh, self._tell, self._patience = fresh, tell, patience
        self._points: deque[Point] = deque(maxlen=_LARGEST_BACKLOG)
        self._over = threading.Event()
        self._status = "FINISHED"
        self._loaded = self._told = False
        self._due_at = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads are allowed
            self._complain(f"MLflow gets no thread: {error}")

    def due(self) -> bool:
        """Whether it was last so some seconds ago: of what happens in every step, a point now and then will do."""
        now = time.monotonic()
        if now - self._due_at < _PAUSE:
            return False
        self._due_at = now
        return True

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes points to be sent later; costs the caller microseconds."""
        now = round(1000 * time.time())
        self._points.extend((name, float(value), now, step) for name, value in values.items())

    def close(self, status: str = "FINISHED") -> None:
        """Sends the rest, for some seconds at most.

        Args:
            status: FINISHED, KILLED (stopped by a signal) or FAILED, as MLflow has it.
        """
        self._status = status
        self._over.set()
        if not self._thread.is_alive():
            return
        self._thread.join(_LAST_CHANCE)
        if self._thread.is_alive() and self._loaded:
            self._complain(f"MLflow at {shown_uri(self._uri)} is too slow")

    def _work(self) -> None:
        if self._over.wait(self._patience):
            return
        sender, pause = _Sender(self._uri), _PAUSE
        # A training that ends while MLflow is being loaded has nothing there to be brought to an end.
        if not self._done(sender.load) or self._over.is_set():
            return
        self._loaded = True
        while True:
            pause = _PAUSE if self._done(lambda: sender.send(self)) else min(2 * pause, _LONGEST_PAUSE)
            if self._over.wait(pause):
                break
        if self._done(lambda: sender.send(self)):
            self._done(lambda: sender.end(self._status))

    def _done(self, task: Callable[[], None]) -> bool:
        """Whether a task could be done; otherwise the user is told why."""
        try:
            task()
        except TrackingError as error:
            self._complain(str(error))
        except Exception as error:  # whatever it is, it is no trouble of the training's
            self._complain(f"MLflow at {shown_uri(self._uri)} fails: {type(error).__name__}: {one_line(str(error))}")
        else:
            return True
        return False

    def _complain(self, problem: str) -> None:
        """One line, once: the user need not do anything."""
        if not self._told:
            self._told = True
            with suppress(Exception):  # nobody may be there to read it
                self._tell(f"note: {problem}. Nothing is lost: `make publish` delivers the results when they are there")


class _Sender:
    """The part that knows MLflow; all of it runs in the thread."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._waiting: list[Point] = []
        self._machine = _Machine()

    def load(self) -> None:
        """Imports MLflow, which takes seconds."""
        with errors_explained(self._uri):
            import mlflow.entities  # noqa: F401

    def send(self, live: LiveRun) -> None:
        """Delivers what has come together; what fails stays for the next time."""
        with errors_explained(self._uri):
            if self._client is None:
                self._open(live)
            assert self._client is not None
            live._points.extend(self._machine.measure())
            while live._points and len(self._waiting) < _LARGEST_BACKLOG:
                self._waiting.append(live._points.popleft())
            while self._waiting:
                batch = _metrics(self._waiting[:METRICS_A_BATCH])
                self._client.log_batch(self._run_id, metrics=batch, synchronous=True)
                del self._waiting[:METRICS_A_BATCH]

    def end(self, status: str) -> None:
        """Closes the run."""
        with errors_explained(self._uri):
            if self._client is not None:
                self._client.set_terminated(self._run_id, status=status)

    def _open(self, live: LiveRun) -> None:
        """Finds the run that this training filled before, or makes one."""
        from mlflow.entities import Param

        client = open_store(self._uri)
        experiment = find_or_make_experiment(client, self._uri, EXPERIMENT)
        _show(client, experiment, live._tags)
        params = {name: str(value) for name, value in live._params.items()}
        mine = f"tags.`{CHAIN}` = '{live._key}' and tags.`{LIVE}` = 'true'"
        found = client.search_runs([experiment], mine)
        # Params cannot be changed: a run of other ones, or half made, would show what is not so.
        usable = [] if live._fresh else [run for run in found if run.data.params == params][:1]
        for run in found:
            if run not in usable:
                client.delete_run(run.info.run_id)
        if usable:
            self._run_id = usable[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
            self._machine.step = _steps_so_far(usable[0].data.metrics, client, self._run_id)
        else:
            tags = {**live._tags, CHAIN: live._key, LIVE: "true", SUPERSEDED: "false", "mlflow.note.content": _NOTE}
            self._run_id = client.create_run(experiment, tags=tags, run_name=live._name).info.run_id
            shown = [Param(name, value) for name, value in params.items()]
            for first in range(0, len(shown), PARAMS_A_BATCH):
                client.log_batch(self._run_id, params=shown[first : first + PARAMS_A_BATCH], synchronous=True)
        self._client = client


class _Machine:
    """Load of processor, memory, network and GPU, by MLflow's own collectors."""

    def __init__(self) -> None:
        self.step = 0
        self._monitors: list[Any] | None = None
        self._measured = 0.0

    def measure(self) -> list[Point]:
        """System metrics, if it is time for them and this machine has any."""
        if time.monotonic() - self._measured < _SYSTEM_PAUSE and self._monitors is not None:
            return []
        self._measured = time.monotonic()
        with suppress(Exception):  # psutil and drivers raise their own
            if self._monitors is None:
                self._monitors = _monitors()
                self._look()  # the first load of a processor is always 0
                return []
            now, self.step = round(1000 * time.time()), self.step + 1
            return [(f"system/{name}", float(value), now, self.step) for name, value in self._look().items()]
        return []

    def _look(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in self._monitors or ():
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return values


def _monitors() -> list[Any]:
    """MLflow's collectors of what this machine has; none without psutil."""
    try:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    except ImportError:
        return []
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    monitors = []
    for kind in kinds:
        with suppress(Exception):  # no GPU, no driver or no library for it: each raises its own
            monitors.append(kind())
    return monitors


def _show(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> None:
    """Gives the experiment its views, where `publish` has not yet: a first training may last for days."""
    present = client.get_experiment(experiment).tags
    for name, value in view_tags([(tags.get("profile", ""), tags.get("model", ""))]).items():
        if name not in present:
            client.set_experiment_tag(experiment, name, value)


def _metrics(points: list[Point]) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(name, value, time, step) for name, value, time, step in points]


def _steps_so_far(metrics: Mapping[str, float], client: MlflowClient, run_id: str) -> int:
    """Number of the last system metrics that a run has."""
    name = next((name for name in metrics if name.startswith("system/")), None)
    return 0 if name is None else max(metric.step for metric in client.get_metric_history(run_id, name))
