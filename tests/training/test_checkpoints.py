"""Networks and states of a training as files: they are read as they were written, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Edit
from hostile import largest_file
from quantspike.data.dataset import Dataset
from quantspike.errors import QuantspikeError
from quantspike.files import Header, load_tensors, save_tensors
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN, new_network, with_precision
from quantspike.params import Precision, load_params
from quantspike.paths import find_run
from quantspike.training.checkpoints import (
    FORMAT,
    STATE_FORMAT,
    STATE_VERSION,
    VERSION,
    ResumeStore,
    load_checkpoint,
    load_network,
    resume_optimizer,
    save_checkpoint,
)
from quantspike.training.optimizer import Optimizer
from test_files import damaged_contents, rewrite

ARCHITECTURE = Architecture.parse("4C3-P2-5", image_size=4, image_channels=1, classes=3)
PROVENANCE: dict[str, Any] = {"settings": {"seed": 0, "train.epochs": 3}, "device": "x"}


def stepped(k: Precision = 1, seed: int = 0) -> tuple[QuantizedCNN, Optimizer]:
    """Return a network after three steps, with running averages and moments that are not 0."""
    network = new_network(ARCHITECTURE, k, seed)
    optimizer = Optimizer(network, "adam")
    random = torch.Generator().manual_seed(seed)
    for _ in range(3):
        network(torch.randn(6, 1, 4, 4, generator=random)).square().sum().backward()
        optimizer.step(0.001)
        network.zero_grad()
    return network, optimizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint with k = 1."""
    file = tmp_path / "train.safetensors"
    save_checkpoint(file, *stepped(), PROVENANCE)
    return file


def change(path: Path, edit: Callable[[dict[str, Tensor]], object], changes: Header | None = None) -> None:
    """Rewrite a checkpoint with other tensors, and with changes of its header."""
    header, content = load_tensors(path, FORMAT, VERSION)
    edit(content)
    save_tensors(path, FORMAT, VERSION, header | (changes or {}), content)


# Trained networks


@pytest.mark.parametrize("k", ["fp32", 0, 2])
def test_a_network_its_moments_and_its_provenance_are_read_to_the_last_bit(k: Precision, tmp_path: Path) -> None:
    network, optimizer = stepped(k)
    save_checkpoint(tmp_path / "x", network, optimizer, PROVENANCE)
    checkpoint = load_checkpoint(tmp_path / "x", ARCHITECTURE, k)
    loaded = checkpoint.network
    assert list(loaded.state_dict()) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == value.dtype
    assert (loaded.k, loaded.architecture, loaded.training) == (k, ARCHITECTURE, True)
    assert checkpoint.provenance == PROVENANCE
    resumed = resume_optimizer(checkpoint, loaded, "adam").tensors()
    assert set(resumed) == set(optimizer.tensors())
    for name, value in optimizer.tensors().items():
        assert torch.equal(resumed[name], value)
        assert resumed[name].dtype == value.dtype


def test_the_moments_of_a_baseline_pass_to_a_quantized_network(tmp_path: Path) -> None:
    network, optimizer = stepped("fp32")
    save_checkpoint(tmp_path / "x", network, optimizer, PROVENANCE)
    checkpoint = load_checkpoint(tmp_path / "x", ARCHITECTURE, "fp32")
    quantized = with_precision(checkpoint.network, 2)
    resumed = resume_optimizer(checkpoint, quantized, "adam").tensors()
    for name, value in optimizer.tensors().items():
        assert torch.equal(resumed[name], value)


def test_the_same_network_gives_the_same_bytes_in_any_memory_order(path: Path, tmp_path: Path) -> None:
    network, optimizer = stepped()
    network.to(memory_format=torch.contiguous_format)
    save_checkpoint(tmp_path / "again", network, optimizer, PROVENANCE)
    save_checkpoint(tmp_path / "other", *stepped(seed=1), PROVENANCE)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert (tmp_path / "other").read_bytes() != path.read_bytes()


def test_training_on_does_not_change_what_was_loaded(path: Path) -> None:
    checkpoint = load_checkpoint(path, ARCHITECTURE, 1)
    before = {name: value.clone() for name, value in checkpoint.moments.items()}
    optimizer = resume_optimizer(checkpoint, checkpoint.network, "adam")
    checkpoint.network(torch.randn(6, 1, 4, 4)).sum().backward()
    optimizer.step(0.001)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.moments.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "the moment 'optimizer.exp_avg.classifier.weight' is missing"),
        (torch.zeros(2), "optimizer.exp_avg.classifier.weight does not fit its weights or is not finite"),
        (torch.zeros(3, 5).to(torch.float8_e4m3fn), '"isfinite" not implemented .*'),
    ],
)
def test_moments_that_are_missing_or_do_not_fit_are_named_with_the_file(
    wrong: Tensor | None, message: str, path: Path
) -> None:
    name = "optimizer.exp_avg.classifier.weight"
    change(path, lambda content: content.pop(name) if wrong is None else content.update({name: wrong}))
    checkpoint = load_checkpoint(path, ARCHITECTURE, 1)
    with pytest.raises(QuantspikeError, match=rf"train\.safetensors is damaged \({message}\): delete it and run dvc"):
        resume_optimizer(checkpoint, checkpoint.network, "adam")


