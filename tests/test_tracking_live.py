"""A training as MLflow shows it while it runs, and that MLflow's troubles cost it neither results nor much time."""

from __future__ import annotations

import copy
import functools
import http.server
import importlib.util
import os
import runpy
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import PARAMS
from quantspike import phases
from quantspike.display import Display
from quantspike.tracking import LiveRun, PublishReport, live, publish
from stage_processes import ALL_K, CHAIN, STAGES, limit_files, wait_until
from tracking_processes import (
    LOCAL,
    ResultFiles,
    Server,
    client_of,
    fork,
    free_port,
    line_to,
    points_of,
    rows,
    runs_of,
    the_run,
)

if importlib.util.find_spec("mlflow") is None:
    pytest.skip("mlflow is not installed", allow_module_level=True)
if os.name != "posix":
    pytest.skip("this system has no signals and copies of processes", allow_module_level=True)

KEY = "demo-cnn1-1-0"
PROMISE = ". Nothing is lost: `make publish` delivers the results when they are there"


@pytest.fixture(autouse=True)
def no_settings_of_the_user(starting_mlflow_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("QUANTSPIKE_TRACKING", raising=False)


@pytest.fixture
def database(tmp_path: Path, empty_database: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenths of seconds in place of seconds."""
    monkeypatch.setattr(live, "_PAUSE", 0.1)
    monkeypatch.setattr(live, "_SYSTEM_PAUSE", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.fixture(autouse=True, scope="module")
def unanswered() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process whose training ends before a server has answered; begun early, since it takes seven seconds."""
    code = (
        "import atexit, sys, time\n"
        # First, so that it comes last, after what MLflow does at the end of a process.
        "atexit.register(lambda: print(time.monotonic() - start))\n"
        "from quantspike.tracking import LiveRun\n"
        "training = LiveRun(sys.argv[1], 'key', 'name', {}, {}, fresh=True, patience=0.0)\n"
        "training.log({'live/loss': 1.0}, 1)\n"
        "while not training._loaded:\n"
        "    time.sleep(0.01)\n"
        "start = time.monotonic()\n"
        "training.close()\n"
        "print(time.monotonic() - start)\n"
    )
    with socket.create_server((LOCAL, 0)) as silent:
        uri = f"http://{LOCAL}:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", code, uri]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=clean, **pipes) as process:
            yield uri, process
            process.kill()


def live_run(uri: str, told: list[str] | None = None, key: str = KEY, **changes: Any) -> LiveRun:
    """A training that is shown from its first moment on."""
    settings: dict[str, Any] = {"fresh": True, "patience": 0.0, "params": {"k": 1, "train.epochs": 3}} | changes
    tell = (lambda text: None) if told is None else told.append
    return LiveRun(uri, key, "cnn1 k=1", {"model": "cnn1"}, settings.pop("params"), tell=tell, **settings)


def seconds_to_close(training: LiveRun, status: str = "FINISHED") -> float:
    start = time.monotonic()
    training.close(status)
    return time.monotonic() - start


def points(uri: str, key: str = KEY, name: str = "live/loss") -> list[tuple[int, float]]:
    """What the only run of a chain shows so far."""
    runs = runs_of(uri, key)
    return points_of(uri, runs[0], name) if runs else []


def assert_publish_delivers(uri: str, folder: Path, key: str = KEY) -> None:
    """The run from files takes the place of whatever a training has left."""
    assert publish([ResultFiles(folder, key).run()], uri=uri) == PublishReport(created=1)
    run = the_run(uri, key)
    assert (run.info.status, run.data.tags["quantspike.complete"]) == ("FINISHED", "true")
    assert len(points_of(uri, run, "train/loss")) == 300


# While it runs


