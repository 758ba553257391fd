"""Open the MLflow store: its address, the database, the experiment, and errors in one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path
from quantspike.paths import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

T = TypeVar("T")

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step

EXPERIMENT = "quantspike"  # unless MLflow's environment variables name another one
KEY = "quantspike.key"  # tag: the key of the run, such as `paper-cnn1-2-0`
LIVE = "quantspike.live"  # tag: `true` for a run that a training fills, until the finished run replaces it

_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMS_PER_BATCH = 100
_SECONDS_FOR_LOCK = 600.0  # another process may be saving a large network; a killed one holds no lock

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_ENVIRONMENT = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # By default MLflow waits about four minutes for a server that does not answer.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}

# MLflow prints there each table that it creates, each attempt to connect, and each failed query, which it raises too.
_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")

# As SQLAlchemy reads it: what follows ? are options of the driver, and # belongs to the name of the file.
_SQLITE = re.compile(r"sqlite(?:\+pysqlite)?:///(?!:memory:|file:)(?P<file>[^?]+)(?P<options>\?.*)?", re.IGNORECASE)
_DATABASE_SERVER = re.compile("postgresql|mysql|mssql")
_UNREADABLE = "not a database|malformed|database schema|Can't locate revision"
_CONFLICT = r"UNIQUE constraint|[Dd]uplicate|already exists"
# What MLflow's long messages about a server come down to.
_SERVER_TROUBLE = r"\[Errno -?\d+\] [^'\")]+|timed out|error code \d+|too many \d+ error responses|reset by peer"


def enabled() -> bool:
    """Return whether runs are tracked: not if the environment variable QUANTSPIKE_TRACKING is off, 0 or false."""
    return os.environ.get("QUANTSPIKE_TRACKING", "").strip().lower() not in {"off", "0", "false"}


def tracking_uri(root: Path) -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or else the SQLite file `mlflow.db` in the project.

    However an SQLite file is spelled, its address is the same, so that all have one lock. Relative paths start at the
    project, also in the copies that DVC makes of it for experiments and deletes afterwards.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if found := _SQLITE.fullmatch(given or "sqlite:///mlflow.db"):
        return _sqlite_uri(project_root(root) / unquote(found["file"])) + (found["options"] or "")
    uri = re.sub(r"^[\w+.-]+://", lambda scheme: scheme.group().lower(), given)
    return uri.partition("#")[0] if uri.startswith("http") else uri  # as the browser shows it


def shown_uri(uri: str) -> str:
    """Return an address as it may be printed: without user name, password and options."""
    return re.sub(r"(?<=\w)\?\S+", "", re.sub(r"//[^/\s]*@", "//", uri))


def sqlite_file(uri: str) -> Path | None:
    """Return the file that an address names, None for a server.

    Raises:
        QuantspikeError: the address is of SQLite, but names no file.
    """
    found = _SQLITE.fullmatch(uri)
    if found is None and uri.startswith("sqlite"):
        raise QuantspikeError(f"MLFLOW_TRACKING_URI is {uri}: expected sqlite:///FILE, or the address of a server")
    return Path(unquote(found["file"])).resolve() if found else None


def _sqlite_uri(file: Path) -> str:
    # SQLAlchemy would read options or escapes into a folder with these characters.
    path = re.sub("\\?|%(?=[0-9A-Fa-f]{2})", lambda found: f"%{ord(found.group()):X}", file.resolve().as_posix())
    return f"sqlite:///{path}"


def open_experiment(uri: str, tags: Mapping[str, str]) -> tuple[MlflowClient, str]:
    """Return a client and the number of the experiment; create the database, the experiment and its tags if absent.

    Processes that call this at once wait for each other, since MLflow fails where two of them create the same
    database, experiment or tag. To be called under `errors_explained`.

    Args:
        uri: address of the store.
        tags: of the experiment.

    Raises:
        QuantspikeError: the database was moved or copied, or the experiment is deleted.
    """
    with locked(uri):
        database = sqlite_file(uri)
        if database is not None and not database.exists():
            _create_database(database)
        client = connect(uri)
        experiment = retried(lambda: _find_or_create(client, uri))
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


def find_experiment(client: MlflowClient, uri: str) -> Experiment | None:
    """Return the experiment, None before it is created.

    As for MLflow, MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID names it.

    Raises:
        QuantspikeError: it is deleted, or the two variables contradict each other.
    """
    number = os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip()
    by_number = number and not os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip()
    found = client.get_experiment(number) if by_number else client.get_experiment_by_name(_experiment_name())
    if number and (found is None or found.experiment_id != number):
        raise QuantspikeError(
            f"MLFLOW_EXPERIMENT_ID is {number}, which is not the number of the experiment in MLFLOW_EXPERIMENT_NAME, "
            f"{_experiment_name()}: unset one of them"
        )
    if found is not None and found.lifecycle_stage == "deleted":
        store = shlex.quote(shown_uri(uri))
        raise QuantspikeError(
            f"the experiment {found.name} is deleted: restore it with `MLFLOW_TRACKING_URI={store} "
            f"mlflow experiments restore -x {found.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME to a new one"
        )
    return found


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
        seconds: time for a server to answer, unless the environment says otherwise; it is asked twice.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    ours = _TIMEOUT not in os.environ
    os.environ.setdefault(_TIMEOUT, str(seconds))
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except QuantspikeError:
        raise
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"MLflow cannot be used: pip install {error.name}") from error
    except Exception as error:  # MLflow, database drivers and cloud libraries raise their own
        database = sqlite_file(uri)
        cause = re.search(_SERVER_TROUBLE, str(error)) if database is None else None
        reason = cause.group() if cause else one_line(error)
        if database is not None and re.search(_UNREADABLE, reason):
            reason += "; if it holds nothing else, delete it: `make publish` makes a new one"
        raise QuantspikeError(f"MLflow at {shown_uri(uri)} cannot be used: {reason}") from error
    finally:
        if ours:
            os.environ.pop(_TIMEOUT, None)


def one_line(error: Exception) -> str:
    """Return the first line of an error, shortened and without passwords."""
    return shown_uri(textwrap.shorten(str(error).partition("\n")[0], 200))


def _create_database(database: Path) -> None:
    """Create the tables in a temporary file: MLflow cannot continue with half of them after a kill."""
    from mlflow import MlflowClient

    for leftover in database.parent.glob(f".{database.name}.*"):  # of killed processes
        leftover.unlink()
    with atomic_path(database) as new:
        MlflowClient(tracking_uri=_sqlite_uri(new))


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or EXPERIMENT


def _find_or_create(client: MlflowClient, uri: str) -> Experiment:
    database, artifacts = sqlite_file(uri), None  # MLflow's server has its own place
    if database is not None:
        artifacts = (database.parent / "mlartifacts").as_uri()
    elif _DATABASE_SERVER.match(uri):
        artifacts = (project_root(Path()).resolve() / "mlartifacts").as_uri()
    found = find_experiment(client, uri)
    if found is None:
        return client.get_experiment(client.create_experiment(_experiment_name(), artifact_location=artifacts))
    # Artifacts are stored by absolute path: those of a moved or copied database would go to the old folder.
    location = found.artifact_location
    if database is not None and location.endswith("/mlartifacts") and location != artifacts:
        raise QuantspikeError(
            f"{database} was created in another folder, where its artifacts are: delete it, then publish again; "
            "everything in it is rebuilt from the result files"
        )
    return found
