"""A training as MLflow shows it while it runs; MLflow's troubles cost it neither results nor time."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quantspike.tracking import live
from quantspike.tracking.live import LiveRun
from quantspike.tracking.publish import PublishReport
from quantspike.tracking.view import published_views
from tracking_processes import (
    KEY,
    LOCAL,
    Server,
    client_of,
    fork,
    free_port,
    make_tracked_run,
    points_of,
    published,
    runs_of,
    the_run,
    wait_until,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)

PROMISE = ". Nothing is lost: `make publish` delivers the results later"
FOR_EVER = 10_000.0


@pytest.fixture(autouse=True)
def hurried(starting_mlflow_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send every tenth of a second, and wait at the end until everything is delivered, on the slowest machine."""
    monkeypatch.setattr(live, "_INTERVAL", 0.1)
    monkeypatch.setattr(live, "_GRACE", 600.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


def live_run(uri: str, told: list[str] | None = None, **changes: Any) -> LiveRun:
    """Start a training that is shown from its first moment on."""
    content: dict[str, Any] = {
        "key": KEY,
        "name": "cnn1 k=1",
        "tags": {"profile": "paper", "model": "cnn1"},
        "params": {"k": 1, "train.epochs": 3},
        "fresh": True,
        "patience": 0.0,
        "tell": [].append if told is None else told.append,
    }
    return LiveRun(uri, **(content | changes))


def points(uri: str, key: str = KEY, name: str = "live/loss") -> list[tuple[int, float]]:
    """Return what the only run of a key shows so far."""
    return [point for run in runs_of(uri, key) for point in points_of(uri, run, name)]


def log_and_wait(training: LiveRun, uri: str, steps: range, key: str = KEY) -> None:
    """Log points and wait until the last one is stored."""
    for step in steps:
        training.log({"live/loss": float(step)}, step)
    wait_until(lambda: steps[-1] in dict(points(uri, key)))


def trained(uri: str, steps: range, status: str = "FINISHED", **changes: Any) -> None:
    """Train for some steps."""
    training = live_run(uri, **changes)
    log_and_wait(training, uri, steps, changes.get("key", KEY))
    training.close(status)


# While it runs


def test_points_arrive_in_batches_while_training_continues(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **rest: Any) -> None:
        sent.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    training = live_run(uri)
    for step in range(1500):
        training.log({"live/loss": 1 / (step + 1)}, step)
    wait_until(lambda: len(points(uri)) == 1500)
    assert the_run(uri).info.status == "RUNNING"
    training.close()
    assert points(uri) == [(step, 1 / (step + 1)) for step in range(1500)]
    assert 1 < len([size for size in sent if size]) < 1500


def test_a_live_run_shows_what_it_is_and_has_its_views(uri: str) -> None:
    trained(uri, range(1))
    run = the_run(uri)
    assert (run.info.run_name, run.info.status) == ("cnn1 k=1", "FINISHED")
    assert run.data.params == {"k": "1", "train.epochs": "3"}
    assert {"model": "cnn1", "quantspike.live": "true"}.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.note.content"].startswith("In training, or stopped.")
    assert published_views(uri) == ("1", ["overview", "paper-cnn1"])


def test_a_training_shorter_than_the_patience_loads_nothing_and_creates_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from quantspike.tracking.live import LiveRun\n"
        "training = LiveRun(sys.argv[1], 'key', 'name', {}, {}, fresh=True, patience=10_000.0)\n"
        "training.log({'live/loss': 1.0}, 1)\n"
        "training.close()\n"
        "print('mlflow' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_ends_while_mlflow_is_loaded_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    loading, loaded = threading.Event(), threading.Event()

    def load(self: LiveRun) -> None:
        loading.set()
        loaded.wait()

    monkeypatch.setattr(LiveRun, "_load", load)
    monkeypatch.setattr(live, "_GRACE", 0.0)
    training = live_run(f"sqlite:///{tmp_path}/mlflow.db", told)
    loading.wait()
    training.close()
    loaded.set()
    training._thread.join()
    assert (told, list(tmp_path.iterdir())) == ([], [])


def test_points_that_are_never_sent_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_BACKLOG", 1000)
    training = live_run("sqlite:///nowhere/mlflow.db", patience=FOR_EVER)
    for step in range(5000):
        training.log({"live/loss": 0.5}, step)
    assert [step for _, _, _, step in training._points] == list(range(4000, 5000))
    training.close()


def test_a_point_is_due_after_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(live, "_INTERVAL", 3.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now))
    training = live_run("sqlite:///nowhere/mlflow.db", patience=FOR_EVER)
    due = []
    for now in (100.0, 102.9, 103.0, 105.9, 106.5, 106.6):  # noqa: B007 (the clock reads it)
        due.append(training.due())
    assert due == [False, False, True, False, True, False]
    training.close()


