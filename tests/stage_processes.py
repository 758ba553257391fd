"""Stages on the tiny profile: in this process, or in one that tests can kill, forked without loading torch again.

The stages run in a project folder, whose params.yaml has a profile `tiny` and a model `small` as in conftest.PARAMS,
and without MLflow unless QUANTSPIKE_TRACKING is set.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from quantspike.workflow import cli

STAGES = Path(__file__).parents[1] / "stages"


def arguments(stage: str, k: int = 1) -> list[str]:
    """Return the command line of a stage, without the name of the script."""
    words = {"profile": "tiny", "model": "small", "k": str(k), "seed": "0"}
    named = {"download": ["profile"], "baseline": ["profile", "model", "seed"], "plot": ["profile", "model"]}
    return [word for name in named.get(stage, words) for word in (f"--{name}", words[name])]


def run_here(folder: Path, stage: str, k: int = 1) -> None:
    """Run a stage in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{stage}.py", *arguments(stage, k)])
        patch.setattr(cli, "end_with_parent", lambda: None)  # the parent of pytest is nobody's business
        patch.setenv("QUANTSPIKE_TRACKING", os.environ.get("QUANTSPIKE_TRACKING", "off"))
        patch.chdir(folder)
        try:
            runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
        finally:
            signal.signal(signal.SIGTERM, handler)


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Call a function of a module in a process forked from one that has loaded torch already."""
    context = multiprocessing.get_context("forkserver")
    # The optimizer's first step would load torch._dynamo, seconds' worth of modules.
    context.set_forkserver_preload(["torch._dynamo", "quantspike.workflow.training"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


@dataclass
class Stage:
    """A stage that runs in a folder, and what it prints."""

    process: BaseProcess
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    @property
    def status(self) -> int | None:
        """Exit status, once it has ended; -9 if it was killed."""
        return self.process.exitcode

    def end(self) -> int:
        """Wait for the end; return the exit status."""
        self.process.join(120)
        assert self.status is not None, "it is still running"
        return self.status


def start_stage(folder: Path, stage: str, prepare: Callable[[], None] | None = None) -> Stage:
    """Start a stage in a folder, in a process that calls `prepare` first."""
    for name in ("stdout.txt", "stderr.txt"):
        (folder / name).write_text("")
    tracking = os.environ.get("QUANTSPIKE_TRACKING", "off")
    return Stage(start(_run_stage, folder, stage, prepare, tracking), folder)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for a condition; the time is only there so that a failure ends."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.005)


def _run_stage(folder: Path, stage: str, prepare: Callable[[], None] | None, tracking: str) -> None:
    os.environ["QUANTSPIKE_TRACKING"] = tracking
    os.chdir(folder)
    for name, descriptor in (("stdout.txt", 1), ("stderr.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore Ctrl-C
    if prepare is not None:
        prepare()
    sys.argv = [f"{stage}.py", *arguments(stage)]
    runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
