"""Networks as files: they come back as they were, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantspike import tensors
from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.checkpoints import (
    FORMAT,
    VERSION,
    load_checkpoint,
    load_start,
    resume_adam,
    save_checkpoint,
    save_no_network,
)
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN, new_network
from quantspike.tensors import load_tensors, save_tensors

ARCHITECTURE = Architecture.parse("4C3-P2-5", image_size=4, image_channels=1, classes=3)


def stepped(k: int | str = 1, seed: int = 0) -> tuple[QuantizedCNN, torch.optim.AdamW]:
    """A network after three steps, with running averages and moments that are not 0."""
    network = new_network(ARCHITECTURE, k, seed)
    adam = make_adam(network, 0.01)
    random = torch.Generator().manual_seed(seed)
    for _ in range(3):
        network(torch.randn(6, 1, 4, 4, generator=random)).square().sum().backward()
        adam.step()
        adam.zero_grad()
    return network, adam


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint with moments."""
    file = tmp_path / "train.safetensors"
    save_checkpoint(file, *stepped())
    return file


def change(path: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrites a checkpoint with other tensors under the same header."""
    header, content = load_tensors(path, FORMAT, VERSION)
    edit(content)
    del header["version"]
    save_tensors(path, FORMAT, VERSION, header, content)


@pytest.mark.parametrize("k", ["fp32", 0, 2])
def test_a_network_comes_back_to_the_last_bit(k: int | str, tmp_path: Path) -> None:
    network, _ = stepped(k)
    save_checkpoint(tmp_path / "x", network)
    loaded = load_checkpoint(tmp_path / "x", ARCHITECTURE, k).network
    assert list(loaded.state_dict()) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    assert (loaded.k, loaded.architecture, loaded.training) == (k, ARCHITECTURE, True)


def test_a_network_in_full_precision_starts_one_of_another_precision_with_its_moments(tmp_path: Path) -> None:
    network, adam = stepped("fp32")
    save_checkpoint(tmp_path / "x", network, adam)
    start = load_start(tmp_path / "x", ARCHITECTURE, 2)
    assert (start.network.k, start.network.training) == (2, True)
    for name, value in network.state_dict().items():
        assert torch.equal(start.network.state_dict()[name], value)
    resumed = resume_adam(start, 1e-4)
    for before, after in zip(network.parameters(), start.network.parameters(), strict=True):
        assert torch.equal(resumed.state[after]["exp_avg"], adam.state[before]["exp_avg"])
    images = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    assert all(torch.equal(layer * 4, (layer * 4).round()) for layer in start.network.eval().activations(images))


def test_only_a_network_in_full_precision_starts_others(path: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="holds a network with k = 1, but fp32 is asked for: run dvc repro"):
        load_start(path, ARCHITECTURE, 1)
    save_no_network(tmp_path / "none")
    with pytest.raises(QuantspikeError, match=r"with layers = None, but 4C3-P2-5 is asked for: run dvc repro"):
        load_start(tmp_path / "none", ARCHITECTURE, 1)


def test_the_moments_come_back_to_the_last_bit(path: Path) -> None:
    network, adam = stepped()
    checkpoint = load_checkpoint(path, ARCHITECTURE, 1)
    resumed = resume_adam(checkpoint, 1e-4)
    pairs = zip(network.parameters(), checkpoint.network.parameters(), strict=True)
    for before, after in pairs:
        assert list(adam.state[before]) == list(resumed.state[after])
        for name, value in adam.state[before].items():
            assert torch.equal(resumed.state[after][name], value)
            assert resumed.state[after][name].dtype == value.dtype
        assert resumed.state[after]["step"] == 3


def test_adam_goes_on_with_the_new_rate_and_the_published_settings(path: Path) -> None:
    for group in resume_adam(load_checkpoint(path, ARCHITECTURE, 1), 1e-4).param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0)
        assert not group["amsgrad"]


def test_adam_goes_on_with_the_decay_that_is_asked_for_on_weights_alone(path: Path) -> None:
    checkpoint = load_checkpoint(path, ARCHITECTURE, 1)
    decays = {}
    for group in resume_adam(checkpoint, 1e-4, 0.05).param_groups:
        decays |= {id(parameter): group["weight_decay"] for parameter in group["params"]}
    for name, parameter in checkpoint.network.named_parameters():
        assert decays[id(parameter)] == (0.0 if "normalization" in name else 0.05)


def test_memory_order_is_not_part_of_a_checkpoint(path: Path, tmp_path: Path) -> None:
    network, adam = stepped()
    network.to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "y", network, adam)
    assert (tmp_path / "y").read_bytes() == path.read_bytes()


def test_the_same_network_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again", *stepped())
    save_checkpoint(tmp_path / "other", *stepped(seed=1))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert (tmp_path / "other").read_bytes() != path.read_bytes()


def test_resuming_does_not_change_what_was_loaded(path: Path) -> None:
    checkpoint = load_checkpoint(path, ARCHITECTURE, 1)
    before = {name: value.clone() for name, value in checkpoint.moments.items()}
    adam = resume_adam(checkpoint, 0.01)
    checkpoint.network(torch.randn(6, 1, 4, 4)).sum().backward()
    adam.step()
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.moments.items())


def test_a_checkpoint_without_moments_cannot_be_trained_on(tmp_path: Path) -> None:
    network, _ = stepped()
    save_checkpoint(tmp_path / "finetune.safetensors", network)
    checkpoint = load_checkpoint(tmp_path / "finetune.safetensors", ARCHITECTURE, 1)
    assert checkpoint.moments == {}
    with pytest.raises(QuantspikeError, match=r"finetune\.safetensors: the Adam moments .* are lacking; train again"):
        resume_adam(checkpoint, 1e-4)


@pytest.mark.parametrize(
    "missing", ["adam.step", "adam.exp_avg.classifier.weight", "adam.exp_avg_sq.blocks.1.normalization.bias"]
)
def test_a_missing_moment_is_named(missing: str, path: Path) -> None:
    change(path, lambda content: content.pop(missing))
    with pytest.raises(
        QuantspikeError, match=f"train.safetensors: the Adam moments '{missing}' are lacking; train again"
    ):
        resume_adam(load_checkpoint(path, ARCHITECTURE, 1), 1e-4)


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.full((3, 5), float("nan"))])
def test_a_moment_that_does_not_fit_its_weight_is_refused(wrong: Tensor, path: Path) -> None:
    change(path, lambda content: content.update({"adam.exp_avg.classifier.weight": wrong}))
    message = r"train\.safetensors: adam\.exp_avg\.classifier\.weight does not fit .* or is not finite; train again"
    with pytest.raises(QuantspikeError, match=message):
        resume_adam(load_checkpoint(path, ARCHITECTURE, 1), 1e-4)


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (2, "holds a network with k = 1, but 2 is asked for: run dvc repro"),
        ("fp32", "holds a network with k = 1, but fp32 is asked for"),
    ],
)
def test_a_network_of_another_precision_is_refused(k: int | str, message: str, path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"train\.safetensors " + message):
        load_checkpoint(path, ARCHITECTURE, k)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("4C3-P2-6", {}, "layers = 4C3-P2-5, but 4C3-P2-6"),
        ("4C3-P2-5", {"image_size": 8}, "image_size = 4, but 8"),
        ("4C3-P2-5", {"image_channels": 3}, "image_channels = 1, but 3"),
        ("4C3-P2-5", {"classes": 10}, "classes = 3, but 10"),
        ("4C3-P2-5", {"width": 0.5}, "layers = 4C3-P2-5, but 2C3-P2-2"),
    ],
)
def test_another_network_is_refused(text: str, changes: dict[str, float], message: str, path: Path) -> None:
    wanted = Architecture.parse(text, **{"image_size": 4, "image_channels": 1, "classes": 3} | changes)
    with pytest.raises(QuantspikeError, match=f"holds a network with {message} is asked for"):
        load_checkpoint(path, wanted, 1)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"x\.safetensors is not there: run the stage that writes it"):
        load_checkpoint(tmp_path / "x.safetensors", ARCHITECTURE, 1)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_that_was_cut_is_damaged(kept: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(QuantspikeError, match=r"train\.safetensors is damaged .*: delete it and run dvc repro"):
        load_checkpoint(path, ARCHITECTURE, 1)


def test_a_file_of_another_kind_is_refused(path: Path) -> None:
    save_tensors(path, "quantspike-scores", 1, {}, {"scores": torch.zeros(1)})
    with pytest.raises(QuantspikeError, match="is no quantspike-cnn file"):
        load_checkpoint(path, ARCHITECTURE, 1)


def test_a_file_of_another_version_is_refused(path: Path) -> None:
    save_tensors(path, FORMAT, VERSION + 1, {}, {"x": torch.zeros(1)})
    with pytest.raises(QuantspikeError, match="is of version 2, this quantspike reads 1"):
        load_checkpoint(path, ARCHITECTURE, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.convolution.weight", "blocks.1.normalization.running_var"])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, path: Path) -> None:
    change(path, lambda content: content[f"network.{name}"].view(-1)[1:2].fill_(value))
    with pytest.raises(QuantspikeError, match=f"{name} holds a value that is not finite; train again"):
        load_checkpoint(path, ARCHITECTURE, 1)


@pytest.mark.parametrize("wrong", [{"network.extra": torch.zeros(1)}, {"network.classifier.weight": torch.zeros(3, 4)}])
def test_weights_that_the_header_does_not_announce_are_refused(wrong: dict[str, Tensor], path: Path) -> None:
    change(path, lambda content: content.update(wrong))
    with pytest.raises(QuantspikeError, match="does not hold the weights its header announces"):
        load_checkpoint(path, ARCHITECTURE, 1)


def test_a_missing_weight_is_refused(path: Path) -> None:
    change(path, lambda content: content.pop("network.classifier.weight"))
    with pytest.raises(
        QuantspikeError, match=r"(?s)does not hold the weights its header announces.*classifier\.weight"
    ):
        load_checkpoint(path, ARCHITECTURE, 1)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_a_save_that_fails_leaves_the_checkpoint_before_it(
    failure: type[BaseException], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def half(content: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(tensors, "save_file", half)
    with pytest.raises(failure):
        save_checkpoint(path, *stepped(seed=1))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
