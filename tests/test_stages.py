"""The stages as people run them: scripts one after the other, from images to spikes, on small digits."""

from __future__ import annotations

import copy
import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import PARAMS
from quantspike.checkpoints import load_checkpoint, resume_adam, save_checkpoint
from quantspike.data import load_dataset
from quantspike.integer import load_integer_network
from quantspike.operations import macs
from quantspike.params import load_params

STAGES = Path(__file__).parents[1] / "stages"
CHAIN_STAGES = ("train", "finetune", "evaluate", "convert", "simulate")
START = ["--profile", "tiny", "--model", "small", "--seed", "0"]

TRAINING = ["epoch", "loss", "train_accuracy", "validation_accuracy", "test_accuracy", "learning_rate", "seconds"]
STEPS = ["step", "accuracy", "positive_spikes", "negative_spikes", "net_spikes", "synops", "settled"]
BY_LAYER = ["step", "layer", "neurons", *STEPS[2:]]
LOCK = "data/resume/tiny-small-1-0/lock"
"""What is left of the states from which a killed training goes on, when there are none."""
LOGS = ["accuracy.txt", "sop_num.txt", "spike_collect.txt", "spike_num.txt"]

Row = dict[str, str]


def chain_arguments(folder: Path, k: int | str) -> list[str]:
    return [
        "--params",
        str(folder / "params.yaml"),
        "--profile",
        "tiny",
        "--model",
        "small",
        "--k",
        str(k),
        "--seed",
        "0",
    ]


