"""Publishing runs: into SQLite files and to a server, again and again, and after a kill."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantspike.tracking.publish import PublishReport, TrackedRun
from tracking_processes import (
    KEY,
    Server,
    artifacts_of,
    client_of,
    linear_model,
    make_tracked_run,
    points_of,
    published,
    rows,
    runs_of,
    the_run,
    versions_of,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

OTHER = "paper-cnn1-2-0"


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def run(tmp_path: Path) -> TrackedRun:
    return make_tracked_run(tmp_path / "files")


def content(uri: str, run: Any) -> dict[str, Any]:
    """Return all that a run holds, but for times and ids."""
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": run.data.tags,
        "curves": {name: points_of(uri, run, name) for name in run.data.metrics},
        "artifacts": artifacts_of(uri, run),
        "aliases": [sorted(version.aliases) for version in versions_of(uri) if version.run_id == run.info.run_id],
    }


def artifact(uri: str, path: str, key: str = KEY) -> bytes:
    """Return a file of a run."""
    with tempfile.TemporaryDirectory() as folder:  # without one, MLflow makes a folder and leaves it
        return Path(client_of(uri).download_artifacts(the_run(uri, key).info.run_id, path, folder)).read_bytes()


# A run and its contents


def test_a_run_holds_everything_that_was_given(uri: str, run: TrackedRun) -> None:
    assert published([run], uri) == PublishReport(created=1)
    found = the_run(uri)
    assert (found.info.run_name, found.info.status) == (KEY, "FINISHED")
    assert found.data.params == {"k": "1", "train.learning_rate": "0.001"}
    assert found.data.metrics == {"train/loss": 0.5 / 300, "final/ann_accuracy": 0.5}
    expected = {"model": "cnn1", "mlflow.runColor": "#d55e00"}
    assert expected.items() <= found.data.tags.items()
    assert found.data.tags["mlflow.note.content"] == "| loss | 0.5 |"
    assert points_of(uri, found, "train/loss") == [(epoch, 0.5 / epoch) for epoch in range(1, 301)]
    assert artifact(uri, f"metrics/{KEY}.csv") == b"epoch,loss\n1,0.5\n"
    assert artifact(uri, "figures/sops.png") == b"a picture"


def test_curves_and_params_longer_than_a_batch_arrive_completely(uri: str, run: TrackedRun) -> None:
    curve = [(step, 1 / step) for step in range(1, 2002)]
    many = {f"p{number}": number for number in range(101)}
    published([replace(run, curves={"train/loss": curve}, params=many)], uri)
    assert points_of(uri, the_run(uri), "train/loss") == curve
    assert len(the_run(uri).data.params) == 101


def test_nothing_is_told_about_the_user(uri: str, run: TrackedRun) -> None:
    published([replace(run, tags={"model": "cnn1"})], uri)
    own = {f"quantspike.{name}" for name in ("key", "fingerprint", "appearance")}
    assert set(the_run(uri).data.tags) == {"model", "mlflow.note.content", "mlflow.runName"} | own
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("SELECT user_id, source_name FROM runs").fetchall() == [("unknown", "")]


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_server_and_a_file_show_the_same(kind: str, uri: str, mlflow_server: Server, tmp_path: Path) -> None:
    """The server's database is of the whole session, so that the run has a key of its own."""
    run = make_tracked_run(tmp_path / "files", "alike-cnn1-1-0", model=linear_model(alias="alike-k1"))
    uri = mlflow_server.uri if kind == "server" else uri
    assert published([run], uri) == PublishReport(created=1)
    found = content(uri, the_run(uri, run.key))
    assert {"figures/sops.png", f"metrics/{run.key}.csv", "model/MLmodel"} <= set(found["artifacts"])
    assert (found["status"], found["aliases"]) == ("FINISHED", [["alike-k1"]])
    assert len(found["curves"]["train/loss"]) == 300
    assert artifact(uri, f"metrics/{run.key}.csv", run.key) == run.files[0].read_bytes()
    assert published([run], uri) == PublishReport(unchanged=1)
    better = make_tracked_run(tmp_path / "files", run.key, 0.25, model=linear_model(alias="alike-k1"))
    assert published([better], uri) == PublishReport(replaced=1)
    assert the_run(uri, run.key).data.metrics["final/ann_accuracy"] == 0.75
    assert [version.aliases for version in versions_of(uri)] == [["alike-k1"]]


# Publishing again


def test_publishing_again_changes_not_a_row(uri: str, run: TrackedRun) -> None:
    published([run], uri)
    before = rows(uri)
    assert published([run], uri) == PublishReport(unchanged=1)
    assert rows(uri) == before


