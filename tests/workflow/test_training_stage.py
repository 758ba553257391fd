"""Training as stages run it: what it starts from, what it writes, and that it resumes to the same bytes."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from tqdm import tqdm

from conftest import PARAMS
from quantspike.conversion.integer import load_integer_network
from quantspike.data.dataset import load_dataset
from quantspike.distributed import Group
from quantspike.networks.architecture import architecture_of
from quantspike.params import TrainingStage, load_params
from quantspike.paths import Run, find_run
from quantspike.training import loop
from quantspike.training.checkpoints import Checkpoint, load_checkpoint, resume_optimizer, save_checkpoint
from quantspike.training.evaluation import load_scores
from quantspike.training.loop import Epoch, Training
from quantspike.workflow import callbacks
from quantspike.workflow import training as training_module
from quantspike.workflow.callbacks import Progress, SaveState, describe
from quantspike.workflow.training import CODE, resume_store
from stage_processes import STAGES, run_here, start_stage

BASELINE, TRAIN, FINETUNE = TRAININGS = ("baseline", "train", "finetune")
STEPS = 12
"""Steps of an epoch: 1,437 images, of which 100 are held out, in batches of 120."""

Edit = dict[str, Any]


def write_params(folder: Path, changes: Edit | None = None) -> None:
    """Write params of short trainings as in `fast`, with changes to the profile under dotted names."""
    content = copy.deepcopy(PARAMS)
    tiny = content["profiles"]["tiny"]
    tiny["recipe"] |= {"optimizer": "muon", "batch_size": 120, "label_smoothing": 0.1, "brightness": 10, "clip": 4.0}
    tiny["baseline"] = [{"epochs": 3, "learning_rate": 0.1}, {"epochs": 3, "learning_rate": 0.02}]
    tiny["train"] |= {"epochs": 4, "learning_rate": 0.1}
    tiny["finetune"] |= {"epochs": 4, "learning_rate": 0.02, "integer_aware": True}
    for place, value in (changes or {}).items():
        section, _, key = place.partition(".")
        if key:
            tiny[section][key] = value
        else:
            tiny[section] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def run_of(folder: Path, stage: str = TRAIN) -> Run:
    params = load_params(folder / "params.yaml")
    return find_run(params, "tiny", "small", "fp32" if stage == BASELINE else 1, 0, folder)


def results(folder: Path, stage: str) -> tuple[bytes, bytes]:
    """Return what must be equal to the last byte: weights, averages and moments, and the curve."""
    run = run_of(folder, stage)
    return run.checkpoint(stage).read_bytes(), (run.metrics / f"{stage}.csv").read_bytes()


def checkpoint_of(folder: Path, stage: str) -> Checkpoint:
    run = run_of(folder, stage)
    return load_checkpoint(run.checkpoint(stage), architecture_of(run, image_channels=1), run.k)


def curve(folder: Path, stage: str) -> list[dict[str, str]]:
    with (run_of(folder, stage).metrics / f"{stage}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(folder: Path, stage: str) -> list[str]:
    """Return phases and epochs of the states, such as `train-0-000004`."""
    found = run_of(folder, stage).resume.glob(f"{stage}-*.safetensors")
    return sorted(re.sub(r"-[0-9a-f]{16}-", "-", path.stem) for path in found)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after all trainings, undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    write_params(folder)
    for stage in ("download", *TRAININGS):
        run_here(folder, stage)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A folder with params and images, before any training."""
    run = run_of(finished)
    images = tmp_path / run.dataset.relative_to(finished)
    images.parent.mkdir(parents=True)
    images.hardlink_to(run.dataset)
    write_params(tmp_path)
    return tmp_path


def take_start(finished: Path, project: Path, stage: str) -> None:
    """Put the network that a stage starts from into a project."""
    before = {TRAIN: BASELINE, FINETUNE: TRAIN}[stage]
    path = run_of(project, before).checkpoint(before)
    path.parent.mkdir(parents=True)
    path.hardlink_to(run_of(finished, before).checkpoint(before))


# What a training writes


def test_a_curve_has_a_row_per_epoch_counted_on_over_the_phases(finished: Path) -> None:
    assert {stage: [row["learning_rate"] for row in curve(finished, stage)] for stage in TRAININGS} == {
        BASELINE: ["0.1", "0.0666667", "0.0333333", "0.02", "0.0133333", "0.00666667"],
        TRAIN: ["0.1", "0.075", "0.05", "0.025"],
        FINETUNE: ["0.02", "0.015", "0.01", "0.005"],
    }
    for stage in TRAININGS:
        rows = curve(finished, stage)
        assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, len(rows) + 1)]
        assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
        for row in rows:  # accuracies are whole images of those trained on and tested
            for name, count in (("train", 1437), ("test", 360)):
                correct = float(row[f"{name}_accuracy"]) * count
                assert correct == pytest.approx(round(correct), abs=count * 1e-6)


