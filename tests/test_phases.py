"""Training as stages run it: killed, stopped, damaged, short of disk, it ends in the weights of an undisturbed run."""

from __future__ import annotations

import copy
import csv
import hashlib
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import PARAMS
from quantspike import phases, tensors
from quantspike.data import build_dataset, load_dataset, save_dataset
from quantspike.display import Display
from quantspike.params import load_params
from quantspike.paths import Chain
from quantspike.phases import CODE, resume_store
from quantspike.training import FINETUNE, TRAIN, Training
from stage_processes import ALL_K, CHAIN, STAGES, run_stage, start, start_stage, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="this system has no signals that a process could be sent")

KILLS = 12
EPOCHS = 10
IMAGES = Path("data", "tiny", "images.safetensors")
RESUME = Path("data", "resume", "tiny-small-1-0")
STOPPING = "stopping after the step at work, then saving; Ctrl-C again ends at once, without saving"
# A state is all that counts: averages, a rate that rises and falls, and random choices of every kind are in it.
TRAINING = {
    "epochs": EPOCHS,
    "batch_size": 120,
    "padding": 1,
    "brightness": 10,
    "cutout": 2,
    "schedule": "cosine",
    "warmup": 0.2,
    "weight_decay": 0.01,
    "averaging": 0.9,
}


@dataclass
class Reference:
    """A folder with images, and what an undisturbed run made of them there."""

    folder: Path
    results: dict[str, Any]
    seconds: float


def content(checkpoint_minutes: float = 10, **train: Any) -> dict[str, Any]:
    changed = copy.deepcopy(PARAMS) | {"checkpoint_minutes": checkpoint_minutes}
    changed["profiles"]["tiny"]["train"] |= TRAINING | train
    changed["profiles"]["tiny"]["finetune"]["epochs"] = 3
    return changed


def write_params(folder: Path, **train: Any) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(content(**train)))


def results(folder: Path, phase: str = "train") -> dict[str, Any]:
    """All that must be equal: the weights to the last bit, and the curve but for its seconds."""
    with (folder / "metrics/tiny/small-1-0" / f"{phase}.csv").open(newline="") as file:
        curve = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    weights = (folder / "data/tiny/small-1-0" / f"{phase}.safetensors").read_bytes()
    return {"sha256": hashlib.sha256(weights).hexdigest(), "curve": curve}


def states(folder: Path, phase: str = "train") -> list[Path]:
    return sorted((folder / RESUME).glob(f"{phase}-*.safetensors"))


def left(folder: Path) -> list[str]:
    """What lies beside the states, and whether the newest of these is that of a training which is over."""
    *_, newest = states(folder)
    others = sorted(path.name for path in (folder / RESUME).iterdir() if path not in states(folder))
    return [*others, "the last state" if newest.stem.endswith(f"-{EPOCHS + 1:06d}-00000000") else newest.name]


def here(folder: Path, stage: str = "train") -> None:
    """Runs a stage in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{stage}.py", *(ALL_K if stage == "pretrain" else CHAIN)])
        patch.chdir(folder)
        runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")


def stop_after(patch: pytest.MonkeyPatch, epochs: int, number: int = signal.SIGTERM) -> None:
    """Has this process sent a signal after so many epochs, seen from the start of the training."""
    measured = Display.measured

    def then_stop(display: Display, training: Any, epoch: Any) -> None:
        measured(display, training, epoch)
        if epoch.epoch == epochs:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    patch.setattr(Display, "measured", then_stop)


def stopped(folder: Path, epochs: int, stage: str = "train") -> None:
    """Leaves a folder with a training that was stopped after so many epochs."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, epochs)
        with pytest.raises(SystemExit) as caught:
            here(folder, stage)
    assert caught.value.code == 143


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    write_params(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["download.py", *CHAIN[:4]])
        patch.chdir(folder)
        runpy.run_path(str(STAGES / "download.py"), run_name="__main__")
    start(print).join(60)  # what processes are forked from takes seconds to get ready, once
    began = time.perf_counter()
    stage = run_stage(folder, "train")
    assert (stage.status, stage.errors) == (0, "")
    assert "goes on" not in stage.output
    assert left(folder) == ["lock", "the last state"]
    return Reference(folder, results(folder), time.perf_counter() - began)


@pytest.fixture
def project(reference: Reference, tmp_path: Path) -> Path:
    """A folder with params and images, before the training."""
    (tmp_path / IMAGES).parent.mkdir(parents=True)
    (tmp_path / IMAGES).hardlink_to(reference.folder / IMAGES)
    write_params(tmp_path)
    return tmp_path