@pytest.mark.parametrize(
    ("text", "changes", "k", "message"),
    [
        ("4C3-P2-6", {}, 1, "layers = 4C3-P2-5, expected 4C3-P2-6"),
        ("4C3-P2-5", {"width": 0.5}, 1, "layers = 4C3-P2-5, expected 2C3-P2-2"),
        ("4C3-P2-5", {"image_size": 8}, 1, "image_size = 4, expected 8"),
        ("4C3-P2-5", {"image_channels": 3}, 1, "image_channels = 1, expected 3"),
        ("4C3-P2-5", {"classes": 10}, 1, "classes = 3, expected 10"),
        ("4C3-P2-5", {}, 2, "k = 1, expected 2"),
        ("4C3-P2-5", {}, "fp32", "k = 1, expected fp32"),
    ],
)
def test_another_network_is_refused(text: str, changes: dict[str, Any], k: Precision, message: str, path: Path) -> None:
    expected = Architecture.parse(text, **{"image_size": 4, "image_channels": 1, "classes": 3} | changes)
    with pytest.raises(QuantspikeError, match=rf"train\.safetensors holds a network with {message}: run dvc repro"):
        load_checkpoint(path, expected, k)


@pytest.mark.parametrize(
    "wrong",
    [
        {"network.extra": torch.zeros(1)},
        {"network.classifier.weight": torch.zeros(3, 4)},
        {"network.classifier.weight": None},
        {"network.classifier.weight": torch.zeros(3, 5).to(torch.float8_e4m3fn)},
    ],
)
def test_weights_that_the_header_does_not_announce_are_refused(wrong: dict[str, Any], path: Path) -> None:
    def edit(content: dict[str, Tensor]) -> None:
        for name, value in wrong.items():
            content.pop(name, None)
            content.update({} if value is None else {name: value})

    change(path, edit)
    with pytest.raises(QuantspikeError, match=r"train\.safetensors is damaged .*(extra|classifier|isfinite).*: delete"):
        load_checkpoint(path, ARCHITECTURE, 1)


@pytest.mark.parametrize(
    "header",
    [
        *({"clip": clip} for clip in ("half", [1], 0, 0.3, math.inf, math.nan, 10**400)),
        *({"weight_bits": bits} for bits in ("nine", [9], 3, 17, math.inf)),
        *({"provenance": text} for text in ("{", "[1]", "1", "[" * 100_000, None, {})),
    ],
)
def test_a_header_that_no_training_writes_is_refused(header: dict[str, Any], path: Path) -> None:
    change(path, lambda content: None, header)
    with pytest.raises(QuantspikeError, match=r"train\.safetensors is damaged \(.*: delete it and run dvc repro"):
        load_checkpoint(path, ARCHITECTURE, 1)


@pytest.mark.parametrize(
    ("k", "aware", "clip", "weight_bits", "message"),
    [
        (1, False, 2.0, None, None),
        (1, True, 2.0, 9, None),
        ("fp32", True, 2.0, None, None),
        (1, False, None, None, r"clip = None, expected 2\.0"),
        (1, False, 2.0, 9, "weight_bits = 9, expected None"),
        (1, True, 2.0, None, "weight_bits = None, expected 9"),
        (1, True, 2.0, 8, "weight_bits = 8, expected 9"),
    ],
)
def test_a_network_that_was_not_trained_with_the_settings_of_the_run_is_refused(
    k: Precision,
    aware: bool,
    clip: float | None,
    weight_bits: int | None,
    message: str | None,
    tiny_dataset: Dataset,
    write_params: Edit,
) -> None:
    settings = {"data.crop": 4, "width": 1, "recipe.clip": 2, "finetune.integer_aware": aware, "convert.weight_bits": 9}
    changes: dict[str, Any] = {f"profiles.tiny.{name}": value for name, value in settings.items()}
    params = write_params(changes | {"models.small.layers": "4C3-P2-5"})
    run = find_run(load_params(params), "tiny", "small", k, 0, params.parent)
    network = QuantizedCNN(ARCHITECTURE, k, clip, weight_bits)
    save_checkpoint(run.network, network, Optimizer(network, "adam"), PROVENANCE)
    if message is None:
        assert load_network(run, tiny_dataset).network.clip == 2
    else:
        with pytest.raises(QuantspikeError, match=f"holds a network with {message}: run dvc repro"):
            load_network(run, tiny_dataset)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.0.convolution.weight", "blocks.1.normalization.running_var"])
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, path: Path) -> None:
    change(path, lambda content: content[f"network.{name}"].view(-1)[1:2].fill_(value))
    with pytest.raises(QuantspikeError, match=f"{name} is not finite; train again"):
        load_checkpoint(path, ARCHITECTURE, 1)


# States


