"""The benchmarks on a small network: trained networks from outside are read or refused, and figures come out whole."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from conftest import PARAMS, labelled, with_averages
from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.checkpoints import save_checkpoint
from quantspike.conversion import convert
from quantspike.data import Dataset, build_dataset, save_dataset
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork, save_integer_network
from quantspike.networks import Block, QuantizedCNN, new_network
from quantspike.paths import Chain

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from jpeg import compressed  # noqa: E402
from published_rule import PublishedNetwork  # noqa: E402
from trained_networks import (  # noqa: E402
    load_images,
    load_network,
    newest_full_width_network,
    some_test_images,
)

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


def test_test_images_are_of_every_class_however_they_are_ordered() -> None:
    labels = np.repeat(np.arange(5), 4)
    images = labels.astype(np.uint8)[:, None, None, None] + np.zeros((20, 1, 4, 4), np.uint8)
    dataset = build_dataset((images, labels), (images, labels), tuple("abcde"), kind="images", name="in order of class")
    cases = {3: [0, 1, 3], 5: [0, 1, 2, 3, 4], 7: [0, 0, 1, 2, 2, 3, 4], 20: labels.tolist()}
    for n, expected in cases.items():
        chosen, classes = some_test_images(dataset, n)
        assert classes.tolist() == expected == chosen[:, 0, 0, 0].tolist()
    for n in (0, 21):
        with pytest.raises(QuantspikeError, match=rf"--images is {n}, but there are 20 test images: name 1 to 20"):
            some_test_images(dataset, n)


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
def chain(tmp_path: Path, trained: QuantizedCNN, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A trained chain in a project of its own, and the options that name it."""
    params = copy.deepcopy(PARAMS) | {"models": {"small": {"layers": LAYERS}}}
    params["profiles"]["tiny"] |= {"data": {"source": "given", "crop": 4}, "width": 1.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    chain = Chain("tiny", "small", 1, 0)
    save_dataset(tiny_dataset, chain.dataset)
    save_checkpoint(chain.data / "finetune.safetensors", trained, make_adam(trained, 1e-3, 0.0), {})
    return ["--profile", "tiny", "--model", "small", "--k", "1"]


def test_both_rules_are_compared_on_the_same_images(chain: list[str], tmp_path: Path) -> None:
    run("published_rule.py", *chain, "--images", "20", "--steps", "60", "--json", str(tmp_path / "rules.json"))
    result = json.loads((tmp_path / "rules.json").read_text())
    assert result["n"] == {"images": 20, "steps": 60, "neurons": 4 * 16 + 4 * 4 + 70 * 4 + 70 + 5}
    for rule in ("published", "ours"):
        assert result[rule]["agrees_with_plain"] > 0.5
        assert 0 < result[rule]["last_spike"] < 60
        assert result[rule]["synops"] > result[rule]["positive_spikes"] > 0
    # Integers of 12 bits give a few neurons other counts, float64 gives next to none.
    assert result["published"]["differing_neurons"] <= result["ours"]["differing_neurons"] < 0.1


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_published_rule_fires_as_a_plain_simulation_does(k: int) -> None:
    """The oracle folds batch normalization, counts in units of 2^-k, simulates every image to the end."""
    architecture = Architecture.parse("4C3-P2-6C3-P2-5", image_size=4, image_channels=1, classes=3)
    network = varied(new_network(architecture, k, 0))
    images = 4 * torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    published = PublishedNetwork(network)
    assert published.turned_channels > 0
    outcome = published.run(images, 80)
    expected = plainly_simulated(network, images * 2.0**k, 80)
    for name, values in expected.items():
        assert torch.equal(getattr(outcome, name), values.long()), name
    assert int(outcome.negative.sum()) > 0
    assert int(outcome.differing.sum()) == 0
    with torch.inference_mode():
        activations = list(network.double().activations(images))
    assert all(torch.equal(a * 2.0**k, b) for a, b in zip(activations, published.counts(images), strict=True))


def varied(network: QuantizedCNN) -> QuantizedCNN:
    """With batch normalizations of all kinds, negative scales among them."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in network.blocks:
            norm = block.normalization
            norm.weight.normal_(generator=random)
            norm.bias.normal_(0, 0.5, generator=random)
            norm.running_mean.normal_(0, 0.05, generator=random)
            norm.running_var.uniform_(0.001, 0.02, generator=random)
    return network.eval()


def plainly_simulated(network: QuantizedCNN, inputs: Tensor, steps: int) -> dict[str, Tensor]:
    n, k = len(inputs), int(network.k)
    positive, negative, synops, last_spike = torch.zeros(4, n).double()
    folded, potentials, counts = [], [], []
    for block, shape in zip(network.blocks, network.architecture.layers, strict=True):
        norm = block.normalization
        factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        folded.append((block.convolution.weight.double() * factor[:, None, None, None], shape))
        bias = 2.0**k * (norm.bias.double() - factor * norm.running_mean.double())
        size = (n, shape.out_channels, shape.out_size, shape.out_size)
        potentials.append(bias[:, None, None].expand(size).clone())
        counts.append(torch.zeros(size).double())
    for step in range(1, steps + 1):
        spikes = inputs
        for index, (weight, shape) in enumerate(folded):
            if index or step == 1:
                drive = functional.conv2d(spikes, weight, stride=shape.stride, padding=shape.padding)
                potentials[index] += drive
            too_little = potentials[index] - counts[index] > 0.5
            too_much = (potentials[index] - counts[index] < -0.5) & (counts[index] > 0)
            spikes = too_little.double() - too_much.double()
            counts[index] += spikes
            fired = spikes.abs()
            positive += too_little.sum(dim=(1, 2, 3))
            negative += too_much.sum(dim=(1, 2, 3))
            last_spike[fired.sum(dim=(1, 2, 3)) > 0] = step
            if index + 1 == len(folded):
                synops += fired.sum(dim=(1, 2, 3)) * network.architecture.classes
            else:
                following, after = folded[index + 1]
                reached = functional.conv2d(
                    fired, torch.ones_like(following), stride=after.stride, padding=after.padding
                )
                synops += reached.sum(dim=(1, 2, 3))
    return {"positive": positive, "negative": negative, "synops": synops, "last_spike": last_spike}


def one_by_one(layers: str) -> QuantizedCNN:
    """One neuron per layer that hands on, at k = 0, what it gets, rounded."""
    network = new_network(Architecture.parse(layers, image_size=1, image_channels=1, classes=2), 0, 0)
    with torch.no_grad():
        for block in network.blocks:
            block.convolution.weight.fill_(1)
            block.normalization.weight.fill_(1)
            block.normalization.eps = 0.0  # so that the step is 1 exactly
    return network.eval()


@pytest.mark.parametrize(("drive", "spikes"), [(0.5, 0), (0.5 + 1e-9, 1), (-0.5, 0), (2.5, 2), (2.5 + 1e-9, 3)])
def test_the_published_rule_leaves_a_tie_below(drive: float, spikes: int) -> None:
    network = one_by_one("1C1-1")
    with torch.no_grad():
        network.blocks[1].convolution.weight.zero_()  # the first neuron is looked at alone
    outcome = PublishedNetwork(network).run(torch.full((1, 1, 1, 1), drive, dtype=torch.float64), 5)
    assert (int(outcome.positive), int(outcome.negative)) == (spikes, 0)


@pytest.mark.parametrize(("excess", "taken_back"), [(5e-6, 0), (2e-5, 1)])
def test_the_published_rule_keeps_a_spike_too_many_within_its_tolerance(excess: float, taken_back: int) -> None:
    """The first neuron fires twice. The second one's potential is 0.6 after the first spike, 0.5 - excess after two."""
    network = one_by_one("1C1-1")
    with torch.no_grad():
        network.blocks[1].normalization.bias.fill_(0.7 + excess)
        network.blocks[1].convolution.weight.fill_(-0.1 - excess)
    outcome = PublishedNetwork(network).run(torch.full((1, 1, 1, 1), 2.0).double(), 5)
    assert (int(outcome.positive), int(outcome.negative)) == (3, taken_back)
    assert int(outcome.differing) == 1 - taken_back


def test_a_scale_of_zero_has_no_published_rule() -> None:
    network = one_by_one("2C1-3")
    with torch.no_grad():
        network.blocks[1].normalization.weight[2] = 0
    with pytest.raises(QuantspikeError, match="layer 2, channel 2: its scale is 0"):
        PublishedNetwork(network)


def test_every_width_of_weights_is_scored_against_the_trained_network(chain: list[str], tmp_path: Path) -> None:
    table = run("weight_bits.py", *chain, "--images", "20", "--bits", "4", "16", "--json", str(tmp_path / "bits.json"))
    narrow, wide = json.loads((tmp_path / "bits.json").read_text())["rows"]
    assert (narrow["weight_bits"], wide["weight_bits"]) == (4, 16)
    assert wide["agrees_with_plain"] > 0.9
    assert wide["agrees_with_plain"] > narrow["agrees_with_plain"]
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["4", "16", "float"]


def test_a_coarser_image_agrees_less_with_the_trained_network(chain: list[str], tmp_path: Path) -> None:
    agreements = []
    for bits in ("0", "8"):
        path = tmp_path / f"{bits}.json"
        run("weight_bits.py", *chain, "--images", "20", "--bits", "16", "--input-bits", bits, "--json", str(path))
        agreements.append(json.loads(path.read_text())["rows"][0]["agrees_with_plain"])
    assert agreements[0] < agreements[1]


def test_neurons_differ_by_the_rounding_of_the_image_and_of_the_weights(chain: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rounding.json"
    table = run("rounding.py", *chain, "--images", "20", "--json", str(path))
    rows = json.loads(path.read_text())["rows"]
    differing = {(row["weight_bits"], row["input_bits"]): row["differing"] for row in rows}
    assert differing[16, 8][0] > 0 == differing[16, 12][0]  # what the image's rounding does to the encoding layer
    assert sum(differing[12, 12]) > 0 == sum(differing[16, 12])  # what the weights' does to the whole network
    assert len(table.splitlines()) == 2 + 5


def test_the_share_of_differing_neurons_is_that_of_both_rules(chain: list[str], tmp_path: Path) -> None:
    run("rounding.py", *chain, "--images", "20", "--json", str(tmp_path / "rounding.json"))
    run("published_rule.py", *chain, "--images", "20", "--steps", "60", "--json", str(tmp_path / "rules.json"))
    shares = json.loads((tmp_path / "rounding.json").read_text())["rows"][0]["differing"]
    neurons = [4 * 16, 4 * 4, 70 * 4, 70, 5]
    whole = sum(share * n for share, n in zip(shares, neurons, strict=True)) / sum(neurons)
    assert whole == pytest.approx(
        json.loads((tmp_path / "rules.json").read_text())["ours"]["differing_neurons"], abs=1e-6
    )


@pytest.mark.parametrize(
    ("script", "wrong", "message"),
    [
        ("published_rule.py", ["--k", "fp32"], "fp32 has no spiking network: name an integer k"),
        ("rounding.py", ["--k", "-1"], "a precision is fp32 or an integer from 0"),
        ("weight_bits.py", ["--bits", "3"], "invalid choice: 3"),
        ("weight_bits.py", ["--input-bits", "17"], "invalid choice: 17"),
        ("jpeg.py", ["--json", "nowhere/result.json"], "there is no folder nowhere: make it"),
        ("weight_bits.py", ["--images", "0"], "--images is 0, but there are"),
    ],
)
def test_wrong_options_are_named_before_any_work(chain: list[str], script: str, wrong: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *chain, *wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_compressed_images_differ_the_more_the_lower_the_quality() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    changes = [np.abs(compressed(images, quality).astype(int) - images).mean() for quality in (95, 75, 40)]
    assert 0 < changes[0] < changes[1] < changes[2]


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


def test_pretraining_is_compared_at_equal_epochs_and_goes_on_where_it_was(images: Path, tmp_path: Path) -> None:
    found = tmp_path / "pretraining.json"
    small = ["--layers", "4C3-P2-5", "--width", "1", "--images", "20", "--held-out", "10", "--batch-size", "5"]
    arguments = ["--data", str(images), "--json", str(found), "--k", "fp32", "1", "--shared", "2", *small]
    table = run("pretraining.py", *arguments, "--own", "1")
    content = json.loads(found.read_text())
    ways = [(entry["k"], entry["shared"], len(entry["accuracies"])) for entry in content["runs"]]
    assert ways == [("fp32", 2, 1), (1, 2, 1), ("fp32", 0, 3), (1, 0, 3)]
    assert [line.count("%") for line in table.splitlines()[-2:]] == [2, 2]
    found.write_text(json.dumps(content | {"runs": content["runs"][:-1]}))
    again = run("pretraining.py", *arguments, "--own", "1")
    assert again.count("'shared'") == 1
    assert again.splitlines()[-4:] == table.splitlines()[-4:]
    with pytest.raises(AssertionError, match=r"holds runs with .*'own': 1.*, not .*'own': 2.*: name another file"):
        run("pretraining.py", *arguments, "--own", "2")


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