def test_points_arrive_in_batches_while_training_goes_on(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **rest: Any) -> None:
        sent.append(len(metrics))
        log_batch(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    monkeypatch.setattr(live, "_PAUSE", 0.3)
    training = live_run(uri)
    for step in range(100):
        training.log({"live/loss": 1 / (step + 1)}, step)
        time.sleep(0.01)
    wait_until(lambda: points(uri))
    assert the_run(uri, KEY).info.status == "RUNNING"
    training.close()
    assert points(uri) == [(step, 1 / (step + 1)) for step in range(100)]
    assert len(sent) < 15  # a second is three pauses, and the params come first


def test_a_run_tells_what_it_is_of(uri: str) -> None:
    training = live_run(uri)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: points(uri))
    training.close()
    run = the_run(uri, KEY)
    assert run.info.run_name == "cnn1 k=1"
    assert run.data.params == {"k": "1", "train.epochs": "3"}
    expected = {"model": "cnn1", "quantspike.live": "true", "quantspike.superseded": "false"}
    assert expected.items() <= run.data.tags.items()
    assert "In training, or stopped there" in run.data.tags["mlflow.note.content"]


def test_a_training_shorter_than_the_patience_loads_nothing_and_makes_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from quantspike.tracking import LiveRun\n"
        "training = LiveRun(sys.argv[1], 'key', 'name', {}, {}, fresh=True)\n"
        "training.log({'live/loss': 1.0}, 1)\n"
        "start = time.monotonic()\n"
        "training.close()\n"
        "print('mlflow' in sys.modules, time.monotonic() - start < 1)\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_ends_while_mlflow_is_loaded_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    loading = threading.Event()
    monkeypatch.setattr(live._Sender, "load", lambda self: loading.wait(5))
    training = live_run(f"sqlite:///{tmp_path}/mlflow.db", told)
    threading.Timer(0.2, loading.set).start()
    assert seconds_to_close(training) < 2
    assert (told, list(tmp_path.iterdir())) == ([], [])


def test_taking_points_costs_microseconds(uri: str) -> None:
    training = live_run(uri, patience=100.0)
    values = {"live/loss": 0.5, "live/accuracy": 0.25, "live/images_per_second": 100.0}
    times = []
    for step in range(1000):
        start = time.perf_counter()
        training.log(values, step)
        times.append(time.perf_counter() - start)
    training.close()
    assert statistics.median(times) < 100e-6  # about 2 where nothing else runs


