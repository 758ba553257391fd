"""Open the MLflow store: its address, the database, the experiment, and errors in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

T = TypeVar("T")

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step

EXPERIMENT = "quantspike"
KEY = "quantspike.key"  # tag: the key of the run, such as `paper-cnn1-2-0`
LIVE = "quantspike.live"  # tag: `true` for a run that a training fills, until the finished run replaces it

_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMS_PER_BATCH = 100
_SECONDS_FOR_LOCK = 600.0  # another process may be saving a large network; a killed one holds no lock

_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # By default MLflow waits about four minutes for a server that does not answer.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}

# MLflow prints there each table that it creates, each attempt to connect, and each failed query, which it raises too.
_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")

_SQLITE = "sqlite:///"
_CONFLICT = r"UNIQUE constraint|[Dd]uplicate|already exists"
# What MLflow's long messages about a server come down to.
_SERVER_TROUBLE = r"\[Errno -?\d+\] [^'\")]+|timed out|error code \d+|too many \d+ error responses|reset by peer"


def enabled() -> bool:
    """Return whether runs are tracked: not if the environment variable QUANTSPIKE_TRACKING is off, 0 or false."""
    return os.environ.get("QUANTSPIKE_TRACKING", "").strip().lower() not in {"off", "0", "false"}


def tracking_uri(root: Path) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or else the SQLite file `mlflow.db` in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{_SQLITE}{(root.resolve() / 'mlflow.db').as_posix()}"


def shown_uri(uri: str) -> str:
    """Return an address as it may be printed: without user name and password."""
    return re.sub(r"//[^/\s]*@", "//", uri)


def sqlite_file(uri: str) -> Path | None:
    """Return the file that an address names, None for a server."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def open_experiment(uri: str, tags: Mapping[str, str]) -> tuple[MlflowClient, str]:
    """Return a client and the number of the experiment; create the database, the experiment and its tags if absent.

    Processes that call this at once wait for each other, since MLflow fails where two of them create the same
    database, experiment or tag. To be called under `errors_explained`.

    Args:
        uri: address of the store.
        tags: of the experiment.

    Raises:
        QuantspikeError: the database was moved or copied.
    """
    with locked(uri):
        database = sqlite_file(uri)
        if database is not None and not database.exists():
            _create_database(database)
        client = connect(uri)
        experiment = retried(lambda: _find_or_create(client, database))
        number = str(experiment.experiment_id)
        for name, value in tags.items():
            if experiment.tags.get(name) != value:
                retried(partial(client.set_experiment_tag, number, name, value))
    return client, number


def connect(uri: str) -> MlflowClient:
    """Return a client of an existing store; to be called under `errors_explained`."""
    from mlflow import MlflowClient

    database = sqlite_file(uri)
    if database is not None:
        # MLflow would try for two minutes to open a file that cannot be opened.
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as probe:
            probe.execute("PRAGMA schema_version")
    return MlflowClient(tracking_uri=uri)


def retried(call: Callable[[], T]) -> T:
    """Return what a call returns; repeat it once if another process has just created the same row.

    The lock prevents this in an SQLite file; nothing prevents it in a server's database.
    """
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if not re.search(_CONFLICT, str(error)):
            raise
        return call()


def log(client: MlflowClient, run_id: str, points: Sequence[Point], params: Mapping[str, str] | None = None) -> None:
    """Log any number of points of metrics, and of params."""
    from mlflow.entities import Metric, Param

    entities = [Param(*pair) for pair in (params or {}).items()]
    for first in range(0, len(entities), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entities[first : first + _PARAMS_PER_BATCH], synchronous=True)
    for first in range(0, len(points), _METRICS_PER_BATCH):
        metrics = [Metric(*point) for point in points[first : first + _METRICS_PER_BATCH]]
        client.log_batch(run_id, metrics=metrics, synchronous=True)


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold the lock of an SQLite store, waiting for other processes; not reentrant, and without effect on a server."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_SECONDS_FOR_LOCK):
        yield


@contextmanager
def errors_explained(uri: str, seconds: int = 5) -> Iterator[None]:
    """Turn every error of the store into a `QuantspikeError` of one line.

    Args:
        uri: address of the store.
        seconds: time for a server to answer; the first call in a process sets it, unless the environment does.
    """
    for name, value in {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except QuantspikeError:
        raise
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"MLflow cannot be used: pip install {error.name}") from error
    except Exception as error:  # MLflow, database drivers and cloud libraries raise their own
        cause = re.search(_SERVER_TROUBLE, str(error)) if sqlite_file(uri) is None else None
        reason = cause.group() if cause else one_line(error)
        raise QuantspikeError(f"MLflow at {shown_uri(uri)} cannot be used: {reason}") from error


def one_line(error: Exception) -> str:
    """Return the first line of an error, shortened and without passwords."""
    return shown_uri(textwrap.shorten(str(error).partition("\n")[0], 200))


def _create_database(database: Path) -> None:
    """Create the tables in a temporary file: MLflow cannot continue with half of them after a kill."""
    from mlflow import MlflowClient

    for leftover in database.parent.glob(f".{database.name}.*"):  # of killed processes
        leftover.unlink()
    with atomic_path(database) as new:
        MlflowClient(tracking_uri=f"{_SQLITE}{new.as_posix()}")


def _find_or_create(client: MlflowClient, database: Path | None) -> Experiment:
    artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
    # Artifacts are stored by absolute path: those of a moved or copied database would go to the old folder.
    if artifacts and found.artifact_location.endswith("/mlartifacts") and found.artifact_location != artifacts:
        raise QuantspikeError(
            f"{database} was created in another folder, where its artifacts are: delete it, then publish again; "
            "everything in it is rebuilt from the result files"
        )
    return found
