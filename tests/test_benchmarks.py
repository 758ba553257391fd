"""The benchmarks on a small network: trained networks from outside are read or refused, and figures come out whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import labelled, with_averages
from quantspike.architecture import Architecture
from quantspike.conversion import convert
from quantspike.data import Dataset, build_dataset, save_dataset
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork, save_integer_network
from quantspike.networks import Block, QuantizedCNN, new_network

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from trained_networks import load_images, load_network, newest_full_width_network  # noqa: E402

LAYERS = "4C3-P2-70C3-P2-5"


@pytest.fixture
def trained(tiny_dataset: Dataset) -> QuantizedCNN:
    architecture = Architecture.parse(LAYERS, image_size=4, image_channels=1, classes=3)
    return with_averages(new_network(architecture, 1, 0), tiny_dataset)


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


def assert_same(found: IntegerNetwork, expected: IntegerNetwork) -> None:
    assert (found.architecture, found.k, found.classifier_exponent) == (
        expected.architecture,
        expected.k,
        expected.classifier_exponent,
    )
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("weight", "bias", "threshold"))


def test_a_trained_network_from_outside_is_converted(tmp_path: Path, trained: QuantizedCNN) -> None:
    assert_same(load_network(write(tmp_path / "cnn.safetensors", tensors_of(trained))), convert(trained, 12))


def test_an_integer_network_is_taken_as_it_is(tmp_path: Path, trained: QuantizedCNN) -> None:
    network = convert(trained, 9)
    save_integer_network(tmp_path / "network.safetensors", network)
    assert_same(load_network(tmp_path / "network.safetensors"), network)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, trained: QuantizedCNN) -> None:
    tensors = tensors_of(trained)
    tensors["conv2.weight"][3, 1, 0, 0] = torch.nan
    with pytest.raises(QuantspikeError, match=r"layer 3, channel 3: a folded weight or bias is not finite"):
        load_network(write(tmp_path / "cnn.safetensors", tensors))


def test_a_classifier_that_is_not_finite_is_refused(tmp_path: Path, trained: QuantizedCNN) -> None:
    tensors = tensors_of(trained)
    tensors["classifier.weight"][0, 0] = torch.inf
    with pytest.raises(QuantspikeError, match="classifier"):
        load_network(write(tmp_path / "cnn.safetensors", tensors))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"batch_norm_eps": "1e-3"}, "batch_norm_eps is 1e-3, expected 1e-05"),
        ({"crop": "6"}, "no whole trained network: layer 4"),
        ({"layers": "4C3-P2-70C3-P2-6"}, "no whole trained network: The size of tensor"),
        ({"k": "one"}, "no whole trained network"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    header: dict[str, str], message: str, tmp_path: Path, trained: QuantizedCNN
) -> None:
    with pytest.raises(QuantspikeError, match=message):
        load_network(write(tmp_path / "cnn.safetensors", tensors_of(trained), **header))


def test_a_missing_tensor_and_a_damaged_and_an_absent_file_are_refused(tmp_path: Path, trained: QuantizedCNN) -> None:
    tensors = tensors_of(trained)
    del tensors["bn1.running_var"]
    path = write(tmp_path / "cnn.safetensors", tensors)
    with pytest.raises(QuantspikeError, match=r"no whole trained network: 'bn1\.running_var'"):
        load_network(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(QuantspikeError, match="is damaged, or no safetensors file"):
        load_network(path)
    with pytest.raises(QuantspikeError, match="is not there"):
        load_network(tmp_path / "nothing.safetensors")


def test_without_a_network_or_images_the_way_to_get_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text((BENCHMARKS.parent / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuantspikeError, match=r"no network of full width .* dvc repro .* --weights FILE"):
        newest_full_width_network()
    with pytest.raises(QuantspikeError, match="no images under data/: name them with --data"):
        load_images(None)


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(tmp_path: Path, trained: QuantizedCNN, tiny_dataset: Dataset) -> list[str]:
    save_dataset(tiny_dataset, tmp_path / "images.safetensors")
    weights = write(tmp_path / "cnn.safetensors", tensors_of(trained))
    return ["--weights", str(weights), "--data", str(tmp_path / "images.safetensors")]


def test_the_benchmark_gives_medians_and_ratios(files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    run("simulation.py", *files, "--no-peers", "--images", "20", "--rounds", "2", "--json", str(path))
    result = json.loads(path.read_text())
    assert (result["images"], result["settled"], result["mismatches"]) == (20, 20, 0)
    assert set(result["ratios"]) == {"row_addition_limit", "row_addition_limit_with_proof"}
    for name, ratio in result["ratios"].items():
        low, high = result["ratio_ranges"][name]
        assert 0 < low <= ratio <= high
    assert all(value > 0 for value in result["medians"].values())
    assert result["machine"]["threads"] == 2


def test_the_profile_accounts_for_every_layer(files: list[str]) -> None:
    table = run("profile_events.py", *files, "--images", "5", "--runs", "2")
    assert [line.split()[2] for line in table.splitlines() if line.startswith("  layer")] == ["P2", "70C3", "P2", "5"]
    assert "integer network, for the proof" in table


def test_the_memory_is_measured_for_every_setting(files: list[str]) -> None:
    rows = json.loads(run("memory.py", *files, "--images", "10", "--batch-sizes", "5", "--steps", "3", "6"))
    assert [(row["batch_size"], row["steps"]) for row in rows] == [(5, 3), (5, 6)]
    # Python and torch alone take more than 0.1 GB: a wrong unit would show.
    assert all(0.1 < row["peak_gigabytes_before"] <= row["peak_gigabytes"] < 8 for row in rows)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """60 training images of CIFAR-10's size and shape."""
    dataset = build_dataset(
        labelled(60, 1, channels=3, size=32),
        labelled(4, 2, channels=3, size=32),
        ("a", "b", "c"),
        kind="images",
        name="rows",
    )
    path = tmp_path / "images.safetensors"
    save_dataset(dataset, path)
    return path


def test_training_is_timed_against_the_plain_way(images: Path, tmp_path: Path) -> None:
    found = tmp_path / "training.json"
    small = ["--layers", "4C3-P2-5", "--steps", "2", "--batch", "8", "--rounds", "2"]
    run("training.py", "--data", str(images), "--json", str(found), *small)
    result = json.loads(found.read_text())
    assert result["n"] == {"rounds": 2, "images_per_round": 16, "batch": 8}
    low, high = result["ratio_ranges"]["plain_loop"]
    assert 0 < low <= result["ratios"]["plain_loop"] <= high
    assert 0 < result["overhead_share"] < 1
    assert 0 < result["share_of_matrix_rate"] < 1


def test_the_ablation_trains_every_variant_once_and_goes_on_where_it_was(images: Path, tmp_path: Path) -> None:
    found = tmp_path / "ablation.json"
    small = ["--layers", "4C3-P2-5", "--width", "1", "--images", "20", "--held-out", "10", "--epochs", "1"]
    arguments = ["--data", str(images), "--json", str(found), "--seeds", "1", *small]
    table = run("ablation.py", *arguments)
    runs = json.loads(found.read_text())
    assert [entry["variant"] for entry in runs[:2]] == ["paper", "strong"]
    assert all(0 <= entry["accuracy"] <= 1 and entry["spikes_per_neuron"] >= 0 for entry in runs)
    found.write_text(json.dumps(runs[:-1]))
    again = run("ablation.py", *arguments)
    assert "'strong'," not in again
    assert again.splitlines()[-len(runs) - 2 :] == table.splitlines()[-len(runs) - 2 :]
