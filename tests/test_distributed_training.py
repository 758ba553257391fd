"""Training that several processes share, really started by torchrun: what one process does, and written once."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional

import share_training
from conftest import PARAMS, Edit
from quantspike import augmentation, stopping
from quantspike.checkpoints import load_checkpoint
from quantspike.data import load_source, save_dataset
from quantspike.distributed import Group
from quantspike.measuring import Split, measure, splits
from quantspike.params import load_params
from quantspike.training import TRAIN, Epoch, epoch_generator
from share_training import ONE_STEP, State, resumed, rows, small_network

STAGES = Path(__file__).parents[1] / "stages"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
CHAIN = ["--profile", "tiny", "--model", "small", "--k", "1", "--seed", "0"]
MANY = pytest.mark.parametrize("count", [2, 3])

Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes find the digits, and states to go on from."""
    folder = tmp_path_factory.mktemp("shared")
    save_dataset(load_source("digits", downloads=folder), folder / "digits.safetensors")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Found:
    """What a single process finds; its state is there for the others."""
    found = share_training.results(folder, Group())
    torch.save(found["interrupted"]["state"], folder / "state-1.pt")
    return found


@pytest.fixture(scope="module")
def stopped(folder: Path, alone: Found) -> list[str]:
    """What two processes print until torchrun gets SIGTERM, after they have found what there is to find."""
    command = [*TORCHRUN, "--nproc-per-node=2", share_training.__file__, str(folder), "until-stopped"]
    lines: list[str] = []
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if not lines:
                process.send_signal(signal.SIGTERM)
            lines.append(line)
    state = share_training.resume_store(folder).load()
    assert state is not None, (folder / "errors.txt").read_text()
    torch.save(state, folder / "state-stopped.pt")
    torch.save(torch.load(folder / "found-2.pt", weights_only=False)[0]["interrupted"]["state"], folder / "state-2.pt")
    return lines


@pytest.fixture(scope="module")
def shared(folder: Path, stopped: list[str]) -> dict[int, list[Found]]:
    """What each of two and of three processes finds."""
    command = [*TORCHRUN, "--nproc-per-node=3", share_training.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {count: torch.load(folder / f"found-{count}.pt", weights_only=False) for count in (2, 3)}


@pytest.fixture(scope="module")
def states(folder: Path, shared: dict[int, list[Found]]) -> dict[str, State]:
    """States by who saved them: one, two or three processes, or the two that were stopped."""
    torch.save(shared[3][0]["interrupted"]["state"], folder / "state-3.pt")
    return {name: torch.load(folder / f"state-{name}.pt") for name in ("1", "2", "3", "stopped")}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def timeless(records: list[Epoch]) -> list[Epoch]:
    return [replace(record, seconds=0) for record in records]


def first_batch() -> tuple[Tensor, Tensor]:
    """The 35 augmented images of the first step, and their labels."""
    training = splits(rows(), torch.device("cpu"))[0]
    generator = epoch_generator(ONE_STEP.seed, TRAIN, 1, torch.device("cpu"))
    order = torch.randperm(35, generator=generator)
    draws = augmentation.draw(35, 6, ONE_STEP.augmentation, generator)
    return augmentation.augment(training.images[order], draws, ONE_STEP.augmentation), training.labels[order]


# A step


@MANY
def test_a_step_of_several_processes_is_that_of_one_where_no_image_looks_at_another(
    count: int, alone: Found, shared: dict[int, list[Found]]
) -> None:
    # 35 images are 17 and 18, or 11, 12 and 12: a mean of the shares' means would be another gradient.
    gradients, record = alone["frozen"]
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.01
    for found in shared[count]:
        for name, gradient in found["frozen"][0].items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)
        assert found["frozen"][1].loss == pytest.approx(record.loss, rel=1e-6)
        assert found["frozen"][1].train_accuracy == record.train_accuracy