def test_each_network_says_what_it_was_trained_with(finished: Path) -> None:
    for stage in TRAININGS:
        provenance = checkpoint_of(finished, stage).provenance
        settings = run_of(finished).settings.training_settings(stage)
        images = load_dataset(run_of(finished).dataset).fingerprint["sha256"]
        assert provenance.pop("settings") == settings | {"seed": 0, "data.sha256": images}
        assert (provenance["arithmetic"], provenance["processes"], provenance["torch"]) == (
            "fp32",
            1,
            torch.__version__,
        )
        assert provenance["threads"] == 1  # see conftest.py


def test_a_network_trained_as_integers_is_evaluated_as_the_integer_network_that_it_becomes(
    finished: Path, project: Path
) -> None:
    run = run_of(project, FINETUNE)
    run.network.parent.mkdir(parents=True)
    run.network.hardlink_to(run_of(finished, FINETUNE).network)
    for stage in ("evaluate", "convert"):
        run_here(project, stage)
    network, images = load_integer_network(run.integer_network), load_dataset(run.dataset).test_images
    counts = network.settled_counts(network.input_current(torch.from_numpy(images)))
    logits = network.logits(counts[-1])
    scores = load_scores(run.scores, len(images))
    assert torch.equal(scores * 2.0 ** (network.classifier_exponent + 1), logits.double())
    correct = int((logits.argmax(1) == torch.from_numpy(load_dataset(run.dataset).test_labels)).sum())
    assert json.loads((run.metrics / "evaluate.json").read_text())["correct"] == correct > 0.6 * 360
    assert max(int(layer.max()) for layer in counts) == 8  # the clip of 4, in halves


def test_an_evaluation_in_integers_also_refuses_a_gpu_that_does_not_exist(finished: Path, project: Path) -> None:
    run = run_of(project, FINETUNE)
    run.network.parent.mkdir(parents=True)
    run.network.hardlink_to(run_of(finished, FINETUNE).network)
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"device": "cuda:99"}))
    with pytest.raises(SystemExit, match=r"^error: device is 'cuda:99', but torch sees"):
        run_here(project, "evaluate")
    assert not (run.metrics / "evaluate.json").exists()


def test_fine_tuning_continues_with_the_moments_of_the_first_phase(finished: Path) -> None:
    steps = {
        stage: int(checkpoint_of(finished, stage).moments["optimizer.step.classifier.weight"]) for stage in TRAININGS
    }
    assert steps == {BASELINE: 6 * STEPS, TRAIN: 4 * STEPS, FINETUNE: 8 * STEPS}


def test_with_start_baseline_every_k_continues_the_baseline(finished: Path, project: Path) -> None:
    write_params(project, {"train.start": "baseline", "train.learning_rate": 1e-12})
    take_start(finished, project, TRAIN)
    run_here(project, TRAIN)
    before, after = checkpoint_of(project, BASELINE), checkpoint_of(project, TRAIN)
    for one, other in zip(before.network.parameters(), after.network.parameters(), strict=True):
        # Muon scales the weights of convolutions, whose norm is free.
        assert torch.allclose(one / one.norm(), other / other.norm(), rtol=0, atol=1e-6)
    assert int(after.moments["optimizer.step.classifier.weight"]) == 10 * STEPS
    assert states(project, TRAIN) == ["train-2-000004"]  # two phases came before, each with its own random choices


# Inputs that are not what they should be


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (TRAIN, {"baseline": [{"epochs": 3, "learning_rate": 0.1}]}, "expected baseline.1.epochs = None, found 3"),
        (TRAIN, {"recipe": PARAMS["profiles"]["tiny"]["recipe"]}, "expected recipe.optimizer = adam, found muon"),
        (FINETUNE, {"train.epochs": 5}, "expected train.epochs = 5, found 4"),
        (FINETUNE, {"train.start": "baseline"}, "expected baseline.0.epochs = 3, found None"),
    ],
)
def test_a_network_trained_with_different_settings_is_refused(
    stage: str, changes: Edit, message: str, finished: Path, project: Path
) -> None:
    write_params(project, {"train.start": "baseline" if stage == TRAIN else "scratch"} | changes)
    take_start(finished, project, stage)
    with pytest.raises(SystemExit, match=rf"^error: .* was trained with different settings: {message}; run dvc repro$"):
        run_here(project, stage)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.crop": 12}, "data.crop is 12, but the images are only 8 x 8 pixels: set it to 8 or less"),
        ({"train.start": "baseline"}, "small-fp32-0/baseline.safetensors does not exist: run the stage that writes it"),
    ],
)
def test_what_a_training_cannot_start_with_is_an_error(changes: Edit, message: str, project: Path) -> None:
    write_params(project, changes)
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        run_here(project, TRAIN)
    assert states(project, TRAIN) == []


