"""The command line that all stages share, and how a stage ends."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantspike import cli
from quantspike.data import load_source, save_dataset
from quantspike.errors import QuantspikeError
from quantspike.params import Params
from quantspike.paths import Chain
from quantspike.stopping import Stopped

STAGES = Path(__file__).parents[1] / "stages"
CHAIN = ("--profile", "tiny", "--model", "small", "--k", "1", "--seed", "3")
Edit = Callable[..., Path]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["stage.py", *(str(argument) for argument in arguments)])


def run_chain_stage(main: Callable[[Params, Chain], None] = lambda params, chain: None) -> None:
    cli.chain_stage(main, "What it does.")


# Arguments


@pytest.mark.parametrize(("text", "k"), [("1", 1), ("fp32", "fp32"), ("0", 0), ("24", 24)])
def test_a_stage_gets_checked_params_and_its_chain(
    text: str, k: Any, monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    path, seen = write_params(), []
    command(monkeypatch, "--params", path, *CHAIN[:4], "--k", text, "--seed", "3")
    run_chain_stage(lambda params, chain: seen.append((params.device, chain)))
    assert seen == [("cpu", Chain("tiny", "small", k, 3, path.parent))]


def test_files_lie_beside_the_params_file(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    monkeypatch.chdir(write_params().parent)
    command(monkeypatch, *CHAIN)
    seen: list[Chain] = []
    run_chain_stage(lambda params, chain: seen.append(chain))
    assert seen[0].data == Path("data/tiny/small-1-3")


def test_a_stage_may_ask_for_some_arguments_only(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    path, seen = write_params(), []
    command(monkeypatch, "--params", path, "--profile", "tiny")
    cli.stage(lambda params, root, **values: seen.append((root, values)), None, "profile")
    assert seen == [(path.parent, {"profile": "tiny"})]


def test_what_is_not_in_the_grid_may_still_be_run_by_hand(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    path = write_params({"models.other": {"layers": "4C3-8"}})
    command(monkeypatch, "--params", path, "--profile", "tiny", "--model", "other", "--k", "5", "--seed", "9")
    seen: list[Chain] = []
    run_chain_stage(lambda params, chain: seen.append(chain))
    assert [chain.key for chain in seen] == ["tiny-other-5-9"]


@pytest.mark.parametrize("missing", ["--profile", "--model", "--k", "--seed"])
def test_every_part_of_the_chain_must_be_given(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = CHAIN.index(missing)
    command(monkeypatch, *CHAIN[:place], *CHAIN[place + 2 :])
    with pytest.raises(SystemExit) as caught:
        run_chain_stage()
    assert caught.value.code == 2
    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("k", "message"),
    [
        ("-1", "k counts binary places and lies between 0 and 24, found -1"),
        ("25", "k counts binary places and lies between 0 and 24, found 25"),
        ("1.5", "a precision is fp32 or an integer from 0 to 24, found '1.5'"),
        ("FP32", "a precision is fp32 or an integer from 0 to 24, found 'FP32'"),
        ("True", "a precision is fp32 or an integer from 0 to 24, found 'True'"),
        ("", "a precision is fp32 or an integer from 0 to 24, found ''"),
    ],
)
def test_a_wrong_k_is_named_with_what_is_allowed(
    k: str, message: str, monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    command(monkeypatch, "--params", write_params(), *CHAIN[:4], "--k", k, "--seed", "0")
    with pytest.raises(SystemExit) as caught:
        run_chain_stage()
    assert caught.value.code == f"error: --k: {message}"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--profile", "papr", "error: --profile papr is not defined; profiles has tiny"),
        ("--model", "cnn9", "error: --model cnn9 is not defined; models has small"),
        ("--seed", "-1", "error: --seed must be 0 or more and below 2^32, found -1"),
    ],
)
def test_a_name_that_is_not_defined_is_a_user_error(
    option: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    command(monkeypatch, "--params", write_params(), *CHAIN, option, value)
    with pytest.raises(SystemExit) as caught:
        run_chain_stage()
    assert caught.value.code == message  # Python prints a text to stderr and exits with 1


@pytest.mark.parametrize("seed", [2**32, 2**64, 10**30])
def test_a_seed_has_the_same_limit_as_in_the_params_file(
    seed: int, monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    command(monkeypatch, "--params", write_params(), *CHAIN, "--seed", str(seed))
    with pytest.raises(SystemExit, match="seed"):
        run_chain_stage()


def test_a_model_outside_the_grid_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    path = write_params({"models.odd": {"layers": "4C3-P3-8"}})
    command(monkeypatch, "--params", path, *CHAIN, "--model", "odd")
    with pytest.raises(SystemExit, match=r"error: .*the map is 8x8 there, which 3 does not divide"):
        run_chain_stage()


def test_a_params_file_that_is_not_there_is_a_user_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(monkeypatch, "--params", tmp_path / "none.yaml", *CHAIN)
    with pytest.raises(SystemExit, match=r"error: .*none\.yaml is not here"):
        run_chain_stage()


# How a stage ends


def test_an_error_of_the_user_ends_with_its_message(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    def main(params: Params, chain: Chain) -> None:
        raise QuantspikeError("the disk is full")

    command(monkeypatch, "--params", write_params(), *CHAIN)
    with pytest.raises(SystemExit) as caught:
        run_chain_stage(main)
    assert caught.value.code == "error: the disk is full"


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    def main(params: Params, chain: Chain) -> None:
        raise RuntimeError("a defect")

    command(monkeypatch, "--params", write_params(), *CHAIN)
    with pytest.raises(RuntimeError, match="a defect"):
        run_chain_stage(main)


def test_an_interrupted_stage_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], write_params: Edit
) -> None:
    def main(params: Params, chain: Chain) -> None:
        raise KeyboardInterrupt

    command(monkeypatch, "--params", write_params(), *CHAIN)
    with pytest.raises(SystemExit) as caught:
        run_chain_stage(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted: nothing half-written was left")


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (Stopped("stopped by SIGTERM", signal.SIGTERM), 143, "stopped by SIGTERM\n"),
        (Stopped("stopped by SIGINT", signal.SIGINT), 130, "stopped by SIGINT\n"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted: nothing half-written was left; the same command starts this stage again\n",
        ),
    ],
    ids=["SIGTERM", "SIGINT", "interrupted"],
)
@pytest.mark.parametrize("rank", [None, "0", "1", "2"])
def test_of_several_processes_only_the_first_says_why_it_has_ended_but_all_exit_with_the_status(
    rank: str | None,
    end: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_params: Edit,
) -> None:
    def main(params: Params, chain: Chain) -> None:
        raise end

    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    command(monkeypatch, "--params", write_params(), *CHAIN)
    with pytest.raises(SystemExit) as caught:
        run_chain_stage(main)
    assert (caught.value.code, capsys.readouterr().err) == (status, said if rank in (None, "0") else "")


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("download", ["data/<profile>/images.safetensors"]),
        ("pretrain", ["data/<profile>/images.safetensors", "pretrain.safetensors", "pretrain.csv"]),
        ("train", ["data/<profile>/images.safetensors", "pretrain.safetensors", "train.safetensors", "train.csv"]),
        ("finetune", ["train.safetensors", "finetune.safetensors", "finetune.csv"]),
        ("evaluate", ["finetune.safetensors", "ann.json", "evaluate.safetensors"]),
        ("convert", ["finetune.safetensors", "integer/network.safetensors", "conversion.json"]),
        ("simulate", ["network.safetensors", "snn.csv", "layers.csv", "snn.json", "certificate.json", "logs/k<k>"]),
    ],
)
def test_help_shows_what_a_stage_reads_and_writes(
    stage: str, files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "--help")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.index("\nreads: ") < text.index("\nwrites: ") < text.index("\noptions:")
    for wanted in (*files, "--params", "--profile", "params.yaml"):
        assert wanted in text


# Real processes


def test_a_real_stage_prints_its_error_without_a_traceback(write_params: Edit) -> None:
    arguments = ["--params", str(write_params()), *CHAIN]
    done = subprocess.run([sys.executable, STAGES / "train.py", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "images.safetensors is not there: run the download stage" in done.stderr
    assert "Traceback" not in done.stderr


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_the_middle_of_training_leaves_its_state_and_no_results(write_params: Edit, tmp_path: Path) -> None:
    path = write_params({"profiles.tiny.train.epochs": 10_000})
    save_dataset(load_source("digits", downloads=tmp_path), tmp_path / "data" / "tiny" / "images.safetensors")
    before = sorted(tmp_path.rglob("*"))
    arguments = [sys.executable, STAGES / "train.py", "--params", path, *CHAIN]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Tests that a shell runs in the background ignore Ctrl-C, and a child inherits that.
    with subprocess.Popen(arguments, **pipes, preexec_fn=_heed_ctrl_c) as process:
        assert process.stdout is not None
        first = process.stdout.readline()  # one epoch is done, the next one runs
        os.kill(process.pid, signal.SIGINT)
        error = process.communicate(timeout=30)[1]
    assert first.startswith("epoch 1/10000 ")
    assert (process.returncode, error.count("Traceback")) == (130, 0)
    answer, end, *_ = error.splitlines()
    assert answer == "stopping after the step at work, then saving; Ctrl-C again ends at once, without saving"
    assert end.startswith("stopped by SIGINT in epoch ")
    resume = tmp_path / "data" / "resume"
    left = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_relative_to(resume)]
    assert sorted(left) == [file for file in before if file.is_file()]
    assert list(resume.rglob("*.safetensors"))