@MANY
def test_a_gradient_is_the_mean_over_all_images_each_normalized_within_its_share(
    count: int, shared: dict[int, list[Found]]
) -> None:
    images, labels = first_batch()
    network = small_network(frozen=False).train()
    activations: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: activations.append(output))
    for rank in range(count):
        share = Group(rank, count).share(35)
        activations.clear()
        loss = functional.cross_entropy(network(images[share]), labels[share], reduction="none", label_smoothing=0.1)
        neurons = 4 * 16 + 4 * 4 + 6 * 4 + 5
        spikes = torch.stack([layer.flatten(1).sum(1) for layer in activations]).sum(0)
        ((loss + 0.05 * spikes / neurons) / 35).sum().backward()  # gradients add up over the shares
    for found in shared[count]:
        for name, gradient in found["normalized"][0].items():
            torch.testing.assert_close(gradient, network.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


# Several epochs


@MANY
def test_all_processes_end_with_the_same_weights_averages_moments_and_records(
    count: int, shared: dict[int, list[Found]]
) -> None:
    first, *others = (found["whole"] for found in shared[count])
    assert len(others) == count - 1
    assert any("running_var" in name for name in first["weights"])
    assert any("exp_avg_sq" in name for name in first["weights"])
    for other in others:
        assert same(other["weights"], first["weights"])
        assert timeless(other["records"]) == timeless(first["records"])


@MANY
def test_recorded_accuracies_are_those_of_the_final_network_on_every_image(
    count: int, shared: dict[int, list[Found]]
) -> None:
    whole = shared[count][0]["whole"]
    network = small_network(frozen=False)
    network.load_state_dict({name: value for name, value in whole["weights"].items() if not name.startswith("adam")})
    test = splits(rows(), torch.device("cpu"))[1]
    assert [record.epoch for record in whole["records"]] == [1, 2]
    assert whole["records"][-1].test_accuracy == measure(network, test, 4)[0]
    # A single image: all processes but the last have none to measure.
    assert whole["records"][-1].validation_accuracy == measure(network, Split(test.images[:1], test.labels[:1]), 4)[0]


@pytest.mark.parametrize(
    ("batch_size", "count", "steps"),
    [
        (18, 1, [18, 18, 4]),
        (18, 2, [18, 18, 4]),
        (18, 3, [18, 18]),  # 4 images are less than two for each of three
        (37, 1, [37, 3]),
        (37, 2, [37]),
        (37, 3, [37]),
        (40, 3, [40]),
    ],
)
def test_a_last_batch_that_leaves_a_process_less_than_two_images_is_left_out(
    batch_size: int, count: int, steps: list[int], alone: Found, shared: dict[int, list[Found]]
) -> None:
    for found in {1: [alone], **shared}[count]:
        partial = found["partial"][batch_size]
        assert partial["steps"] == steps * 2  # in two epochs
        assert partial["images"] == sum(steps)
        for record in partial["records"]:  # shares of those images
            assert record.train_accuracy * sum(steps) == pytest.approx(round(record.train_accuracy * sum(steps)))


@MANY
def test_more_processes_than_a_batch_can_serve_are_refused(count: int, shared: dict[int, list[Found]]) -> None:
    needed = f"{count} processes need {2 * count} at least: take fewer processes or a larger batch"
    for found in shared[count]:
        assert found["refused"] == [
            f"train.batch_size is {2 * count - 1} and there are 40 training images, but {needed}",
            f"train.batch_size is 8 and there are {2 * count - 1} training images, but {needed}",
        ]


@MANY
def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_same_advice(
    count: int, shared: dict[int, list[Found]]
) -> None:
    for found in shared[count]:
        assert found["astray"].startswith("the loss became nan in epoch 1, step 1: the learning rate 0.01 may be")


def test_two_processes_learn_digits_as_well_as_one(alone: Found, shared: dict[int, list[Found]]) -> None:
    # Batch normalization over shares makes another training, so the same only in the mean over seeds: three standard
    # errors of the difference of two means, and two points in any case, since three seeds say little of their spread.
    ours, theirs = np.array(alone["digits"]), np.array(shared[2][0]["digits"])
    error = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(share_training.SEEDS))
    assert min(*ours, *theirs) > 0.7
    assert abs(ours.mean() - theirs.mean()) < max(3 * error, 0.02)
    assert shared[2][1]["digits"] == list(theirs)


# States


def assert_same_state(first: State, second: State) -> None:
    """All equal but the losses, which may be summed in another order."""
    assert first[1] == second[1]
    assert sorted(first[0]) == sorted(second[0])
    for name, tensor in first[0].items():
        if name == "losses":
            torch.testing.assert_close(tensor, second[0][name], rtol=1e-14, atol=0)
        else:
            assert torch.equal(tensor, second[0][name]), name


@pytest.mark.parametrize(("name", "count"), [("1", 2), ("1", 3), ("2", 3), ("stopped", 3)])
def test_a_state_is_the_same_after_other_processes_have_taken_it_over(
    name: str, count: int, shared: dict[int, list[Found]], states: dict[str, State]
) -> None:
    for found in shared[count]:
        assert_same_state(found["resumed"][name]["state"], states[name])


@pytest.mark.parametrize("name", ["1", "2", "3", "stopped"])
def test_a_state_of_any_number_of_processes_is_the_same_after_one_has_taken_it_over(
    name: str, states: dict[str, State]
) -> None:
    assert_same_state(resumed(states[name], Group())["state"], states[name])