def test_points_that_nobody_takes_do_not_fill_the_memory(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_LARGEST_BACKLOG", 1000)
    training = live_run(uri, patience=100.0)
    for step in range(5000):
        training.log({"live/loss": 0.5}, step)
    assert [step for _, _, _, step in training._points] == list(range(4000, 5000))
    training.close()


def test_of_steps_a_point_now_and_then_is_due(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_PAUSE", 0.05)
    training = live_run(uri, patience=100.0)
    assert not training.due()
    time.sleep(0.06)
    assert [training.due(), training.due()] == [True, False]
    training.close()


@pytest.mark.usefixtures("hurried")
def test_the_load_of_the_machine_is_measured(uri: str) -> None:
    training = live_run(uri)
    wait_until(lambda: len(points(uri, name="system/cpu_utilization_percentage")) > 1)
    training.close()
    measures = {name for name in the_run(uri, KEY).data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} < measures
    steps = [step for step, _ in points(uri, name="system/cpu_utilization_percentage")]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.usefixtures("hurried")
def test_a_collector_that_fails_keeps_no_points_away(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def collect_metrics(self) -> None:
            raise RuntimeError("the driver is gone")

    told: list[str] = []
    monkeypatch.setattr(live, "_monitors", lambda: [Broken()])
    training = live_run(uri, told)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: points(uri))
    training.close()
    assert told == []


# One run over several processes


def trained(uri: str, steps: range, status: str = "FINISHED", **changes: Any) -> None:
    """A process that trained for some steps."""
    training = live_run(uri, **changes)
    for step in steps:
        training.log({"live/loss": float(step)}, step)
    wait_until(lambda: steps[0] in dict(points(uri)))
    training.close(status)


@pytest.mark.usefixtures("hurried")
def test_a_training_that_goes_on_fills_its_run_on(uri: str) -> None:
    def measured() -> list[int]:
        return [step for step, _ in points(uri, name="system/cpu_utilization_percentage")]

    training = live_run(uri)
    training.log({"live/loss": 0.0}, 0)
    wait_until(measured)
    training.close("KILLED")
    before = the_run(uri, KEY).info
    assert before.status == "KILLED"
    count = len(measured())
    training = live_run(uri, fresh=False)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: len(measured()) > count)
    assert the_run(uri, KEY).info.status == "RUNNING"
    training.close()
    after = the_run(uri, KEY).info
    assert (after.run_id, after.status) == (before.run_id, "FINISHED")
    assert points(uri) == [(0, 0.0), (1, 1.0)]
    assert measured() == list(range(1, len(measured()) + 1))


def test_a_training_that_begins_anew_takes_the_place_of_its_run(uri: str) -> None:
    trained(uri, range(3), "KILLED")
    trained(uri, range(5, 8))
    assert [step for step, _ in points(uri)] == [5, 6, 7]


def test_with_other_settings_it_shows_a_new_run(uri: str) -> None:
    trained(uri, range(3), "KILLED")
    trained(uri, range(3, 6), fresh=False, params={"k": 1, "train.epochs": 4})
    assert the_run(uri, KEY).data.params["train.epochs"] == "4"
    assert [step for step, _ in points(uri)] == [3, 4, 5]


def test_runs_of_other_chains_are_left_alone(uri: str) -> None:
    trained(uri, range(3))
    training = live_run(uri, key="demo-cnn1-2-0")
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: points(uri, "demo-cnn1-2-0"))
    training.close()
    assert len(points(uri)) == 3


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "FAILED"])
def test_the_end_is_told(status: str, uri: str) -> None:
    trained(uri, range(1), status)
    assert the_run(uri, KEY).info.status == status


# And then published


@pytest.mark.usefixtures("hurried")
def test_publishing_takes_over_what_no_file_knows(uri: str, database: Path, tmp_path: Path) -> None:
    training = live_run(uri)
    training.log({"live/loss": 1.0, "train/loss": 7.0}, 1)
    wait_until(lambda: points(uri, name="system/disk_usage_percentage"))
    training.close()
    measured = {name: points(uri, name=name) for name in the_run(uri, KEY).data.metrics if name.startswith("system/")}
    run = ResultFiles(tmp_path / "files", KEY).run()
    assert publish([run], uri=uri) == PublishReport(created=1)
    found = the_run(uri, KEY)
    assert "quantspike.live" not in found.data.tags
    assert {name: points_of(uri, found, name) for name in found.data.metrics if "system/" in name} == measured
    assert not [name for name in found.data.metrics if name.startswith("live/")]
    assert points_of(uri, found, "train/loss") == [(step, 0.5 / step) for step in range(1, 301)]
    before = rows(database)
    assert publish([run], uri=uri) == PublishReport(unchanged=1)
    assert rows(database) == before


def test_a_training_that_began_after_the_results_were_written_stays(uri: str, tmp_path: Path) -> None:
    run = ResultFiles(tmp_path / "files", KEY).run()
    an_hour_ago = time.time() - 3600
    for path, _ in run.artifacts:
        os.utime(path, (an_hour_ago, an_hour_ago))
    training = live_run(uri)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: points(uri))
    assert publish([run], uri=uri) == PublishReport(created=1)
    training.log({"live/loss": 0.5}, 2)
    training.close()
    shown = {found.data.tags.get("quantspike.live", "false"): found for found in runs_of(uri, KEY)}
    assert set(shown) == {"true", "false"}
    assert points_of(uri, shown["true"], "live/loss") == [(1, 1.0), (2, 0.5)]
    for path, _ in run.artifacts:  # the later results
        path.write_text("epoch,loss\n1,0.1\n")
    assert publish([run], uri=uri) == PublishReport(created=1, superseded=1)
    assert [found.data.tags.get("quantspike.live") for found in runs_of(uri, KEY)] == [None, None]


