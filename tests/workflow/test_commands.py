"""The command `quantspike`: results, readme, ui and logs."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from make_results import data_set, make_params, make_run
from quantspike.params import load_params
from quantspike.paths import grid_runs
from quantspike.reporting.logs import CORRECT, FILES
from quantspike.workflow import commands
from quantspike.workflow.commands import BEGIN, END

BEFORE, AFTER = "# Title\n\nWords, é, trailing blank \n## Results\n", "\n\n## Next\n\n\n"

Call = Callable[..., str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """A function that runs the command and returns what it prints."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*words: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["quantspike", *map(str, words)])
        capsys.readouterr()
        commands.main()
        return capsys.readouterr().out

    return call


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with params of two profiles, nothing finished, and a README without results."""
    content = make_params(k=(0,)).model_dump(mode="json")
    content["profiles"]["other"] = content["profiles"]["paper"]
    content["grid"]["profile"] = ["other", "paper"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "README.md").write_text(f"{BEFORE}{BEGIN}\nNo results yet.\n{END}{AFTER}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(project: Path, profile: str, kind: str = "cifar10") -> None:
    """Make all results of a profile."""
    for run in grid_runs(load_params(project / "params.yaml"), project):
        if run.profile == profile:
            make_run(run, data_set(kind))


def headings(project: Path) -> list[str]:
    return re.findall(r"^#+ .*$", (project / "README.md").read_text(), flags=re.MULTILINE)


# results


def test_results_are_a_table_and_where_the_rest_lies(project: Path, call: Call) -> None:
    finish(project, "paper")
    lines = call("results").splitlines()
    assert [line.split()[:4] for line in lines if line.startswith("paper")] == [
        ["paper", "cnn1", "fp32", "0"],
        ["paper", "cnn1", "0", "0"],
    ]
    assert lines[-3:] == [
        "Figures:    plots/paper/cnn1/",
        "Tables:     metrics/summary.md (.csv, .tex)",
        "Runs:       make ui   opens the MLflow UI on http://127.0.0.1:5000",
    ]
    finish(project, "other")
    assert "Figures:    plots/other/cnn1/, plots/paper/cnn1/" in call("results")
    assert "paper" not in call("results", "--profile", "other")


@pytest.mark.parametrize("command", ["results", "readme"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no run is finished: run `dvc repro`, or `make demo` for the digits"),
        (("--profile", "other"), "no run is finished"),
        (("--profile", "short"), "--profile short is not in grid.profile of params.yaml, which has other, paper"),
        (("--params", "none.yaml"), "none.yaml does not exist: run in the project's folder, or use --params"),
    ],
)
def test_what_has_no_results_is_an_error(
    command: str, words: tuple[str, ...], message: str, project: Path, call: Call
) -> None:
    if words:
        finish(project, "paper")
    before = (project / "README.md").read_bytes()
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}"):
        call(command, *words)
    assert (project / "README.md").read_bytes() == before


def test_params_can_be_checked_before_anything_runs(project: Path, call: Call) -> None:
    assert call("check") == "params.yaml is valid: 4 runs\n"  # fp32 and k = 0 of two profiles
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("grid:", "gird:"))
    with pytest.raises(SystemExit, match=r"^error: params\.yaml holds 2 values that are not allowed"):
        call("check")


@pytest.mark.parametrize("words", [("check",), ("--help",)])
def test_a_reader_that_has_gone_is_no_error(
    words: tuple[str, ...], project: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:  # what stays in its buffer would fail when it is closed
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as caught:
            call(*words)
    assert caught.value.code == (0 if words == ("--help",) else 128 + signal.SIGPIPE)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
def test_a_disk_that_is_full_is_an_error(project: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit, match=r"^error: the output cannot be written: .*No space left on device"):
            call("check")


# readme


def test_the_results_replace_what_lies_between_the_markers(project: Path, call: Call) -> None:
    finish(project, "paper")
    assert call("readme") == "README.md shows the results of paper\n"
    text = (project / "README.md").read_text()
    assert text.startswith(f"{BEFORE}{BEGIN}\n\n### Profile `paper`")
    assert text.endswith(f"\n\n{END}{AFTER}")
    assert "No results yet" not in text
    assert "CIFAR-10 (official archive)" in text
    call("readme")
    assert (project / "README.md").read_text() == text


def test_results_with_published_figures_come_first_and_one_profile_may_be_chosen(project: Path, call: Call) -> None:
    finish(project, "other", "digits")
    finish(project, "paper")
    assert call("readme") == "README.md shows the results of paper, other\n"
    assert headings(project)[2:4] == ["### Profile `paper`", "### Profile `other`"]
    assert call("readme", "--profile", "other") == "README.md shows the results of other\n"
    assert headings(project)[2:4] == ["### Profile `other`", "## Next"]


def test_another_file_may_be_named_and_a_link_stays_one(project: Path, call: Call) -> None:
    finish(project, "paper")
    (project / "docs").mkdir()
    (project / "README.md").rename(project / "docs" / "front.md")
    (project / "front.md").symlink_to("docs/front.md")
    call("readme", "--readme", "front.md")
    assert (project / "front.md").readlink() == Path("docs/front.md")
    assert "### Profile `paper`" in (project / "docs" / "front.md").read_text()


@pytest.mark.parametrize(
    "text",
    ["no markers", BEGIN, END, f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"{BEGIN}\n{END}\n{END}\n", f"{END}\n{BEGIN}\n"],
    ids=["none", "no end", "no begin", "all twice", "end twice", "exchanged"],
)
def test_markers_must_be_there_once_each_and_in_order(text: str, project: Path, call: Call) -> None:
    finish(project, "paper")
    (project / "README.md").write_text(text)
    message = f"README.md must hold the line {BEGIN} and, below it, the line {END}, once each"
    with pytest.raises(SystemExit, match=f"^error: {re.escape(message)}"):
        call("readme")
    assert (project / "README.md").read_text() == text


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_readme_that_cannot_be_read_is_an_error(content: bytes | None, project: Path, call: Call) -> None:
    (project / "README.md").unlink() if content is None else (project / "README.md").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^error: README\.md cannot be read: .*; name the file to edit with --readme"):
        call("readme")


def test_the_readme_of_the_project_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert text.index(BEGIN) < text.index(END)


# ui


def test_the_server_is_bound_to_this_machine_and_the_addresses_open_the_comparison(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(commands, "published_views", lambda uri: ("7", ["overview", "demo-cnn1"]))
    monkeypatch.setattr(os, "execve", lambda path, command, environment: started.append((command, environment)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////project/mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    page = f"http://127.0.0.1:{port}/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert call("ui", "--port", port) == (
        "Compare the runs at\n"
        f"  overview   {page}&viewStateShareKey=overview\n"
        f"  demo-cnn1  {page}&viewStateShareKey=demo-cnn1\n"
    )
    ((command, environment),) = started
    assert command[1:] == ["-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", port]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:////project/mlflow.db"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_server_elsewhere_is_only_pointed_to_without_its_password(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "published_views", lambda uri: ("7", ["overview"]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@server:5000/")
    assert "  overview  http://server:5000/#/experiments/7/runs?" in call("ui")


def test_a_port_in_use_is_named(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "published_views", lambda uri: ("1", []))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"^error: port {port} cannot be used .*: name another one with --port$"):
            call("ui", "--port", str(port))


def test_before_anything_is_published_the_page_has_nothing_to_show(project: Path, call: Call) -> None:
    with pytest.raises(
        SystemExit, match=r"^error: nothing is published in sqlite:///.*mlflow\.db yet: run `dvc repro`"
    ):
        call("ui")


# logs


def write_logs(folder: Path, last: str = "2") -> None:
    """Write logs of five images in batches of two, two and one, and two steps."""
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"4\n6\n2\n4\n1\n{last}\n")
    (folder / CORRECT).write_text(f"1\n2\n2\n2\n1\n{0 if last == '2' else 1}\n")


def test_logs_are_a_table_with_a_line_per_folder_however_often_it_is_named(tmp_path: Path, call: Call) -> None:
    write_logs(tmp_path / "mine" / "k0")
    write_logs(tmp_path / "mine" / "k1", last="7")
    (tmp_path / "link").symlink_to("mine")
    words = (tmp_path / "mine", tmp_path / "mine/k1", tmp_path / "link")
    assert call("logs", *words, "--images", "5", "--steps", "2", "--batch", "2").splitlines() == [
        "folder  accuracy %  stable step  positive spikes  negative spikes  SOPs  batches",
        "k0           80.00            1                2                0     2        3",
        "k1          100.00            2                3                0     3        3",
        "",
        "After step 2; spikes and SOPs per image, averages of 5 images.",
    ]


def test_logs_can_be_drawn_next_to_a_published_network(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "k0"
    folder.mkdir()
    steps = np.arange(1, 101)
    for name in FILES:
        counts = np.minimum(steps, 90) if name == CORRECT else 50 * steps
        (folder / name).write_text("".join(f"{count}\n" for count in counts))
    words = ("--images", "100", "--steps", "100", "--plot", tmp_path / "plots", "--model", "cnn1")
    assert call("logs", folder, *words).endswith(f"Figures: {tmp_path}/plots/\n")
    drawn = {path.suffix for path in (tmp_path / "plots").iterdir()}
    assert drawn == {".png", ".svg"}


def test_a_defect_of_a_log_is_an_error_in_one_line(tmp_path: Path, call: Call) -> None:
    write_logs(tmp_path / "k0", last="six")
    with pytest.raises(
        SystemExit, match=r"^error: .*/k0/spike_num\.txt, line 6: expected a whole number .*, found 'six'"
    ):
        call("logs", tmp_path, "--images", "5", "--steps", "2")


@pytest.mark.parametrize(("images", "steps"), [("0", "4"), ("5", "-1"), ("5", "1.5"), ("many", "4")])
def test_images_and_steps_are_whole_numbers_from_one(
    images: str, steps: str, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call("logs", "folder", "--images", images, "--steps", steps)
    assert re.search(r"argument --(images|steps): expected a whole number from 1, found ", capsys.readouterr().err)