@MANY
def test_a_state_holds_the_sums_of_all_processes_in_each_of_them(
    count: int, alone: Found, shared: dict[int, list[Found]]
) -> None:
    tensors, progress = alone["interrupted"]["state"]
    assert (len(progress["records"]), progress["step"]) == (1, 2)
    assert torch.equal(tensors["losses"] > 0, torch.tensor([True, True, False]))
    for found in shared[count]:
        shares, place = found["interrupted"]["state"]
        assert (len(place["records"]), place["step"]) == (1, 2)
        torch.testing.assert_close(shares["losses"], tensors["losses"], rtol=1e-3, atol=0)
        assert abs(int(shares["correct"].sum()) - int(tensors["correct"].sum())) <= 1


@pytest.mark.parametrize(("name", "count"), [("1", 2), ("1", 3), ("2", 3), ("2", 1), ("3", 1)])
def test_a_training_goes_on_with_another_number_of_processes_as_if_it_had_never_stopped(
    name: str, count: int, alone: Found, shared: dict[int, list[Found]], states: dict[str, State]
) -> None:
    # Without rounding it would be the very same training, since no image looks at another here.
    never_stopped = resumed(alone["interrupted"]["state"], Group())
    for end in [resumed(states[name], Group())] if count == 1 else [found["resumed"][name] for found in shared[count]]:
        assert end["place"] == (2, 2)
        for record, expected in zip(end["records"], never_stopped["records"], strict=True):
            assert record.loss == pytest.approx(expected.loss, rel=1e-3)
            assert record.train_accuracy == pytest.approx(expected.train_accuracy, abs=1 / 40 + 1e-9)
        for tensor, like in zip(end["weights"].values(), never_stopped["weights"].values(), strict=True):
            torch.testing.assert_close(tensor, like, rtol=1e-2, atol=1e-3)


@MANY
def test_what_is_shown_is_the_same_before_and_after_a_state_is_taken(
    count: int, shared: dict[int, list[Found]]
) -> None:
    for found in shared[count]:
        assert found["interrupted"]["shown"] == found["interrupted"]["shown after"]


@MANY
def test_what_processes_show_is_in_the_mean_what_they_have_seen_together(
    count: int, shared: dict[int, list[Found]], states: dict[str, State]
) -> None:
    for found in ([found["interrupted"] for found in shared[count]], [f["resumed"]["1"] for f in shared[count]]):
        tensors = found[0]["state"][0]
        loss, accuracy = np.mean([process["shown"] for process in found], axis=0)
        assert loss == pytest.approx(float(tensors["losses"].sum()) / 32)  # two steps of 16 images
        assert accuracy == pytest.approx(float(tensors["correct"].sum()) / 32)


@MANY
def test_a_resumed_display_is_not_far_from_what_was_seen(count: int, shared: dict[int, list[Found]]) -> None:
    for found in shared[count]:
        resumed = found["resumed"]["1"]
        assert resumed["shown"][0] == pytest.approx(float(resumed["state"][0]["losses"].sum()) / 32)
        assert resumed["shown"][1] == pytest.approx(float(resumed["state"][0]["correct"].sum()) / 32, abs=count / 32)


# Signals


def test_sigterm_to_torchrun_stops_all_processes_at_the_same_step_with_the_state_saved(
    folder: Path, stopped: list[str], states: dict[str, State]
) -> None:
    first, second = (json.loads((folder / f"stopped-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["status"] == 128 + signal.SIGTERM
    place = f"epoch {first['epoch']}, after step {first['step']} of 3"
    assert first["message"].startswith(f"stopped by SIGTERM in {place}: the state is saved ({folder / 'resume'})")
    progress = states["stopped"][1]
    assert (len(progress["records"]) + 1, progress["step"]) == (first["epoch"], first["step"])
    assert first["epoch"] > 1


def test_only_the_first_process_says_that_all_are_stopping_and_promises_no_second_ctrl_c(
    folder: Path, stopped: list[str]
) -> None:
    # torchrun would not pass it on: it makes a SIGTERM of it.
    lines = (folder / "errors.txt").read_text().splitlines()
    assert [line for line in lines if "stopping" in line] == ["stopping after the step at work, then saving"]


def test_only_the_first_process_shows_how_training_goes(stopped: list[str]) -> None:
    epochs = [line.split()[1] for line in stopped]
    assert epochs == [f"{number}/1000000" for number in range(1, len(stopped) + 1)]


# The stages


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def project(folder: Path, digits: Path, launch: str) -> Path:
    """A folder with params and images."""
    (folder / "data" / "tiny").mkdir(parents=True)
    (folder / "data" / "tiny" / "images.safetensors").hardlink_to(digits)
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"launch": launch}), encoding="utf-8")
    return folder


