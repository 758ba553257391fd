"""Chains within a time limit: their order, what is cut, what goes on, what need not run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from away_projects import PARAMS, PROJECT, grid, make_job, make_project, ran
from quantspike.away import running
from quantspike.away.__main__ import main
from quantspike.away.packing import read_pack
from quantspike.away.running import order, run_chains
from quantspike.errors import QuantspikeError
from quantspike.locks import sole_holder

CHAIN_STAGES = ("train", "finetune", "evaluate", "convert", "simulate")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def edit(project: Path, place: str, value: object) -> None:
    """Changes a value of params.yaml."""
    content = yaml.safe_load((project / "params.yaml").read_text())
    *sections, name = place.split(".")
    section = content
    for part in sections:
        section = section[part]
    section[name] = value
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def end_time_once_a_stage_waits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps beyond every limit as soon as `train` is at work, however slow this machine is."""
    clock = time.monotonic
    waits = project / "waits.txt"
    monkeypatch.setattr(running.time, "monotonic", lambda: clock() + (1000 if waits.exists() else 0))


def packs(project: Path) -> list[str]:
    return sorted(path.name for path in (project / "build" / "packs").glob("*"))


def test_chains_run_in_the_order_that_is_asked_for_and_each_leaves_a_pack(project: Path) -> None:
    report = run_chains(make_job(project), grid(project))
    names = ["small-1-0", "small-fp32-0", "large-1-0", "large-fp32-0"]
    assert report.finished == [f"demo-{name}" for name in names]
    stages = [[f"{stage} {name}" for stage in CHAIN_STAGES] for name in names]
    small, large = [*stages[0], *stages[1]], [*stages[2], *stages[3]]  # every k goes on from one pre-trained network
    assert ran(project) == ["download demo", "pretrain small-fp32-0", *small, "pretrain large-fp32-0", *large]
    assert packs(project) == sorted(f"demo-{name}.tar.gz" for name in names)
    assert not (project / "data").exists()  # the project's own folders are DVC's
    assert not (project / "metrics").exists()


def test_chains_that_share_a_pretraining_are_refused_before_anything_runs(project: Path) -> None:
    edit(project, "profiles.demo.pretrain.epochs", 2)
    with pytest.raises(QuantspikeError, match=r"profiles\.demo\.pretrain\.epochs is 2, but only chains that share no"):
        run_chains(make_job(project), grid(project))
    assert ran(project) == []


def test_networks_come_before_seeds_and_precisions_before_networks() -> None:
    chains = order("paper", ["cnn1", "cnn2"], [1, "fp32"], [0, 7], Path("work"))
    assert [chain.name for chain in chains] == [
        f"{model}-{k}-{seed}" for seed in (0, 7) for model in ("cnn1", "cnn2") for k in (1, "fp32")
    ]


def test_a_second_call_skips_what_is_packed_there_or_elsewhere(project: Path, tmp_path: Path) -> None:
    chains = grid(project)
    run_chains(make_job(project), chains[:2])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    packed = project / "build" / "packs" / "demo-small-1-0.tar.gz"
    packed.rename(elsewhere / packed.name)
    (project / "ran.txt").unlink()
    report = run_chains(make_job(project, done=(elsewhere,)), chains[:3])
    assert report.skipped == ["demo-small-1-0", "demo-small-fp32-0"]
    assert report.finished == ["demo-large-1-0"]
    assert ran(project) == ["pretrain large-fp32-0", *(f"{stage} large-1-0" for stage in CHAIN_STAGES)]
    assert packs(project) == ["demo-large-1-0.tar.gz", "demo-small-fp32-0.tar.gz"]


def test_a_pack_that_a_kill_left_unfinished_is_made_again(project: Path) -> None:
    chains, out = grid(project)[:1], project / "build" / "packs"
    run_chains(make_job(project), chains)
    whole = (out / "demo-small-1-0.tar.gz").read_bytes()
    (out / "demo-small-1-0.tar.gz").rename(out / "demo-small-1-0.tar.gz.1of2")
    (out / ".demo-small-1-0.tar.gz.2of2.x1y2.2of2").write_text("half")
    (project / "ran.txt").unlink()
    assert run_chains(make_job(project), chains).finished == ["demo-small-1-0"]
    assert packs(project) == ["demo-small-1-0.tar.gz"]
    assert (out / "demo-small-1-0.tar.gz").read_bytes() == whole
    assert ran(project) == []  # all stages are done


