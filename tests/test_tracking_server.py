"""Publishing to a real server, by processes that are killed, and several at once."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from quantspike.tracking import (
    PublishReport,
    TrackedData,
    TrackedRun,
    TrackingError,
    models,
    publish,
    reconcile,
    shown_uri,
)
from tracking_processes import (
    ResultFiles,
    Server,
    artifacts_of,
    client_of,
    fork,
    line_to,
    linear_model,
    points_of,
    rows,
    runs_of,
    the_run,
    versions_of,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no signals and copies of processes", allow_module_level=True)

KILLS = 5
WRITTEN = 1_700_000_000


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def run_of(folder: Path, key: str = "paper-cnn1-1-0", loss: float = 0.5, **changes: Any) -> TrackedRun:
    """A run with all that a run can have."""
    data = TrackedData("some images", "ab" * 32, {"training": 40, "test": 20})
    run = ResultFiles(folder, key, loss, {"data": data, "model": linear_model(1 - loss)} | changes).run()
    for path, _ in run.artifacts:
        os.utime(path, (WRITTEN, WRITTEN))
    return run


def content(uri: str, run: Any) -> dict[str, Any]:
    """All that a run holds, but for what is different each time."""
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": (run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": run.data.tags,
        "curves": {name: points_of(uri, run, name) for name in run.data.metrics},
        "data": [(found.dataset.name, found.dataset.digest) for found in run.inputs.dataset_inputs],
        "artifacts": artifacts_of(uri, run),
        "aliases": [sorted(version.aliases) for version in versions_of(uri) if version.run_id == run.info.run_id],
    }


# A server


def test_a_server_shows_what_a_file_shows(mlflow_server: Server, uri: str, tmp_path: Path) -> None:
    keys = ["alike-cnn1-1-0", "alike-cnn1-2-0"]
    runs = [run_of(tmp_path / "files", keys[0]), run_of(tmp_path / "files", keys[1], model=None)]
    assert publish(runs, uri=mlflow_server.uri) == publish(runs, uri=uri) == PublishReport(created=2)
    for key in keys:
        found = content(mlflow_server.uri, the_run(mlflow_server.uri, key))
        assert found == content(uri, the_run(uri, key))
        assert {"figures/sops.png", f"metrics/{key}.csv"} <= set(found["artifacts"])
        assert ("model/MLmodel" in found["artifacts"]) == (key == keys[0])
        assert found["aliases"] == ([["paper-k1"]] if key == keys[0] else [])
        assert len(found["curves"]["train/loss"]) == 300
        assert found["data"] == [("some images", ("ab" * 32)[:36])]
    copy = client_of(mlflow_server.uri).download_artifacts(
        the_run(mlflow_server.uri, keys[0]).info.run_id, f"metrics/{keys[0]}.csv", str(tmp_path)
    )
    assert Path(copy).read_bytes() == runs[0].artifacts[0][0].read_bytes()


def test_publishing_to_a_server_again_changes_not_a_row(mlflow_server: Server, tmp_path: Path) -> None:
    runs = [run_of(tmp_path, "again-cnn1-0-0"), run_of(tmp_path, "again-cnn1-1-0", model=None)]
    publish(runs, uri=mlflow_server.uri, tags={"a tag": "of the experiment"})
    before = rows(mlflow_server.database)
    report = publish(runs, uri=mlflow_server.uri, tags={"a tag": "of the experiment"})
    assert report == PublishReport(unchanged=2)
    assert rows(mlflow_server.database) == before


def test_a_changed_result_supersedes_the_old_one_on_a_server(mlflow_server: Server, tmp_path: Path) -> None:
    key, uri = "changed-cnn1-1-0", mlflow_server.uri
    publish([run_of(tmp_path, key, 0.5, model=None)], uri=uri)
    later = run_of(tmp_path, key, 0.25, model=None)
    assert publish([later], uri=uri) == PublishReport(created=1, superseded=1)
    new, old = runs_of(uri, key)
    assert (new.info.run_name, old.info.run_name) == (key, f"{key} (superseded)")
    assert (new.data.metrics["final/ann_accuracy"], old.data.metrics["final/ann_accuracy"]) == (0.75, 0.5)
    assert publish([later], uri=uri) == PublishReport(unchanged=1)


def test_a_server_that_goes_away_halfway_is_reported_and_gets_the_rest_later(
    mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, "halfway-cnn1-1-0", model=None)
    with line_to(mlflow_server) as line:
        with monkeypatch.context() as patch:
            patch.setattr(reconcile, "_log_data", lambda *_: line.cut())
            with pytest.raises(TrackingError, match=r"^MLflow at http://127.* cannot be used: .*Connection refused$"):
                publish([run], uri=line.uri)
        line.mend()
        assert publish([run], uri=line.uri) == PublishReport(created=1)
    found = content(mlflow_server.uri, the_run(mlflow_server.uri, run.key))
    assert (found["status"], len(found["curves"]["train/loss"])) == ("FINISHED", 300)


def test_several_processes_make_the_same_experiment_on_a_server(mlflow_server: Server, tmp_path: Path) -> None:
    keys = [f"several-cnn1-{k}-0" for k in range(4)]
    processes = [fork(_publish_as, mlflow_server.uri, "made at once", [key], tmp_path / key) for key in keys]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert all(len(runs_of(mlflow_server.uri, key, "made at once")) == 1 for key in keys)


def test_a_data_set_that_another_publisher_tells_of_at_the_same_moment_is_no_trouble(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log_inputs, refused = MlflowClient.log_inputs, []

    def refused_once(*arguments: Any) -> None:
        if not refused:
            refused.append(True)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")
        log_inputs(*arguments)

    monkeypatch.setattr(MlflowClient, "log_inputs", refused_once)
    run = run_of(tmp_path, model=None)
    assert publish([run], uri=uri) == PublishReport(created=1)
    assert content(uri, the_run(uri, run.key))["data"] == [("some images", ("ab" * 32)[:36])]


def _publish_as(uri: str, experiment: str, keys: list[str], folder: Path) -> None:
    publish([run_of(folder, key, model=None) for key in keys], uri=uri, experiment=experiment)


# Killed


@pytest.mark.parametrize("kind", ["file", "server"])
def test_publishers_killed_at_random_moments_leave_one_whole_run_of_each_chain(
    kind: str, mlflow_server: Server, uri: str, tmp_path: Path
) -> None:
    keys = [f"{kind}-cnn1-{k}-0" for k in range(2)]
    undisturbed, database = uri, mlflow_server.database
    if kind == "file":
        database = Path(shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "killed.db"))
    uri = mlflow_server.uri if kind == "server" else f"sqlite:///{database}"
    publish([run_of(tmp_path, "first")], uri=undisturbed)  # what is loaded on the way is there from now on
    start = time.monotonic()
    _publish(undisturbed, keys, tmp_path, KILLS)
    seconds = time.monotonic() - start
    moments = random.Random(0)
    for kill in range(KILLS):
        # Every second attempt has other results, so that runs are superseded too.
        process = fork(_publish, uri, keys, tmp_path, kill // 2)
        process.join(moments.uniform(0, seconds))
        process.kill()
        process.join()
    _publish(uri, keys, tmp_path, KILLS)
    for key in keys:
        current, *old = runs_of(uri, key)
        assert content(uri, current) == content(undisturbed, the_run(undisturbed, key))
        assert [run.info.run_name for run in old] == [f"{key} (superseded)"] * len(old)
        assert [run.data.tags["quantspike.complete"] for run in old] == ["true"] * len(old)
        assert [run.data.tags["quantspike.superseded"] for run in old] == ["true"] * len(old)
    registered = [version.run_id for version in versions_of(uri)]
    assert len(set(registered)) == len(registered)
    before = rows(database)
    _publish(uri, keys, tmp_path, KILLS)
    assert rows(database) == before


def _publish(uri: str, keys: list[str], folder: Path, attempt: int) -> None:
    """Publishes chains with the results of an attempt, the last of which are the best."""
    loss = 0.5 / (1 + attempt)
    networks, files = [linear_model(1 - loss, str(attempt)), None], folder / str(attempt)
    publish([run_of(files, key, loss, model=model) for key, model in zip(keys, networks, strict=True)], uri=uri)


class Killed(BaseException):
    """In place of a signal, at a chosen point."""


@contextmanager
def killed_before(owner: Any, name: str) -> Iterator[None]:
    """Who calls a function of that name is killed before it does anything."""

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            yield


def test_a_run_whose_marking_was_interrupted_bears_the_word_once(uri: str, tmp_path: Path) -> None:
    key = "paper-cnn1-1-0"
    publish([run_of(tmp_path, key, 0.5, model=None)], uri=uri)
    with killed_before(reconcile, "_set_tags"):
        publish([run_of(tmp_path, key, 0.25, model=None)], uri=uri)
    assert publish([run_of(tmp_path, key, 0.25, model=None)], uri=uri) == PublishReport(unchanged=1, superseded=1)
    assert [run.info.run_name for run in runs_of(uri, key)] == [key, f"{key} (superseded)"]


def test_a_network_whose_keeping_was_interrupted_is_kept_once(uri: str, tmp_path: Path) -> None:
    for name in ("_save", "_version"):
        with killed_before(models, name):
            publish([run_of(tmp_path)], uri=uri)
    assert publish([run_of(tmp_path)], uri=uri) == PublishReport(updated=1)
    assert publish([run_of(tmp_path)], uri=uri) == PublishReport(unchanged=1)
    assert [version.version for version in versions_of(uri)] == [1]


# A lost database


def test_a_lost_database_and_its_artifacts_come_back(uri: str, empty_database: Path, tmp_path: Path) -> None:
    keys = ["paper-cnn1-1-0", "paper-cnn1-2-0"]
    runs = [run_of(tmp_path / "files", keys[0]), run_of(tmp_path / "files", keys[1], model=None)]
    publish(runs, uri=uri)
    before = [content(uri, the_run(uri, key)) for key in keys]
    (tmp_path / "mlflow.db").unlink()
    shutil.rmtree(tmp_path / "mlartifacts")
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'again.db')}"
    assert publish(runs, uri=other) == PublishReport(created=2)
    assert [content(other, the_run(other, key)) for key in keys] == before


# What a file can be that is no database


def test_a_folder_in_the_place_of_the_database_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be used: unable to open database file$"):
        publish([], uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert time.monotonic() - start < 5  # MLflow itself tries for 100 s


def test_a_half_made_database_is_reported(uri: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.execute("DROP TABLE assessments")
        connection.commit()
    with pytest.raises(TrackingError, match=r"mlflow\.db is damaged or no MLflow database: move it away or delete it$"):
        publish([], uri=uri)


def test_a_password_is_hidden_whatever_is_in_it() -> None:
    assert shown_uri("https://someone:p@ss@host:5000/path") == "https://host:5000/path"
    assert shown_uri("no @ https://host/path of a@b") == "no @ https://host/path of a@b"
