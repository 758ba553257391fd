"""Requests to stop: signals are noted, and so is the end of a `dvc` above, however many processes lie in between."""

from __future__ import annotations

import os
import select
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
from quantspike.stopping import Stopped, StopRequest, dvc_has_ended, stop_requests
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


SAID = "stopping after the step at work, then saving"
AGAIN = "; Ctrl-C again ends at once, without saving"


def press(number: int = signal.SIGINT) -> None:
    """Sends this process a signal, and leaves it time to be heard."""
    os.kill(os.getpid(), number)
    time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("rank", "said"), [(None, f"{SAID}{AGAIN}\n"), ("0", f"{SAID}\n"), ("1", ""), ("10", "")], ids=str
)
def test_the_first_process_says_once_what_a_signal_does(
    number: signal.Signals,
    rank: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with stop_requests():
        for _ in range(3):
            press(number)
    assert capsys.readouterr() == ("", said)


def test_without_a_signal_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    with stop_requests() as request:
        press(signal.SIGUSR1)  # a signal, but none that asks to stop
    signal.signal(signal.SIGUSR1, previous)
    assert (request.signal, capsys.readouterr()) == (0, ("", ""))


def test_a_signal_is_answered_while_native_code_is_at_work() -> None:
    script = """
        import hashlib
        from quantspike.stopping import stop_requests
        with stop_requests():
            print("at work", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # many minutes, in which no handler is called
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "at work\n"
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert select.select([process.stderr], [], [], 30)[0], "it says nothing"
            assert process.stderr.readline().startswith(SAID)
            assert process.poll() is None
        finally:
            process.kill()


def test_a_second_ctrl_c_counts_though_nobody_could_read_the_answer_to_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(stopping, "_APART", 0.05)
    monkeypatch.setattr(stopping.tqdm, "write", refused)

    def work() -> None:
        with stop_requests():
            press()
            press()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_second_ctrl_c_a_second_later_interrupts() -> None:
    seen: list[str] = []

    def work() -> None:
        with stop_requests():
            press()
            press()  # a launcher passes on what the terminal has sent already
            seen.append("not at once")
            time.sleep(1)
            press()
            seen.append("not a second later either")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["not at once"]


def test_ctrl_c_interrupts_what_sigterm_has_asked_to_stop_but_sigterm_never_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "_APART", 0.05)

    def work(*numbers: int) -> int:
        with stop_requests() as request:
            for number in numbers:
                press(number)
        return request.signal

    assert work(signal.SIGINT, signal.SIGTERM, signal.SIGTERM) == signal.SIGINT
    assert work(signal.SIGTERM, signal.SIGTERM) == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        work(signal.SIGTERM, signal.SIGINT)


def test_a_third_ctrl_c_does_not_disturb_what_the_second_one_has_cleared_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_APART", 0.05)
    seen: list[str] = []

    def work() -> None:
        with stop_requests():
            press()
            try:
                press()
            finally:
                press()
                seen.append("cleared away")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["cleared away"]


def test_handlers_are_as_before_afterwards_even_after_an_error() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(-1)
    with stop_requests():
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
    with pytest.raises(ZeroDivisionError), stop_requests():
        _ = 1 / 0
    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.set_wakeup_fd(wakeup) == -1


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
    monkeypatch.setattr(stopping, "_DVC", os.pidfd_open(process.pid) if watched else None)
    with stop_requests() as before:
        pass
    with stop_requests() as request:
        assert not dvc_has_ended()
        process.communicate(b"\n")
        time.sleep(0.1)
        assert dvc_has_ended() == watched
    assert (before.signal, request.signal) == (0, signal.SIGTERM if watched else 0)
    if stopping._DVC is not None:
        os.close(stopping._DVC)


@linux
def test_a_watch_ends_though_a_child_still_has_its_files_open() -> None:
    script = """
        import os, time
        from quantspike import stopping
        stopping._DVC = os.pidfd_open(os.getppid())
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

LOADING = """
    import time
    from pathlib import Path
    from quantspike import cli  # what each stage imports before anything that takes long

    Path("loading").touch()
    while not Path("loaded").exists():
        time.sleep(0.01)
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


@linux
def test_work_stops_though_its_dvc_is_killed_while_torch_is_still_being_loaded(
    folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    script(folder / "work.py", f"{textwrap.dedent(LOADING)}{textwrap.dedent(WORK)}")
    started.append(subprocess.Popen(["./dvc", *PYTHON, "work.py"], cwd=folder, start_new_session=True))
    wait_until((folder / "loading").exists)
    started[0].kill()
    started[0].wait()
    (folder / "loaded").touch()
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


@pytest.mark.parametrize(
    ("command", "dvc"),
    [
        (["dvc", "repro"], True),
        (["python", "dvc", "repro"], True),
        (["python3.11", "-m", "dvc"], True),
        (["dvc"], True),
        (["make", "dvc"], False),
        (["less", "dvc"], False),
        (["bash", "-c", "dvc"], False),
        (["python", "train.py"], False),
        (["python"], False),
        ([], False),
    ],
)
def test_dvc_is_a_command_alone_or_run_by_python_and_not_what_another_is_told(command: list[str], dvc: bool) -> None:
    assert stopping._is_dvc(command) is dvc