# Killed


def test_a_network_that_was_lost_before_a_later_stage_has_read_it_comes_back_without_training(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(project)
    for path in (project / "data/tiny/small-1-0/train.safetensors", project / "metrics/tiny/small-1-0/train.csv"):
        path.unlink()  # as dvc does before it runs a stage that it has not noted
    capsys.readouterr()
    here(project)
    assert capsys.readouterr().out.startswith("goes on after the last epoch")
    assert results(project) == reference.results
    here(project, "finetune")
    assert states(project, "train") == []
    assert len(states(project, "finetune")) == 2
    here(project, "evaluate")
    assert states(project, "finetune") == []


def test_a_training_that_is_killed_again_and_again_ends_in_the_same_weights(
    reference: Reference, project: Path
) -> None:
    moments, kills, resumed = random.Random(1), 0, 0
    while True:
        # Every second time a state is saved at each step, so that most kills hit a file half written.
        write_params(project, checkpoint_minutes=1e-9 if kills % 2 else 10)
        stage = start_stage(project, "train")
        if kills < KILLS:
            stage.process.join(moments.uniform(0, reference.seconds / 2))
            stage.process.kill()
        status = stage.end()
        resumed += "goes on in epoch" in stage.output
        assert (status, stage.errors) in ((0, ""), (-9, ""))
        if status == 0:
            assert results(project) == reference.results
            assert left(project) == ["lock", "the last state"]
            if kills == KILLS:
                break
        else:
            kills += 1
    assert resumed > 0


def test_a_stage_that_is_killed_as_a_program_goes_on(reference: Reference, project: Path) -> None:
    command = [sys.executable, str(STAGES / "train.py"), *CHAIN]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 3/"):
            assert process.poll() is None
        process.kill()
    assert process.returncode == -signal.SIGKILL
    stage = run_stage(project, "train")
    assert (stage.status, stage.errors) == (0, "")
    assert stage.output.startswith("goes on in epoch ")
    assert results(project) == reference.results


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells of the end of any process")
def test_the_training_of_a_killed_dvc_stops_and_saves(reference: Reference, project: Path) -> None:
    write_params(project, epochs=100_000)
    (project / "between.py").write_text("import subprocess, sys\nsubprocess.call(sys.argv[1:])\n")
    dvc = project / "dvc"
    dvc.write_text(f"#!{sys.executable}\n{(project / 'between.py').read_text()}")
    dvc.chmod(0o755)
    # A shell and a launcher in between, as with torchrun.
    command = [str(dvc), "sh", "-c", '"$@"; exit $?', "sh", sys.executable, "between.py"]
    command += [sys.executable, str(STAGES / "train.py"), *CHAIN]
    errors = project / "stderr.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command, cwd=project, stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("epoch 1/"):
            assert process.poll() is None
        process.kill()
        process.wait()
        wait_until(lambda: "stopped by SIGTERM in epoch" in errors.read_text(), seconds=10)
        assert states(project)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()  # type: ignore[union-attr]


# Stopped


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_it_with_a_state_and_word_of_how_to_go_on(
    number: signal.Signals, status: int, reference: Reference, project: Path
) -> None:
    stage = start_stage(project, "train")
    stage.wait_for("epoch 2/")
    stage.signal(number)
    assert stage.end() == status
    place = r"in epoch (\d+), (?:after )?step (\d+) of 12"
    matched = re.search(place, stage.errors)
    assert matched is not None, stage.errors
    epoch, step = matched.groups()
    assert stage.errors == (
        f"{STOPPING}\n"
        f"stopped by {number.name} {matched[0]}: the state is saved ({RESUME}); the same command goes on from there\n"
    )
    assert states(project)[-1].stem.endswith(f"-{int(epoch):06d}-{int(step):08d}")
    assert not (project / "data/tiny/small-1-0").exists()
    stage = run_stage(project, "train")
    assert (stage.status, stage.errors) == (0, "")
    assert stage.output.startswith(f"goes on in epoch {epoch}, after step {step} of 12\n")
    assert results(project) == reference.results


def press(seconds: float) -> None:
    """Ctrl-C, and time that passes then."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(seconds)


def interrupted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a training that a second Ctrl-C ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        here(folder)
    assert caught.value.code == 130
    end = "interrupted: nothing half-written was left; the same command starts this stage again"
    assert capsys.readouterr().err == f"{STOPPING}\n{end}\n"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_ctrl_c_ends_the_step_at_work_and_leaves_the_state_before(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(project, 3)
    before, steps = files(project), 0

    def long_step(training: Training, *_: Any) -> None:
        nonlocal steps
        steps += 1
        press(1.1)
        press(5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_one_step", long_step)
        interrupted(project, capsys)
    assert steps == 1
    assert files(project) == before
    here(project)
    assert "goes on in epoch 4" in capsys.readouterr().out
    assert results(project) == reference.results


def test_a_second_ctrl_c_while_the_state_is_written_leaves_the_one_before_and_nothing_half_written(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(project, 3)
    before = files(project)

    def half(content: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        time.sleep(1.1)
        press(5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "save_file", half)
        stop_after(patch, 4, signal.SIGINT)
        interrupted(project, capsys)
    assert files(project) == before
    here(project)
    assert "goes on in epoch 4" in capsys.readouterr().out
    assert results(project) == reference.results


def test_fine_tuning_goes_on_too(reference: Reference, project: Path) -> None:
    trained = Path("data/tiny/small-1-0/train.safetensors")
    (project / trained).parent.mkdir()
    (project / trained).hardlink_to(reference.folder / trained)
    here(project, "finetune")
    undisturbed = results(project, "finetune")
    for path in (project / "data/tiny/small-1-0/finetune.safetensors", *states(project, "finetune")):
        path.unlink()
    stopped(project, 2, "finetune")
    assert states(project) == []
    assert len(states(project, "finetune")) > 0
    here(project, "finetune")
    assert results(project, "finetune") == undisturbed


def write_pretraining(folder: Path, **train: Any) -> None:
    changed = content(**train)
    changed["profiles"]["tiny"]["pretrain"] = {"epochs": 3, "learning_rate": 0.01}
    (folder / "params.yaml").write_text(yaml.safe_dump(changed))


def pretrained(folder: Path) -> tuple[bytes, list[list[str]]]:
    """Weights and curve, but for its seconds."""
    with (folder / "metrics/tiny/small-fp32-0/pretrain.csv").open(newline="") as file:
        curve = [row[:-1] for row in csv.reader(file)]
    return (folder / "data/tiny/small-fp32-0/pretrain.safetensors").read_bytes(), curve


def test_pretraining_goes_on_too_and_is_not_done_again_for_what_each_k_does_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pretraining(project)
    here(project, "pretrain")
    undisturbed = pretrained(project)
    shutil.rmtree(project / "data" / "resume")
    (project / "data/tiny/small-fp32-0/pretrain.safetensors").unlink()
    stopped(project, 2, "pretrain")
    here(project, "pretrain")
    assert pretrained(project) == undisturbed
    here(project)
    # As dvc has it, which deletes what the stage wrote and runs it again when anything in `train` has changed
    for change in ({"epochs": 2}, {"learning_rate": 1e-4}, {"schedule": "linear"}):
        write_pretraining(project, **change)
        (project / "data/tiny/small-fp32-0/pretrain.safetensors").unlink()
        capsys.readouterr()
        here(project, "pretrain")
        assert capsys.readouterr().out.startswith("goes on after the last epoch")
        assert pretrained(project) == undisturbed
    for change in ({"batch_size": 60}, {"warmup": 0.4}):
        write_pretraining(project, **change)
        capsys.readouterr()
        here(project, "pretrain")
        assert not capsys.readouterr().out.startswith("goes on")
        assert pretrained(project) != undisturbed


def test_with_other_images_it_is_pretrained_anew_and_no_k_goes_on_from_before(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pretraining(project)
    here(project, "pretrain")
    stopped(project, 2)
    first = pretrained(project)
    dataset = load_dataset(project / IMAGES)
    train, test = (dataset.train_images.copy(), dataset.train_labels), (dataset.test_images, dataset.test_labels)
    train[0][0, 0, 0, 0] ^= 1
    (project / IMAGES).replace(project / "as it was.safetensors")
    save_dataset(build_dataset(train, test, dataset.class_names, kind="digits", name="changed"), project / IMAGES)
    capsys.readouterr()
    here(project, "pretrain")
    assert not capsys.readouterr().out.startswith("goes on")
    assert pretrained(project) != first
    # Images as they were, but a network that was pre-trained on others: the state of `train` is not its own.
    (project / "as it was.safetensors").replace(project / IMAGES)
    here(project)
    assert not capsys.readouterr().out.startswith("goes on")


@pytest.mark.parametrize("end", ["stopped", "results refused"])
def test_after_the_last_epoch_only_the_results_are_left_to_be_written(
    end: str, reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = project / "data/tiny/small-1-0/train.safetensors"
    if end == "stopped":
        stopped(project, EPOCHS)
        assert "stopped by SIGTERM after the last epoch: the state is saved" in capsys.readouterr().err
    else:
        weights.mkdir(parents=True)
        with pytest.raises(SystemExit, match=r"^error: .*train\.safetensors could not be written"):
            here(project)
        weights.rmdir()
        capsys.readouterr()
    here(project)
    assert capsys.readouterr().out == "goes on after the last epoch\n"
    assert results(project) == reference.results


# Never another training's state


def begins_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    capsys.readouterr()
    stopped(folder, 3)
    captured = capsys.readouterr()
    assert "goes on in" not in captured.out
    count = len([path for path in states(folder) if path.name in captured.err])
    assert count == 0
    return "belong to other params, code or data; they are not used" in captured.err


@pytest.mark.parametrize("change", [{"learning_rate": 0.002}, {"epochs": 11}, {"batch_size": 121}, {"averaging": 0.8}])
def test_with_other_params_it_begins_anew(
    change: dict[str, Any], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(project, 2)
    write_params(project, **change)
    assert begins_anew(project, capsys)


def test_with_other_data_it_begins_anew_and_going_back_it_goes_on(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(project, 2)
    dataset = load_dataset(project / IMAGES)
    train, test = (dataset.train_images.copy(), dataset.train_labels), (dataset.test_images, dataset.test_labels)
    train[0][0, 0, 0, 0] ^= 1
    (project / IMAGES).unlink()
    save_dataset(build_dataset(train, test, dataset.class_names, kind="digits", name="changed"), project / IMAGES)
    assert begins_anew(project, capsys)
    (project / IMAGES).unlink()
    (project / IMAGES).hardlink_to(reference.folder / IMAGES)
    here(project)
    assert "goes on in epoch 3" in capsys.readouterr().out
    assert results(project) == reference.results


def test_any_change_of_params_code_or_data_changes_the_name_of_the_states(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = project / "code"
    code.mkdir()
    for path in (*(Path(phases.__file__).with_name(name) for name in CODE), STAGES / "train.py"):
        shutil.copy(path, code)
    monkeypatch.setattr(phases, "__file__", str(code / "phases.py"))
    seen: dict[str, str] = {}

    def note(what: str, phase: int = TRAIN, k: Any = 1, seed: int = 0) -> None:
        params = load_params(project / "params.yaml")
        chain = Chain("tiny", "small", k, seed, project)
        seen[what] = resume_store(params, chain, phase, code / "train.py", [project / IMAGES]).fingerprint

    note("nothing")
    note("phase", phase=FINETUNE)
    note("k", k="fp32")
    note("seed", seed=1)
    for path in code.iterdir():
        before = path.read_text()
        path.write_text(before + "# a comment\n")
        note(path.name)
        path.write_text(before)
    for name in content()["profiles"]["tiny"]["train"]:
        write_params(project, **{name: other_than(content()["profiles"]["tiny"]["train"][name])})
        note(name)
    for place, value in (("width", 0.25), ("data", {"source": "digits", "crop": 4})):
        (project / "params.yaml").write_text(yaml.safe_dump(content() | _profile(place, value)))
        note(place)
    changed = content()
    changed["models"]["small"]["layers"] = "8C3-P2-16C3-P2-17"
    (project / "params.yaml").write_text(yaml.safe_dump(changed))
    note("layers")
    assert len(set(seen.values())) == len(seen) > 20, seen
    write_params(project, checkpoint_minutes=1)  # changes no weight
    note("checkpoint_minutes")
    changed = content()
    changed["profiles"]["tiny"]["convert"]["weight_bits"] = 8
    (project / "params.yaml").write_text(yaml.safe_dump(changed))
    note("convert")
    assert seen["nothing"] == seen["checkpoint_minutes"] == seen["convert"]


def other_than(value: Any) -> Any:
    """Something else that is allowed in its place."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "linear"
    return value + 1 if isinstance(value, int) else value / 2


def _profile(name: str, value: Any) -> dict[str, Any]:
    profile = content()["profiles"]["tiny"] | {name: value}
    return {"profiles": {"tiny": profile}}


@pytest.mark.parametrize("stage", ["train", "finetune"])
def test_the_code_that_names_the_states_is_the_code_that_dvc_watches(stage: str) -> None:
    watched = yaml.safe_load((STAGES.parent / "dvc.yaml").read_text())["stages"][stage]["deps"]
    assert {Path(path).name for path in watched if path.startswith("src/")} == set(CODE)
    assert f"stages/{stage}.py" in watched


# Damage


def test_a_damaged_newest_state_is_passed_over_for_the_one_before(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(project, checkpoint_minutes=1e-9)
    stopped(project, 4)
    before, newest = states(project)
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    here(project)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{newest.name} is passed over: ")
    step = int(before.stem.rpartition("-")[2])
    assert captured.out.startswith(f"goes on in epoch 4, after step {step} of 12\n")
    assert results(project) == reference.results


def test_where_both_states_are_damaged_it_begins_anew(
    reference: Reference, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(project, 4)
    for path in states(project):
        path.write_bytes(b"")
    capsys.readouterr()
    stopped(project, 2)
    captured = capsys.readouterr()
    assert captured.err.count("is passed over") == 2
    here(project)
    assert "goes on in epoch 3" in capsys.readouterr().out
    assert results(project) == reference.results


# What stops a training, and what does not


def test_a_loss_that_is_not_finite_names_the_place_the_remedy_and_the_last_good_state(
    reference: Reference, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_loss, steps = torch.nn.functional.cross_entropy, 0

    def loss(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return true_loss(*arguments, **options) * (float("inf") if steps == 2 * 12 + 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", loss)
        with pytest.raises(SystemExit) as caught:
            here(project)
    newest = states(project)[-1].relative_to(project)
    message = str(caught.value.code)
    assert message.startswith("error: the loss became inf in epoch 3, step 5: the learning rate 0.00")
    assert "may be too high; try a tenth of it or a larger batch" in message
    assert message.endswith(f"; the last good state is kept in {newest}")
    here(project)
    assert results(project) == reference.results


def test_a_loss_that_is_not_finite_from_the_start_says_that_no_state_was_saved(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda scores, labels, **_: scores.sum() * torch.nan)
    with pytest.raises(SystemExit, match=r"the loss became nan in epoch 1, step 1: .*; no state was saved before$"):
        here(project)


def test_a_second_training_of_the_chain_is_refused_and_does_no_harm(reference: Reference, project: Path) -> None:
    first = start_stage(project, "train")
    first.wait_for("epoch 1/")
    first.signal(signal.SIGSTOP)
    for stage in ("train", "finetune"):
        with pytest.raises(SystemExit, match=r"^error: another process is training tiny-small-1-0 already"):
            here(project, stage)
    first.signal(signal.SIGCONT)
    assert (first.end(), first.errors) == (0, "")
    assert results(project) == reference.results


def test_where_states_find_no_room_it_warns_and_trains_on(reference: Reference, project: Path) -> None:
    # The averages of the weights make a state larger than what it ends in.
    room = (reference.folder / "data/tiny/small-1-0/train.safetensors").stat().st_size
    stage = run_stage(project, "train", file_limit=room)
    assert stage.status == 0, stage.errors
    lines = stage.errors.splitlines()
    for line in lines:
        assert line.startswith(f"warning: {RESUME}/train-")
        assert "could not be written: " in line
        assert " MB; what stood there before is untouched; training goes on without it" in line
    assert len(lines) > 1
    assert results(project) == reference.results
    assert states(project) == []


def test_stopped_where_its_state_finds_no_room_it_says_which_one_is_left(project: Path) -> None:
    write_params(project, epochs=100_000)
    stage = start_stage(project, "train", file_limit=10_000)
    stage.wait_for("epoch 2/")
    stage.signal(signal.SIGTERM)
    assert stage.end() == 143
    message = stage.errors.splitlines()[-1]
    assert message.startswith("stopped by SIGTERM in epoch ")
    assert "could not be written: " in message
    assert message.endswith("; no state was saved before; the same command begins anew")

    stopped(project, 3)
    left = states(project)[-1].relative_to(project)
    stage = start_stage(project, "train", file_limit=10_000)
    stage.wait_for("epoch 4/")
    stage.signal(signal.SIGTERM)
    assert stage.end() == 143
    message = stage.errors.splitlines()[-1]
    assert message.endswith(f"; the last good state is kept in {left}; the same command goes on from there")


def test_without_room_for_the_results_they_are_named_and_the_last_state_is_kept(
    reference: Reference, project: Path
) -> None:
    stopped(project, EPOCHS)
    stage = run_stage(project, "train", file_limit=10_000)
    assert stage.status == 1
    assert stage.errors.startswith("error: data/tiny/small-1-0/train.safetensors could not be written: ")
    assert states(project)
    here(project)
    assert results(project) == reference.results
