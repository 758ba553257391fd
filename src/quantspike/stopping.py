"""Requests to stop: Ctrl-C, SIGTERM, and the end of the `dvc` that started this process."""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from quantspike.errors import QuantspikeError

_APART = 1.0
"""Seconds from the first signal to a Ctrl-C that is meant as a second one: a launcher may pass on, milliseconds later,
what the terminal has sent to all processes anyway."""

_END = 0
"""In place of a signal's number: there is nothing more to listen for."""


class Stopped(QuantspikeError):
    """Work was ended by a signal; `status` is the exit status that tells so."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


class StopRequest:
    """Whether somebody wants this process to stop.

    Attributes:
        signal: number of the first signal, 0 while there is none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._first_heard: float | None = None
        self._interrupted = self._to_raise = False

    def receive(self, signal_number: int, frame: FrameType | None) -> None:
        """Notes a signal; as handler of signals.

        Raises:
            KeyboardInterrupt: a second Ctrl-C was heard; no third one disturbs what is then cleared away.
        """
        self.signal = self.signal or signal_number
        if self._to_raise:
            self._to_raise = False
            raise KeyboardInterrupt

    def hear(self, signal_number: int, now: float) -> None:
        """Answers a signal as it arrives, in a thread.

        The handler cannot: Python calls it only when the main thread comes out of native code, such as a backward
        pass, seconds later and once for several signals.

        Args:
            signal_number: any signal.
            now: in seconds, of a clock that never goes back.
        """
        if signal_number not in (signal.SIGINT, signal.SIGTERM):
            return
        if self._first_heard is None:
            self._first_heard = now
            _answer()
        elif signal_number == signal.SIGINT and now - self._first_heard >= _APART and not self._interrupted:
            self._interrupted = self._to_raise = True
            _thread.interrupt_main()  # the handler may have run already, and now runs again


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM, so that work can be ended at a point of its own choosing.

    If a `dvc` started this process, its end counts as SIGTERM: killed, it leaves no orphan at work.

    Raises:
        KeyboardInterrupt: SIGINT came a second or more after the first signal.
    """
    request = StopRequest()
    heard, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, request.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    listener = threading.Thread(target=_listen, args=(request, heard), daemon=True)
    listener.start()
    try:
        yield request
    finally:
        told.send(bytes([_END]))  # closing it would tell nothing while a child process has it open too
        listener.join()
        signal.set_wakeup_fd(wakeup)
        told.close()
        heard.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def first_process() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started: the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def dvc_has_ended() -> bool:
    """Whether a `dvc` that started this process has ended since."""
    return _DVC is not None and bool(select.select([_DVC], [], [], 0)[0])


def _answer() -> None:
    """Says what a first signal does."""
    # torchrun keeps the terminal's signals from its processes, and makes a second Ctrl-C a SIGTERM.
    again = "" if "RANK" in os.environ else "; Ctrl-C again ends at once, without saving"
    if first_process():
        with suppress(OSError):  # nobody may be there to read it; it is no reason not to listen on
            tqdm.write(f"stopping after the step at work, then saving{again}", file=sys.stderr)


def _listen(request: StopRequest, heard: socket.socket) -> None:
    """Tells a request of signals as they arrive, and sends SIGTERM when the `dvc` above ends."""
    watched: list[socket.socket | int] = [heard] if _DVC is None else [heard, _DVC]
    while True:
        ready, _, _ = select.select(watched, [], [])
        for number in heard.recv(64) if heard in ready else b"":
            if number == _END:
                return
            request.hear(number, time.monotonic())
        if _DVC in ready:
            os.kill(os.getpid(), signal.SIGTERM)
            watched = [heard]


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
                if _is_dvc([Path(os.fsdecode(argument)).name for argument in arguments[:3]]):
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


def _is_dvc(command: Sequence[str]) -> bool:
    """Whether the first words of a command, without their folders, are those of `dvc`: alone or run by Python."""
    first, *others = [*command, ""]
    return first == "dvc" or (first.startswith("python") and "dvc" in others)


_DVC = _dvc_above()
"""Looked for as soon as this module is imported, since that is before torch is: a `dvc` that is killed while torch is
being loaded would not be found afterwards, and leave an orphan at work."""
