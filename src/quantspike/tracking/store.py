"""The MLflow store: its address, how it is opened, and its troubles in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantspike.errors import QuantspikeError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

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
}
SECONDS_TO_ANSWER = 5
"""For a server, while somebody waits."""

SECONDS_TO_PUBLISH = 30
"""For a server that is sent whole networks, which it may pass on to a slower store."""

_SECONDS_FOR_LOCK = 600.0
"""Another publisher may have many runs to bring; a lock whose holder was killed is free at once."""

# MLflow tells there of every table that it makes, of every attempt to connect, and of a failed query on a page of its
# own, which is then raised as well.
_LOGGERS = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")

_SQLITE = "sqlite:///"
_DAMAGE = r"not a database|malformed|table \w+ already exists|duplicate column"
_CAUSE = r"\[Errno -?\d+\] [^'\")]+|timed out|too many \d+ error responses|Connection reset by peer|Remote end closed"


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
    return re.sub(r"//[^/\s]*@", "//", uri)


def sqlite_file(uri: str) -> Path | None:
    """The file that an address names, `None` for a server."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def open_store(uri: str) -> MlflowClient:
    """A client, which makes a new SQLite file with its tables if there is none; only under `errors_explained`."""
    from mlflow import MlflowClient

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    database = sqlite_file(uri)
    if database is not None:
        if not database.exists():
            with locked(uri):
                if not database.exists():
                    _make_database(database)
        # MLflow would try for two minutes to open what cannot be opened.
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as probe:
            probe.execute("PRAGMA schema_version")
    return MlflowClient(tracking_uri=uri)


def _make_database(database: Path) -> None:
    """Makes the tables in another file, which then takes its place: MLflow cannot go on with half of them."""
    from mlflow import MlflowClient

    # Never the same name twice, since MLflow keeps what it once opened.
    new = database.with_name(f"{database.name}.new-{uuid.uuid4().hex}")
    try:
        MlflowClient(tracking_uri=f"{_SQLITE}{new.as_posix()}")
        new.replace(database)
    finally:
        for leftover in database.parent.glob(f"{database.name}.new-*"):  # of killed processes as well
            leftover.unlink()


def find_or_make_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Number of an experiment. One in an SQLite file keeps its artifacts in `mlartifacts` beside the file.

    Raises:
        TrackingError: it was deleted, or the database was moved away from its artifacts.
    """
    database = sqlite_file(uri)
    artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(name) or _make_experiment(client, name, artifacts)
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


def _make_experiment(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return found  # another process was quicker


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Keeps other publishers of the same SQLite file out, and others that would make it; not to be entered twice."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=_SECONDS_FOR_LOCK):
        yield


@contextmanager
def errors_explained(uri: str, seconds: int = SECONDS_TO_ANSWER) -> Iterator[None]:
    """Turns whatever goes wrong in the store into a `TrackingError` of one line.

    Args:
        uri: address of the store.
        seconds: that a request is given; the first call in a process settles it, unless the user's environment does.
    """
    for name, value in {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise TrackingError(f"MLflow is not installed (no module {error.name}): pip install mlflow") from error
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise TrackingError(_explanation(uri, str(error))) from error
    except QuantspikeError:
        raise
    except Exception as error:  # database drivers, cloud libraries and settings of MLflow raise their own
        cause = f"{type(error).__name__}: {one_line(str(error))}"
        raise TrackingError(f"MLflow at {shown_uri(uri)} fails: {cause}") from error


def _explanation(uri: str, error: str) -> str:
    database = sqlite_file(uri)
    if database is None:
        return f"MLflow at {shown_uri(uri)} cannot be used: {_server_trouble(error)}"
    if "out-of-date database schema" in error or "Can't locate revision" in error:
        return f"{database} was made by another version of MLflow: run `mlflow db upgrade {uri}`, or delete the file"
    if re.search(_DAMAGE, error):
        return f"{database} is damaged or no MLflow database: move it away or delete it"
    return f"{database} cannot be used: {one_line(error)}"


def _server_trouble(error: str) -> str:
    """What MLflow's long messages come down to."""
    if status := re.search(r"failed with error code (\d+)", error):
        wrong = ": MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD is wrong" if status[1] == "401" else ""
        return f"it answers with status {status[1]}{wrong}"
    cause = re.search(_CAUSE, error)
    return cause.group() if cause else one_line(error)


def one_line(text: str) -> str:
    """The first line of an error, shortened and without passwords."""
    return shown_uri(textwrap.shorten(text.partition("\n")[0], 200))
