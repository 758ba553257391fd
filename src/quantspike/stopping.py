"""Requests to stop: Ctrl-C, SIGTERM, and the end of the `dvc` that started this process."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from quantspike.errors import QuantspikeError


class Stopped(QuantspikeError):
    """Work was ended by a signal; `status` is the exit status that tells so."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class StopRequest:
    """Whether somebody wants this process to stop.

    Attributes:
        signal: number of the signal, 0 while there is none.
    """

    def __init__(self) -> None:
        self.signal = 0

    def receive(self, signal_number: int, frame: FrameType | None) -> None:
        """Notes a signal; as handler of signals."""
        self.signal = self.signal or signal_number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM, so that work can be ended at a point of its own choosing.

    If a `dvc` started this process, its end counts as SIGTERM: killed, it leaves no orphan at work.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    ended, end = os.pipe()
    dvc = _dvc_above()
    watcher = None
    if dvc is not None:
        watcher = threading.Thread(target=_tell_of_its_end, args=(dvc, ended), daemon=True)
        watcher.start()
    try:
        yield request
    finally:
        os.write(end, b".")  # closing it would tell nothing while a child process has it open too
        os.close(end)
        if watcher is not None:
            watcher.join()
        os.close(ended)
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_of_its_end(process: int, ended: int) -> None:
    """Sends this process SIGTERM when another ends, unless the pipe `ended` has something to read before."""
    ready, _, _ = select.select([process, ended], [], [])
    if process in ready:
        os.kill(os.getpid(), signal.SIGTERM)
    os.close(process)


def _dvc_above() -> int | None:
    """A descriptor of the nearest `dvc` among the processes that this one descends from; Linux only.

    There may be a shell and torchrun in between, so that asking the kernel for a signal at the parent's death
    (PR_SET_PDEATHSIG) would not do.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    number = os.getppid()
    try:
        while number > 1:
            descriptor = os.pidfd_open(number)  # before it is looked at, so that it is what is looked at
            try:
                arguments = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
                if any(Path(os.fsdecode(argument)).name == "dvc" for argument in arguments[:3]):
                    return descriptor
                status = Path(f"/proc/{number}/stat").read_text()
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
            number = int(status.rpartition(")")[2].split()[1])
    except OSError:
        pass  # a process above has ended, or belongs to somebody else: nothing to watch
    return None