def in_a_process(folder: Path, stage: str, *arguments: str) -> None:
    """Runs a stage in a process of its own, from a folder that holds nothing but its files, without warnings."""
    command = [sys.executable, str(STAGES / f"{stage}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), f"{stage}: {done.stderr}"


def in_this_process(stage: str, *arguments: str) -> None:
    """The same without the seconds it takes to start Python and torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{stage}.py", *arguments])
        runpy.run_path(str(STAGES / f"{stage}.py"), run_name="__main__")


def make_project(folder: Path) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after all stages: k = 1 in processes of their own, fp32 in this one."""
    folder = make_project(tmp_path_factory.mktemp("project"))
    in_a_process(folder, "download", "--params", "params.yaml", "--profile", "tiny")
    in_a_process(folder, "pretrain", "--params", "params.yaml", *START)
    for stage in CHAIN_STAGES:
        in_a_process(folder, stage, "--params", "params.yaml", *chain_arguments(folder, 1)[2:])
    for stage in CHAIN_STAGES:
        in_this_process(stage, *chain_arguments(folder, "fp32"))
    return folder


@pytest.fixture(scope="module")
def repeated(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another folder in which k = 1 was made again, in this process."""
    folder = make_project(tmp_path_factory.mktemp("repeated"))
    in_this_process("download", "--params", str(folder / "params.yaml"), "--profile", "tiny")
    for stage in CHAIN_STAGES:
        in_this_process(stage, *chain_arguments(folder, 1))
    return folder


@pytest.fixture
def fresh(project: Path, tmp_path: Path) -> Path:
    """A folder with images and nothing else."""
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    (tmp_path / "data" / "tiny" / "images.safetensors").hardlink_to(project / "data" / "tiny" / "images.safetensors")
    return make_project(tmp_path)


def metrics(project: Path, k: int | str) -> Path:
    return project / "metrics" / "tiny" / f"small-{k}-0"


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def table(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def header(path: Path) -> list[str]:
    return path.read_text().splitlines()[0].split(",")


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# Which files there are


def test_all_files_are_there_and_nothing_else(project: Path) -> None:
    results = ["ann.json", "certificate.json", "conversion.json", "finetune.csv", "layers.csv", "snn.csv", "snn.json"]
    results += ["metrics.json", "train.csv"]
    wanted = ["params.yaml", "data/tiny/images.safetensors", "data/tiny/small-1-0/integer/network.safetensors"]
    wanted += [f"metrics/tiny/small-1-0/logs/k1/{name}" for name in LOGS]
    wanted += ["data/tiny/small-fp32-0/pretrain.safetensors", "metrics/tiny/small-fp32-0/pretrain.csv"]
    # DVC wants every out of a stage to exist, so full precision has these folders too, with a note in them.
    wanted += ["data/tiny/small-fp32-0/integer/none.txt", "metrics/tiny/small-fp32-0/logs/kfp32/none.txt"]
    for chain in ("small-1-0", "small-fp32-0"):
        wanted += [f"data/resume/tiny-{chain}/lock"]  # empty; the states of a training go when it is done
        wanted += [f"data/tiny/{chain}/{name}.safetensors" for name in ("train", "finetune", "evaluate")]
        wanted += [f"metrics/tiny/{chain}/{name}" for name in results]
    assert files(project) == sorted(wanted)


@pytest.mark.parametrize("k", [1, "fp32"])
def test_tables_have_their_columns_and_rows(k: int | str, project: Path) -> None:
    folder = metrics(project, k)
    for name in ("train.csv", "finetune.csv"):
        assert header(folder / name) == TRAINING
        assert [row["epoch"] for row in table(folder / name)] == ["1"]
    assert header(folder / "snn.csv") == STEPS
    assert header(folder / "layers.csv") == BY_LAYER
    steps, layers = (20, 5) if k == 1 else (0, 0)
    assert [int(row["step"]) for row in table(folder / "snn.csv")] == list(range(1, steps + 1))
    places = [(int(row["step"]), int(row["layer"])) for row in table(folder / "layers.csv")]
    assert places == [(step, layer) for step in range(1, steps + 1) for layer in range(1, layers + 1)]


def test_full_precision_only_says_that_it_has_no_spikes(project: Path) -> None:
    folder = metrics(project, "fp32")
    assert read(folder / "conversion.json") == {"converted": False}
    assert read(folder / "snn.json") == read(folder / "certificate.json") == {"simulated": False}
    assert read(folder / "metrics.json") == {"ann_accuracy": read(folder / "ann.json")["accuracy"]}


# What they say


@pytest.mark.parametrize("k", [1, "fp32"])
def test_each_phase_is_run_as_params_say(k: int | str, project: Path) -> None:
    (first,), (second,) = (table(metrics(project, k) / f"{phase}.csv") for phase in ("train", "finetune"))
    assert (first["learning_rate"], second["learning_rate"]) == ("0.003", "0.0003")
    for row in (first, second):
        # 100 of 1,437 training images are held out: accuracies in whole images.
        assert float(row["validation_accuracy"]) * 100 == pytest.approx(round(float(row["validation_accuracy"]) * 100))
        assert round(float(row["train_accuracy"]) * 1337) / 1337 == pytest.approx(
            float(row["train_accuracy"]), abs=1e-6
        )
        assert float(row["seconds"]) > 0
    assert float(second["loss"]) < float(first["loss"])  # it went on, and did not begin again


@pytest.mark.parametrize("k", [1, "fp32"])
def test_the_report_describes_network_and_images(k: int | str, project: Path) -> None:
    report = read(metrics(project, k) / "ann.json")
    architecture = load_params(project / "params.yaml").architecture("tiny", "small", image_channels=1)
    network = load_checkpoint(project / f"data/tiny/small-{k}-0/finetune.safetensors", architecture, k).network
    assert (report["images"], report["accuracy"]) == (360, report["correct"] / 360)
    assert report["neurons"] == architecture.neurons == 4 * 64 + 4 * 16 + 8 * 16 + 8 * 4 + 8
    assert report["weights"] == network.weights
    assert report["macs"] == macs(architecture)
    assert report["data"] == load_dataset(project / "data" / "tiny" / "images.safetensors").fingerprint
    assert report["data"]["kind"] == "digits"
    last = table(metrics(project, k) / "finetune.csv")[-1]
    # The same network and images; memory order may differ, and with it the rounding of a sum.
    assert report["accuracy"] == pytest.approx(float(last["test_accuracy"]), abs=2 / 360)


def test_the_conversion_describes_every_layer(project: Path) -> None:
    report, network = read(metrics(project, 1) / "conversion.json"), read(metrics(project, 1) / "ann.json")
    assert (report["converted"], report["k"], report["weight_bits"]) == (True, 1, 12)
    assert (report["neurons"], report["weights"]) == (network["neurons"], network["weights"])
    assert [layer["token"] for layer in report["layers"]] == ["4C3", "P2", "8C3", "P2", "8"]
    assert sum(layer["neurons"] for layer in report["layers"]) == report["neurons"]


def test_the_spiking_network_is_the_integer_network_on_every_image(project: Path) -> None:
    snn, certificate = (read(metrics(project, 1) / name) for name in ("snn.json", "certificate.json"))
    assert (snn["simulated"], snn["images"], snn["steps"]) == (True, 360, 20)
    assert (snn["accuracy"], snn["differing_predictions"], snn["unsettled"]) == (snn["integer_accuracy"], 0, 0)
    assert (certificate["settled"], certificate["equal"], certificate["mismatches"]) == (360, 360, 0)
    assert certificate["first_mismatch"] is None
    assert certificate["last_settling_step"] == snn["settled_step"]
    assert certificate["neurons"] == read(metrics(project, 1) / "ann.json")["neurons"]


def test_the_integer_accuracy_is_that_of_the_integer_network_and_agrees_with_the_trained_one(project: Path) -> None:
    network = load_integer_network(project / "data/tiny/small-1-0/integer/network.safetensors")
    dataset = load_dataset(project / "data" / "tiny" / "images.safetensors")
    counts = network.settled_counts(network.input_current(torch.from_numpy(dataset.test_images)))
    predictions = network.logits(counts[-1]).argmax(1).numpy()
    snn = read(metrics(project, 1) / "snn.json")
    assert snn["integer_accuracy"] == (predictions == dataset.test_labels).mean()
    assert snn["ann_agreement"] > 0.9


def test_the_totals_are_the_last_line_of_the_curve(project: Path) -> None:
    snn, curve = read(metrics(project, 1) / "snn.json"), table(metrics(project, 1) / "snn.csv")
    for name in ("accuracy", "positive_spikes", "negative_spikes", "net_spikes", "synops"):
        assert float(curve[-1][name]) == snn[name]
    assert float(curve[-1]["settled"]) == 1
    accuracies = [float(row["accuracy"]) for row in curve]
    stable = snn["stable_step"]
    assert set(accuracies[stable - 1 :]) == {snn["accuracy"]}
    assert stable == 1 or accuracies[stable - 2] != snn["accuracy"]
    assert [float(row["settled"]) == 1 for row in curve].index(True) + 1 == snn["settled_step"]
    assert read(metrics(project, 1) / "metrics.json") == {
        "ann_accuracy": read(metrics(project, 1) / "ann.json")["accuracy"],
        "snn_accuracy": snn["accuracy"],
        "stable_step": stable,
        "spikes": snn["positive_spikes"] + snn["negative_spikes"],
        "synops": snn["synops"],
    }


def test_layers_add_up_to_the_curve(project: Path) -> None:
    layers = table(metrics(project, 1) / "layers.csv")
    for row in table(metrics(project, 1) / "snn.csv"):
        parts = [part for part in layers if part["step"] == row["step"]]
        for name in ("positive_spikes", "negative_spikes", "net_spikes", "synops"):
            assert sum(float(part[name]) for part in parts) == pytest.approx(float(row[name]), rel=1e-12)
        net = float(row["positive_spikes"]) - float(row["negative_spikes"])
        assert float(row["net_spikes"]) == pytest.approx(net, rel=1e-12)
        assert all(float(part["settled"]) >= float(row["settled"]) for part in parts)


def test_the_published_logs_hold_a_line_per_batch_and_step(project: Path) -> None:
    folder, curve = metrics(project, 1) / "logs" / "k1", table(metrics(project, 1) / "snn.csv")
    logs = {name: [int(line) for line in (folder / name).read_text().split()] for name in LOGS}
    for lines in logs.values():
        assert len(lines) == 4 * 20  # batches of 100, 100, 100 and 60 images, 20 steps each
    for step, row in enumerate(curve):
        means = {name: sum(lines[step::20]) / 360 for name, lines in logs.items()}
        spikes = float(row["positive_spikes"]) + float(row["negative_spikes"])
        assert means["accuracy.txt"] == pytest.approx(float(row["accuracy"]))
        assert means["spike_num.txt"] == pytest.approx(spikes)
        assert means["spike_collect.txt"] == pytest.approx(float(row["net_spikes"]))
        assert means["sop_num.txt"] == pytest.approx(float(row["synops"]))


# Twice the same


def without_seconds(path: Path) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table(path)]


def test_a_second_run_gives_the_same_files_to_the_last_byte(project: Path, repeated: Path) -> None:
    again = files(repeated)
    assert again == [name for name in files(project) if "fp32" not in name]
    timed = {"metrics/tiny/small-1-0/train.csv", "metrics/tiny/small-1-0/finetune.csv"}
    assert timed < set(again)
    for name in again:
        if name in timed:
            assert without_seconds(project / name) == without_seconds(repeated / name), name
        else:
            assert (project / name).read_bytes() == (repeated / name).read_bytes(), name


def test_a_stage_that_is_run_again_changes_nothing(repeated: Path) -> None:
    before = {name: (repeated / name).read_bytes() for name in files(repeated)}
    for stage in ("evaluate", "convert", "simulate"):
        in_this_process(stage, *chain_arguments(repeated, 1))
    assert {name: (repeated / name).read_bytes() for name in files(repeated)} == before


def test_processes_that_share_a_simulation_write_the_same_files_once(repeated: Path) -> None:
    written = {name: (repeated / name).read_bytes() for name in files(repeated)}
    shutil.rmtree(repeated / "metrics" / "tiny" / "small-1-0" / "logs")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, str(STAGES / "simulate.py"), *chain_arguments(repeated, 1)]
    done = subprocess.run(command, cwd=repeated, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal to the integer network in every net count") == 1
    assert {name: (repeated / name).read_bytes() for name in files(repeated)} == written


# What goes wrong


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("finetune", r"small-1-0/train\.safetensors is not there"),
        ("evaluate", r"small-1-0/finetune\.safetensors is not there"),
        ("convert", r"small-1-0/finetune\.safetensors is not there"),
        ("simulate", r"small-1-0/integer/network\.safetensors is not there"),
    ],
)
def test_a_stage_without_its_input_names_the_file(stage: str, message: str, fresh: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}: run the stage that writes it"):
        in_this_process(stage, *chain_arguments(fresh, 1))
    locked = [LOCK] if stage == "finetune" else []
    assert files(fresh) == [*locked, "data/tiny/images.safetensors", "params.yaml"]


@pytest.mark.parametrize("stage", CHAIN_STAGES[:4])
def test_a_stage_without_images_names_the_download(stage: str, tmp_path: Path) -> None:
    make_project(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: .*images\.safetensors is not there: run the download stage"):
        in_this_process(stage, *chain_arguments(tmp_path, 1))


@pytest.fixture
def pretraining(fresh: Path) -> Path:
    """The same with a profile of two shared epochs, after which the weights of each k do not move."""
    content = copy.deepcopy(PARAMS)
    content["profiles"]["tiny"]["pretrain"] = {"epochs": 2, "learning_rate": 0.003}
    content["profiles"]["tiny"]["train"]["learning_rate"] = 1e-12
    (fresh / "params.yaml").write_text(yaml.safe_dump(content))
    return fresh


@pytest.mark.parametrize("k", [1, "fp32"])
def test_every_k_goes_on_from_what_was_pretrained(k: int | str, pretraining: Path) -> None:
    in_this_process("pretrain", "--params", str(pretraining / "params.yaml"), *START)
    in_this_process("train", *chain_arguments(pretraining, k))
    assert [row["epoch"] for row in table(metrics(pretraining, "fp32") / "pretrain.csv")] == ["1", "2"]
    architecture = load_params(pretraining / "params.yaml").architecture("tiny", "small", image_channels=1)
    data = pretraining / "data" / "tiny"
    before = load_checkpoint(data / "small-fp32-0" / "pretrain.safetensors", architecture, "fp32")
    after = load_checkpoint(data / f"small-{k}-0" / "train.safetensors", architecture, k)
    for one, other in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    # (1437 - 100) / 50 images make 27 steps an epoch: two that are shared, then one.
    assert (before.moments["adam.step"].item(), after.moments["adam.step"].item()) == (54, 81)
    settings = after.made_with["settings"]
    assert {name: value for name, value in settings.items() if name.startswith("pretrain.")} == {
        **{"pretrain.epochs": 2, "pretrain.learning_rate": 0.003, "pretrain.schedule": "constant"}
    }
    assert not [name for name in before.made_with["settings"] if name.startswith("finetune.")]


def test_without_the_pretrained_network_a_stage_says_which_file_it_wants(pretraining: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*small-fp32-0/pretrain\.safetensors is not there: run the stage"):
        in_this_process("train", *chain_arguments(pretraining, 1))
    assert files(pretraining) == [LOCK, "data/tiny/images.safetensors", "params.yaml"]


def test_a_network_that_was_pretrained_otherwise_is_not_taken(pretraining: Path) -> None:
    in_this_process("pretrain", "--params", str(pretraining / "params.yaml"), *START)
    content = yaml.safe_load((pretraining / "params.yaml").read_text())
    content["profiles"]["tiny"]["pretrain"]["epochs"] = 5
    (pretraining / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=r"is of other settings \(pretrain\.epochs is 5, it had 2\): run dvc repro"):
        in_this_process("train", *chain_arguments(pretraining, 1))


def test_results_tell_of_every_device_and_of_bf16_in_any_phase(pretraining: Path) -> None:
    in_this_process("pretrain", "--params", str(pretraining / "params.yaml"), *START)
    file = pretraining / "data" / "tiny" / "small-fp32-0" / "pretrain.safetensors"
    architecture = load_params(pretraining / "params.yaml").architecture("tiny", "small", image_channels=1)
    start = load_checkpoint(file, architecture, "fp32")
    own, elsewhere = start.made_with["device"], {"arithmetic": "bf16", "device": "some GPU"}
    save_checkpoint(file, start.network, resume_adam(start, 0.003), made_with=start.made_with | elsewhere)
    for stage in ("train", "finetune", "evaluate"):
        in_this_process(stage, *chain_arguments(pretraining, 1))
    made_with = read(metrics(pretraining, 1) / "ann.json")["made_with"]
    assert (made_with["arithmetic"], made_with["device"]) == ("bf16", f"some GPU, then {own}")


def test_a_crop_beyond_the_images_is_refused_by_the_download(tmp_path: Path) -> None:
    content = copy.deepcopy(PARAMS)
    content["profiles"]["tiny"]["data"]["crop"] = 12
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=r"^error: data\.crop is 12, but the images are only 8 x 8 pixels"):
        in_this_process("download", "--params", str(tmp_path / "params.yaml"), "--profile", "tiny")
    assert files(tmp_path) == ["params.yaml"]


def test_a_network_that_was_trained_at_another_width_is_not_taken_for_this_one(project: Path, fresh: Path) -> None:
    content = copy.deepcopy(PARAMS)
    content["profiles"]["tiny"]["width"] = 1.0
    (fresh / "params.yaml").write_text(yaml.safe_dump(content))
    weights = Path("data/tiny/small-1-0/train.safetensors")
    (fresh / weights).parent.mkdir()
    (fresh / weights).hardlink_to(project / weights)
    with pytest.raises(SystemExit, match="layers = 4C3-P2-8C3-P2-8, but 8C3-P2-16C3-P2-16 is asked for"):
        in_this_process("finetune", *chain_arguments(fresh, 1))


def test_more_held_out_images_than_there_are_is_a_user_error(fresh: Path) -> None:
    content = copy.deepcopy(PARAMS)
    content["profiles"]["tiny"]["train"]["validation"] = 1437
    (fresh / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(
        SystemExit, match=r"error: train\.validation is 1437, but of 1437 training images at most 1435 can be held out"
    ):
        in_this_process("train", *chain_arguments(fresh, 1))


def test_a_loss_that_is_not_finite_ends_the_stage_and_leaves_no_weights(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def astray(scores: torch.Tensor, labels: torch.Tensor, **options: object) -> torch.Tensor:
        return scores.sum() * float("nan")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", astray)
    with pytest.raises(SystemExit, match=r"^error: the loss became nan in epoch 1, step 1: the learning rate 0\.003"):
        in_this_process("train", *chain_arguments(fresh, 1))
    assert files(fresh) == [LOCK, "data/tiny/images.safetensors", "params.yaml"]


def test_a_crop_beyond_images_that_are_there_already_is_refused_by_the_training(fresh: Path) -> None:
    content = copy.deepcopy(PARAMS)
    content["profiles"]["tiny"]["data"]["crop"] = 12
    (fresh / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=r"^error: .*12.*8 x 8"):
        in_this_process("train", *chain_arguments(fresh, 1))
