"""A data set with the fingerprint of its content, and the file that `download` writes and later stages read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.files import load_tensors, reading, save_tensors

FORMAT = "quantspike-images"
VERSION = 2

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [N, C, H, W] and labels int64 [N]."""

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, as decoded: not cropped, not scaled.

    Attributes:
        train_images: uint8 [N, C, H, W], H = W.
        train_labels: int64 [N], from 0.
        test_images: uint8 [N, C, H, W], of the same C, H and W.
        test_labels: int64 [N].
        class_names: one name per label.
        fingerprint: source, number of images and SHA-256 of the content; can be written as JSON.

    Raises:
        ValueError: a shape, dtype or label contradicts the above.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: dict[str, Any]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
                raise ValueError(f"{split}_images must be uint8 [N, C, H, H], found {images.dtype} {images.shape}")
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise ValueError(f"{split}_labels must be int64 [{len(images)}], found {labels.dtype} {labels.shape}")
            if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
                raise ValueError(f"{split}_labels must lie in 0..{self.classes - 1}")
        train, test = self.train_images.shape[1:], self.test_images.shape[1:]
        if train != test:
            raise ValueError(f"training images are [N, C, H, W] with C, H, W = {train}, test images with {test}")

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return int(self.train_images.shape[2])

    @property
    def channels(self) -> int:
        """Colour channels."""
        return int(self.train_images.shape[1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def build_dataset(
    train: Labelled,
    test: Labelled,
    class_names: tuple[str, ...],
    *,
    kind: str,
    name: str,
    source_md5: str | None = None,
) -> Dataset:
    """Return the data set of these images, with its fingerprint.

    Args:
        train: images uint8 [N, C, H, W] and labels int64 [N].
        test: the same.
        class_names: one name per label.
        kind: `cifar10`, `images` or `digits`.
        name: name of the images in results.
        source_md5: MD5 of the source in hex, if it is one file.

    Raises:
        ValueError: a shape, dtype or label is not as in `Dataset`.
    """
    content = hashlib.sha256()
    for array in (*train, *test):
        content.update(json.dumps(array.shape).encode())
        # Little-endian on every machine, so that the same images have the same hash everywhere.
        content.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    content.update(json.dumps(class_names).encode())
    fingerprint = {
        "kind": kind,
        "name": name,
        "train_images": len(train[0]),
        "test_images": len(test[0]),
        "classes": list(class_names),
        "sha256": content.hexdigest(),
        "source_md5": source_md5,
    }
    return Dataset(*train, *test, class_names, fingerprint)


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """Return a data set to choose settings with: some training images take the place of the test images.

    Args:
        dataset: the images; its test images are not looked at.
        count: number of training images to hold out, always the same ones; 0 returns the data set itself.

    Raises:
        QuantspikeError: fewer than two training images would be left.
    """
    if count == 0:
        return dataset
    total = len(dataset.train_images)
    if count > total - 2:
        raise QuantspikeError(
            f"data.held_out is {count}, but of {total} training images at most {total - 2} can be held out"
        )
    order = np.random.default_rng(0).permutation(total)
    held, kept = ((dataset.train_images[part], dataset.train_labels[part]) for part in (order[:count], order[count:]))
    name = f"{dataset.fingerprint['name']}, tested on {count:,} training images held out"
    return build_dataset(kept, held, dataset.class_names, kind="images", name=name)


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write a data set to one safetensors file, atomically; the same data gives the same bytes.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    header: dict[str, Any] = {"fingerprint": dataset.fingerprint}
    # Contiguous, since torch does not take arrays with negative strides.
    arrays = {name: np.ascontiguousarray(getattr(dataset, name)) for name in _TENSORS}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(path, FORMAT, VERSION, header, tensors)


def load_dataset(path: Path) -> Dataset:
    """Load a file that `save_dataset` wrote and compare its content with the SHA-256 in its fingerprint.

    Raises:
        QuantspikeError: the file is absent or damaged, or of another format or version.
    """
    header, tensors = load_tensors(path, FORMAT, VERSION)
    with reading(path):
        saved: Any = header["fingerprint"]
        train_images, train_labels, test_images, test_labels = (tensors[name].numpy() for name in _TENSORS)
        origin = {key: saved[key] for key in ("kind", "name", "source_md5")}
        train, test = (train_images, train_labels), (test_images, test_labels)
        dataset = build_dataset(train, test, tuple(saved["classes"]), **origin)
        if dataset.fingerprint != saved:
            raise ValueError("its content does not match its fingerprint")
    return dataset
