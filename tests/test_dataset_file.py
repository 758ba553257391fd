"""The data set as a value, and the file that later stages read."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from quantspike import data
from quantspike.data import Dataset, build_dataset, load_dataset, save_dataset
from quantspike.errors import QuantspikeError


@pytest.fixture
def dataset() -> Dataset:
    pixels = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    labels = np.array([0, 1, 0, 1, 1])
    return build_dataset((pixels[:3], labels[:3]), (pixels[3:], labels[3:]), ("cat", "dog"), kind="images", name="pets")


def test_a_saved_data_set_comes_back_as_it_was(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    save_dataset(dataset, path)
    loaded = load_dataset(path)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        before, after = getattr(dataset, name), getattr(loaded, name)
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert (before == after).all()
    assert (loaded.class_names, loaded.fingerprint) == (dataset.class_names, dataset.fingerprint)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_file_that_was_there(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    path.write_bytes(b"before")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write beyond the limit fails like a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(QuantspikeError, match=r"images\.safetensors could not be written: .*"):
            save_dataset(dataset, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_the_same_data_set_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_dataset(dataset, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_images_in_another_memory_order_are_saved_as_what_they_are(dataset: Dataset, tmp_path: Path) -> None:
    flipped = dataset.train_images[:, :, :, ::-1].transpose(0, 1, 3, 2)
    train, test = (flipped, dataset.train_labels), (dataset.test_images, dataset.test_labels)
    save_dataset(build_dataset(train, test, ("cat", "dog"), kind="images", name="pets"), tmp_path / "file")
    assert (load_dataset(tmp_path / "file").train_images == flipped).all()


def test_the_fingerprint_counts_names_and_hashes(dataset: Dataset) -> None:
    fingerprint = json.loads(json.dumps(dataset.fingerprint))
    hashed = hashlib.sha256(b"[3, 3, 4, 4]" + dataset.train_images.tobytes())
    hashed.update(b"[3]" + np.array([0, 1, 0], "<i8").tobytes())
    hashed.update(b"[2, 3, 4, 4]" + dataset.test_images.tobytes())
    hashed.update(b"[2]" + np.array([1, 1], "<i8").tobytes() + b'["cat", "dog"]')
    assert fingerprint == {
        "kind": "images",
        "name": "pets",
        "train_images": 3,
        "test_images": 2,
        "classes": ["cat", "dog"],
        "sha256": hashed.hexdigest(),
        "source_md5": None,
    }


def test_any_flipped_byte_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    save_dataset(dataset, path)
    whole = path.read_bytes()
    # From the first byte of a tensor on, every byte is hashed; what stands before is the header.
    start = 8 + int.from_bytes(whole[:8], "little")
    assert len(whole) - start == 3 * 48 + 2 * 48 + 5 * 8  # 48 bytes an image, 8 a label
    for position in range(start, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(QuantspikeError, match=r"is damaged .*: delete it and run dvc repro"):
            load_dataset(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_was_cut_off_is_noticed(dataset: Dataset, tmp_path: Path, length: int) -> None:
    path = tmp_path / "images.safetensors"
    save_dataset(dataset, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(QuantspikeError, match=r"is damaged .*: delete it and run dvc repro"):
        load_dataset(path)


def test_an_absent_file_names_the_stage_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"images\.safetensors is not there: run the download stage"):
        load_dataset(tmp_path / "images.safetensors")


def test_another_version_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    header = {data.FORMAT: json.dumps({"version": 2, "fingerprint": dataset.fingerprint})}
    save_file({"train_images": dataset.train_images}, tmp_path / "file", metadata=header)
    with pytest.raises(QuantspikeError, match="is of version 2, this quantspike reads 1: delete it"):
        load_dataset(tmp_path / "file")


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_file({"weights": np.zeros(2)}, tmp_path / "file")
    with pytest.raises(QuantspikeError, match="is no image file of quantspike"):
        load_dataset(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([0, 2, 0])}, r"train_labels must lie in 0\.\.1"),
        ({"train_labels": np.array([0, -1, 0])}, r"train_labels must lie in 0\.\.1"),
        ({"test_labels": np.array([0])}, r"test_labels must be int64 \[2\], found int64 \(1,\)"),
        ({"train_images": np.zeros((3, 3, 4, 5), np.uint8)}, r"train_images must be uint8 \[N, C, H, H\]"),
        ({"test_images": np.zeros((2, 3, 4, 4))}, r"test_images must be uint8 .* found float64"),
        ({"test_images": np.zeros((2, 1, 4, 4), np.uint8)}, r"C, H, W = \(3, 4, 4\), test images with \(1, 4, 4\)"),
    ],
)
def test_contradicting_shapes_and_labels_are_refused(dataset: Dataset, changes: dict[str, Any], message: str) -> None:
    fields = {name: getattr(dataset, name) for name in ("train_images", "train_labels", "test_images", "test_labels")}
    with pytest.raises(ValueError, match=message):
        Dataset(**(fields | changes), class_names=("cat", "dog"), fingerprint={})
