"""Send the points of a training to MLflow while it runs: in batches, from a thread, best effort.

Nothing here stops a training or makes it wait. Points that cannot be delivered are kept for a while and then dropped,
since `publish` builds the run of the finished training from its files.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError
from quantspike.params import Setting
from quantspike.tracking.store import KEY, LIVE, Point, errors_explained, log, open_experiment, shown_uri
from quantspike.tracking.view import view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

_INTERVAL = 3.0  # seconds between two batches, and between two points within an epoch
_GRACE = 5.0  # seconds that the end of a training waits for the last points to be delivered
_BACKLOG = 20_000  # points that wait for delivery, at most

_DESCRIPTION = "In training, or stopped. `publish` replaces this run with the results when they are complete."


class LiveRun:
    """A run in MLflow that a training fills while it goes on."""

    def __init__(
        self,
        uri: str,
        key: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Setting],
        *,
        fresh: bool,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        patience: float = 15.0,
    ) -> None:
        """Start the thread, which waits at first, to see whether the training is a long one.

        Args:
            uri: address of the store.
            key: of the run, which tells it from all others.
            name: that MLflow shows.
            tags: of the run; `profile` and `model` name its view.
            params: settings to show.
            fresh: whether the training starts anew; otherwise it continues the run that it filled before.
            tell: show one line to the user; called at most once.
            patience: seconds before the first point: a shorter training is not worth loading MLflow.
        """
        self._uri, self._key, self._name, self._tags = uri, key, name, tags
        self._params = {name: str(value) for name, value in params.items()}
        self._fresh, self._tell, self._patience = fresh, tell, patience
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._points: deque[Point] = deque(maxlen=_BACKLOG)
        self._over = threading.Event()
        self._status = "FINISHED"
        self._loaded = self._told = False
        self._due_at = time.monotonic() + _INTERVAL
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def due(self) -> bool:
        """Return True once every few seconds: not every step needs a point."""
        now = time.monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + _INTERVAL
        return True

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take points to be sent later; this costs the caller microseconds."""
        now = round(1000 * time.time())
        self._points.extend((name, float(value), now, step) for name, value in values.items())

    def close(self, status: str = "FINISHED") -> None:
        """Send the remaining points, waiting a few seconds at most.

        Args:
            status: FINISHED, KILLED (stopped by a signal) or FAILED, MLflow's words.
        """
        self._status = status
        self._over.set()
        self._thread.join(_GRACE)
        if self._thread.is_alive() and self._loaded:
            self._complain(f"MLflow at {shown_uri(self._uri)} is too slow")

    def _work(self) -> None:
        """Run in the thread, as do the methods below."""
        if self._over.wait(self._patience):
            return
        # A training that ends while MLflow is being loaded has no run to close.
        if not self._succeeds(self._load) or self._over.is_set():
            return
        self._loaded = True
        self._succeeds(self._send)
        while not self._over.wait(_INTERVAL):
            self._succeeds(self._send)
        if self._succeeds(self._send):
            self._succeeds(self._end)

    def _succeeds(self, task: Callable[[], None]) -> bool:
        """Run a task; on failure tell the user why and return False."""
        try:
            with errors_explained(self._uri):
                task()
        except QuantspikeError as error:
            self._complain(str(error))
            return False
        return True

    def _complain(self, problem: str) -> None:
        """Show one line, once: the user need not do anything."""
        if not self._told:
            self._told = True
            with suppress(Exception):  # stderr may be closed
                self._tell(f"note: {problem}. Nothing is lost: `make publish` delivers the results later")

    def _load(self) -> None:
        import mlflow.entities  # noqa: F401 (takes seconds)

    def _send(self) -> None:
        """Deliver the points; those that fail stay for the next time."""
        client = self._client = self._client or self._open()
        batch = [self._points.popleft() for _ in range(len(self._points))]
        try:
            log(client, self._run_id, batch)
        except Exception:
            self._points.extendleft(reversed(batch))
            raise

    def _end(self) -> None:
        assert self._client is not None
        self._client.set_terminated(self._run_id, status=self._status)

    def _open(self) -> MlflowClient:
        """Find the run that this training filled before, or create one; delete other live runs of the key."""
        # `publish` may come only days later, so the view is created here too.
        views = view_tags([(self._tags.get("profile", ""), self._tags.get("model", ""))])
        client, experiment = open_experiment(self._uri, views)
        existing = client.search_runs([experiment], f"tags.`{KEY}` = '{self._key}' and tags.`{LIVE}` = 'true'")
        # Params cannot be changed: a run with different ones would show wrong settings.
        same = [] if self._fresh else [run for run in existing if run.data.params == self._params][:1]
        for run in existing:
            if run not in same:
                client.delete_run(run.info.run_id)
        if same:
            self._run_id = same[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {**self._tags, KEY: self._key, LIVE: "true", "mlflow.note.content": _DESCRIPTION}
            self._run_id = client.create_run(experiment, tags=tags, run_name=self._name).info.run_id
            log(client, self._run_id, [], self._params)
        return client
