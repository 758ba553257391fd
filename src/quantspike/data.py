"""Images in every form people have them, verified on the way in, and the one file that later stages read."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from quantspike.class_folders import OFFICIAL_FOLDER, Labelled, load_class_folders, read_archive, read_folder
from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path

FORMAT = "quantspike-images"
VERSION = 1

SOURCES = """
  cifar10                          downloads the official archive
  path/to/cifar-10-python.tar.gz   the official archive, or its unpacked folder cifar-10-batches-py
  path/to/images                   a folder, tar or zip with images in train/<class>/ and test/<class>/
  digits                           scikit-learn's small digits, nothing to download"""
"""What a source may be, for messages."""

NAMES = ("cifar10", "digits")
"""Sources that are no paths."""

NETWORK_TIMEOUT = 60.0
"""Seconds without an answer after which a download is given up."""

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, as they were decoded: no crop, no scaling.

    Attributes:
        train_images: uint8 [N, C, H, W], H = W.
        train_labels: int64 [N], from 0.
        test_images: uint8 [N, C, H, W], of the same C, H and W.
        test_labels: int64 [N].
        class_names: one name per label.
        fingerprint: where the images come from, how many they are and the SHA-256 of their content; fit for JSON.

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
    """Puts a data set together and takes its fingerprint.

    Args:
        train: images uint8 [N, C, H, W] and labels int64 [N].
        test: the same.
        class_names: one name per label.
        kind: `cifar10`, `images` or `digits`.
        name: what the images are called where results are shown.
        source_md5: MD5 of the source in hex, where that is one file.

    Raises:
        ValueError: a shape, dtype or label is not as in `Dataset`.
    """
    content = hashlib.sha256()
    for array in (*train, *test):
        content.update(json.dumps(array.shape).encode())
        # Little-endian whatever the machine, so that the same images have the same hash everywhere.
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


def first_source(sources: Sequence[str], root: Path = Path(".")) -> str:
    """The first of several sources that is there, or the last: names always are, paths if something lies there.

    Args:
        sources: one at least, each as for `load_source`.
        root: folder that a relative path starts from.

    Raises:
        QuantspikeError: it cannot be found out whether there is anything at a path.
    """
    for source in sources:
        try:
            if source in NAMES or _place(source, root).exists():
                return source
        except OSError as error:
            raise _unreadable(source, error) from error
    return sources[-1]


def load_source(source: str, *, downloads: Path, root: Path = Path(".")) -> Dataset:
    """Reads and verifies images from wherever they are.

    Args:
        source: `cifar10`, `digits` or a path, see `SOURCES`; what a path is, is told by its content.
        downloads: folder that keeps the downloaded archive; used by `cifar10` only.
        root: folder that a relative path starts from.

    Raises:
        QuantspikeError: there is nothing at that path, it cannot be read or is not what it should
            be, or the download failed.
    """
    try:
        if source == "cifar10":
            return _load_official_archive(_downloaded(downloads))
        return _load_digits() if source == "digits" else _load_path(_place(source, root))
    except OSError as error:
        raise _unreadable(source, error) from error


def _place(source: str, root: Path) -> Path:
    try:
        return root / Path(source).expanduser()
    except RuntimeError as error:  # ~somebody who has no home
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> QuantspikeError:
    return QuantspikeError(f"data.source {source!r} could not be read: {error}")


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Writes a data set to one safetensors file, atomically; the same data gives the same bytes.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    # One entry for the whole header: safetensors writes several in an order that changes from run to run.
    header = {FORMAT: json.dumps({"version": VERSION, "fingerprint": dataset.fingerprint})}
    # Contiguous, since safetensors writes other arrays in the wrong order.
    tensors = {name: np.ascontiguousarray(getattr(dataset, name)) for name in _TENSORS}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=header)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_dataset(path: Path) -> Dataset:
    """Reads a file that `save_dataset` wrote and compares its content with the SHA-256 it was saved with.

    Raises:
        QuantspikeError: the file is absent, damaged, of another version or something else altogether.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header(path, file.metadata())
            train_images, train_labels, test_images, test_labels = (file.get_tensor(name) for name in _TENSORS)
        saved = header["fingerprint"]
        origin = {key: saved[key] for key in ("kind", "name", "source_md5")}
        train, test = (train_images, train_labels), (test_images, test_labels)
        dataset = build_dataset(train, test, tuple(saved["classes"]), **origin)
    except FileNotFoundError:
        raise QuantspikeError(f"{path} is not there: run the download stage (dvc repro)") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if dataset.fingerprint != saved:
        raise _damaged(path, "its content is not what its fingerprint was taken of")
    return dataset


def _header(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    if not metadata or FORMAT not in metadata:
        raise QuantspikeError(f"{path} is no image file of quantspike: delete it and run dvc repro")
    header: dict[str, Any] = json.loads(metadata[FORMAT])
    if header["version"] != VERSION:
        raise QuantspikeError(
            f"{path} is of version {header['version']}, this quantspike reads {VERSION}: delete it and run dvc repro"
        )
    return header


def _damaged(path: Path, reason: str) -> QuantspikeError:
    return QuantspikeError(f"{path} is damaged ({reason}): delete it and run dvc repro")


def _load_path(path: Path) -> Dataset:
    if not path.exists():
        raise QuantspikeError(f"data.source {str(path)!r} does not exist. A source is one of:{SOURCES}")
    # Absolute, so that "." has a name; only that is shown later, since the rest of a path is private.
    absolute = Path(os.path.abspath(path))
    md5 = None
    if path.is_dir():
        if absolute.name == OFFICIAL_FOLDER or (path / OFFICIAL_FOLDER).is_dir():
            return _load_batches(absolute.parent if absolute.name == OFFICIAL_FOLDER else absolute, None)
        tree = read_folder(path)
    else:
        archive = read_archive(path)
        if archive is None:
            return _load_official_archive(path)
        tree, md5 = archive, _md5(path)
    train, test, names = load_class_folders(tree, path)
    return build_dataset(train, test, names, kind="images", name=f"images of {absolute.name}", source_md5=md5)


def _load_digits() -> Dataset:
    """1,797 images of 8 x 8 in 17 shades, split 1,437 to 360 with every class in proportion."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"data.source digits needs scikit-learn ({error}): pip install scikit-learn") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    names = tuple(str(name) for name in digits.target_names)
    train, test = (train_images, train_labels), (test_images, test_labels)
    return build_dataset(train, test, names, kind="digits", name="scikit-learn digits")