def test_results_tell_of_every_device_and_of_bf16_in_any_phase(finished: Path, project: Path) -> None:
    take_start(finished, project, FINETUNE)
    start = checkpoint_of(project, TRAIN)
    elsewhere = start.provenance | {"arithmetic": "bf16", "device": "some GPU"}
    save_checkpoint(start.path, start.network, resume_optimizer(start, start.network, "muon"), elsewhere)
    run_here(project, FINETUNE)
    run_here(project, "evaluate")
    provenance = json.loads((run_of(project).metrics / "evaluate.json").read_text())["provenance"]
    assert (provenance["arithmetic"], provenance["device"]) == ("bf16", f"some GPU, then {start.provenance['device']}")


# Killed and stopped


def act_at(action: Callable[[], None], epoch: int, step: int, phase: int = 0) -> None:
    """Have an action called once, after a step of a training in this process."""
    patch = pytest.MonkeyPatch()

    def act(progress: Progress, training: Training) -> None:
        if (training.settings.phase, training.epoch, training.step) == (phase, epoch, step):
            patch.undo()
            action()

    patch.setattr(Progress, "on_step_end", act)


def send(number: int, epoch: int, step: int, phase: int = 0) -> None:
    """Have this process sent a signal after a step."""
    act_at(lambda: os.kill(os.getpid(), number), epoch, step, phase)


@pytest.mark.parametrize(("stage", "phase"), [(BASELINE, 1), (TRAIN, 0), (FINETUNE, 1)])
def test_a_training_killed_within_an_epoch_resumes_to_the_same_bytes(
    stage: str, phase: int, finished: Path, project: Path
) -> None:
    if stage == FINETUNE:
        take_start(finished, project, stage)
    killed = start_stage(project, stage, partial(send, signal.SIGKILL, 3, 5, phase))
    assert killed.end() == -signal.SIGKILL, killed.errors
    resumed = start_stage(project, stage)
    assert (resumed.end(), resumed.errors) == (0, "")
    lines = [line for line in resumed.output.splitlines() if line.startswith("resumes")]
    assert lines[-1].startswith("resumes after epoch 2 of ")
    assert len(lines) == (2 if stage == BASELINE else 1)
    assert results(project, stage) == results(finished, stage)