@pytest.fixture
def store(tmp_path: Path) -> ResumeStore:
    return ResumeStore(tmp_path / "tiny-small-1-0", "train-1", "0123456789abcdef")


def tensors(number: float) -> dict[str, Tensor]:
    """Return every kind of tensor that a training has: fp32 in a layout of its own, int64 and one of no dimension."""
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    return {
        "network.weight": (weight + number).requires_grad_(),
        "network.batches": torch.tensor(7),
        "optimizer.step.x": torch.tensor(number),
    }


def records(epochs: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "loss": 0.1 * epoch, "test_accuracy": 0.5} for epoch in range(1, epochs + 1)]


def save(store: ResumeStore, epoch: int) -> Path:
    store.save(tensors(epoch), records(epoch))
    return store.states()[-1]


def loaded(store: ResumeStore) -> int | None:
    """Return the epoch of the state that is found, after a check of its content."""
    state = store.load()
    if state is None:
        return None
    content, found = state
    expected = tensors(len(found))
    assert found == records(len(found))
    assert content.keys() == expected.keys()
    for name, tensor in content.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    return len(found)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(24, "Too many open files"), QuantspikeError, "cannot be read: .*Too many open files"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), RuntimeError, "can't allocate memory"),
    ],
)
def test_a_state_that_cannot_be_read_at_the_moment_is_not_skipped_and_so_not_deleted(
    error: Exception, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResumeStore(tmp_path, "train-0", "abc")
    store.save({"x": torch.ones(2)}, [{"epoch": 1}])

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.safe_open", fail)
        with pytest.raises(kind, match=message):
            store.load()
    assert store.load() is not None


def test_the_newest_two_states_are_kept_and_after_training_the_last_one(store: ResumeStore) -> None:
    assert store.load() is None
    paths = [save(store, epoch) for epoch in (1, 2, 3, 9, 10)]
    assert store.states() == paths[-2:]
    assert loaded(store) == 10
    store.keep_last()
    assert store.states() == paths[-1:]
    assert loaded(store) == 10


def test_states_of_another_fingerprint_or_phase_are_neither_used_nor_deleted(store: ResumeStore) -> None:
    foreign = save(ResumeStore(store.folder, "train-1", "f" * 16), 9)
    later = save(ResumeStore(store.folder, "train-10", store.fingerprint), 9)
    (store.folder / ".train-1-0123456789abcdef-000009.safetensors.x1y2.part").write_bytes(b"half of a state")
    assert store.load() is None
    for epoch in (1, 2, 3):
        save(store, epoch)
    assert loaded(store) == 3
    store.keep_last()
    assert foreign.is_file()
    assert later.is_file()


def test_a_state_that_was_cut_or_changed_anywhere_is_skipped(
    store: ResumeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    newest = save(store, 2)
    whole = newest.read_bytes()
    damages = [*damaged_contents(whole)]
    for damaged in damages:
        rewrite(newest, damaged)
        assert loaded(store) == 1
    assert capsys.readouterr().err.count(f"{newest.name} is skipped: it is damaged") == len(damages)
    newest.write_bytes(whole)
    assert loaded(store) == 2


@pytest.mark.parametrize("records", ["5", "null", "[1]", "[" * 100_000, 1e400, None])
def test_a_state_with_other_records_is_skipped(
    records: object, store: ResumeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    newest = save(store, 2)
    save_tensors(newest, STATE_FORMAT, STATE_VERSION, {} if records is None else {"records": records}, tensors(2))
    assert loaded(store) == 1
    assert f"{newest.name} is skipped: it is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"no state at all", b"\xff" * 100])
def test_a_file_of_something_else_is_skipped(content: bytes, store: ResumeStore) -> None:
    save(store, 1)
    newest = save(store, 2)
    newest.write_bytes(content)
    assert loaded(store) == 1
    assert save(store, 2) == newest  # it takes the place of the damaged one
    assert loaded(store) == 2


@pytest.mark.parametrize("valid", [0, 4])
def test_training_resumes_before_damaged_states_and_its_own_take_their_place(valid: int, store: ResumeStore) -> None:
    store.folder.mkdir()
    if valid:
        save(store, valid)
    for epoch in (6, 7):
        (store.folder / f"train-1-0123456789abcdef-{epoch:06d}.safetensors").write_bytes(b"damaged")
    assert (loaded(store) or 0) == valid
    for epoch in (valid + 1, valid + 2):
        assert save(store, epoch).name.endswith(f"-{epoch:06d}.safetensors")
    assert len(store.states()) == 2
    assert loaded(store) == valid + 2


def test_on_a_full_disk_the_error_names_file_and_size_and_the_state_before_is_kept(store: ResumeStore) -> None:
    before = save(store, 1)
    # 3,000,000 numbers of 4 bytes
    message = r"train-1-0123456789abcdef-000002\.safetensors could not be written: .*; it needs 12\.0 MB; the previous"
    with largest_file(5_000_000), pytest.raises(QuantspikeError, match=message):
        store.save({"weight": torch.ones(3_000_000)}, records(2))
    assert list(store.folder.iterdir()) == [before]
    assert loaded(store) == 1