def test_a_pack_made_with_other_params_is_said_to_be_so_and_made_anew(project: Path) -> None:
    chains = grid(project)[:1]
    run_chains(make_job(project), chains)
    edit(project, "profiles.demo.convert.weight_bits", 8)
    (project / "ran.txt").unlink()
    said: list[str] = []
    assert run_chains(make_job(project), chains, said.append).finished == ["demo-small-1-0"]
    assert "was made otherwise (profiles.demo.convert.weight_bits is 8 here, 12 there)" in said[0]
    # What does not depend on it is not run again; the network comes out the same, so neither is simulate.
    assert ran(project) == ["convert small-1-0"]


def test_time_that_is_up_stops_a_training_which_leaves_nothing_but_its_state_and_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "slow.txt").touch()
    end_time_once_a_stage_waits(project, monkeypatch)
    said: list[str] = []
    report = run_chains(make_job(project), grid(project)[:2], said.append)
    assert report.left == ["demo-small-1-0", "demo-small-fp32-0"]
    assert any(line.startswith("train@demo-small-1-0 was stopped by the limit; the same command") for line in said)
    assert said[-1] == "left for another time: demo-small-1-0, demo-small-fp32-0"
    assert packs(project) == []
    tables = [path.name for path in (project / "build" / "away" / "metrics").rglob("*.csv")]
    assert tables == ["pretrain.csv"]  # .train.csv.x1y2.csv neither
    assert (project / "build" / "away" / "data" / "resume" / "demo-small-1-0").read_text() == "state"
    assert run_chains(make_job(project), grid(project)[:1]).finished == ["demo-small-1-0"]
    assert ran(project).count("train small-1-0") == 2


def test_a_stage_that_does_not_stop_is_killed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.2)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    waits = f"open({str(project / 'waits.txt')!r}, 'w')"
    (project / "stages" / "train.py").write_text(f"import signal, time\n{deaf}\n{waits}\ntime.sleep(60)\n")
    end_time_once_a_stage_waits(project, monkeypatch)
    start = time.perf_counter()
    report = run_chains(make_job(project), grid(project)[:1])
    assert report.left == ["demo-small-1-0"]
    assert time.perf_counter() - start < 30


def test_a_signal_stops_the_stage_and_all_that_would_follow(project: Path) -> None:
    (project / "slow.txt").touch()

    def interrupt() -> None:
        while not (project / "waits.txt").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    said: list[str] = []
    report = run_chains(make_job(project), grid(project), said.append)
    assert len(report.left) == 4
    assert any("train@demo-small-1-0 was stopped by a signal" in line for line in said)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent was killed")
def test_a_stage_ends_with_the_command_that_is_killed(project: Path) -> None:
    (project / "slow.txt").touch()
    command = [sys.executable, "-m", "quantspike.away", "run", "--profile", "demo", "--model", "small", "--k", "1"]
    environment = os.environ | {"PYTHONPATH": str(project / "src")}
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_for(project / "waits.txt")
        process.kill()
    state = project / "build" / "away" / "data" / "resume" / "demo-small-1-0"
    wait_for(state)  # saved, as for any SIGTERM
    assert run_chains(make_job(project), grid(project)[:1]).finished == ["demo-small-1-0"]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.02)


