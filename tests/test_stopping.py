"""Requests to stop: signals are noted, and so is the end of a `dvc` above, however many processes lie in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from quantspike import stopping
from quantspike.stopping import Stopped, StopRequest, stop_requests
from stage_processes import wait_until

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells of the end of any process")


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_interrupts_nothing(number: signal.Signals) -> None:
    with stop_requests() as request:
        assert request.signal == 0
        os.kill(os.getpid(), number)
        wait_until(lambda: request.signal)
        assert request.signal == number


def test_the_first_of_several_signals_counts() -> None:
    request = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        request.receive(number, None)
    assert request.signal == signal.SIGTERM


def test_handlers_are_as_before_afterwards_even_after_an_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with stop_requests():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    with pytest.raises(ZeroDivisionError), stop_requests():
        _ = 1 / 0
    assert {number: signal.getsignal(number) for number in before} == before


def test_nothing_is_left_open_or_running() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0

    before = (descriptors(), threading.active_count())
    for _ in range(3):
        with stop_requests():
            pass
    assert (descriptors(), threading.active_count()) == before


def test_the_exit_status_tells_the_signal() -> None:
    assert Stopped("stopped", signal.SIGINT).status == 130
    assert Stopped("stopped", signal.SIGTERM).status == 143


# The end of dvc


@linux
@pytest.mark.parametrize("watched", [False, True])
def test_a_watch_is_kept_only_on_a_dvc_and_ends_with_the_work(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(stopping, "_dvc_above", lambda: os.pidfd_open(process.pid) if watched else None)
    threads = threading.active_count()
    with stop_requests() as request:
        assert threading.active_count() == threads + watched
    process.communicate(b"\n")
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors - 1)
    assert request.signal == 0


@linux
def test_a_watch_ends_though_a_child_still_has_its_files_open() -> None:
    script = """
        import os, time
        from quantspike import stopping
        stopping._dvc_above = lambda: os.pidfd_open(os.getppid())
        with stopping.stop_requests():
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], start_new_session=True)
    try:
        assert process.wait(20) == 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)


WORK = """
    import sys, time
    from pathlib import Path
    from quantspike.stopping import stop_requests

    with stop_requests() as request:
        Path("at_work").touch()
        end = time.monotonic() + 60
        while not request.signal and time.monotonic() < end:
            time.sleep(0.01)
        Path("saved").write_text(str(request.signal))
"""

START = """
    import subprocess, sys
    subprocess.call(sys.argv[1:])
"""


def script(path: Path, text: str, interpreter: str = "") -> Path:
    path.write_text(f"{interpreter}{textwrap.dedent(text)}")
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with some work, and programs that start others."""
    script(tmp_path / "work.py", WORK)
    script(tmp_path / "between.py", START)
    for name in ("dvc", "make"):
        script(tmp_path / name, START, f"#!{sys.executable}\n")
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that are killed at the end, with all that they have started."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


PYTHON, SHELL = [sys.executable], ["sh", "-c", '"$@"; exit $?', "sh"]
WAYS = {
    "dvc": (["./dvc"], []),
    "python dvc": ([*PYTHON, "dvc"], []),
    "with a shell in between": (["./dvc"], SHELL),
    "with a shell and another python in between": (["./dvc"], [*SHELL, *PYTHON, "between.py"]),
    "with dvc in a script of its own": (["./make", "./dvc"], [*SHELL, *PYTHON, "between.py"]),
}


@linux
@pytest.mark.parametrize(("above", "between"), WAYS.values(), ids=WAYS)
def test_work_stops_and_saves_when_its_dvc_is_killed(
    above: list[str], between: list[str], folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    command = [*above, *between, *PYTHON, "work.py"]
    started.append(subprocess.Popen(command, cwd=folder, start_new_session=True))
    wait_until((folder / "at_work").exists)
    time.sleep(0.1)
    assert not (folder / "saved").exists()
    os.kill(dvc_of(started[0].pid), signal.SIGKILL)
    wait_until((folder / "saved").exists, seconds=10)
    wait_until(lambda: (folder / "saved").read_text() == str(int(signal.SIGTERM)), seconds=10)


def dvc_of(number: int) -> int:
    """The fake dvc itself: the process, or its child."""
    arguments = Path(f"/proc/{number}/cmdline").read_text().split("\0")
    if Path(arguments[1]).name == "dvc":
        return number
    return int(Path(f"/proc/{number}/task/{number}/children").read_text().split()[0])


@linux
def test_without_a_dvc_nothing_above_is_watched(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    command = ["./make", *SHELL, *PYTHON, "work.py"]
    started.append(subprocess.Popen(command, cwd=folder, start_new_session=True))
    wait_until((folder / "at_work").exists)
    started[0].kill()
    started[0].wait()
    time.sleep(0.3)
    assert not (folder / "saved").exists()


@linux
def test_a_folder_or_an_argument_of_that_name_is_no_dvc(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    home = folder / "dvc.d" / "dvc"
    home.mkdir(parents=True)
    run = script(home / "run", START, f"#!{sys.executable}\n")
    started.append(subprocess.Popen([str(run), *PYTHON, "work.py", "dvc"], cwd=folder, start_new_session=True))
    wait_until((folder / "at_work").exists)
    started[0].kill()
    started[0].wait()
    time.sleep(0.3)
    assert not (folder / "saved").exists()
