"""The command that opens MLflow's pages, up to the point where it becomes the server."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path

import pytest

from quantspike import ui

URI = "sqlite:////project/mlflow.db"


@pytest.fixture(autouse=True)
def in_an_empty_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ui", *arguments])
    ui.main()


def test_where_nothing_was_published_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SystemExit, match=r"^error: nothing is published in sqlite:///.*mlflow\.db yet: run `dvc repro`"
    ):
        call(monkeypatch)


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "published_views", lambda uri: ("1", []))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"^error: port {port} cannot be used .*: name another one with --port$"):
            call(monkeypatch, "--port", str(port))


def test_the_server_is_bound_to_this_machine_and_the_address_opens_the_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(ui, "published_views", lambda uri: ("7", ["overview", "demo-cnn1"]))
    monkeypatch.setattr(os, "execve", lambda path, command, environment: started.append((command, environment)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    call(monkeypatch, "--port", port)
    ((command, environment),) = started
    assert command[1:] == ["-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", port]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == URI
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    page = f"http://127.0.0.1:{port}/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert capsys.readouterr().out == (
        "Compare the runs at\n"
        f"  overview   {page}&viewStateShareKey=overview\n"
        f"  demo-cnn1  {page}&viewStateShareKey=demo-cnn1\n"
    )


def test_where_no_view_was_published_the_page_opens_as_usual(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ui, "published_views", lambda uri: ("7", []))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@server:5000")
    call(monkeypatch)
    page = "http://server:5000/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert capsys.readouterr().out == f"Compare the runs at {page}\n"


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_a_server_elsewhere_that_is_away_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(SystemExit, match=r"^error: MLflow at http://127\.0\.0\.1:9 cannot be used"):
        call(monkeypatch)
