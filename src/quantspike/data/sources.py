"""Load and verify images: the official CIFAR-10, a folder of images, or scikit-learn's digits."""

from __future__ import annotations

import os
import tarfile
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from quantspike.data.dataset import Dataset, build_dataset
from quantspike.errors import QuantspikeError

# torchvision is imported where CIFAR-10 or a folder needs it: the demo's digits load without it, and faster.

SOURCES = """
  cifar10                          downloads the official archive
  path/to/cifar-10-python.tar.gz   the official archive, or its unpacked folder cifar-10-batches-py
  path/to/images                   a folder with images in train/<class>/ and test/<class>/
  digits                           scikit-learn's handwritten digits, nothing to download"""
"""Possible sources, for messages."""

OFFICIAL_FOLDER = "cifar-10-batches-py"
"""Folder inside the official CIFAR-10 archive."""


def load_source(source: str, *, downloads: Path, root: Path = Path(".")) -> Dataset:
    """Load and verify the images of a source.

    Args:
        source: `cifar10`, `digits` or a path, see `SOURCES`.
        downloads: folder of the downloaded archive, for `cifar10`.
        root: folder that a relative path starts from.

    Raises:
        QuantspikeError: the path does not exist, its content cannot be read or is not what it should be, or the
            download failed.
    """
    try:
        if source == "cifar10":
            return _load_archive(_download(downloads))
        return _load_digits() if source == "digits" else _load_path(root / os.path.expanduser(source))
    except OSError as error:
        raise QuantspikeError(f"data.source {source!r} could not be read: {error}") from error


def _load_path(path: Path) -> Dataset:
    if not path.exists():
        raise QuantspikeError(f"data.source {str(path)!r} does not exist. A source is one of:{SOURCES}")
    if not path.is_dir():
        return _load_archive(path)
    folder = Path(os.path.abspath(path))  # so that "." has a name
    if folder.name == OFFICIAL_FOLDER:
        return _load_official(folder)
    if (folder / OFFICIAL_FOLDER).is_dir():
        return _load_official(folder / OFFICIAL_FOLDER)
    return _load_class_folders(folder)


def _load_digits() -> Dataset:
    """Load 1,797 images of 8 x 8 in 17 shades, split 1,437 to 360 with every class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in digits.target_names)
    train, test = (train_images, train_labels), (test_images, test_labels)
    return build_dataset(train, test, names, kind="digits", name="scikit-learn digits")


# The official CIFAR-10: torchvision knows its URL, its files and their MD5s.


def _download(downloads: Path) -> Path:
    """Return the path of the official archive, downloaded unless an intact one is there."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    try:
        download_url(CIFAR10.url, str(downloads), CIFAR10.filename, CIFAR10.tgz_md5)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: wrong MD5
        raise QuantspikeError(
            f"{CIFAR10.url} could not be downloaded: {error}. Try again, or set data.source to one of:{SOURCES}\n"
            "`make demo` shows everything without a download"
        ) from error
    return downloads / str(CIFAR10.filename)


def _load_archive(path: Path) -> Dataset:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    md5 = calculate_md5(path)
    if md5 != CIFAR10.tgz_md5:
        raise QuantspikeError(
            f"{path} has MD5 {md5}, the official CIFAR-10 archive has {CIFAR10.tgz_md5}. A damaged copy of it: get it "
            f"again from {CIFAR10.url}. Any other archive: unpack it first and set data.source to the folder"
        )
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as tar:
        # As an attribute, since Python before 3.11.4 has no argument for it.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
        return _load_official(Path(folder, OFFICIAL_FOLDER), md5)


def _load_official(folder: Path, source_md5: str | None = None) -> Dataset:
    """Load the unpacked official files."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    # Loading a pickle runs code, so the MD5 is checked first.
    if bad := [name for name, md5 in files if not check_integrity(folder / name, md5)]:
        raise QuantspikeError(
            f"{folder}: {', '.join(bad)} missing or damaged (MD5). Unpack the official CIFAR-10 archive again, or set "
            "data.source to the archive itself"
        )
    parts = [CIFAR10(root=str(folder.parent), train=train) for train in (True, False)]
    train, test = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.int64)) for part in parts
    )
    names = tuple(parts[0].classes)
    return build_dataset(train, test, names, kind="cifar10", name="CIFAR-10 (official archive)", source_md5=source_md5)


# Folders of images


def _load_class_folders(folder: Path) -> Dataset:
    """Load the images in train/<class>/ and test/<class>/, in the order of their names."""
    train, test = _image_folder(folder / "train"), _image_folder(folder / "test")
    if train.classes != test.classes or len(train.classes) < 2:
        raise QuantspikeError(
            f"{folder}: train/ and test/ must hold the same classes, at least 2; "
            f"found {', '.join(train.classes)} in train/ and {', '.join(test.classes)} in test/"
        )
    images = _decode_all(train.samples + test.samples)
    labels = np.array(train.targets + test.targets, np.int64)
    n_train = len(train)
    return build_dataset(
        (images[:n_train], labels[:n_train]),
        (images[n_train:], labels[n_train:]),
        tuple(train.classes),
        kind="images",
        name=f"images of {folder.name}",
    )


def _image_folder(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # the folder is missing, holds no classes, or a class without images
        raise QuantspikeError(
            f"{folder} must hold a folder of images for every class, as in train/<class>/ and test/<class>/: {error}"
        ) from error


def _decode_all(samples: list[tuple[str, int]]) -> NDArray[np.uint8]:
    """Decode files to [N, C, H, W], with one channel if all are grey, else three."""
    paths = [path for path, _ in samples]
    images = [_decode(path) for path in tqdm(paths, desc="decoding", unit="image", disable=None)]
    side = images[0].shape[2]
    for path, image in zip(paths, images, strict=True):
        if image.shape[1:] != (side, side):
            raise QuantspikeError(
                f"{path} has {image.shape[2]} x {image.shape[1]} pixels, expected {side} x {side}: "
                "images must be square and all of one size"
            )
    channels = max(len(image) for image in images)
    return np.stack([np.broadcast_to(image, (channels, side, side)) for image in images])


def _decode(path: str) -> NDArray[np.uint8]:
    """Decode a file to [1, H, W] if it is grey (mode L), else to RGB [3, H, W]."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise QuantspikeError(f"{path} has more than 8 bits per value (mode {image.mode}): convert it to 8")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise QuantspikeError(f"{path} has transparent pixels: remove its alpha channel")
            if image.mode == "L":
                return np.asarray(image)[None]
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise QuantspikeError(f"{path} does not decode: {error}") from error