def test_eight_trainings_at_once_make_the_database_that_a_killed_one_left_half_made_and_lose_nothing(
    tmp_path: Path,
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    killed = fork(_make_database, uri)
    # Not SQLite's journal beside it, which may be gone by the time it is looked at; a hexadecimal name is followed by
    # "-journal" there.
    wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob("mlflow.db.new-*[0-9a-f]")))
    killed.kill()
    killed.join()
    assert not (tmp_path / "mlflow.db").exists()
    keys = [f"demo-cnn1-1-{seed}" for seed in range(8)]
    processes = [fork(_train_and_publish, uri, key, tmp_path / key) for key in keys]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["mlflow.db", "mlflow.db.lock"]
    for key in keys:
        told, sent = (tmp_path / key / "told.txt").read_text(), (tmp_path / key / "sent.txt").read_text()
        assert (told, sent) == ("", "100")
        run = the_run(uri, key)
        assert (run.info.status, run.data.tags["quantspike.complete"]) == ("FINISHED", "true")
        assert len(points_of(uri, run, "train/loss")) == 300


def _make_database(uri: str) -> None:
    publish([], uri=uri)


def _train_and_publish(uri: str, key: str, folder: Path) -> None:
    live._PAUSE, live._LAST_CHANCE = 0.1, 60.0  # as if the training went on
    told: list[str] = []
    training = live_run(uri, told, key)
    for step in range(100):
        training.log({"live/loss": 1.0}, step)
        time.sleep(0.01)
    wait_until(lambda: training._loaded, 100)
    training.close()
    sent = len(points(uri, key))
    run = ResultFiles(folder, key).run()
    (folder / "told.txt").write_text("\n".join(told))
    (folder / "sent.txt").write_text(str(sent))
    assert publish([run], uri=uri) == PublishReport(created=1)


# A real stage


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    stage(folder, "download", CHAIN[:4])
    return folder / "data" / "tiny" / "images.safetensors"