def test_a_stage_that_torchrun_shares_writes_the_same_files_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits, torchrun = folder / "digits.safetensors", " ".join([*TORCHRUN, "--nproc-per-node 2"])
    one, two = (project(tmp_path / name, digits, launch) for name, launch in (("1", "python"), ("2", torchrun)))
    monkeypatch.setattr(sys, "argv", ["train.py", "--params", str(one / "params.yaml"), *CHAIN])
    runpy.run_path(str(STAGES / "train.py"), run_name="__main__")

    command = [sys.executable, str(STAGES / "train.py"), *CHAIN]
    done = subprocess.run(command, cwd=two, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["epoch 1/1"]

    assert names(two) == names(one)
    architecture = load_params(two / "params.yaml").architecture("tiny", "small", image_channels=1)
    for each in (one, two):
        assert len((each / "metrics/tiny/small-1-0/train.csv").read_text().splitlines()) == 2  # a header, an epoch
        checkpoint = load_checkpoint(each / "data/tiny/small-1-0/train.safetensors", architecture, 1)
        assert checkpoint.moments["adam.step"] == 27  # 1,337 images in batches of 50, whoever shares them


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], dict[str, str]]]:
    """Commands that would have taken the place of this process, with their environments."""
    commands: list[tuple[str, list[str], dict[str, str]]] = []

    def replacing(file: str, arguments: list[str], environment: dict[str, str]) -> None:
        commands.append((file, arguments, environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", replacing)
    return commands


def run_stage(stage: str, params: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exit status of a stage, or its message."""
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--params", str(params), *CHAIN])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("stage", ["train", "finetune", "simulate"])
def test_stages_that_can_be_shared_start_again_by_the_command_in_params(
    stage: str, started: list[Any], monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    params = write_params({"launch": "torchrun --nproc-per-node '4'"})
    assert run_stage(stage, params, monkeypatch) == 0
    ((file, arguments, _),) = started
    script = [str(STAGES / f"{stage}.py"), "--params", str(params), *CHAIN]
    assert (file, arguments) == ("torchrun", ["torchrun", "--nproc-per-node", "4", *script])


@pytest.mark.parametrize("stage", ["evaluate", "convert"])
def test_other_stages_stay_with_one_process(
    stage: str, started: list[Any], monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    params = write_params({"launch": "torchrun --nproc-per-node 4"})
    assert "is not there" in run_stage(stage, params, monkeypatch)  # it looks for its own inputs
    assert started == []


def test_a_command_that_cannot_be_started_is_named(monkeypatch: pytest.MonkeyPatch, write_params: Edit) -> None:
    params = write_params({"launch": "no-such-torchrun --nproc-per-node 2"})
    message = run_stage("train", params, monkeypatch)
    assert message.startswith(
        "error: launch in params.yaml is 'no-such-torchrun --nproc-per-node 2', which cannot be started ("
    )
    assert message.endswith("): set it to python, or to torchrun with its options")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells of the end of any process")
@pytest.mark.parametrize("ended", [False, True])
def test_once_its_dvc_has_ended_a_stage_starts_no_other_processes(
    ended: bool,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_params: Edit,
) -> None:
    params = write_params({"launch": "torchrun --nproc-per-node 4"})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as dvc:
        descriptor = os.pidfd_open(dvc.pid)
        monkeypatch.setattr(stopping, "_DVC", descriptor)
        if ended:
            dvc.communicate()
        assert run_stage("train", params, monkeypatch) == (143 if ended else 0)
    os.close(descriptor)
    assert len(started) == (0 if ended else 1)
    said = "stopped before it began: the dvc that started it has ended\n" if ended else ""
    assert capsys.readouterr().err == said


def test_a_process_of_torchrun_starts_nothing(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    params = write_params({"launch": "torchrun --nproc-per-node 4"})
    assert "images.safetensors is not there" in run_stage("train", params, monkeypatch)
    assert started == []


def test_a_command_that_is_not_torchrun_does_not_start_itself_for_ever(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    params = write_params({"launch": "nice python"})
    assert run_stage("train", params, monkeypatch) == 0
    for name, value in started[0][2].items() - os.environ.items():
        monkeypatch.setenv(name, value)
    assert "images.safetensors is not there" in run_stage("train", params, monkeypatch)
    assert len(started) == 1


def test_nothing_is_started_unless_params_ask_for_it(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, write_params: Edit
) -> None:
    assert "images.safetensors is not there" in run_stage("train", write_params(), monkeypatch)
    assert started == []
