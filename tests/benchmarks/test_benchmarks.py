"""The benchmarks on small networks: files are read or refused, options are checked, and results are complete."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from make_networks import random_images, random_integer_network
from quantspike.conversion.convert import convert
from quantspike.conversion.integer import save_integer_network
from quantspike.data.dataset import Dataset, build_dataset, save_dataset
from quantspike.data.preparation import central_images
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import Block, QuantizedCNN, new_network
from quantspike.paths import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import accuracy  # noqa: E402
from peers import encode, make_peers  # noqa: E402
from row_limit import TILE, add_stream  # noqa: E402
from simulation import steps_needed  # noqa: E402
from trained_networks import choose_images, load_images, load_network  # noqa: E402

LAYERS = "4C3-P2-70C3-P2-5"


def make_dataset(size: int) -> Dataset:
    """Return 40 training and 20 test images of noise; the test images are in the order of their five classes."""
    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 3, size, size), dtype=np.uint8) for n in (40, 20))
    labels = np.repeat(np.arange(5), 8), np.repeat(np.arange(5), 4)
    return build_dataset((train, labels[0]), (test, labels[1]), tuple("abcde"), kind="images", name="noise")


@pytest.fixture
def trained() -> QuantizedCNN:
    """A network whose batch normalization has seen images, so that its neurons fire."""
    network = new_network(Architecture.parse(LAYERS, image_size=4, image_channels=3, classes=5), 1, 0)
    images = central_images(torch.from_numpy(make_dataset(6).train_images), 4)
    with torch.no_grad():
        for _ in range(40):  # 0.9^40 = 0.015 of the initial averages is left
            network(images)
    return network


def tensors_of(network: QuantizedCNN) -> dict[str, Tensor]:
    tensors = {"classifier.weight": network.classifier.weight.detach()}
    for index, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        tensors[f"conv{index}.weight"] = block.convolution.weight.detach().contiguous()
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"bn{index}.{name}"] = getattr(block.normalization, name).detach()
    return tensors


def write(path: Path, tensors: dict[str, Tensor], **header: str) -> Path:
    save_file(tensors, path, metadata={"layers": LAYERS, "k": "1", "crop": "4", "batch_norm_eps": "1e-5"} | header)
    return path


def test_trained_networks_are_converted_and_integer_networks_taken_as_they_are(
    tmp_path: Path, trained: QuantizedCNN
) -> None:
    paths = [tmp_path / name for name in ("convert.safetensors", "again.safetensors")]
    save_integer_network(paths[0], convert(trained, 12))
    for path, bits in ((write(tmp_path / "cnn.safetensors", tensors_of(trained)), 12), (paths[0], 8)):
        save_integer_network(paths[1], load_network(path, bits))
        assert paths[1].read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"batch_norm_eps": "1e-3"}, "not a complete trained network: batch_norm_eps is 1e-3, expected 1e-05"),
        ({"crop": "6"}, "not a complete trained network: layer 4"),
        ({"layers": "4C3-P2-70C3-P2-6"}, "not a complete trained network: The size of tensor"),
        ({"k": "one"}, "not a complete trained network: invalid literal"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    header: dict[str, str], message: str, tmp_path: Path, trained: QuantizedCNN
) -> None:
    with pytest.raises(QuantspikeError, match=message):
        load_network(write(tmp_path / "cnn.safetensors", tensors_of(trained), **header))


def test_missing_tensors_values_that_are_not_finite_and_damaged_files_are_refused(
    tmp_path: Path, trained: QuantizedCNN
) -> None:
    path = tmp_path / "cnn.safetensors"
    tensors = tensors_of(trained)
    tensors["conv2.weight"][3, 1, 0, 0] = torch.nan
    with pytest.raises(QuantspikeError, match="layer 3, channel 3: a folded weight or bias is NaN or infinite"):
        load_network(write(path, tensors))
    del tensors["bn1.running_var"]
    with pytest.raises(QuantspikeError, match=r"not a complete trained network: 'bn1\.running_var'"):
        load_network(write(path, tensors))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(QuantspikeError, match="is damaged, or not a safetensors file"):
        load_network(path)


def test_absent_networks_and_images_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="does not exist: run dvc repro convert@fast-cnn1-1-0, or use --weights"):
        load_network(tmp_path / "nothing.safetensors")
    with pytest.raises(QuantspikeError, match="does not exist: run dvc repro download@fast, or use --data"):
        load_images(str(tmp_path / "nothing.safetensors"))
    assert load_images("digits").fingerprint["name"] == "scikit-learn digits"


def test_test_images_are_of_every_class_however_they_are_ordered() -> None:
    dataset = make_dataset(6)
    for n, expected in {3: [0, 6, 13], 5: [0, 4, 8, 12, 16], 20: list(range(20))}.items():
        images, labels = choose_images(dataset, n)
        assert torch.equal(images, torch.from_numpy(dataset.test_images)[expected])
        assert labels.tolist() == dataset.test_labels[expected].tolist()
    with pytest.raises(QuantspikeError, match="--images is 21, but there are only 20 test images"):
        choose_images(dataset, 21)


@pytest.mark.skipif(not (find_spec("spikingjelly") and find_spec("snntorch")), reason="needs the extra bench")
def test_the_other_libraries_give_equal_scores() -> None:
    network = random_integer_network("3C3-P2-4C3-5", 8, seed=1, k=0)
    inputs = encode(network, 2, random_images(5, 8, seed=2))
    first, *others = (peer(inputs, 6) for peer in make_peers(network, 2).values())
    assert first.shape[:2] == (6, 5)
    assert first.abs().max() > 0
    assert all(torch.equal(first, scores) for scores in others)


def test_the_stream_of_rows_is_added_completely() -> None:
    """Two blocks of five rows of two tiles: three rows at once, the third time from the beginning again."""
    blocks = np.random.default_rng(0).integers(-2047, 2048, (2, 5, 2 * TILE)).astype(np.int16)
    # 6 rows are asked for: rows 0 to 2, and again, since 3 to 5 would leave the block.
    expected = 2 * blocks[:, :3].reshape(2, 3, 2, TILE).sum(axis=(0, 1, 2), dtype=np.int64)
    assert np.array_equal(add_stream(blocks.ravel(), 5, 2 * TILE, 6, 3), expected)


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARKS / script), *arguments], capture_output=True, text=True)


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = start(script, *arguments)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture
def files(tmp_path: Path, trained: QuantizedCNN) -> list[str]:
    save_dataset(make_dataset(6), tmp_path / "images.safetensors")
    weights = write(tmp_path / "cnn.safetensors", tensors_of(trained))
    return ["--weights", str(weights), "--data", str(tmp_path / "images.safetensors")]


def assert_spread(figure: dict[str, Any]) -> None:
    assert figure["range"][0] <= figure["median"] <= figure["range"][1]


def test_the_simulation_is_timed_against_the_limit_and_the_result_is_written(files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    rows = ["--clips", "none", "2", "--delays", "0", "3"]
    result = run("simulation.py", *files, *rows, "--no-peers", "--images", "20", "--rounds", "2", "--json", str(path))
    assert result == json.loads(path.read_text())
    assert [(row["clip"], row["layer_delay"]) for row in result["rows"]] == [(None, 0), (None, 3), (2, 0), (2, 3)]
    for row in result["rows"]:
        assert (row["settled"], row["mismatches"]) == (20, 0)
        assert row["synops"] >= row["least_synops"] > 0
        assert row["settled_step"]["last"] >= row["settled_step"]["median"] > 0
        assert row["milliseconds_per_image"] > 0
        assert row["engine_milliseconds_per_image"] > 0
        assert_spread(row["engine_over_limit"])
        assert_spread(row["simulation_over_limit"])
    assert [row["accuracy"] for row in result["rows"][::2]] == [row["accuracy"] for row in result["rows"][1::2]]


def test_another_library_needs_the_steps_up_to_which_its_accuracy_changes() -> None:
    # After steps 1 to 5; the last step that is more than 0.1 points away from .9 is the third.
    assert steps_needed(torch.tensor([0.9, 0.5, 0.8, 0.9005, 0.9])) == 4
    assert steps_needed(torch.tensor([0.9, 0.9])) == 1


def test_the_memory_is_measured_for_every_setting(files: list[str]) -> None:
    rows = run("memory.py", *files, "--images", "10", "--batch-sizes", "5", "--steps", "3", "6")["rows"]
    assert [(row["batch_size"], row["steps"]) for row in rows] == [(5, 3), (5, 6)]
    # Python and torch alone take more than 0.1 GB: a wrong unit would show.
    assert all(0.1 < row["peak_gigabytes_before"] <= row["peak_gigabytes"] < 8 for row in rows)


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    save_dataset(make_dataset(32), tmp_path / "images.safetensors")
    small = ["--layers", "4C3-P2-5", "--steps", "2", "--batch", "8", "--rounds", "2"]
    return ["--data", str(tmp_path / "images.safetensors"), *small]


def test_training_is_timed_against_a_plain_loop(training: list[str]) -> None:
    result = run("training.py", *training)
    assert result["n"] == {"rounds": 2, "images_per_round": 16, "batch": 8}
    assert_spread(result["ratio"])
    assert 0 < result["share_outside"]["range"][0] <= result["share_outside"]["range"][1] < 1
    assert all(value > 0 for value in result["images_per_second"].values())


def test_the_cost_of_live_tracking_is_measured(training: list[str]) -> None:
    result = run("tracking.py", *training, "--pause", "0")
    assert_spread(result["share_longer"])
    assert_spread(result["share_of_thread"])
    assert all(value > 0 for value in result["epoch_seconds"].values())


def test_accuracy_spikes_and_time_of_a_changed_profile_are_measured_on_held_out_images() -> None:
    short = "demo:baseline.0.epochs=1,train.epochs=1,recipe.clip=null,recipe.arithmetic=fp32,simulate.layer_delay=[0]"
    options = ["--data", "digits", "--width", "0.1", "--k", "0", "--seeds", "1", "--held-out", "50"]
    result = run("accuracy.py", *options, "--variants", short)
    assert result["data"] == "scikit-learn digits, tested on 50 training images held out"
    assert result["machine"]["arithmetic"] == ["fp32"]
    (figures,) = result["variants"].values()
    assert set(figures) == {"baseline", "k = 0"}
    for named in figures.values():
        for figure in named.values():
            assert_spread(figure)
        correct = 50 * named["accuracy"]["median"]
        assert correct == pytest.approx(round(correct))
        assert named["cpu_hours"]["median"] > 0
    assert figures["k = 0"]["synops"]["median"] > 0


def test_variants_of_one_baseline_share_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variants = ["demo", "demo:train.epochs=3", "demo:recipe.clip=2"]
    options = argparse.Namespace(variants=variants, data="digits", held_out=9, width=0.1, model="cnn1", k=[1], seeds=1)
    names = accuracy.make_project(tmp_path, options)
    trained: list[str] = []

    def train(run: Run, *stages: str) -> dict[str, float]:
        trained.append(f"{run.profile}/{stages[0]}")
        for path in (run.data, run.metrics):
            path.mkdir(parents=True)
        (run.data / "file").write_text(run.profile)
        return {"accuracy": float(len(trained))}

    monkeypatch.setattr(accuracy, "run_stages", train)
    figures = accuracy.run_variants(tmp_path, names, options, 0)
    assert trained == ["v0/baseline", "v0/train", "v1/train", "v2/baseline", "v2/train"]
    assert figures["v1", "fp32"] == figures["v0", "fp32"] != figures["v2", "fp32"]
    assert (tmp_path / "data/v1/cnn1-fp32-0/file").read_text() == "v0"


def test_a_variant_changes_nothing_but_the_settings_that_it_names() -> None:
    profiles = {"a": {"baseline": [{"epochs": 6}, {"epochs": 7}], "recipe": {"clip": 4, "flip": "none"}}}
    expected = {"baseline": [{"epochs": 6}, {"epochs": 2}], "recipe": {"clip": None, "flip": "none"}}
    assert accuracy.vary(profiles, "a:baseline.1.epochs=2,recipe.clip=null") == expected
    assert accuracy.vary(profiles, "a") == profiles["a"]
    assert accuracy.vary(profiles, "a:recipe.clip=[0,1],recipe.flip=x")["recipe"] == {"clip": [0, 1], "flip": "x"}
    for variant, message in (
        ("b:x=1", "no profile b; params.yaml has a"),
        ("a:recipe.klip=1", "the profile has no setting recipe.klip"),
        ("a:recipe.clip", "expected setting=value, found recipe.clip"),
        ("a:data.held_out=0", "all variants have the same images, of --data and --held-out"),
        ("a:baseline.2.epochs=1", "the profile has no setting baseline.2.epochs"),
    ):
        with pytest.raises(QuantspikeError, match=f"^{re.escape(f'--variants {variant}: {message}')}$"):
            accuracy.vary(profiles, variant)


@pytest.mark.parametrize(
    ("script", "wrong", "message"),
    [
        ("simulation.py", ["--images", "49"], "--images must be at least --rounds times --peer-images"),
        ("memory.py", ["--batch-sizes", "ten"], "expected a whole number of 1 or more, found 'ten'"),
        ("memory.py", ["--json", "nowhere/result.json"], "the folder nowhere does not exist: create it"),
        ("training.py", ["--batch", "1"], "expected a whole number of 2 or more, found '1'"),
        (
            "training.py",
            ["--data", "digits", "--steps", "8"],
            "8 steps of 200 images are asked for, but there are only",
        ),
        ("accuracy.py", ["--data", "nothing"], "data.source 'nothing' does not exist"),
        ("accuracy.py", ["--variants", "fast:train.start=later"], "v0.train.start: Input should be 'baseline' or"),
        ("accuracy.py", ["--held-out", "1439", "--data", "digits", "--variants", "demo"], "data.held_out is 1439, but"),
        ("tracking.py", ["--device", "gpu"], "invalid choice: 'gpu'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    script: str, wrong: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *wrong])
    monkeypatch.syspath_prepend(BENCHMARKS)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert caught.value.code != 0
    # argparse prints its messages, the project's own are the exit's.
    assert message in f"{capsys.readouterr().err} {caught.value.code}"


@pytest.mark.skipif(find_spec("spikingjelly") is not None, reason="the extra bench is installed")
def test_without_the_other_libraries_the_command_that_installs_them_is_named() -> None:
    done = start("simulation.py")
    assert done.returncode == 1
    assert "not installed: run pip install --constraint constraints.txt --editable '.[bench]'" in done.stderr
