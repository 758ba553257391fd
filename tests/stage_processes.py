"""Stages in processes of their own that tests can kill, without the seconds it takes to start Python and torch."""

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

STAGES = Path(__file__).parents[1] / "stages"

CHAIN = ["--params", "params.yaml", "--profile", "tiny", "--model", "small", "--k", "1", "--seed", "0"]
ALL_K = ["--params", "params.yaml", "--profile", "tiny", "--model", "small", "--seed", "0"]


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Calls a function of a module in a process forked from one that has torch loaded already."""
    context = multiprocessing.get_context("forkserver")
    # The optimizer's first step would load torch._dynamo, seconds' worth of modules.
    context.set_forkserver_preload(["torch._dynamo", "quantspike.phases", "quantspike.checkpoints"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


@dataclass
class Stage:
    """A stage at work in a folder, and what it says there."""

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

    def wait_for(self, text: str) -> None:
        """Waits until the stage has printed a text."""
        wait_until(lambda: text in self.output or self.status is not None)
        assert text in self.output, self.errors

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> int:
        """Waits for the end; gives the exit status."""
        self.process.join(60)
        assert self.status is not None, "it is still running"
        return self.status


def start_stage(folder: Path, stage: str, file_limit: int | None = None) -> Stage:
    """Starts a stage for the chain in a folder, which may be forbidden to write files of more than so many bytes."""
    for name in ("stdout.txt", "stderr.txt"):
        (folder / name).write_text("")
    return Stage(start(_run_stage, folder, stage, file_limit), folder)


def run_stage(folder: Path, stage: str, file_limit: int | None = None) -> Stage:
    """The same to its end."""
    started = start_stage(folder, stage, file_limit)
    started.end()
    return started


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.005)


def limit_files(size: int, action: signal.Handlers = signal.SIG_IGN) -> None:
    """From now on this process writes no file of more bytes: the write fails, or kills it with SIG_DFL."""
    import resource

    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_stage(folder: Path, stage: str, file_limit: int | None) -> None:
    os.chdir(folder)
    for name, descriptor in (("stdout.txt", 1), ("stderr.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    if file_limit is not None:
        limit_files(file_limit)
    sys.argv = [f"{stage}.py", *CHAIN]
    runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
