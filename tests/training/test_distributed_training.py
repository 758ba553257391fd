"""Training that several processes share, really started by torchrun: it equals that of one, and is written once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import share_training
from conftest import Edit
from quantspike.data.dataset import save_dataset
from quantspike.data.sources import load_source
from quantspike.distributed import Group
from quantspike.networks.architecture import architecture_of
from quantspike.params import load_params
from quantspike.paths import grid_runs
from quantspike.training.augmentation import augment, draw
from quantspike.training.checkpoints import load_checkpoint
from quantspike.training.evaluation import predict, splits
from quantspike.training.loop import epoch_generator, use_bf16
from quantspike.workflow.training import resume_store
from share_training import ONE_STEP, State, resumed, rows, small_network

STAGES = Path(__file__).parents[2] / "stages"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
COUNT = 3
"""Processes, which share every batch unevenly."""

Results = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all processes find their inputs: the images of a stage, and a state to resume from."""
    folder = tmp_path_factory.mktemp("shared")
    images = load_source("digits", downloads=folder)
    for count in (1, COUNT):
        save_dataset(images, share_training.baseline(folder / str(count)).dataset)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Results:
    """The results of a single process; its state is there for the others."""
    share_training.run_stage(folder, Group())
    results = share_training.results(folder, Group())
    torch.save(results["whole"]["state"], folder / "state.pt")
    return results


@pytest.fixture(scope="module")
def launched(folder: Path, alone: Results) -> subprocess.CompletedProcess[str]:
    """Several processes that write their results, and of which one crashes in the end."""
    command = [*TORCHRUN, f"--nproc-per-node={COUNT}", share_training.__file__, str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def shared(folder: Path, launched: subprocess.CompletedProcess[str]) -> list[Results]:
    """The results of each of them."""
    assert (folder / "results.pt").is_file(), launched.stderr
    results: list[Results] = torch.load(folder / "results.pt", weights_only=False)
    return results


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


# A step


def test_a_step_of_several_processes_equals_that_of_one_where_no_image_depends_on_another(
    alone: Results, shared: list[Results]
) -> None:
    # 35 images are 11, 12 and 12: a mean of the shares' means would be another gradient.
    gradients, record = alone["frozen"]
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.01
    for results in shared:
        for name, gradient in results["frozen"][0].items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)
        assert results["frozen"][1].loss == pytest.approx(record.loss, rel=1e-6)
        assert results["frozen"][1].train_accuracy == record.train_accuracy