@pytest.fixture
def project(tmp_path: Path, images: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which trainings are shown from their first moment on."""
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "tiny" / images.name).hardlink_to(images)
    content = copy.deepcopy(PARAMS)
    content["run"]["k"] = ["fp32"]
    content["profiles"]["tiny"]["train"]["epochs"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(phases, "LiveRun", functools.partial(LiveRun, patience=0.0))
    monkeypatch.setattr(live, "_PAUSE", 0.05)
    return tmp_path


def stage(folder: Path, name: str, arguments: list[str] | None = None) -> None:
    """Runs a stage in this process."""
    chain = [*CHAIN[:-3], "fp32", *CHAIN[-2:]] if arguments is None else arguments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *chain])
        patch.chdir(folder)
        runpy.run_path(str(STAGES / f"{name}.py"), run_name="__main__")


def test_a_chain_is_one_run_from_its_first_epoch_to_its_published_results(
    project: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "tiny-small-fp32-0"
    stage(project, "train")
    training = the_run(uri, key)
    assert (training.info.run_name, training.info.status) == ("small fp32", "FINISHED")
    assert training.data.params["train.epochs"] == "2"
    assert [step for step, _ in points(uri, key, "train/test_accuracy")] == [1, 2]
    stage(project, "finetune")
    assert the_run(uri, key).info.run_id == training.info.run_id
    assert [step for step, _ in points(uri, key, "finetune/test_accuracy")] == [3]
    steps = [step for step, _ in points(uri, key, "live/loss")]
    assert steps[0] < 26 < 52 < steps[-1]  # (1437 - 100) / 50 images make 27 steps an epoch, of three
    shown = {name: points(uri, key, name) for name in ("train/loss", "finetune/loss", "finetune/validation_accuracy")}
    for name in ("evaluate", "convert", "simulate"):
        stage(project, name)
    capsys.readouterr()
    stage(project, "publish", [])
    assert capsys.readouterr() == (
        f"MLflow: 1 created, 0 updated, 0 unchanged, 0 superseded in sqlite:///{project.resolve()}/mlflow.db\n",
        "",
    )
    run = the_run(uri, key)
    assert run.info.run_id != training.info.run_id
    # Result files have fewer digits.
    for name, curve in shown.items():
        assert points_of(uri, run, name) == [(step, pytest.approx(value, abs=1e-4)) for step, value in curve]


def test_what_every_k_shares_shows_in_the_run_in_full_precision_which_goes_on(project: Path, uri: str) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["profiles"]["tiny"]["pretrain"]["epochs"] = 3
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    full, quantized = "tiny-small-fp32-0", "tiny-small-1-0"
    stage(project, "pretrain", ALL_K)
    first = the_run(uri, full)
    assert [step for step, _ in points(uri, full, "pretrain/loss")] == [1, 2, 3]
    stage(project, "train")
    stage(project, "finetune")
    assert the_run(uri, full).info.run_id == first.info.run_id
    assert [step for step, _ in points(uri, full, "train/loss")] == [4, 5]
    assert [step for step, _ in points(uri, full, "finetune/loss")] == [6]
    stage(project, "train", CHAIN)
    assert [step for step, _ in points(uri, quantized, "train/loss")] == [4, 5]
    assert the_run(uri, full).info.run_id == first.info.run_id


def test_a_pretraining_is_not_shown_where_no_chain_would_take_its_run_over(project: Path, uri: str) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["profiles"]["tiny"]["pretrain"]["epochs"] = 3
    content["run"]["k"] = [1]
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    stage(project, "pretrain", ALL_K)
    stage(project, "train", CHAIN)
    assert runs_of(uri, "tiny-small-fp32-0") == []
    assert [step for step, _ in points(uri, "tiny-small-1-0", "train/loss")] == [4, 5]


def test_a_stage_that_is_stopped_says_so_and_goes_on_in_the_same_run(
    project: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, measured = "tiny-small-fp32-0", Display.measured

    def then_stop(display: Display, training: Any, epoch: Any) -> None:
        measured(display, training, epoch)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "measured", then_stop)
        with pytest.raises(SystemExit):
            stage(project, "train")
    stopped = the_run(uri, key)
    assert stopped.info.status == "KILLED"
    stage(project, "train")
    run = the_run(uri, key)
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    assert [step for step, _ in points(uri, key, "train/loss")] == [1, 2]


@pytest.mark.parametrize("what", ["a loss that is not finite", "a defect"])
def test_a_stage_that_fails_says_so(what: str, project: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(scores: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        wait_until(lambda: runs_of(uri, "tiny-small-fp32-0"))
        if what == "a defect":
            raise RuntimeError("out of memory")
        return scores.sum() * torch.nan

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", loss)
    with pytest.raises(SystemExit if what == "a loss that is not finite" else RuntimeError):
        stage(project, "train")
    assert the_run(uri, "tiny-small-fp32-0").info.status == "FAILED"


def test_a_training_that_is_shown_ends_in_the_same_weights(
    project: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = project / "data/tiny/small-fp32-0/train.safetensors"
    stage(project, "train")
    shown = weights.read_bytes()
    assert len(points(uri, "tiny-small-fp32-0", "train/loss")) == 2
    shutil.rmtree(project / "data" / "resume")
    weights.unlink()
    monkeypatch.setenv("QUANTSPIKE_TRACKING", "off")
    stage(project, "train")
    assert weights.read_bytes() == shown


def test_a_training_without_mlflow_is_not_shown_and_not_disturbed(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    stage(project, "train")
    assert capsys.readouterr().err == ""


# What goes wrong


@pytest.mark.usefixtures("hurried")
def test_a_server_that_is_not_there_is_told_once_and_costs_nothing() -> None:
    told: list[str] = []
    port = free_port()
    training = live_run(f"http://someone:secret@{LOCAL}:{port}", told)
    for step in range(5):
        training.log({"live/loss": 1.0}, step)
        time.sleep(0.1)
    assert seconds_to_close(training) < 1
    (line,) = told
    assert line.startswith(f"note: MLflow at http://{LOCAL}:{port} cannot be used: [Errno ")
    assert line.endswith(f"Connection refused{PROMISE}")


@pytest.mark.usefixtures("hurried")
def test_points_that_waited_for_a_server_arrive_when_it_is_back(mlflow_server: Server, tmp_path: Path) -> None:
    told: list[str] = []
    with line_to(mlflow_server) as line:
        training = live_run(line.uri, told)
        training.log({"live/loss": 0.0}, 0)
        wait_until(lambda: points(mlflow_server.uri))
        line.cut()
        for step in range(1, 1500):  # more than a batch
            training.log({"live/loss": float(step)}, step)
        wait_until(lambda: told)
        line.mend()
        wait_until(lambda: time.sleep(0.2) or len(points(mlflow_server.uri)) == 1500)
        training.log({"live/loss": 1500.0}, 1500)
        training.close()
        assert points(mlflow_server.uri) == [(step, float(step)) for step in range(1501)]
        assert (len(told), the_run(mlflow_server.uri, KEY).info.status) == (1, "FINISHED")
        assert_publish_delivers(line.uri, tmp_path)


@pytest.mark.usefixtures("hurried")
def test_a_slow_server_gets_what_it_can_take_and_delays_the_end_a_little(
    mlflow_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, told = "slow-cnn1-1-0", []
    monkeypatch.setattr(live, "_LAST_CHANCE", 0.5)
    with line_to(mlflow_server) as line:
        line.delay = 0.1
        training = live_run(line.uri, told, key)
        training.log({"live/loss": 1.0}, 1)
        wait_until(lambda: points(mlflow_server.uri, key))
        line.delay = 2.0
        training.log({"live/loss": 2.0}, 2)
        assert seconds_to_close(training) < 1
        assert told == [f"note: MLflow at {line.uri} is too slow{PROMISE}"]
        line.cut()
    assert_publish_delivers(mlflow_server.uri, tmp_path, key)


def test_a_server_that_never_answers_delays_the_end_of_a_process_by_five_seconds(
    unanswered: tuple[str, subprocess.Popen[str]],
) -> None:
    uri, process = unanswered
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, f"note: MLflow at {uri} is too slow{PROMISE}\n")
    closing, all_of_it = map(float, output.split())
    assert 4.9 < closing < 9  # a request and its second try would take ten
    assert all_of_it < 30  # no thread holds the process up afterwards


@pytest.mark.usefixtures("hurried")
def test_a_server_that_never_answers_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # five otherwise, twice
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(live, "_LAST_CHANCE", 0.1)
    with socket.create_server((LOCAL, 0)) as silent:
        uri = f"http://{LOCAL}:{silent.getsockname()[1]}"
        training = live_run(uri, told)
        wait_until(lambda: told)
        training.close()
    assert told == [f"note: MLflow at {uri} cannot be used: timed out{PROMISE}"]


class _Refusing(http.server.BaseHTTPRequestHandler):
    """Answers everything with a status and a page of text."""

    status = 401

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>\nYou are not authenticated.\n</html>")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def refusing_server(status: int) -> Iterator[str]:
    handler = type("Handler", (_Refusing,), {"status": status})
    with http.server.ThreadingHTTPServer((LOCAL, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://{LOCAL}:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (401, "it answers with status 401: MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD is wrong"),
        (404, "it answers with status 404"),
        (503, "too many 503 error responses"),
    ],
)
@pytest.mark.usefixtures("hurried")
def test_a_server_that_refuses_is_told_in_one_line(status: int, problem: str) -> None:
    told: list[str] = []
    with refusing_server(status) as uri:
        training = live_run(uri, told)
        training.log({"live/loss": 1.0}, 1)
        wait_until(lambda: told)
        training.close()
    assert told == [f"note: MLflow at {uri} cannot be used: {problem}{PROMISE}"]


@pytest.mark.usefixtures("hurried")
def test_a_database_that_another_process_has_locked_gets_the_points_later(uri: str, database: Path) -> None:
    told: list[str] = []
    training = live_run(uri, told)
    training.log({"live/loss": 0.0}, 0)
    wait_until(lambda: points(uri))
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        training.log({"live/loss": 1.0}, 1)
        time.sleep(0.5)
        other.execute("COMMIT")
    wait_until(lambda: len(points(uri)) == 2)
    training.close()
    assert (told, the_run(uri, KEY).info.status) == ([], "FINISHED")


def test_a_database_that_stays_locked_delays_the_end_a_little(
    uri: str, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    training = live_run(uri, told)
    training.log({"live/loss": 0.0}, 0)
    wait_until(lambda: points(uri))
    monkeypatch.setattr(live, "_LAST_CHANCE", 0.5)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        training.log({"live/loss": 1.0}, 1)
        assert seconds_to_close(training) < 1
        other.execute("COMMIT")
    assert told == [f"note: MLflow at {uri} is too slow{PROMISE}"]
    training._thread.join()
    assert_publish_delivers(uri, tmp_path)


def test_a_full_disk_is_told_in_one_line(uri: str, database: Path, tmp_path: Path) -> None:
    process = fork(_train_without_room, uri, tmp_path, database.stat().st_size)
    process.join(60)
    assert process.exitcode == 0
    (line,) = (tmp_path / "told.txt").read_text().splitlines()
    assert line.startswith(f"note: {database} cannot be used: (sqlite3.OperationalError) d")  # disk I/O error, or full
    assert line.endswith(PROMISE)
    assert (tmp_path / "stderr.txt").read_text() == ""
    assert_publish_delivers(uri, tmp_path)


def _train_without_room(uri: str, folder: Path, room: int) -> None:
    os.dup2(os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (pytest has put another one there)
    live._PAUSE = 0.1
    told: list[str] = []
    (folder / "told.txt").touch()
    training = live_run(uri, told)
    wait_until(lambda: runs_of(uri, KEY))
    limit_files(room)
    for step in range(20_000):
        training.log({"live/loss": 1.0}, step)
    wait_until(lambda: told)
    training.close()
    (folder / "told.txt").open("r+").write("\n".join(told))


def test_a_fault_that_nobody_thought_of_is_told_in_one_line(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def fail(*_: object) -> None:
        raise ValueError("what is\nthis")

    monkeypatch.setattr(live._Sender, "_open", fail)
    training = live_run(uri, told)
    wait_until(lambda: told)
    training.close()
    assert told == [f"note: MLflow at {uri} fails: ValueError: what is{PROMISE}"]


def test_where_mlflow_is_broken_that_is_told_in_one_line(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    training = live_run(uri, told)
    wait_until(lambda: told)
    assert seconds_to_close(training) < 1
    assert told == [f"note: MLflow is not installed (no module mlflow.exceptions): pip install mlflow{PROMISE}"]


def test_where_nobody_can_be_told_training_goes_on() -> None:
    def tell(text: str) -> None:
        raise BrokenPipeError

    training = LiveRun(f"http://{LOCAL}:{free_port()}", KEY, "name", {}, {}, fresh=True, patience=0.0, tell=tell)
    wait_until(lambda: training._told)
    training.close()


@pytest.mark.usefixtures("hurried")
def test_a_run_that_was_deleted_meanwhile_is_told_once(uri: str) -> None:
    told: list[str] = []
    training = live_run(uri, told)
    training.log({"live/loss": 1.0}, 1)
    wait_until(lambda: points(uri))
    client_of(uri).delete_run(the_run(uri, KEY).info.run_id)
    for step in range(2, 10):
        training.log({"live/loss": 1.0}, step)
        time.sleep(0.1)
    training.close()
    (line,) = told
    assert "must be in the 'active' state" in line
