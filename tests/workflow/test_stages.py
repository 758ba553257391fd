"""The stages one after the other, from images to spikes, on the tiny profile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from conftest import PARAMS, Edit
from quantspike.conversion.integer import load_integer_network
from quantspike.data.dataset import load_dataset
from quantspike.networks.architecture import architecture_of, macs
from quantspike.params import load_params
from quantspike.paths import Run, find_run
from quantspike.reporting.results import read_all
from quantspike.training.checkpoints import load_checkpoint
from stage_processes import STAGES, arguments, run_here

ORDER = ("download", "baseline", "train", "finetune", "evaluate", "convert", "simulate")
LOGS = ("accuracy.txt", "sop_num.txt", "spike_collect.txt", "spike_num.txt")


def make_project(folder: Path) -> Path:
    """Run every stage up to `simulate` in a folder."""
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for stage in ORDER:
        run_here(folder, stage)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def fresh(project: Path, write_params: Edit) -> Path:
    """A folder with params and images, before any training."""
    folder = write_params().parent
    (folder / "data" / "tiny").mkdir(parents=True)
    (folder / "data/tiny/images.safetensors").hardlink_to(project / "data/tiny/images.safetensors")
    return folder


def run_of(project: Path, k: Any = 1) -> Run:
    return find_run(load_params(project / "params.yaml"), "tiny", "small", k, 0, project)


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file but the states of training."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("data/resume")}


def test_every_stage_writes_files_of_its_name_and_nothing_else(project: Path) -> None:
    data, metrics = "data/tiny", "metrics/tiny"
    expected = ["params.yaml", f"{data}/images.safetensors"]
    expected += [f"{data}/small-fp32-0/baseline.safetensors"]
    expected += [f"{metrics}/small-fp32-0/baseline.{kind}" for kind in ("csv", "json")]
    expected += [f"{data}/small-1-0/{stage}.safetensors" for stage in ("train", "finetune", "evaluate", "convert")]
    expected += [f"{metrics}/small-1-0/{stage}.csv" for stage in ("train", "finetune", "simulate")]
    expected += [f"{metrics}/small-1-0/simulate_{kind}.csv" for kind in ("layers", "delays")]
    expected += [f"{metrics}/small-1-0/{stage}.json" for stage in ("evaluate", "convert", "simulate", "certificate")]
    expected += [f"{metrics}/small-1-0/logs/k1/{name}" for name in LOGS]
    assert sorted(files(project)) == sorted(expected)


def test_the_results_can_be_read(project: Path) -> None:
    runs = [run_of(project, k) for k in ("fp32", 1)]
    baseline, spiking = read_all(runs)
    assert [result.run for result in (baseline, spiking)] == runs
    assert list(baseline.training["epoch"]) == [1]
    assert list(spiking.training["epoch"]) == [1, 2]


@pytest.mark.parametrize(("k", "stage"), [("fp32", "baseline"), (1, "evaluate")])
def test_the_report_describes_network_and_images(k: Any, stage: str, project: Path) -> None:
    run = run_of(project, k)
    report = read(run.metrics / f"{stage}.json")
    architecture = architecture_of(run, image_channels=1)
    checkpoint = load_checkpoint(run.network, architecture, k)
    assert (report["images"], report["accuracy"]) == (360, report["correct"] / 360)
    assert report["neurons"] == architecture.neurons == 4 * 64 + 4 * 16 + 8 * 16 + 8 * 4 + 8
    assert (report["weights"], report["macs"]) == (checkpoint.network.weights, macs(architecture))
    assert report["data"] == load_dataset(run.dataset).fingerprint
    assert report["provenance"] == checkpoint.provenance
    curve = pd.read_csv(run.metrics / ("baseline.csv" if k == "fp32" else "finetune.csv"))
    # The same network and images; memory order may differ, and with it the rounding of a sum.
    assert report["accuracy"] == pytest.approx(curve["test_accuracy"].iloc[-1], abs=2 / 360)


def test_the_conversion_describes_every_layer(project: Path) -> None:
    report, evaluation = (read(run_of(project).metrics / f"{name}.json") for name in ("convert", "evaluate"))
    assert (report["k"], report["weight_bits"]) == (1, 12)
    assert (report["neurons"], report["weights"]) == (evaluation["neurons"], evaluation["weights"])
    assert [layer["token"] for layer in report["layers"]] == ["4C3", "P2", "8C3", "P2", "8"]


def test_the_spiking_network_is_the_integer_network_on_every_image(project: Path) -> None:
    run = run_of(project)
    simulation, certificate = (read(run.metrics / f"{name}.json") for name in ("simulate", "certificate"))
    network, dataset = load_integer_network(run.integer_network), load_dataset(run.dataset)
    counts = network.settled_counts(network.input_current(torch.from_numpy(dataset.test_images)))
    predictions = network.logits(counts[-1]).argmax(1).numpy()
    assert simulation["integer_accuracy"] == (predictions == dataset.test_labels).mean()
    assert simulation["accuracy"] == simulation["integer_accuracy"]
    assert (simulation["differing_predictions"], simulation["unsettled_at_T"]) == (0, 0)
    assert simulation["ann_agreement"] > 0.9
    assert (certificate["settled_by_limit"], certificate["equal"], certificate["mismatches"]) == (360, 360, 0)
    assert certificate["last_settling_step"] == simulation["settled_step"]


def test_curves_and_logs_add_up_to_the_totals(project: Path) -> None:
    run = run_of(project)
    simulation, steps = read(run.metrics / "simulate.json"), pd.read_csv(run.metrics / "simulate.csv")
    layers = pd.read_csv(run.metrics / "simulate_layers.csv")
    assert (list(steps["step"]), len(layers)) == (list(range(1, 21)), 20 * 5)
    for name in ("positive_spikes", "negative_spikes", "net_spikes", "synops"):
        assert steps[name].iloc[-1] == simulation[name]
        assert np.allclose(layers.groupby("step")[name].sum(), steps[name], rtol=1e-12, atol=0)
    delays = pd.read_csv(run.metrics / "simulate_delays.csv")
    assert list(delays["layer_delay"]) == [0] * 20 + [3] * 20
    assert delays[:20].drop(columns="layer_delay").equals(steps)
    assert simulation["layer_delay"] == 0
    assert simulation["least_synops"] <= delays["synops"][[19, 39]].min()
    # Batches of 100, 100, 100 and 60 images, 20 steps each.
    logs = {name: np.loadtxt(run.logs / name).reshape(4, 20).sum(axis=0) / 360 for name in LOGS}
    assert np.allclose(logs["accuracy.txt"], steps["accuracy"])
    assert np.allclose(logs["spike_num.txt"], steps["positive_spikes"] + steps["negative_spikes"])
    assert np.allclose(logs["spike_collect.txt"], steps["net_spikes"])
    assert np.allclose(logs["sop_num.txt"], steps["synops"])


def test_the_stages_give_the_same_bytes_in_another_folder_and_when_run_again(project: Path, tmp_path: Path) -> None:
    assert files(make_project(tmp_path)) == files(project)
    for stage in ORDER:
        run_here(tmp_path, stage)
    assert files(tmp_path) == files(project)


def test_processes_that_share_a_simulation_write_the_same_files_once(project: Path, write_params: Edit) -> None:
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=2"
    folder = write_params({"launch": torchrun}).parent
    shutil.copytree(project / "data", folder / "data")
    command = [sys.executable, STAGES / "simulate.py", *arguments("simulate")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for delay in (0, 3):
        proved = rf"^tiny-small-1-0, layer delay {delay}: 360 of 360 images .* equal to the integer network in every"
        assert len(re.findall(proved, done.stdout, re.MULTILINE)) == 1
    written = {name: content for name, content in files(folder).items() if name.startswith("metrics")}
    alone = files(project)
    assert len(written) == 9
    assert written == {name: alone[name] for name in written}


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("baseline", "images"),
        ("train", "images"),
        ("finetune", "small-1-0/train"),
        ("evaluate", "small-1-0/finetune"),
        ("convert", "small-1-0/finetune"),
        ("simulate", "small-1-0/convert"),
    ],
)
def test_a_stage_without_its_input_names_the_file_and_writes_nothing(stage: str, file: str, fresh: Path) -> None:
    if file == "images":
        shutil.rmtree(fresh / "data")
    before = files(fresh)
    with pytest.raises(SystemExit, match=rf"^error: .*{file}\.safetensors does not exist: run the stage"):
        run_here(fresh, stage)
    assert files(fresh) == before


def test_in_a_copy_that_dvc_makes_for_an_experiment_a_relative_source_is_that_of_the_project(
    write_params: Edit, tmp_path: Path
) -> None:
    copied = tmp_path / ".dvc/tmp/exps/standalone/tmp1a2b"
    copied.mkdir(parents=True)
    write_params({"profiles.tiny.data.source": "images"}).rename(copied / "params.yaml")
    for part, shade in product(("train", "test"), (0, 255)):
        path = tmp_path / "images" / part / f"class{shade}" / "image.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (8, 8), shade).save(path)
    run_here(copied, "download")
    assert load_dataset(copied / "data/tiny/images.safetensors").class_names == ("class0", "class255")


@pytest.mark.parametrize(
    ("stage", "place", "value", "message"),
    [
        ("download", "data.crop", 12, "data.crop is 12, but the images are only 8 x 8 pixels"),
        ("download", "data.source", "here", "data.source 'here' does not exist. A source is one of:"),
        ("download", "data.held_out", 1436, "data.held_out is 1436, but of 1437 training images at most 1435 can be"),
        (
            "download",
            "simulate.layer_delay",
            [0, 5],
            "profiles.tiny.simulate.layer_delay holds 5, with which the last of 5 layers fires from step 21 on, but",
        ),
        ("convert", "width", 1.0, "layers = 4C3-P2-8C3-P2-8, expected 8C3-P2-16C3-P2-16: run dvc repro"),
        ("convert", "recipe.clip", 2.0, "clip = None, expected 2.0: run dvc repro"),
        ("convert", "finetune.integer_aware", True, "weight_bits = None, expected 12: run dvc repro"),
        ("evaluate", "recipe.clip", 2.0, "clip = None, expected 2.0: run dvc repro"),
        ("simulate", "width", 1.0, "layers = 4C3-P2-8C3-P2-8, expected 8C3-P2-16C3-P2-16: run dvc repro"),
        ("simulate", "convert.weight_bits", 8, "weight_bits = 12, expected 8: run dvc repro"),
    ],
)
def test_settings_that_do_not_fit_the_files_are_named(
    stage: str, place: str, value: Any, message: str, project: Path, write_params: Edit
) -> None:
    folder = write_params({f"profiles.tiny.{place}": value}).parent
    shutil.copytree(project / "data", folder / "data")
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{re.escape(message)}"):
        run_here(folder, stage)
