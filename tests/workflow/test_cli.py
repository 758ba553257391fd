"""The door of every stage: its command line, the run it works on, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from conftest import Edit
from quantspike.errors import QuantspikeError
from quantspike.paths import Run
from quantspike.workflow import cli
from stage_processes import STAGES, arguments, run_here, start_stage, wait_until

RUN = ("--profile", "tiny", "--model", "small", "--k", "1", "--seed", "3")

Call = Callable[..., list[Run]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    """A function that runs a stage with a command line, and returns the runs that the stage worked on."""
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def call(*words: str | Path, main: Callable[[Run], None] = lambda run: None, **options: bool) -> list[Run]:
        runs: list[Run] = []

        def work(run: Run, device: str) -> None:
            assert device == "cpu"
            runs.append(run)
            main(run)

        monkeypatch.setattr(sys, "argv", ["stage.py", *map(str, words)])
        cli.run_stage(work, "What it does.", **options)
        return runs

    return call


def exit_code(call: Call, *words: str | Path, **options: Any) -> int | str | None:
    """Return what the stage exits with: a number, or the text that Python prints before it exits with 1."""
    with pytest.raises(SystemExit) as caught:
        call(*words, **options)
    return caught.value.code


# The command line


def test_a_stage_gets_the_run_that_it_was_asked_for(
    call: Call, write_params: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_params({"models.other": {"layers": "4C3-8"}})  # neither this model nor this k is in the grid
    (run,) = call("--params", path, "--profile", "tiny", "--model", "other", "--k", "24", "--seed", "9")
    assert (run.key, run.layers, run.root) == ("tiny-other-24-9", "4C3-8", path.parent)
    monkeypatch.chdir(path.parent)
    (run,) = call("--profile", "tiny", "--model", "small", "--seed", "0", baseline=True)
    assert (run.key, run.data) == ("tiny-small-fp32-0", Path("data/tiny/small-fp32-0"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (RUN[2:], "the following arguments are required: --profile"),
        ((*RUN[:4], *RUN[6:]), "the following arguments are required: --k"),
        ((*RUN, "--k", "-1"), "--k: k counts binary places and lies between 0 and 24, found -1"),
        ((*RUN, "--k", "25"), "--k: k counts binary places and lies between 0 and 24, found 25"),
        ((*RUN, "--k", "1.5"), "--k: k is a whole number from 0 to 24, found '1.5'"),
        ((*RUN, "--k", "fp32"), "found 'fp32'; the full-precision baseline is always there"),
        ((*RUN, "--seed", "x"), "--seed: invalid int value: 'x'"),
    ],
)
def test_a_word_that_is_missing_or_wrong_is_named(
    words: tuple[str, ...], message: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(call, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--profile", "papr"), "--profile papr is not defined; profiles has tiny"),
        (("--model", "cnn9"), "--model cnn9 is not defined; models has odd, small"),
        (("--seed", "-1"), "--seed must be 0 or more and below 2^32, found -1"),
        (("--seed", str(2**32)), "--seed must be 0 or more and below 2^32, found 4294967296"),
        (("--params", "none.yaml"), "none.yaml does not exist: run in the project's folder, or use --params"),
        (
            ("--model", "odd"),
            "models.odd.layers with profiles.tiny: layer 2 ('P3') of '4C3-P3-8': the map is 8x8 there, which 3 does",
        ),
    ],
)
def test_what_the_params_file_does_not_allow_is_an_error(
    words: tuple[str, ...], message: str, call: Call, write_params: Edit
) -> None:
    path = write_params({"models.odd": {"layers": "4C3-P3-8"}})
    assert str(exit_code(call, "--params", path, *RUN, *words)).startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models.small.layers": "8C3-Q2-16"}, "layer 2 ('Q2') of '8C3-Q2-16' is not understood: write cCn"),
        ({"models.small.layers": "8C3"}, "'8C3' has no head"),
        ({"profiles.tiny.data.crop": 6}, "layer 4 ('P2') of '8C3-P2-16C3-P2-16': the map is 3x3 there, which 2 does"),
    ],
)
def test_a_network_of_the_grid_that_cannot_be_built_is_named_with_its_place(
    changes: dict[str, Any], message: str, call: Call, write_params: Edit
) -> None:
    path = write_params(changes)
    expected = f"error: {path} holds a value that is not allowed:\n  models.small.layers with profiles.tiny: {message}"
    assert str(exit_code(call, "--params", path, *RUN)).startswith(expected)


def test_help_shows_what_a_stage_reads_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stage_processes.arguments", lambda stage, k: ["--help"])
    with pytest.raises(SystemExit, match="0"):
        run_here(Path(), "train")
    text = capsys.readouterr().out
    assert text.index("\nreads: ") < text.index("\nwrites: ") < text.index("\noptions:\n")


# How a stage ends


def ending(error: BaseException) -> Callable[[Run], None]:
    def main(run: Run) -> None:
        raise error

    return main


@pytest.mark.parametrize("rank", [None, "0", "1"])
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (cli._Terminated(), 143)])
def test_a_stopped_stage_exits_as_a_signal_would_and_the_first_process_says_so(
    error: BaseException,
    status: int,
    rank: str | None,
    call: Call,
    write_params: Edit,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code(call, "--params", write_params(), *RUN, main=ending(error)) == status
    message = "interrupted: no half-written file is left; the same command runs this stage again\n"
    assert capsys.readouterr().err == ("" if rank == "1" else message)


def test_an_error_of_the_user_is_a_message_and_a_defect_of_the_program_a_traceback(
    call: Call, write_params: Edit
) -> None:
    words = ("--params", write_params(), *RUN)
    assert exit_code(call, *words, main=ending(QuantspikeError("the disk is full"))) == "error: the disk is full"
    with pytest.raises(RuntimeError, match="a defect"):
        call(*words, main=ending(RuntimeError("a defect")))


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (
            "simulate",
            MemoryError("Unable to allocate"),
            "(Unable to allocate): lower simulate.batch_size of the profile in params.yaml, or run it where more is",
        ),
        ("train", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "lower recipe.batch_size of"),
        ("finetune", RuntimeError("could not create a primitive"), "lower recipe.batch_size of"),
        ("baseline", RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "lower recipe.batch_size of the"),
        ("convert", MemoryError(), "): run it where more is free"),
    ],
)
def test_a_stage_without_enough_memory_names_the_setting_to_lower(
    stage: str, error: Exception, message: str, call: Call, write_params: Edit
) -> None:
    def main(run: Run) -> None:
        sys.argv[0] = f"stages/{stage}.py"
        raise error

    code = str(exit_code(call, "--params", write_params(), *RUN, main=main))
    assert code.startswith("error: not enough memory (")
    assert message in code


@pytest.mark.parametrize("closed", [True, False])
def test_a_stage_works_on_whoever_reads_what_it_prints(
    closed: bool, call: Call, write_params: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(run: Run) -> None:
        for stream in (sys.stdout, sys.stderr):
            print("a line", file=stream, flush=True)
        for _ in tqdm(range(3), mininterval=0):
            tqdm.write("a line", file=sys.stdout)
        print("a line that stays in the buffer")

    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as without_reader:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, None if closed else without_reader)
        assert len(call("--params", write_params(), *RUN, main=main)) == 1


def test_characters_that_the_locale_lacks_are_printed_as_escapes(
    call: Call, write_params: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    call("--params", write_params(), *RUN, main=lambda run: print("a ± b"))
    assert written.getvalue() == b"a \\xb1 b\n"


def stop_itself(run: Run, device: str) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def work_on_run() -> None:
    """Have the stages of this process do nothing but wait for SIGTERM."""
    run_stage = cli.run_stage
    cli.run_stage = lambda main, *rest, **options: run_stage(stop_itself, *rest, **options)


def test_sigterm_stops_a_stage(write_params: Edit) -> None:
    stage = start_stage(write_params().parent, "convert", work_on_run)
    assert (stage.end(), stage.errors.split(":")[0]) == (143, "interrupted")


# The lock of a run


def test_a_second_stage_of_the_same_run_is_refused_but_not_one_of_another(call: Call, write_params: Edit) -> None:
    words = ("--params", write_params(), *RUN)
    busy = f"another process is working on tiny-small-1-3: wait for it, or stop it first (it holds {words[1].parent}"

    def start_others(run: Run) -> None:
        assert str(exit_code(call, *words)).startswith(f"error: {busy}/data/resume/tiny-small-1-3/lock)")
        assert len(call(*words, "--seed", "4")) == 1

    assert len(call(*words, main=start_others)) == 1
    assert len(call(*words)) == 1


def test_what_a_killed_stage_left_half_written_is_deleted(call: Call, write_params: Edit) -> None:
    words = ("--params", write_params(), *RUN)
    (run,) = call(*words)
    leftovers = [folder / ".train.ab12.part" for folder in (run.data, run.metrics, run.resume)]
    for path in leftovers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    call(*words)
    assert [path for path in leftovers if path.exists()] == []


# Several processes


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the commands that were started in place of this process."""
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda program, words: started.append(words))
    return started


