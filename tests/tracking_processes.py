"""What the tests of MLflow share: a server, other processes, made-up runs, and what is stored."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from quantspike.tracking.models import TrackedModel
from quantspike.tracking.publish import PublishReport, TrackedRun, publish

LOCAL = "127.0.0.1"
KEY = "paper-cnn1-1-0"
LINEAR = "quantspike-linear"

Point = tuple[int, float]


@dataclass(frozen=True)
class Server:
    """An MLflow server; its database and artifacts lie in a folder."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def uri(self) -> str:
        return f"http://{LOCAL}:{self.port}"

    def wait(self) -> None:
        """Wait until it answers."""
        wait_for_answer(f"{self.uri}/health", self.process)


def wait_for_answer(address: str, process: subprocess.Popen[Any]) -> None:
    """Wait until a server answers."""

    def answers() -> bool:
        assert process.poll() is None, "the server has ended"
        with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    wait_until(answers)


@contextmanager
def starting_server(folder: Path, empty_database: Path) -> Iterator[Server]:
    """Start a server on a copy of an empty database, and end it."""
    port, database = free_port(), shutil.copy(empty_database, folder / "mlflow.db")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", LOCAL, "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTEST_"))}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        yield Server(port, folder, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait for a state; the limit only ends a test that hangs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the state that the test waits for never came"
        time.sleep(0.02)


def fork(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Call a function in a copy of this process, which has MLflow loaded already."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def published(runs: Sequence[TrackedRun], uri: str) -> PublishReport:
    """Publish runs without views."""
    return publish(runs, uri=uri, views={})


def runs_of(uri: str, key: str = KEY) -> list[Any]:
    """Return the runs of a key that are not deleted."""
    client = client_of(uri)
    found = client.get_experiment_by_name("quantspike")
    return [] if found is None else client.search_runs([found.experiment_id], f"tags.`quantspike.key` = '{key}'")


def the_run(uri: str, key: str = KEY) -> Any:
    """Return the only run of a key."""
    (run,) = runs_of(uri, key)
    return run


def points_of(uri: str, run: Any, name: str) -> list[Point]:
    """Return a curve, by step."""
    return sorted((point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, name))


def artifacts_of(uri: str, run: Any, folder: str | None = None) -> list[str]:
    """Return the paths of all files of a run."""
    paths: list[str] = []
    for found in client_of(uri).list_artifacts(run.info.run_id, folder):
        paths += artifacts_of(uri, run, found.path) if found.is_dir else [found.path]
    return sorted(paths)


def versions_of(uri: str, name: str = LINEAR) -> list[Any]:
    """Return the versions of a registered network, with their aliases, by number."""
    client = client_of(uri)
    versions = [int(found.version) for found in client.search_model_versions(f"name = '{name}'")]
    return [client.get_model_version(name, str(version)) for version in sorted(versions)]


def rows(uri: str) -> dict[str, int]:
    """Return the number of rows in every table of an SQLite store."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}


def make_tracked_run(folder: Path, key: str = KEY, loss: float = 0.5, **changes: Any) -> TrackedRun:
    """Return a made-up run, with a result file and a figure; another loss is another result."""
    folder.mkdir(parents=True, exist_ok=True)
    result, figure = folder / f"{key}.csv", folder / "sops.png"
    result.write_text(f"epoch,loss\n1,{loss}\n")
    figure.write_bytes(b"a picture")
    content: dict[str, Any] = {
        "name": key,
        "key": key,
        "params": {"k": 1, "train.learning_rate": 1e-3},
        "tags": {"model": "cnn1", "mlflow.runColor": "#d55e00", "mlflow.user": "quantspike"},
        "description": f"| loss | {loss} |",
        "curves": {"train/loss": [(epoch, loss / epoch) for epoch in range(1, 301)]},
        "finals": {"final/ann_accuracy": 1 - loss},
        "files": [result],
        "figures": [figure],
    }
    return TrackedRun(**(content | changes))


class Linear(torch.nn.Module):
    """The smallest classifier of images, 2 x 2 pixels in three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(images.flatten(1).float())
        return scores


def linear_model(seed: int = 0, alias: str = "paper-k1", load: Callable[[], Any] | None = None) -> TrackedModel:
    """Return an untrained network."""
    return TrackedModel("linear", alias, seed, load or load_linear)


def load_linear() -> tuple[torch.nn.Module, torch.Tensor]:
    return Linear().eval(), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
