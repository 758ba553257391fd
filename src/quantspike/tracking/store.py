"""The MLflow store: its address, how it is opened, and its troubles in one line."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "quantspike"

CHAIN = "quantspike.chain"
"""Tag: identity of the chain."""

COMPLETE = "quantspike.complete"
"""Tag: `true` once a run holds all that it is to hold."""

LIVE = "quantspike.live"
"""Tag: `true` for a run that a training fills, until the finished chain's run takes its place."""

SUPERSEDED = "quantspike.superseded"
"""Tag: `true` for a run in whose place a newer one has come."""

# MLflow takes no more in one call.
METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100

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


class TrackingError(QuantspikeError):
    """The store cannot be used just now. Nothing is lost, since every run is rebuilt from the result files."""


def enabled() -> bool:
    """Whether runs are tracked: not if the environment variable QUANTSPIKE_TRACKING is off, 0 or false."""
    return os.environ.get("QUANTSPIKE_TRACKING", "").strip().lower() not in {"off", "0", "false"}


def tracking_uri(root: Path) -> str:
    """Address of the store: MLFLOW_TRACKING_URI, or else the SQLite file `mlflow.db` in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"{_SQLITE}{(root.resolve() / 'mlflow.db').as_posix()}"


def shown_uri(uri: str) -> str:
    """An address as it may be printed: without user name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def sqlite_file(uri: str) -> Path | None:
    """The file that an address names, `None` for a server."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def open_store(uri: str) -> MlflowClient:
    """A client, which makes the tables of a new SQLite file; only under `locked` and `errors_explained`."""
    from mlflow import MlflowClient

    # At first use MLflow tells of every table it makes, at a retry of every attempt.
    for name in ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def find_or_make_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Number of an experiment. One in an SQLite file keeps its artifacts in `mlartifacts` beside the file.

    Raises:
        TrackingError: it was deleted, or the database was moved away from its artifacts.
    """
    database = sqlite_file(uri)
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


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keeps other processes out of the same SQLite file: several that make it at once break it for good."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_SECONDS_FOR_LOCK):
        yield


@contextmanager
def errors_explained(uri: str) -> Iterator[None]:
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
    database = sqlite_file(uri)
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