# One run over several processes


def test_a_training_that_continues_fills_its_run_on(uri: str) -> None:
    trained(uri, range(2), "KILLED")
    before = the_run(uri).info
    assert before.status == "KILLED"
    training = live_run(uri, fresh=False)
    log_and_wait(training, uri, range(2, 4))
    assert the_run(uri).info.status == "RUNNING"
    training.close()
    after = the_run(uri).info
    assert (after.run_id, after.status) == (before.run_id, "FINISHED")
    assert [step for step, _ in points(uri)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes", [{"fresh": True}, {"fresh": False, "params": {"k": 1, "train.epochs": 4}}], ids=["anew", "settings"]
)
def test_a_training_that_starts_anew_or_with_other_settings_replaces_its_run(changes: Any, uri: str) -> None:
    trained(uri, range(3), "KILLED")
    trained(uri, range(5, 8), **changes)
    assert [step for step, _ in points(uri)] == [5, 6, 7]


def test_runs_of_other_keys_are_left_alone(uri: str) -> None:
    trained(uri, range(3), "FAILED")
    trained(uri, range(1), key="paper-cnn1-2-0")
    assert len(points(uri)) == 3
    assert the_run(uri).info.status == "FAILED"


def test_the_published_run_replaces_the_live_one(uri: str, tmp_path: Path) -> None:
    trained(uri, range(3))
    run = make_tracked_run(tmp_path / "files")
    assert published([run], uri) == PublishReport(created=1)
    found = the_run(uri)
    assert "quantspike.live" not in found.data.tags
    assert len(points_of(uri, found, "train/loss")) == 300
    # Trained again with the same result:
    trained(uri, range(1))
    assert published([run], uri) == PublishReport(unchanged=1)
    assert the_run(uri).info.run_id == found.info.run_id


def test_a_training_is_shown_on_a_server(mlflow_server: Server) -> None:
    trained(mlflow_server.uri, range(3), key="shown-cnn1-1-0")
    assert len(points(mlflow_server.uri, "shown-cnn1-1-0")) == 3


# What goes wrong