def test_only_a_stage_that_processes_can_share_is_launched_and_only_once(
    call: Call, write_params: Edit, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--params", str(write_params({"launch": "srun 'my torchrun' -x"})), *RUN)
    call(*words)
    assert launched == []
    call(*words, shared=True)
    assert launched == [["srun", "my torchrun", "-x", "stage.py", *words]]
    for variable in ("TORCHELASTIC_RUN_ID",):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            call(*words, shared=True)
    assert len(launched) == 1


@pytest.mark.parametrize("command", ["no-such/torchrun -n 2", "torchrun -n 2\0"])
def test_a_command_that_cannot_be_started_is_named(command: str, call: Call, write_params: Edit) -> None:
    code = exit_code(call, "--params", write_params({"launch": command}), *RUN, shared=True)
    assert str(code).startswith(f"error: launch in params.yaml is {command!r}, which cannot be started (")


# Real processes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
def test_a_stage_whose_dvc_was_killed_before_it_could_notice_does_nothing(write_params: Edit) -> None:
    folder = write_params().parent
    # Each `read` ends when the only process that could write has ended.
    orphan = 'read line; exec "$@"'
    dvc = "import os, subprocess as s, sys; s.Popen(sys.argv[1:], stdin=s.PIPE); os._exit(0)"
    stage = [sys.executable, str(STAGES / "download.py"), *arguments("download")]
    done = subprocess.run(
        [sys.executable, "-c", dvc, "sh", "-c", orphan, "sh", *stage],
        cwd=folder,
        env=os.environ | {"DVC_STAGE": "download@tiny"},
        capture_output=True,  # until the stage has ended
        text=True,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (folder / "data").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
def test_a_training_whose_dvc_is_killed_stops_and_keeps_its_state(
    tmp_path: Path, write_params: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTSPIKE_TRACKING", "off")
    monkeypatch.setenv("DVC_STAGE", "train@tiny-small-1-0")
    run_here(write_params({"profiles.tiny.train.epochs": 1_000_000}).parent, "download")
    output, errors = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
    stage = [sys.executable, str(STAGES / "train.py"), *arguments("train")]
    parent = [sys.executable, "-c", "import subprocess, sys; subprocess.call(sys.argv[1:])", *stage]
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(parent, cwd=tmp_path, stdout=out, stderr=err)
    try:
        wait_until(lambda: "epoch 2/" in output.read_text() or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: "interrupted: " in errors.read_text())
    assert "stopped in epoch " in errors.read_text()
    assert list((tmp_path / "data/resume/tiny-small-1-0").glob("train-0-*.safetensors"))
