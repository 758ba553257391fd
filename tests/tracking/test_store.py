"""Opening the store: its address, its database by several processes at once, and errors in one line."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantspike.errors import QuantspikeError
from quantspike.tracking import publish, store
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
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "QUANTSPIKE_TRACKING"):
        monkeypatch.delenv(name, raising=False)


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///x.db", "sqlite:///{project}/x.db"),
        (" SQLite+PySQLite:///sub/../x.db\n", "sqlite:///{project}/x.db"),
        ("sqlite:////other/x.db?timeout=5", "sqlite:////other/x.db?timeout=5"),
        ("sqlite:///my%20runs.db#1", "sqlite:///{project}/my runs.db#1"),
        ("HTTP://Server:5000/mlflow#/experiments/1", "http://Server:5000/mlflow"),
        ("PostgreSQL+psycopg2://Someone:Secret@host/Runs", "postgresql+psycopg2://Someone:Secret@host/Runs"),
        ("databricks://Profile", "databricks://Profile"),
    ],
)
def test_every_spelling_of_an_address_means_the_same_store(
    given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store.tracking_uri(tmp_path) == expected.format(project=tmp_path)


@pytest.mark.parametrize("folder", ["what?", "50%20", "50%", "a b", "é#1"])
def test_a_folder_of_any_name_holds_its_own_store(folder: str, tmp_path: Path) -> None:
    """MLflow took ? and %20 for options and a blank, and wrote to another folder."""
    from sqlalchemy.engine import make_url

    uri = store.tracking_uri(tmp_path / folder)
    assert make_url(uri).database == str(tmp_path / folder / "mlflow.db")
    assert store.sqlite_file(uri) == tmp_path / folder / "mlflow.db"


@pytest.mark.parametrize(("given", "name"), [("", "mlflow.db"), ("sqlite:///x.db", "x.db")])
def test_all_copies_of_the_project_share_its_store(
    given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC deletes the copies in which it runs experiments, and databases with them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    for copy in (".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/standalone/tmpdef"):
        (tmp_path / copy).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / copy)
        assert store.tracking_uri(Path(".")) == f"sqlite:///{tmp_path}/{name}"


@pytest.mark.parametrize(
    "given", ["sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite:///x.db", "sqlite:///file:x.db?uri=true"]
)
def test_an_address_of_sqlite_without_a_file_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in the memory of a process were published, and gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    message = f"MLFLOW_TRACKING_URI is {given}: expected sqlite:///FILE, or the address of a server"
    assert error_of(store.tracking_uri(Path("."))) == message
    with pytest.raises(QuantspikeError, match="expected sqlite:///FILE"):
        published_views(given)


@pytest.mark.parametrize(
    ("given", "reason"), [("mlruns", "The filesystem tracking backend"), ("sgml://x", ".* unsupported URI 'sgml://x'")]
)
def test_what_mlflow_does_not_support_is_refused_and_creates_nothing(
    given: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert re.match(f"MLflow at {given} cannot be used: {reason}", error_of(store.tracking_uri(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_options_of_the_driver_are_not_part_of_the_file_name(uri: str, tmp_path: Path) -> None:
    """The lock had them in its name, and a new database could not be created."""
    assert published([make_tracked_run(tmp_path / "files")], f"{uri}?timeout=5").created == 1
    assert {path.name for path in tmp_path.iterdir()} == {"files", "mlartifacts", "mlflow.db", "mlflow.db.lock"}
    assert published([make_tracked_run(tmp_path / "files")], uri).unchanged == 1


@pytest.mark.parametrize("server", ["postgresql://host/runs", "mysql+pymysql://host/runs"])
def test_artifacts_of_a_database_server_are_kept_in_the_project(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow put them into a folder `mlruns`, in a copy of the project as well."""
    copy = tmp_path / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    created: list[tuple[str, str]] = []
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name, artifact_location: created.append((name, artifact_location)),
        get_experiment=lambda number: number,
    )
    store._find_or_create(client, server)  # type: ignore[arg-type]
    assert created == [("quantspike", f"file://{tmp_path}/mlartifacts")]


