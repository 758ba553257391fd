"""What the tests of MLflow share: a server, a line to it that fails, processes to be killed, and what is stored."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantspike.tracking import TrackedModel, TrackedRun

LOCAL = "127.0.0.1"
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

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    def wait(self) -> None:
        """Waits until it answers."""
        end = time.monotonic() + 120
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)


@contextmanager
def starting_server(folder: Path, empty_database: Path) -> Iterator[Server]:
    """Starts a server on a copy of an empty database, and ends it."""
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
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])


class Line:
    """A line to a server: it can be cut, mended, and slow."""

    def __init__(self, server: Server) -> None:
        self._server, self.port = server, free_port()
        self.delay = 0.0
        self._sockets: list[socket.socket] = []
        self.mend()

    @property
    def uri(self) -> str:
        return f"http://{LOCAL}:{self.port}"

    def mend(self) -> None:
        """From now on connections go through."""
        listener = socket.create_server((LOCAL, self.port))
        self._sockets.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Breaks all connections off and refuses new ones."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((LOCAL, self._server.port))
                self._sockets += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                if answers:
                    time.sleep(self.delay)
                target.sendall(content)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def line_to(server: Server) -> Iterator[Line]:
    """A line that is cut in the end."""
    line = Line(server)
    try:
        yield line
    finally:
        line.cut()


def fork(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Calls a function in a copy of this process, which has MLflow loaded already."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri: str, key: str, experiment: str = "quantspike") -> list[Any]:
    """The runs of a chain that are not deleted, the current one first."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = client.search_runs([found.experiment_id], f"tags.`quantspike.chain` = '{key}'")
    return sorted(runs, key=lambda run: run.data.tags["quantspike.superseded"])


def the_run(uri: str, key: str) -> Any:
    """The only run of a chain."""
    (run,) = runs_of(uri, key)
    return run


def points_of(uri: str, run: Any, name: str) -> list[Point]:
    """A curve, by step."""
    return sorted((point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, name))


def artifacts_of(uri: str, run: Any, folder: str | None = None) -> list[str]:
    """Paths of all files of a run."""
    paths = []
    for found in client_of(uri).list_artifacts(run.info.run_id, folder):
        paths += artifacts_of(uri, run, found.path) if found.is_dir else [found.path]
    return sorted(paths)


def rows(database: Path) -> dict[str, int]:
    """Number of rows in every table."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}


@dataclass
class ResultFiles:
    """A chain's result files as a test makes them up, and the run that is to show them."""

    folder: Path
    key: str = "paper-cnn1-1-0"
    loss: float = 0.5
    changes: dict[str, Any] = field(default_factory=dict)

    def run(self) -> TrackedRun:
        """Writes the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        result, figure = self.folder / f"{self.key}.csv", self.folder / "sops.png"
        result.write_text(f"epoch,loss\n1,{self.loss}\n")
        figure.write_bytes(b"a picture")
        content: dict[str, Any] = {
            "name": self.key,
            "key": self.key,
            "params": {"k": 1, "train.learning_rate": 1e-3},
            "tags": {"model": "cnn1", "mlflow.runColor": "#d55e00", "mlflow.user": "quantspike"},
            "description": f"| loss | {self.loss} |",
            "curves": {"train/loss": [(epoch, self.loss / epoch) for epoch in range(1, 301)]},
            "finals": {"final/ann_accuracy": 1 - self.loss},
            "artifacts": [(result, "metrics")],
            "extras": [(figure, "figures")],
            "seconds": 12.0,
            "commit": "abcd",
        }
        return TrackedRun(**(content | self.changes))


class Linear(torch.nn.Module):
    """The smallest classifier of images, 2 x 2 pixels in three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(images.flatten(1).float())
        return scores


def linear_model(accuracy: float = 0.5, digest: str = "one", alias: str = "paper-k1") -> TrackedModel:
    """A network that nobody has trained."""

    def load() -> tuple[Any, Any]:
        return Linear().eval(), np.zeros((2, 1, 2, 2), np.uint8)

    return TrackedModel(LINEAR, alias, accuracy, digest, load)


def versions_of(uri: str, name: str = LINEAR) -> list[Any]:
    """The versions of a registered network, with their aliases."""
    client = client_of(uri)
    return [client.get_model_version(name, found.version) for found in client.search_model_versions(f"name = '{name}'")]
