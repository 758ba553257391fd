"""Runs in an MLflow store, brought in line with what the result files say. The only module that imports MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "quantspike"

CHAIN = "quantspike.chain"
FINGERPRINT = "quantspike.fingerprint"
COMPLETE = "quantspike.complete"
SUPERSEDED = "quantspike.superseded"
FIGURES = "quantspike.figures"

_SUPERSEDED_COLOR = "#cccccc"
_SUPERSEDED_SUFFIX = " (superseded)"

# MLflow takes no more in one call.
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100

# MLflow's own defaults send usage data, print the address of every run, and wait about four minutes for a server
# that is away.
_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_SECONDS_FOR_LOCK = 60.0

_SQLITE = "sqlite:///"
_KEPT = ("mlflow.source.git.commit",)


class TrackingError(QuantspikeError):
    """The store cannot be used just now. Nothing is lost, since every run is rebuilt from the result files."""


@dataclass(frozen=True)
class TrackedRun:
    """What is to be shown of one chain.

    Attributes:
        name: what the run is called, such as `cnn1 k=1`.
        key: identity of the chain; at most one run with it is not superseded.
        params: settings.
        tags: further tags. They, the name and the description are refreshed in place when they change.
        description: Markdown.
        curves: by metric name, points (step, value).
        finals: by metric name, single values.
        artifacts: pairs of a file and the folder it goes to within the run.
        seconds: how long the run took.
        figures: files like the artifacts that show other runs too, such as one picture of all k. They are
            renewed in place when they change, since a new k beside it makes no other run of this one.
    """

    name: str
    key: str
    params: Mapping[str, str | int | float]
    tags: Mapping[str, str]
    description: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    finals: Mapping[str, float]
    artifacts: Sequence[tuple[Path, str]]
    seconds: float = 0.0
    figures: Sequence[tuple[Path, str]] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that MLflow cannot change afterwards: params, metrics and artifacts."""
        files = _digests(self.artifacts)
        params = {name: str(value) for name, value in self.params.items()}
        content = [params, {name: list(points) for name, points in self.curves.items()}, dict(self.finals), files]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def figures_fingerprint(self) -> str:
        """SHA-256 of the figures."""
        return hashlib.sha256(json.dumps(_digests(self.figures)).encode()).hexdigest()


@dataclass(frozen=True)
class PublishReport:
    """How many runs were made, renewed in name, tags, description or figures, left alone, marked as superseded."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    superseded: int = 0

    def __str__(self) -> str:
        return (
            f"{self.created} created, {self.updated} updated, {self.unchanged} unchanged, {self.superseded} superseded"
        )


def enabled() -> bool:
    """Whether runs are tracked: not if the environment variable QUANTSPIKE_TRACKING is off, 0 or false."""
    return os.environ.get("QUANTSPIKE_TRACKING", "").strip().lower() not in {"off", "0", "false"}


def tracking_uri(root: Path) -> str:
    """Address of the store: MLFLOW_TRACKING_URI, or else the SQLite file `mlflow.db` in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{_SQLITE}{(root.resolve() / 'mlflow.db').as_posix()}"