def test_a_lost_database_is_rebuilt(uri: str, run: TrackedRun, empty_database: Path, tmp_path: Path) -> None:
    published([run], uri)
    before = content(uri, the_run(uri))
    (tmp_path / "mlflow.db").unlink()
    shutil.rmtree(tmp_path / "mlartifacts")
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'again.db')}"
    assert published([run], other) == PublishReport(created=1)
    assert content(other, the_run(other)) == before


def changed(run: TrackedRun, what: str) -> TrackedRun:
    """Return the run with one other result."""
    if what == "file":
        run.files[0].write_text("epoch,loss\n1,0.6\n")
        return run
    changes: dict[str, Any] = {
        "params": {"params": {"k": 2}},
        "curves": {"curves": {"train/loss": [(1, 0.1)]}},
        "finals": {"finals": {"final/ann_accuracy": 0.8}},
    }
    return replace(run, **changes[what])


@pytest.mark.parametrize("what", ["params", "curves", "finals", "file"])
def test_another_result_replaces_the_run(what: str, uri: str, run: TrackedRun) -> None:
    published([run], uri)
    before = the_run(uri).info.run_id
    new = changed(run, what)
    assert published([new], uri) == PublishReport(replaced=1)
    found = the_run(uri)
    assert found.info.run_id != before
    assert found.data.params == {name: str(value) for name, value in new.params.items()}
    assert found.data.metrics["final/ann_accuracy"] == new.finals["final/ann_accuracy"]
    assert artifact(uri, f"metrics/{KEY}.csv") == new.files[0].read_bytes()
    assert published([new], uri) == PublishReport(unchanged=1)


def test_name_tags_description_and_figures_change_in_the_same_run(uri: str, run: TrackedRun) -> None:
    published([run], uri)
    before = the_run(uri).info.run_id
    run.figures[0].write_bytes(b"a picture with k = 3")
    new = replace(run, name="CNN 1", description="Better words.", tags={"model": "CNN 1"})
    assert published([new], uri) == PublishReport(updated=1)
    found = the_run(uri)
    assert (found.info.run_id, found.info.run_name, found.data.tags["model"]) == (before, "CNN 1", "CNN 1")
    assert found.data.tags["mlflow.note.content"] == "Better words."
    assert artifact(uri, "figures/sops.png") == b"a picture with k = 3"
    assert published([new], uri) == PublishReport(unchanged=1)


def test_runs_of_other_keys_are_left_alone(uri: str, run: TrackedRun, tmp_path: Path) -> None:
    published([run], uri)
    assert published([make_tracked_run(tmp_path, OTHER)], uri) == PublishReport(created=1)
    assert [found.data.tags["quantspike.key"] for found in runs_of(uri) + runs_of(uri, OTHER)] == [KEY, OTHER]


# Killed


class Killed(BaseException):
    """In place of a signal, at a chosen moment."""


@contextmanager
def killed_at(call: int) -> Iterator[None]:
    """Kill the publisher before the call of that number, counted from 1, that would write to the store."""
    from mlflow import MlflowClient

    done = 0

    def counting(method: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == call:
                raise Killed
            return method(*arguments, **options)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in dir(MlflowClient):
            if name.startswith(("create_", "log_", "set_", "update_", "delete_")):
                patch.setattr(MlflowClient, name, counting(getattr(MlflowClient, name)))
        yield


def test_a_publisher_killed_at_any_moment_is_made_good_by_the_next_one(
    uri: str, tmp_path: Path, empty_database: Path
) -> None:
    (tmp_path / "undisturbed").mkdir()
    undisturbed = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'undisturbed/mlflow.db')}"
    published([make_tracked_run(tmp_path, loss=0.25)], undisturbed)
    published([make_tracked_run(tmp_path, loss=0.5)], uri)  # the run to be replaced
    call = 1
    while killed_while_replacing(uri, tmp_path, call):
        assert any("quantspike.fingerprint" in run.data.tags for run in runs_of(uri)), "the old results are gone"
        call += 1
    assert call > 10  # one attempt for each call on the way
    published([make_tracked_run(tmp_path, loss=0.25)], uri)
    assert content(uri, the_run(uri)) == content(undisturbed, the_run(undisturbed))


def killed_while_replacing(uri: str, folder: Path, call: int) -> bool:
    """Publish results that differ from all before; return False if they are there before that call."""
    try:
        with killed_at(call):
            published([make_tracked_run(folder, loss=1 / (4 + call))], uri)
    except Killed:
        return True
    return False