@pytest.mark.parametrize(("value", "expected"), [("off", False), ("0", False), ("False", False), ("on", True)])
def test_tracking_is_turned_off_by_the_environment(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.enabled()
    monkeypatch.setenv("QUANTSPIKE_TRACKING", value)
    assert store.enabled() is expected


def test_an_address_is_shown_without_its_password() -> None:
    assert store.shown_uri("https://someone:p@ss@host:5000/path") == "https://host:5000/path"
    assert store.shown_uri("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
    assert store.shown_uri("no @ https://host/path of a@b") == "no @ https://host/path of a@b"
    assert store.shown_uri("postgresql://host/runs?user=someone&password=secret") == "postgresql://host/runs"


def test_a_store_that_does_not_exist_has_no_views_and_is_not_created(tmp_path: Path) -> None:
    assert published_views(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert list(tmp_path.iterdir()) == []


def test_mlflow_is_imported_only_when_it_is_used() -> None:
    code = "import sys, quantspike.workflow.publishing; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Its experiment


def test_the_experiment_that_the_environment_names_is_published_and_shown(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was ignored without a word."""
    run = make_tracked_run(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert (published_views(uri), published([run], uri).created) == (None, 1)
    number, _ = published_views(uri) or ("", [])
    assert client_of(uri).get_experiment(number).name == "mine"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    assert published([run], uri).unchanged == 1
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert error_of(uri) == (
        f"MLFLOW_EXPERIMENT_ID is {number}, which is not the number of the experiment in MLFLOW_EXPERIMENT_NAME, "
        "another: unset one of them"
    )


def test_an_experiment_number_that_does_not_exist_is_reported(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    assert error_of(uri) == f"MLflow at {uri} cannot be used: No Experiment with id=77 exists"


def test_a_deleted_experiment_is_reported_with_the_way_back_and_not_shown(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page of a deleted experiment is empty."""
    from mlflow.experiments import commands

    published([], uri)
    number, _ = published_views(uri) or ("", [])
    client_of(uri).delete_experiment(number)
    message = (
        f"the experiment quantspike is deleted: restore it with `MLFLOW_TRACKING_URI={uri} mlflow experiments restore "
        f"-x {number}`, or set MLFLOW_EXPERIMENT_NAME to a new one"
    )
    assert error_of(uri) == message
    with pytest.raises(QuantspikeError, match=f"^{re.escape(message)}$"):
        published_views(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = message.split(" mlflow experiments ")[1].partition("`")[0].split()
    commands.main(words, standalone_mode=False)
    assert published_views(uri) == (number, [])


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


DELETE = "; if it holds nothing else, delete it: `make publish` makes a new one"


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        ("text", f"file is not a database{DELETE}"),
        ("half", f"database disk image is malformed{DELETE}"),
        ("start", rf"\(sqlite3.DatabaseError\) database disk image is malformed{DELETE}"),
        ("version", rf"Detected out-of-date database schema \(found version bbbb, .*{DELETE}"),
        ("folder", "unable to open database file"),
        ("lock", r"\[Errno 21\] Is a directory: '.*/mlflow.db.lock'"),
    ],
)
def test_a_database_that_cannot_be_used_is_reported_at_once(defect: str, reason: str, uri: str, database: Path) -> None:
    whole = database.read_bytes()
    if defect == "folder":
        database.unlink()
        database.mkdir()
    elif defect == "lock":
        Path(f"{database}.lock").mkdir()
    elif defect == "version":
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'bbbb'")
            connection.commit()
    else:
        text = b"these are no tables, not one of them" * 100
        database.write_bytes({"text": text, "half": whole[: len(whole) // 2], "start": whole[:50]}[defect])
    assert re.fullmatch(f"MLflow at {uri} cannot be used: {reason}", error_of(uri))


@pytest.mark.parametrize("reason", ["database or disk is full", "attempt to write a readonly database"])
def test_a_database_that_takes_nothing_is_reported(reason: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def refused(*_: object, **__: object) -> None:
        raise MlflowException(f"(sqlite3.OperationalError) {reason}\n[SQL: INSERT INTO experiments ...]")

    monkeypatch.setattr("mlflow.MlflowClient.create_experiment", refused)
    assert error_of(uri) == f"MLflow at {uri} cannot be used: (sqlite3.OperationalError) {reason}"


def test_a_database_that_was_moved_is_reported(uri: str, database: Path, tmp_path: Path) -> None:
    published([], uri)
    (tmp_path / "moved").mkdir()
    shutil.copy(database, tmp_path / "moved")
    message = error_of(f"sqlite:///{tmp_path}/moved/mlflow.db")
    assert "moved/mlflow.db was created in another folder, where its artifacts are: delete it" in message


@pytest.mark.parametrize(("given", "seconds"), [(None, ["5", "30"]), ("7", ["7", "7"])], ids=["ours", "the user's"])
def test_a_server_that_is_silent_is_given_up_sooner_than_a_slow_upload(
    given: str | None, seconds: list[str], uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held the publisher for a minute: 30 seconds, twice."""
    name, found = "MLFLOW_HTTP_REQUEST_TIMEOUT", []
    monkeypatch.setenv(name, given) if given else monkeypatch.delenv(name, raising=False)

    def opened(*_: object) -> Any:
        found.append(os.environ[name])
        return SimpleNamespace(search_runs=lambda *_, **__: []), "1"

    monkeypatch.setattr(publish, "open_experiment", opened)
    monkeypatch.setattr(publish, "update_registry", lambda *_: found.append(os.environ[name]))
    published([], uri)
    assert (found, os.environ.get(name)) == (seconds, given)


def test_a_lock_that_is_never_released_is_reported(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SECONDS_FOR_LOCK", 0.05)
    with store.locked(uri):
        assert "lock" in error_of(uri)
    assert published([], uri).created == 0


def test_without_mlflow_the_message_says_how_to_get_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert error_of(uri) == "MLflow cannot be used: pip install mlflow"