def shown_uri(uri: str) -> str:
    """An address as it may be printed: without user name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def publish(runs: Sequence[TrackedRun], *, uri: str, experiment: str = EXPERIMENT) -> PublishReport:
    """Brings the store in line with `runs`; doing so again changes nothing.

    A run whose fingerprint is in the store stays. Otherwise a new one is made, and what stood for the same chain is
    marked as superseded, never deleted. Only what a kill left half-written is deleted and made again.

    Args:
        runs: what is to be shown; runs of other chains in the store are left alone.
        uri: address of the store, as given by `tracking_uri`.
        experiment: name of the experiment, which is made if it is not there.

    Raises:
        TrackingError: MLflow is not installed, the server is away, or the database cannot be used.
    """
    with _errors_explained(uri), _locked(uri):
        client = _open(uri)
        number = _find_or_make(client, uri, experiment)
        outcomes: Counter[str] = Counter()
        for run in runs:
            outcomes.update(_bring_in_line(client, number, run))
    return PublishReport(**outcomes)


def experiment_id(uri: str, experiment: str = EXPERIMENT) -> str | None:
    """Number of the experiment in the store, by which its page is found; `None` if nothing was published yet.

    Raises:
        TrackingError: as for `publish`.
    """
    database = _sqlite_file(uri)
    if database is not None and not database.exists():
        return None
    with _errors_explained(uri), _locked(uri):
        found = _open(uri).get_experiment_by_name(experiment)
        return None if found is None else str(found.experiment_id)


def _bring_in_line(client: MlflowClient, experiment: str, run: TrackedRun) -> list[str]:
    """Leaves exactly one current run of the chain; returns a word of `PublishReport` for each thing done."""
    fingerprint = run.fingerprint
    complete = []
    for found in client.search_runs([experiment], filter_string=f"tags.`{CHAIN}` = '{run.key}'"):
        if found.data.tags.get(COMPLETE) == "true":
            complete.append(found)
        else:
            client.delete_run(found.info.run_id)
    same = next((found for found in complete if found.data.tags.get(FINGERPRINT) == fingerprint), None)
    if same is None:
        _create(client, experiment, run, fingerprint)
        done = ["created"]
    else:
        done = ["updated" if _refresh(client, same, run) else "unchanged"]
    outdated = [found for found in complete if found is not same and found.data.tags.get(SUPERSEDED) != "true"]
    for found in outdated:
        _supersede(client, found)
    return done + ["superseded"] * len(outdated)


def _create(client: MlflowClient, experiment: str, run: TrackedRun, fingerprint: str) -> None:
    from mlflow.entities import Param

    end = _last_change(run)
    start = end - round(1000 * run.seconds)
    tags = {**_changeable_tags(run), CHAIN: run.key, FINGERPRINT: fingerprint}
    run_id = client.create_run(experiment, start_time=start, tags=tags, run_name=run.name).info.run_id
    params = [Param(name, str(value)) for name, value in run.params.items()]
    for first in range(0, len(params), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[first : first + _PARAMS_A_BATCH])
    _log_metrics(client, run_id, start, run)
    for path, folder in [*run.artifacts, *run.figures]:
        client.log_artifact(run_id, str(path), folder or None)
    client.set_terminated(run_id, status="FINISHED", end_time=end)
    client.set_tag(run_id, COMPLETE, "true")


def _log_metrics(client: MlflowClient, run_id: str, start: int, run: TrackedRun) -> None:
    from mlflow.entities import Metric

    # MLflow stores a point once per name, step, value and time: a time that follows from the step
    # lets the same point be logged again, live and later from the files, without doubling it.
    points = [(name, step, value) for name, curve in run.curves.items() for step, value in curve]
    points += [(name, 0, value) for name, value in run.finals.items()]
    metrics = [Metric(name, value, start + 1000 * step, step) for name, step, value in points]
    for first in range(0, len(metrics), _METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + _METRICS_A_BATCH])


def _refresh(client: MlflowClient, found: Run, run: TrackedRun) -> bool:
    """Renews name, tags, description and figures of a run that is there already; returns whether anything differed."""
    # The commit stays the one at which these results were published first.
    wanted = {**_changeable_tags(run), **{name: found.data.tags[name] for name in _KEPT if name in found.data.tags}}
    changed = {name: value for name, value in wanted.items() if found.data.tags.get(name) != value}
    renamed = found.info.run_name != run.name
    if renamed:
        client.update_run(found.info.run_id, name=run.name)
    if FIGURES in changed:
        for path, folder in run.figures:
            client.log_artifact(found.info.run_id, str(path), folder or None)
    # The tag comes after the files it speaks of, so that a kill in between is made good the next time.
    _set_tags(client, found, changed)
    return renamed or bool(changed)


def _changeable_tags(run: TrackedRun) -> dict[str, str]:
    figures = {FIGURES: run.figures_fingerprint} if run.figures else {}
    return {**run.tags, **figures, "mlflow.note.content": run.description, SUPERSEDED: "false"}


def _digests(files: Sequence[tuple[Path, str]]) -> list[tuple[str, str, str]]:
    return [(path.name, folder, hashlib.sha256(path.read_bytes()).hexdigest()) for path, folder in files]


def _supersede(client: MlflowClient, found: Run) -> None:
    client.update_run(found.info.run_id, name=found.info.run_name + _SUPERSEDED_SUFFIX)
    _set_tags(client, found, {"mlflow.runColor": _SUPERSEDED_COLOR, SUPERSEDED: "true"})


def _set_tags(client: MlflowClient, found: Run, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_tag(found.info.run_id, name, value)


def _last_change(run: TrackedRun) -> int:
    """When the newest of the run's files was written, in milliseconds; now, if it has none."""
    times = [path.stat().st_mtime for path, _ in run.artifacts]
    return round(1000 * max(times, default=time.time()))


def _open(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    # At first use MLflow tells of every table it makes, at a retry of every attempt.
    for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _find_or_make(client: MlflowClient, uri: str, name: str) -> str:
    """Finds or makes the experiment. One in an SQLite file keeps its artifacts in `mlartifacts` beside the file."""
    database = _sqlite_file(uri)
    artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts))
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name} was deleted in {shown_uri(uri)}: bring it back with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`, then publish again"
        )
    # Artifacts are stored by absolute path: in a folder that was moved or copied they would go to the old place.
    if artifacts and found.artifact_location.endswith("/mlartifacts") and found.artifact_location != artifacts:
        raise TrackingError(
            f"{database} was made in another folder, where its artifacts lie: delete it, then publish again; "
            "everything in it is made anew from the result files"
        )
    return str(found.experiment_id)


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


@contextmanager
def _locked(uri: str) -> Iterator[None]:
    """Keeps other publishers of the same SQLite file out: several that make it at once break it for good."""
    database = _sqlite_file(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_SECONDS_FOR_LOCK):
        yield


@contextmanager
def _errors_explained(uri: str) -> Iterator[None]:
    """Turns whatever goes wrong in the store into a `TrackingError` of one line."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise TrackingError(f"MLflow is not installed (no module {error.name}): pip install mlflow") from error
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(_explanation(uri, str(error))) from error


def _explanation(uri: str, error: str) -> str:
    database = _sqlite_file(uri)
    if database is None:
        cause = re.search(r"\[Errno -?\d+\] [^'\")]+|timed out", error)
        return f"MLflow at {shown_uri(uri)} cannot be used: {cause.group() if cause else _first_line(error)}"
    if "out-of-date database schema" in error or "Can't locate revision" in error:
        return f"{database} was made by another version of MLflow: run `mlflow db upgrade {uri}`, or delete the file"
    if "not a database" in error or "malformed" in error:
        return f"{database} is damaged or no MLflow database: move it away or delete it"
    return f"{database} cannot be used: {_first_line(error)}"


def _first_line(text: str) -> str:
    return shown_uri(textwrap.shorten(text.partition("\n")[0], 200))