def test_a_gradient_is_the_mean_over_all_images_each_normalized_within_its_share(shared: list[Results]) -> None:
    training = splits(rows(), torch.device("cpu"))[0]
    generator = epoch_generator(ONE_STEP.seed, 0, 1, torch.device("cpu"))
    order = torch.randperm(35, generator=generator)
    draws = draw(35, 6, ONE_STEP.crop, ONE_STEP.recipe, generator)
    images = augment(training.images[order], draws, ONE_STEP.crop)
    labels = training.labels[order]

    network = small_network(frozen=False).train()
    for rank in range(COUNT):
        shard = Group(rank, COUNT).shard(35)
        loss = functional.cross_entropy(network(images[shard]), labels[shard], reduction="sum")
        (loss / 35).backward()  # gradients add up over the shares
    for results in shared:
        for name, gradient in results["normalized"][0].items():
            torch.testing.assert_close(gradient, network.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


# Epochs and phases


def test_all_processes_end_with_the_same_weights_averages_moments_and_records(shared: list[Results]) -> None:
    first, *others = (results["two phases"] for results in shared)
    assert len(others) == COUNT - 1
    assert any("running_var" in name for name in first["weights"])
    assert first["weights"]["optimizer.step.classifier.weight"] == 12  # two phases of two epochs of three steps
    for other in others:
        assert same(other["weights"], first["weights"])
        assert other["records"] == first["records"]


def test_trained_as_integers_they_end_with_the_same_weights_and_almost_those_of_a_single_process(
    alone: Results, shared: list[Results]
) -> None:
    expected = alone["as integers"]
    for results in shared:
        end = results["as integers"]
        assert same(end["weights"], shared[0]["as integers"]["weights"])
        # Averages are fixed, so no image depends on another; but gradients are summed in another order.
        assert end["records"][0].loss == pytest.approx(expected["records"][0].loss, rel=0.02)
        for name, value in end["weights"].items():
            if "running" in name:
                assert torch.equal(value, expected["weights"][name])


def test_recorded_accuracies_are_those_of_the_final_network_on_every_image(shared: list[Results]) -> None:
    end = shared[0]["two phases"]
    network = small_network(frozen=False)
    network.load_state_dict({name: value for name, value in end["weights"].items() if not name.startswith("optimizer")})
    test = splits(rows(), torch.device("cpu"))[1]
    right = predict(network, test.images, 4).argmax(1) == test.labels
    assert [record.epoch for record in end["records"]] == [1, 2]
    assert end["records"][-1].test_accuracy == int(right.sum()) / 20


@pytest.mark.parametrize(
    ("batch_size", "count", "steps"),
    [
        (18, 1, [18, 18, 4]),
        (18, COUNT, [18, 18]),  # 4 images are less than two for each of three
        (17, COUNT, [17, 17, 6]),
        (40, COUNT, [40]),
    ],
)
def test_a_last_batch_that_leaves_a_process_less_than_two_images_is_left_out(
    batch_size: int, count: int, steps: list[int], alone: Results, shared: list[Results]
) -> None:
    for results in [alone] if count == 1 else shared:
        partial = results["partial"][batch_size]
        assert (partial["steps"], partial["images"]) == (steps, sum(steps))
        correct = partial["accuracy"] * sum(steps)  # a share of those images
        assert correct == pytest.approx(round(correct))


def test_more_processes_than_a_batch_can_serve_are_refused(shared: list[Results]) -> None:
    needed = "3 processes need 6 at least: take fewer processes or a larger batch"
    for results in shared:
        assert results["refused"] == [
            f"recipe.batch_size is 5 and there are 40 training images, but {needed}",
            f"recipe.batch_size is 8 and there are 5 training images, but {needed}",
        ]


def test_a_loss_that_is_nan_in_one_process_ends_all_with_the_same_advice(shared: list[Results]) -> None:
    for results in shared:
        assert results["diverged"].startswith("the loss became nan in epoch 1, step 2: the learning rate 0.01 may be")


def test_a_crash_of_one_process_ends_all(launched: subprocess.CompletedProcess[str]) -> None:
    assert launched.returncode != 0  # torchrun has ended, and with it all of its processes
    assert "a defect in one process" in launched.stderr


# States


def assert_same_state(first: State, second: State) -> None:
    assert first[1] == second[1]
    assert sorted(first[0]) == sorted(second[0])
    for name, tensor in first[0].items():
        assert torch.equal(tensor, second[0][name]), name


@pytest.mark.parametrize("before", [1, COUNT])
def test_training_resumes_with_another_number_of_processes_as_if_it_had_never_stopped(
    before: int, alone: Results, shared: list[Results]
) -> None:
    if before == 1:
        state, ends = alone["whole"]["state"], [results["resumed"] for results in shared]
    else:
        state = shared[0]["whole"]["state"]
        ends = [resumed(state, Group())]
    for end in ends:
        assert_same_state(end["state"], state)
        assert same(end["weights"], ends[0]["weights"])
        assert end["records"] == ends[0]["records"]
        # Without rounding it would be the very same training, since no image depends on another here.
        for record, expected in zip(end["records"], alone["whole"]["records"], strict=True):
            assert record.loss == pytest.approx(expected.loss, rel=1e-3)
            assert record.train_accuracy == pytest.approx(expected.train_accuracy, abs=1 / 40 + 1e-9)
        for tensor, like in zip(end["weights"].values(), alone["whole"]["weights"].values(), strict=True):
            torch.testing.assert_close(tensor, like, rtol=1e-2, atol=1e-3)


# The stages


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_stage_that_several_processes_share_writes_the_files_of_one_and_only_once(
    folder: Path, launched: subprocess.CompletedProcess[str], shared: list[Results]
) -> None:
    lines = [line.split("  ")[0] for line in launched.stdout.splitlines()]
    assert lines == ["epoch 1/2", "epoch 2/2", "epoch 1/1"]
    runs = [share_training.baseline(folder / str(count)) for count in (1, COUNT)]
    for run in runs:
        rows = (run.metrics / "baseline.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
        checkpoint = load_checkpoint(run.network, architecture_of(run, image_channels=1), "fp32")
        assert (
            checkpoint.moments["optimizer.step.classifier.weight"] == 3 * 29
        )  # 1,437 images in batches of 50, whoever shares them
    assert names(runs[1].root) == names(runs[0].root)
    assert len(list(runs[1].resume.glob("baseline-*.safetensors"))) == 2  # one per phase


def test_sigterm_ends_a_stage_under_torchrun_and_keeps_its_last_state(folder: Path, write_params: Edit) -> None:
    params = write_params({"profiles.tiny.train.epochs": 10**6})
    run = grid_runs(load_params(params), params.parent)[1]
    run.dataset.parent.mkdir(parents=True)
    run.dataset.hardlink_to(share_training.baseline(folder / "1").dataset)
    command = [*TORCHRUN, "--nproc-per-node=2", str(STAGES / "train.py"), "--params", str(params)]
    command += ["--profile", run.profile, "--model", run.model, "--k", str(run.k), "--seed", str(run.seed)]
    environment = os.environ | {"QUANTSPIKE_TRACKING": "off"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]  # the state of an epoch is saved before the next one
        process.send_signal(signal.SIGTERM)
        lines += process.stdout.readlines()
    assert process.returncode != 0
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/1000000" for n in range(1, len(lines) + 1)]
    # A single process, or any number of them, resumes from here.
    state = resume_store(run, "train", 0, use_bf16(run.settings.recipe.arithmetic, torch.device("cpu"))).load()
    assert state is not None
    assert len(state[1]) in (len(lines) - 1, len(lines))
    assert not run.network.exists()