def test_points_that_waited_for_the_store_arrive_when_it_is_back(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    training = live_run(uri, told)
    log_and_wait(training, uri, range(1))
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_batch", _away)
        for step in range(1, 1500):  # more than a batch
            training.log({"live/loss": float(step)}, step)
        wait_until(lambda: told)
    training.close()
    assert points(uri) == [(step, float(step)) for step in range(1500)]
    assert told == [f"note: MLflow at {uri} cannot be used: the line is cut{PROMISE}"]
    assert the_run(uri).info.status == "FINISHED"


def _away(*_: object, **__: object) -> None:
    raise ConnectionError("the line is cut\nand more")


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "error code 401"), (404, "error code 404"), (503, "too many 503 error responses")],
)
def test_a_server_that_refuses_is_told_in_one_line(status: int, problem: str) -> None:
    told: list[str] = []
    with refusing_server(status) as uri:
        training = live_run(uri, told)
        wait_until(lambda: told)
        training.close()
    assert told == [f"note: MLflow at {uri} cannot be used: {problem}{PROMISE}"]


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers everything with a status and a page of text."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>\nYou are not authenticated.\n</html>")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    handler = type("Handler", (_Refusing,), {"status": status})
    with http.server.ThreadingHTTPServer((LOCAL, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://{LOCAL}:{server.server_port}"
        server.shutdown()


def test_a_server_that_never_answers_delays_the_end_only_for_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(live, "_GRACE", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")  # so that only `close` can end it
    with socket.create_server((LOCAL, 0)) as silent:
        uri = f"http://{LOCAL}:{silent.getsockname()[1]}"
        training = live_run(uri, told)
        wait_until(lambda: training._loaded)
        training.close()
        assert training._thread.is_alive()
        assert training._thread.daemon  # so that the end of the process does not wait for it
    assert told == [f"note: MLflow at {uri} is too slow{PROMISE}"]


def test_a_database_that_another_process_locks_gets_the_points_later(uri: str, tmp_path: Path) -> None:
    training = live_run(uri)
    log_and_wait(training, uri, range(1))
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        training.log({"live/loss": 1.0}, 1)
        wait_until(lambda: not training._points)  # the thread has taken the point and waits
        other.execute("COMMIT")
    training.close()
    assert [step for step, _ in points(uri)] == [0, 1]
    assert the_run(uri).info.status == "FINISHED"


@pytest.mark.skipif(os.name != "posix", reason="this system has no limits for processes")
def test_a_full_disk_is_told_in_one_line(uri: str, tmp_path: Path) -> None:
    process = fork(_train_without_room, uri, tmp_path)
    process.join(600)
    assert process.exitcode == 0
    (line,) = (tmp_path / "told.txt").read_text().splitlines()
    assert line.startswith(f"note: MLflow at {uri} cannot be used: (sqlite3.OperationalError) d")  # disk I/O, or full
    assert line.endswith(PROMISE)
    assert (tmp_path / "stderr.txt").read_text() == ""
    assert published([make_tracked_run(tmp_path / "files")], uri) == PublishReport(created=1)


def _train_without_room(uri: str, folder: Path) -> None:
    import resource
    import signal

    os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (pytest has put another one there)
    told: list[str] = []
    training = live_run(uri, told)
    wait_until(lambda: runs_of(uri))
    (folder / "told.txt").touch()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (folder / "mlflow.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for step in range(20_000):
        training.log({"live/loss": 1.0}, step)
    wait_until(lambda: told)
    training.close()
    with contextlib.suppress(OSError):
        (folder / "told.txt").write_text("\n".join(told))


def test_without_mlflow_a_training_is_not_shown_and_told_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow", None)
    training = live_run("sqlite:///nowhere/mlflow.db", told)
    wait_until(lambda: told)
    training.log({"live/loss": 1.0}, 1)
    training.close()
    assert told == [f"note: MLflow cannot be used: pip install mlflow{PROMISE}"]


def test_where_nobody_can_be_told_training_continues() -> None:
    def tell(text: str) -> None:
        raise BrokenPipeError

    training = live_run(f"http://{LOCAL}:{free_port()}", tell=tell)
    wait_until(lambda: training._told)
    training.close()


def test_a_deleted_experiment_is_told_with_the_way_back(uri: str) -> None:
    told: list[str] = []
    published([], uri)
    client_of(uri).delete_experiment("1")
    training = live_run(uri, told)
    wait_until(lambda: told)
    training.close()
    (line,) = told
    assert line.startswith("note: the experiment quantspike is deleted: restore it with `MLFLOW_TRACKING_URI=sqlite:")
    assert line.endswith(PROMISE)


def test_a_run_that_was_deleted_is_told_once(uri: str) -> None:
    told: list[str] = []
    training = live_run(uri, told)
    log_and_wait(training, uri, range(1))
    client_of(uri).delete_run(the_run(uri).info.run_id)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: told)
    training.close()
    (line,) = told
    assert "must be in the 'active' state" in line
