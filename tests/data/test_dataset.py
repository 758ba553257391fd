"""The data set, its fingerprint and its file; errors common to all files of tensors are tested with `files`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantspike.data.dataset import FORMAT, VERSION, Dataset, build_dataset, hold_out, load_dataset, save_dataset
from quantspike.errors import QuantspikeError
from quantspike.files import load_tensors, save_tensors

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


@pytest.fixture
def pets() -> Dataset:
    pixels = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    labels = np.array([0, 1, 0, 1, 1])
    return build_dataset((pixels[:3], labels[:3]), (pixels[3:], labels[3:]), ("cat", "dog"), kind="images", name="pets")


@pytest.fixture
def path(pets: Dataset, tmp_path: Path) -> Path:
    """Save `pets` and return the path."""
    save_dataset(pets, tmp_path / "images.safetensors")
    return tmp_path / "images.safetensors"


def test_a_saved_data_set_is_loaded_unchanged(pets: Dataset, path: Path) -> None:
    loaded = load_dataset(path)
    for name in ARRAYS:
        before, after = getattr(pets, name), getattr(loaded, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after)
    assert (loaded.class_names, loaded.fingerprint) == (pets.class_names, pets.fingerprint)
    assert (loaded.image_size, loaded.channels, loaded.classes) == (4, 3, 2)


def numbered(n: int) -> Dataset:
    """Return n training images that hold their own number, and one test image."""
    images = np.arange(n, dtype=np.uint8).repeat(3).reshape(n, 3, 1, 1)
    test = np.full((1, 3, 1, 1), 255, np.uint8)
    labels = np.arange(n) % 2
    return build_dataset((images, labels), (test, labels[:1]), ("even", "odd"), kind="cifar10", name="numbers")


def test_held_out_training_images_take_the_place_of_the_test_images() -> None:
    tuning = hold_out(numbered(40), 15)
    kept, held = tuning.train_images[:, 0, 0, 0].tolist(), tuning.test_images[:, 0, 0, 0].tolist()
    assert (len(kept), len(held)) == (25, 15)
    assert sorted(kept + held) == list(range(40))
    assert held != list(range(15))  # drawn, since files may come class by class
    assert tuning.train_labels.tolist() == [number % 2 for number in kept]
    assert tuning.test_labels.tolist() == [number % 2 for number in held]
    # Nobody should take these results for those of the test images.
    assert tuning.fingerprint["kind"] == "images"
    assert tuning.fingerprint["name"] == "numbers, tested on 15 training images held out"
    assert hold_out(numbered(40), 15).fingerprint == tuning.fingerprint


def test_without_held_out_images_the_data_set_stays_as_it_is(pets: Dataset) -> None:
    assert hold_out(pets, 0) is pets


def test_at_least_two_images_remain_to_train_on() -> None:
    assert len(hold_out(numbered(40), 38).train_images) == 2
    with pytest.raises(
        QuantspikeError, match=r"data\.held_out is 39, but of 40 training images at most 38 can be held"
    ):
        hold_out(numbered(40), 39)


def test_the_same_data_set_gives_the_same_bytes(pets: Dataset, path: Path, tmp_path: Path) -> None:
    save_dataset(pets, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_images_in_another_memory_order_are_saved_correctly(pets: Dataset, tmp_path: Path) -> None:
    flipped = pets.train_images[:, :, :, ::-1].transpose(0, 1, 3, 2)
    train, test = (flipped, pets.train_labels), (pets.test_images, pets.test_labels)
    save_dataset(build_dataset(train, test, ("cat", "dog"), kind="images", name="pets"), tmp_path / "file")
    assert np.array_equal(load_dataset(tmp_path / "file").train_images, flipped)


def test_the_fingerprint_has_counts_names_and_a_hash(pets: Dataset) -> None:
    hashed = hashlib.sha256(b"[3, 3, 4, 4]" + pets.train_images.tobytes())
    hashed.update(b"[3]" + np.array([0, 1, 0], "<i8").tobytes())
    hashed.update(b"[2, 3, 4, 4]" + pets.test_images.tobytes())
    hashed.update(b"[2]" + np.array([1, 1], "<i8").tobytes() + b'["cat", "dog"]')
    assert json.loads(json.dumps(pets.fingerprint)) == {
        "kind": "images",
        "name": "pets",
        "train_images": 3,
        "test_images": 2,
        "classes": ["cat", "dog"],
        "sha256": hashed.hexdigest(),
        "source_md5": None,
    }


def test_images_that_the_fingerprint_does_not_describe_are_damaged(path: Path) -> None:
    header, tensors = load_tensors(path, FORMAT, VERSION)
    tensors["train_images"][1, 0, 2, 3] += 1
    save_tensors(path, FORMAT, VERSION, header, tensors)
    with pytest.raises(QuantspikeError, match=r"is damaged \(its content does not match its fingerprint\): delete"):
        load_dataset(path)


@pytest.mark.parametrize("absent", ["test_labels", "fingerprint", "name"])
def test_a_file_that_lacks_a_part_is_damaged(path: Path, absent: str) -> None:
    header: dict[str, Any]
    header, tensors = load_tensors(path, FORMAT, VERSION)
    for content in (tensors, header, header["fingerprint"]):
        content.pop(absent, None)
    save_tensors(path, FORMAT, VERSION, header, tensors)
    with pytest.raises(QuantspikeError, match=rf"images\.safetensors is damaged \(KeyError: '{absent}'\)"):
        load_dataset(path)


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
def test_contradicting_shapes_and_labels_are_refused(pets: Dataset, changes: dict[str, Any], message: str) -> None:
    arrays = {name: getattr(pets, name) for name in ARRAYS}
    with pytest.raises(ValueError, match=message):
        Dataset(**(arrays | changes), class_names=("cat", "dog"), fingerprint={})