def _cifar10() -> Any:
    """torchvision's class, which knows the URL and the checksums; imported late, since no other source needs it."""
    try:
        from torchvision.datasets import CIFAR10
    except ModuleNotFoundError as error:
        raise QuantspikeError(f"reading the official CIFAR-10 needs torchvision ({error}): install it") from error
    return CIFAR10


def _downloaded(downloads: Path) -> Path:
    """The official archive, downloaded unless it lies there already."""
    cifar10 = _cifar10()
    url, archive = cifar10.url, Path(downloads, cifar10.filename)
    if archive.exists():
        return archive
    from torchvision.datasets.utils import download_url

    with atomic_path(archive) as temporary, _network_timeout(NETWORK_TIMEOUT):
        temporary.unlink()  # torchvision takes a file that is there for a finished download
        try:
            download_url(url, str(temporary.parent), temporary.name)
        except (URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise QuantspikeError(
                f"{url} could not be downloaded: {error}. Try again, or set data.source to one of:{SOURCES}\n"
                "`make demo` shows everything without a download"
            ) from error
        _check_md5(temporary, cifar10.tgz_md5, f"the download of {url}", "Run it again")
    return archive


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Ends a download that has gone silent; torchvision has no option for it."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load_official_archive(path: Path) -> Dataset:
    cifar10 = _cifar10()
    remedy = f"Delete it and get it again from {cifar10.url}, or let data.source cifar10 download it"
    _check_md5(path, cifar10.tgz_md5, str(path), remedy)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as tar:
        target = Path(folder, cifar10.base_folder)
        target.mkdir()
        for name, _ in _official_files():
            stream = tar.extractfile(f"{cifar10.base_folder}/{name}")
            assert stream is not None
            (target / name).write_bytes(stream.read())
        return _load_batches(Path(folder), cifar10.tgz_md5)


def _load_batches(parent: Path, source_md5: str | None) -> Dataset:
    """Reads the unpacked official files, below `parent`."""
    cifar10 = _cifar10()
    # Reading a pickle runs what it says, so nothing is unpickled before its checksum is known to be the official one.
    for name, md5 in _official_files():
        path = parent / cifar10.base_folder / name
        if not path.is_file():
            raise QuantspikeError(f"{path} is missing: unpack the official CIFAR-10 archive again")
        _check_md5(path, md5, str(path), "Unpack the archive again, or set data.source to the archive itself")
    parts = [cifar10(root=str(parent), train=train) for train in (True, False)]
    train, test = (
        (np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, np.int64)) for part in parts
    )
    names = tuple(parts[0].classes)
    return build_dataset(train, test, names, kind="cifar10", name="CIFAR-10 (official archive)", source_md5=source_md5)


def _official_files() -> list[tuple[str, str]]:
    """Names and MD5s of the files in the official archive."""
    cifar10 = _cifar10()
    return [*cifar10.train_list, *cifar10.test_list, (cifar10.meta["filename"], cifar10.meta["md5"])]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _check_md5(path: Path, expected: str, what: str, remedy: str) -> None:
    found = _md5(path)
    if found != expected:
        raise QuantspikeError(
            f"{what} has MD5 {found}, expected is {expected}: it is cut off, damaged or altered. {remedy}"
        )