def die_in_write(number: int) -> None:
    """Have this process killed in the middle of its nth write of tensors."""
    save, written = safetensors.torch.save_file, []

    def save_or_die(tensors: Any, path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == number:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(tensors, path, **options)

    safetensors.torch.save_file = save_or_die


@pytest.mark.parametrize(("write", "epochs"), [(3, [1, 2]), (5, [3, 4])], ids=["state", "network"])
def test_a_file_half_written_by_a_killed_training_is_deleted(
    write: int, epochs: list[int], finished: Path, project: Path
) -> None:
    killed = start_stage(project, TRAIN, partial(die_in_write, write))
    assert killed.end() == -signal.SIGKILL, killed.errors
    assert states(project, TRAIN) == [f"train-0-{epoch:06d}" for epoch in epochs]
    assert list(project.rglob(".*.part"))
    resumed = start_stage(project, TRAIN)
    assert (resumed.end(), resumed.output.splitlines()[0]) == (0, f"resumes after epoch {epochs[-1]} of 4")
    assert results(project, TRAIN) == results(finished, TRAIN)
    assert list(project.rglob(".*.part")) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stopped_training_says_where_it_resumes(
    epoch: int, number: int, status: int, finished: Path, project: Path
) -> None:
    stopped = start_stage(project, TRAIN, partial(send, number, epoch, 5))
    assert stopped.end() == status
    assert stopped.errors == (
        f"stopped in epoch {epoch}: the same command resumes after the last saved one\n"
        "interrupted: no half-written file is left; the same command runs this stage again\n"
    )
    assert not run_of(project).checkpoint(TRAIN).exists()
    run_here(project, TRAIN)
    assert results(project, TRAIN) == results(finished, TRAIN)


def ctrl_c() -> None:
    raise KeyboardInterrupt


def stop_here(project: Path, epoch: int) -> None:
    """Leave a project whose training was stopped in the middle of an epoch."""
    act_at(ctrl_c, epoch, 5)
    with pytest.raises(SystemExit) as caught:
        run_here(project, TRAIN)
    assert caught.value.code == 130


def test_a_lost_network_is_restored_from_the_last_state_without_training(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(project, BASELINE)
    assert states(project, BASELINE) == ["baseline-0-000003", "baseline-1-000003"]
    shutil.rmtree(run_of(project, BASELINE).data)  # as DVC does before it runs a stage that it has not recorded
    capsys.readouterr()
    run_here(project, BASELINE)
    assert capsys.readouterr().out.splitlines()[:2] == ["resumes after epoch 3 of 3"] * 2
    assert results(project, BASELINE) == results(finished, BASELINE)


def test_a_damaged_state_is_skipped_for_the_one_before(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_here(project, 4)
    newest = max(run_of(project).resume.glob("train-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    run_here(project, TRAIN)
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{newest.name} is skipped: ")
    assert captured.out.startswith("resumes after epoch 2 of 4\n")
    assert results(project, TRAIN) == results(finished, TRAIN)


def test_a_training_resumed_on_another_machine_names_both(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_here(project, 3)
    here = loop.device_name(torch.device("cpu"))
    monkeypatch.setattr(loop, "device_name", lambda device: "another processor")
    run_here(project, TRAIN)
    assert checkpoint_of(project, TRAIN).provenance["device"] == f"{here}, then another processor"


def test_states_of_other_params_are_not_used_and_wait_for_theirs(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_here(project, 3)
    write_params(project, {"train.learning_rate": 0.002})
    capsys.readouterr()
    run_here(project, TRAIN)
    captured = capsys.readouterr()
    assert "resumes" not in captured.out
    write_params(project)
    run_here(project, TRAIN)
    assert capsys.readouterr().out.startswith("resumes after epoch 2 of 4\n")
    assert results(project, TRAIN) == results(finished, TRAIN)


def test_any_change_of_params_code_or_data_starts_anew(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(training_module.__file__).parents[1]
    copied = project / "package"
    for name in (*CODE, "workflow", "conversion"):
        shutil.copytree(package / name, copied / name)
    monkeypatch.setattr(training_module, "__file__", str(copied / "workflow" / "training.py"))
    seen: dict[str, str] = {}

    def note(change: str, stage: TrainingStage = "train", **of_run: Any) -> None:
        run = find_run(load_params(project / "params.yaml"), "tiny", "small", of_run.get("k", 1), 0, project)
        seen[change] = resume_store(run, stage, 0, of_run.get("bf16", False)).fingerprint

    def note_params(place: str, value: Any) -> None:
        write_params(project, {place: value})
        note(place)
        write_params(project)

    note("nothing")
    note("stage", stage="baseline")
    note("k", k=2)
    note("arithmetic", bf16=True)
    for path in (copied / "workflow/training.py", copied / "training/loop.py", copied / "data/dataset.py"):
        content = path.read_text()
        path.write_text(content + "# a comment\n")
        note(path.name)
        path.write_text(content)
    for place, value in (
        *(("width", 0.25), ("data.crop", 4), ("recipe.flip", "random"), ("recipe.batch_size", 121)),
        *(("train.epochs", 5), ("train.learning_rate", 0.002), ("train.activation_penalty", 0.1)),
    ):
        note_params(place, value)
    images = run_of(project).dataset
    content = images.read_bytes()
    images.unlink()
    images.write_bytes(content[:-1] + b"\xff")
    note("data")
    images.write_bytes(content)
    assert len(set(seen.values())) == len(seen) == 15
    for place, value in (("convert.weight_bits", 8), ("simulate.steps", 30), ("finetune.epochs", 9)):
        note_params(place, value)
    (copied / "conversion" / "convert.py").write_text("")
    note("conversion")
    assert len(set(seen.values())) == 15


@pytest.mark.parametrize("stage", TRAININGS)
def test_dvc_watches_the_code_that_starts_a_training_anew(stage: str) -> None:
    watched = yaml.safe_load((STAGES.parent / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = {f"src/quantspike/{name}" for name in (*CODE, "workflow/training.py")}
    assert {path for path in watched if path.startswith("src/")} == code


# What stops a training, and what does not


def close_reader() -> None:
    """Have this process print to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)


def test_a_loss_that_is_not_finite_ends_it_and_the_last_state_is_kept(
    finished: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross_entropy, steps = torch.nn.functional.cross_entropy, []

    def loss(*arguments: Any, **options: Any) -> Any:
        steps.append(1)
        return cross_entropy(*arguments, **options) * (float("inf") if len(steps) == 2 * STEPS + 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "cross_entropy", loss)
        with pytest.raises(SystemExit, match=r"^error: the loss became inf in epoch 3, step 5: the learning rate"):
            run_here(project, TRAIN)
    assert states(project, TRAIN) == ["train-0-000001", "train-0-000002"]
    run_here(project, TRAIN)
    assert results(project, TRAIN) == results(finished, TRAIN)


@contextmanager
def full_disk(folder: str) -> Iterator[None]:
    """Let no tensors be written into a folder."""
    save = safetensors.torch.save_file

    def save_elsewhere(tensors: Any, path: Path, **options: Any) -> None:
        if str(path.parent).endswith(folder):
            raise OSError(28, "No space left on device")
        save(tensors, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", save_elsewhere)
        yield


def test_without_room_for_states_it_warns_and_trains_on(
    finished: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_disk("data/resume/tiny-small-1-0"):
        run_here(project, TRAIN)
    warnings = capsys.readouterr().err.splitlines()
    form = r"warning: data/resume/tiny-small-1-0/train-0-.* could not be written: .*No space left.*; it needs .* MB; .*"
    assert len(warnings) == 4
    assert all(re.fullmatch(form + "; training continues without this state", line) for line in warnings)
    assert results(project, TRAIN) == results(finished, TRAIN)
    assert states(project, TRAIN) == []


def test_without_room_for_the_network_its_last_state_is_kept(finished: Path, project: Path) -> None:
    message = r"^error: data/tiny/small-1-0/train\.safetensors could not be written: .*No space left"
    with full_disk("data/tiny/small-1-0"), pytest.raises(SystemExit, match=message):
        run_here(project, TRAIN)
    assert states(project, TRAIN) == ["train-0-000003", "train-0-000004"]
    run_here(project, TRAIN)
    assert results(project, TRAIN) == results(finished, TRAIN)


def test_a_training_whose_output_nobody_reads_saves_its_states_and_ends_well(finished: Path, project: Path) -> None:
    stage = start_stage(project, TRAIN, close_reader)
    assert stage.end() == 0
    assert states(project, TRAIN) == states(finished, TRAIN)
    assert results(project, TRAIN) == results(finished, TRAIN)


# What it shows


def test_an_epoch_is_a_line() -> None:
    first = Epoch(1, 2.30258509, 0.125, 0.1, 0.001)
    assert describe(first, 2) == "epoch 1/2  loss 2.3026  train  12.50%  test  10.00%"
    second = Epoch(2, 1.5, 1 / 3, 0.5, 0.0001)
    assert describe(second, 100) == "epoch 2/100  loss 1.5000  train  33.33%  test  50.00%"


class Terminal(io.StringIO):
    """What a terminal was sent."""

    def isatty(self) -> bool:
        return True


class EagerBar(tqdm):  # type: ignore[type-arg]
    """A bar that is drawn at every step, however fast these are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, mininterval=0, ncols=100)


def test_on_a_terminal_a_bar_shows_images_loss_and_accuracy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_here(project, 3)
    terminal = Terminal()
    monkeypatch.setattr(callbacks, "tqdm", EagerBar)
    with redirect_stdout(terminal), redirect_stderr(terminal):
        run_here(project, TRAIN)
    frames = [frame.strip() for frame in re.split(r"[\r\n]+", terminal.getvalue())]
    bars = [frame for frame in frames if "images/s" in frame]
    assert re.match(r"50%\|.*\| 2874/5748 \[", bars[0])  # 2 of 4 epochs, each of 1,437 images
    assert re.match(r"\d\d%\|.*\| 3114/5748 \[.* images/s, accuracy=\d+\.\d%, loss=\d\.\d{3}\]", bars[2])
    assert [frame.split("  ")[0] for frame in frames if "test" in frame] == ["epoch 3/4", "epoch 4/4"]


def test_of_several_processes_only_the_first_one_shows_and_saves_anything(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training: Any = SimpleNamespace(group=Group(1, 2), records=[], images=100, seen=50, loss=0.5, accuracy=0.5)
    training.settings, training.state = SimpleNamespace(epochs=2), lambda: ({}, [])
    for callback in (Progress(training), SaveState(resume_store(run_of(project), "train", 0, False))):
        callback.on_step_end(training)
        callback.on_epoch_end(training, Epoch(1, 2.3, 0.1, 0.1, 0.001))
    assert (*capsys.readouterr(), states(project, TRAIN)) == ("", "", [])
