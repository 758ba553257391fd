"""Opening the store: its address, its database by several processes at once, and errors in one line."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from quantspike.errors import QuantspikeError
from quantspike.tracking import store
from quantspike.tracking.view import published_views, view_tags
from tracking_processes import (
    LOCAL,
    client_of,
    fork,
    free_port,
    make_tracked_run,
    published,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

PROCESSES = 8
ROUNDS = 3


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("QUANTSPIKE_TRACKING", raising=False)


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


# Its address


def test_the_store_lies_in_the_project_unless_the_user_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert store.tracking_uri(tmp_path) == "http://server:5000"


@pytest.mark.parametrize(("value", "expected"), [("off", False), ("0", False), ("False", False), ("on", True)])
def test_tracking_is_turned_off_by_the_environment(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.enabled()
    monkeypatch.setenv("QUANTSPIKE_TRACKING", value)
    assert store.enabled() is expected


def test_an_address_is_shown_without_its_password() -> None:
    assert store.shown_uri("https://someone:p@ss@host:5000/path") == "https://host:5000/path"
    assert store.shown_uri("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
    assert store.shown_uri("no @ https://host/path of a@b") == "no @ https://host/path of a@b"


def test_a_store_that_does_not_exist_has_no_views_and_is_not_created(tmp_path: Path) -> None:
    assert published_views(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert list(tmp_path.iterdir()) == []


def test_mlflow_is_imported_only_when_it_is_used() -> None:
    code = "import sys, quantspike.workflow.publishing; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Several processes


@pytest.mark.skipif(os.name != "posix", reason="this system has no copies of processes")
def test_eight_processes_that_open_a_new_store_at_once_all_succeed(tmp_path: Path, empty_database: Path) -> None:
    """MLflow's database refused the second of two equal tags of the experiment: UNIQUE constraint failed."""
    databases = [tmp_path / str(number) / "mlflow.db" for number in range(ROUNDS)]
    for database in databases:
        database.parent.mkdir()
    for database in databases[1:]:  # creating the tables takes seconds, so the first round alone does it
        shutil.copy(empty_database, database)
    barrier = multiprocessing.get_context("fork").Barrier(PROCESSES)
    processes = [fork(_open_each, databases, barrier, tmp_path / f"{number}.txt") for number in range(PROCESSES)]
    for process in processes:
        process.join(600)
    assert [(tmp_path / f"{number}.txt").read_text() for number in range(PROCESSES)] == [""] * PROCESSES
    for database in databases:
        assert published_views(f"sqlite:///{database}") == ("1", ["overview", *(f"paper-cnn{n}" for n in range(4))])
        assert sorted(path.name for path in database.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def _open_each(databases: list[Path], barrier: Any, errors: Path) -> None:
    """Open one store after the other, each at the same moment as the other processes, and write what went wrong."""
    problems = []
    for database in databases:
        uri = f"sqlite:///{database}"
        barrier.wait()
        try:
            with store.errors_explained(uri):
                store.open_experiment(uri, view_tags([("paper", f"cnn{number}") for number in range(4)]))
        except QuantspikeError as error:
            problems.append(str(error))
    errors.write_text("\n".join(problems))


def test_the_tag_that_another_process_has_just_created_is_no_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's database cannot be locked."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    set_tag, refused = MlflowClient.set_experiment_tag, []

    def refused_once(self: Any, experiment: str, name: str, value: str) -> None:
        if name not in refused:
            refused.append(name)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key")
        set_tag(self, experiment, name, value)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refused_once)
    tags = view_tags([("paper", "cnn1")])
    with store.errors_explained(uri):
        client, experiment = store.open_experiment(uri, tags)
    assert refused == list(tags)
    assert tags.items() <= client.get_experiment(experiment).tags.items()


def test_a_process_killed_while_it_creates_the_database_leaves_nothing_that_disturbs(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / ".mlflow.db.abc.part").write_bytes(b"of a killed process")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient", _killed)
        with pytest.raises(KeyboardInterrupt), store.errors_explained(uri):
            store.open_experiment(uri, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    assert published([], uri).created == 0


def _killed(**_: Any) -> None:
    raise KeyboardInterrupt


# Errors


def error_of(uri: str) -> str:
    """Return the one line in which publishing fails."""
    with pytest.raises(QuantspikeError) as raised:
        published([], uri)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_an_absent_server_is_reported_without_its_password() -> None:
    port = free_port()
    message = error_of(f"http://someone:secret@{LOCAL}:{port}")
    assert message.startswith(f"MLflow at http://{LOCAL}:{port} cannot be used: [Errno ")
    assert message.endswith("Connection refused")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"these are no tables, not one of them" * 100, "file is not a database"), (None, "unable to open database file")],
    ids=["text", "folder"],
)
def test_a_file_that_is_not_a_database_is_reported(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is None:
        (tmp_path / "mlflow.db").mkdir()
    else:
        (tmp_path / "mlflow.db").write_bytes(content)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert error_of(uri) == f"MLflow at {uri} cannot be used: {reason}"


def test_a_database_of_another_version_is_reported(uri: str, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'bbbb'")
        connection.commit()
    assert "bbbb" in error_of(uri)


def test_a_database_that_was_moved_is_reported(uri: str, database: Path, tmp_path: Path) -> None:
    published([], uri)
    (tmp_path / "moved").mkdir()
    shutil.copy(database, tmp_path / "moved")
    message = error_of(f"sqlite:///{tmp_path}/moved/mlflow.db")
    assert "moved/mlflow.db was created in another folder, where its artifacts are: delete it" in message


def test_a_deleted_experiment_is_reported(uri: str, tmp_path: Path) -> None:
    published([], uri)
    number, _ = published_views(uri) or ("", [])
    client_of(uri).delete_experiment(number)
    with pytest.raises(QuantspikeError, match="must be in the 'active' state"):
        published([make_tracked_run(tmp_path)], uri)


def test_a_lock_that_is_never_released_is_reported(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SECONDS_FOR_LOCK", 0.05)
    with store.locked(uri):
        assert "lock" in error_of(uri)
    assert published([], uri).created == 0


def test_without_mlflow_the_message_says_how_to_get_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert error_of(uri) == "MLflow cannot be used: pip install mlflow"