def test_a_stage_that_fails_by_itself_at_the_end_of_the_time_is_no_cut(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = f"open({str(project / 'waits.txt')!r}, 'w').close()"
    fails = "signal.signal(signal.SIGTERM, lambda *_: sys.exit('out of memory'))"
    (project / "stages" / "train.py").write_text(f"import signal, sys, time\n{fails}\n{waits}\ntime.sleep(60)\n")
    end_time_once_a_stage_waits(project, monkeypatch)
    assert run_chains(make_job(project), grid(project)[:1]).failed == ["demo-small-1-0"]


def test_code_that_is_not_the_project_s_is_refused(project: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^error: this is the code in .*, not the project's: set PYTHONPATH=.*/project/"
    ):
        main(["--params", str(project / "params.yaml"), "run", "--profile", "demo", "--model", "small"])
    assert ran(project) == []
    running.check_code(PROJECT)


def test_params_that_are_edited_meanwhile_are_not_those_that_are_recorded(project: Path) -> None:
    chains = grid(project)[:1]

    def edited_after_the_first_stage(line: str) -> None:
        if line.startswith("train@"):
            edit(project, "profiles.demo.convert.weight_bits", 8)

    run_chains(make_job(project), chains, edited_after_the_first_stage)
    pack = read_pack([project / "build" / "packs" / "demo-small-1-0.tar.gz"])
    assert pack.provenance.stages["convert"].params["profiles.demo.convert"] == {"weight_bits": 12}


def test_another_archive_of_the_same_name_is_read_again(project: Path, tmp_path: Path) -> None:
    edit(project, "profiles.demo.data.source", ["data/photos.zip", "cifar10"])
    archive = tmp_path / "photos.zip"
    for content in ("one", "one", "another"):
        archive.write_text(content)
        run_chains(make_job(project, source=archive), grid(project)[:1])
    assert ran(project).count("download demo") == 2


def test_an_archive_is_never_taken_for_a_link(project: Path) -> None:
    edit(project, "profiles.demo.data.source", ["data/photos.zip", "cifar10"])
    archive = project / "data" / "photos.zip"
    archive.parent.mkdir()
    archive.write_text("zip")
    run_chains(make_job(project, work=project), order("demo", ["small"], [1], [0], project))
    assert (archive.is_symlink(), archive.read_text()) == (False, "zip")
    other = project / "build" / "away" / "data" / "photos.zip"
    other.parent.mkdir(parents=True)
    other.write_text("another")
    with pytest.raises(QuantspikeError, match=r"photos\.zip lies where images are to be linked"):
        run_chains(make_job(project), grid(project)[:1])
    assert other.read_text() == "another"


def test_a_chain_that_is_named_twice_runs_once(project: Path) -> None:
    assert run_chains(make_job(project), grid(project, k=(1, 1))[:2]).finished == ["demo-small-1-0"]


def test_a_chain_that_fails_leaves_no_pack_and_the_others_run(project: Path) -> None:
    (project / "fails.txt").write_text("finetune small-1-0")
    said: list[str] = []
    report = run_chains(make_job(project), grid(project)[:2], said.append)
    assert (report.failed, report.finished) == (["demo-small-1-0"], ["demo-small-fp32-0"])
    assert "demo-small-1-0: finetune failed with exit status 1, what it printed tells why" in said
    assert packs(project) == ["demo-small-fp32-0.tar.gz"]


def test_images_that_are_not_those_of_dvc_lock_are_refused_before_anything_is_trained(project: Path) -> None:
    outs = [{"path": "data/demo/images.safetensors", "md5": "0" * 32}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"download@demo": {"outs": outs}}}))
    with pytest.raises(QuantspikeError, match=r"images\.safetensors has MD5 .* here, but 0{32} in dvc\.lock"):
        run_chains(make_job(project), grid(project))
    assert ran(project) == ["download demo"]


def test_an_archive_is_put_where_the_params_look_for_it_or_refused(project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    archive.write_text("zip")
    with pytest.raises(QuantspikeError, match=r"photos\.zip is none of the images .* names \(digits\): add a path"):
        run_chains(make_job(project, source=archive), grid(project)[:1])
    edit(project, "profiles.demo.data.source", ["data/photos.zip", "cifar10"])
    run_chains(make_job(project, source=archive), grid(project)[:1])
    assert (project / "build" / "away" / "data" / "photos.zip").read_text() == "zip"


def test_two_at_once_in_one_folder_are_refused(project: Path) -> None:
    with (
        sole_holder(project / "build" / "away", ""),
        pytest.raises(QuantspikeError, match="another process works in"),
    ):
        run_chains(make_job(project), grid(project))


def test_the_provenance_names_all_that_led_to_the_results(project: Path) -> None:
    run_chains(make_job(project, commit="abc-dirty"), grid(project)[:1])
    provenance = read_pack([project / "build" / "packs" / "demo-small-1-0.tar.gz"]).provenance
    assert provenance.commit == "abc-dirty"
    assert provenance.machine == {"arithmetic": "bf16", "device": "some GPU", "processes": 1, "torch": "2.11"}
    train = provenance.stages["train"]
    assert train.command == "python stages/train.py --profile demo --model small --k 1 --seed 0"
    assert train.params["profiles.demo.train"] == PARAMS["profiles"]["demo"]["train"]
    assert "src/quantspike/training.py" in train.inputs
    assert (
        provenance.stages["finetune"].inputs["data/demo/small-1-0/train.safetensors"]
        == (train.outputs["data/demo/small-1-0/train.safetensors"])
    )
