"""Load and verify images: the official CIFAR-10, a folder of images, or scikit-learn's digits."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import socket
import tarfile
from collections.abc import Iterable
from fnmatch import fnmatchcase
from http.client import HTTPException
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from quantspike.data.dataset import Dataset, Labelled, build_dataset
from quantspike.data.decoding import decode_all
from quantspike.errors import QuantspikeError
from quantspike.files import locked, reason

# torchvision is imported where CIFAR-10 or a folder needs it: the demo's digits load without it, and faster.

_SOURCES = """
  cifar10                          downloads the official archive
  path/to/cifar-10-python.tar.gz   the official archive, or its unpacked folder cifar-10-batches-py
  path/to/images                   a folder with images in train/<class>/ and test/<class>/
  digits                           scikit-learn's handwritten digits, nothing to download"""
"""Possible sources, for messages."""

_OFFICIAL_FOLDER = "cifar-10-batches-py"
"""Folder inside the official CIFAR-10 archive."""

_TIMEOUT = 60  # seconds without a byte from the server
_LARGEST = 2**25  # bytes; the official batches have 31,035,999 at most

_LEFT_BY_VIEWERS = r"\.|Thumbs\.db$|desktop\.ini$"

_DOWNLOAD = "set data.source to cifar10, which downloads the version that is read"
_CONVERT = "save its images as PNG files in train/<class>/ and test/<class>/ (for CIFAR-10: set data.source to cifar10)"
_UNPACK = "unpack it first and set data.source to the folder"
_OTHER_FORMS = {
    "cifar-100*": f"CIFAR-100: {_CONVERT}",
    "meta": f"CIFAR-100: {_CONVERT}",
    "*_batch*.bin": f"the binary version of CIFAR-10: {_DOWNLOAD}",
    "trainLabels.csv": f"Kaggle's version of CIFAR-10: {_DOWNLOAD}",
    "sampleSubmission.csv": f"Kaggle's version of CIFAR-10: {_DOWNLOAD}",
    "*.parquet": f"a table of Hugging Face: {_CONVERT}",
    "*.arrow": f"a table of Hugging Face: {_CONVERT}",
    "*.np[yz]": f"arrays of NumPy: {_CONVERT}",
    "*.mat": f"arrays of MATLAB: {_CONVERT}",
    "*.zip": f"a zip archive: {_UNPACK}",
}
"""What a name says about images in a form that is not read, and what to do: pattern -> sentence."""


def load_source(source: str, *, downloads: Path, root: Path = Path(".")) -> Dataset:
    """Load and verify the images of a source.

    Args:
        source: `cifar10`, `digits`, or the path of an archive or of a folder, as in params.yaml.
        downloads: folder of the downloaded archive, for `cifar10`.
        root: folder that a relative path starts from.

    Raises:
        QuantspikeError: the path does not exist, its content cannot be read or is not what it should be, or the
            download failed.
    """
    try:
        if source == "cifar10":
            return _load_archive(_download(downloads))
        return _load_digits() if source == "digits" else _load_path(root / os.path.expanduser(source), source)
    except OSError as error:
        raise QuantspikeError(f"data.source {source!r} could not be read: {error}") from error


def _load_path(path: Path, source: str) -> Dataset:
    path = Path(os.path.abspath(path))  # so that "." has a name
    if path.is_file():
        return _load_archive(path)
    if not path.is_dir():
        raise QuantspikeError(
            f"data.source {source!r} does not exist. A source is one of:{_SOURCES}\nThe path looked for was {path}"
        )
    for folder in (path, path / _OFFICIAL_FOLDER):
        if any((folder / name).is_file() for name in _official_md5s()):
            return _load_official_folder(folder)
    return _load_class_folders(path)


def _other_form(names: Iterable[str]) -> str:
    """Return what names of files and folders tell about a form that is not read, as a sentence, or nothing."""
    known = list(names)
    for pattern, sentence in _OTHER_FORMS.items():
        if found := next((name for name in known if fnmatchcase(name, pattern)), None):
            return f". {found} looks like {sentence}"
    return ""


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
    from torchvision.datasets.utils import check_integrity, download_url

    path = downloads / str(CIFAR10.filename)
    busy = f"another process is downloading to {downloads}: wait for it, or stop it first"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # torchvision would wait for ever
    try:
        with locked(downloads, busy):
            if not check_integrity(path, CIFAR10.tgz_md5):
                try:
                    download_url(CIFAR10.url, str(downloads), CIFAR10.filename, CIFAR10.tgz_md5)
                except BaseException:  # Ctrl-C too; torchvision writes under the final name
                    path.unlink(missing_ok=True)
                    raise
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: wrong MD5
        raise QuantspikeError(
            f"{CIFAR10.url} could not be downloaded: {error}. Try again, or set data.source to one of:{_SOURCES}\n"
            "`make demo` shows everything without a download"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _official_md5s() -> dict[str, str]:
    """Return the MD5 of every official file, by name."""
    from torchvision.datasets import CIFAR10

    return dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])


def _load_official_folder(folder: Path) -> Dataset:
    paths = [folder / name for name in _official_md5s()]
    found = [path for path in paths if path.is_file() and path.stat().st_size <= _LARGEST]
    return _official({path.name: path.read_bytes() for path in found}, folder)


def _load_archive(path: Path) -> Dataset:
    """Load the official files from a tar archive of any name, compression and folders, without unpacking it to disk."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    official, names, problem = _official_md5s(), [path.name], "it holds none of the official files"
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in islice(tar, 1000):  # the official one has 9 members
                parts = PurePath(member.name).parts
                names.extend(parts)
                wanted = member.isfile() and member.size <= _LARGEST and parts[-1] in official
                if wanted and (file := tar.extractfile(member)):
                    contents[parts[-1]] = file.read()
    except Exception as error:  # damaged archives fail in many ways; what could be read is judged below
        problem = reason(error).split(": -")[0]  # without what each compression says
    if not contents:
        raise QuantspikeError(
            f"{path} is not the official CIFAR-10 archive ({problem})"
            + (_other_form(names) or f". A damaged copy: get it again from {CIFAR10.url}. Any other archive: {_UNPACK}")
        )
    return _official(contents, path, calculate_md5(path))


def _official(contents: dict[str, bytes], place: Path, source_md5: str | None = None) -> Dataset:
    """Build the data set from the content of the official files, by name."""
    from torchvision.datasets import CIFAR10

    # Loading a pickle runs code, so the MD5 of the very bytes that are loaded is checked first.
    md5s = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in contents.items()}
    if bad := [name for name, md5 in _official_md5s().items() if md5s.get(name) != md5]:
        raise QuantspikeError(
            f"{place}: {', '.join(bad)} missing or damaged (MD5). Get the official CIFAR-10 archive again from "
            f"{CIFAR10.url}, or set data.source to cifar10"
        )
    loaded = {name: pickle.loads(contents.pop(name), encoding="latin1") for name in md5s}
    train, test = (_joined([loaded[name] for name, _ in part]) for part in (CIFAR10.train_list, CIFAR10.test_list))
    names = tuple(loaded[CIFAR10.meta["filename"]][CIFAR10.meta["key"]])
    return build_dataset(train, test, names, kind="cifar10", name="CIFAR-10 (official archive)", source_md5=source_md5)


def _joined(batches: list[dict[str, Any]]) -> Labelled:
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([np.array(batch["labels"], np.int64) for batch in batches])


# Folders of images


def _load_class_folders(folder: Path) -> Dataset:
    """Load the images in train/<class>/ and test/<class>/, in the order of their names."""
    train, test = _image_folder(folder / "train"), _image_folder(folder / "test")
    if train.classes != test.classes or len(train.classes) < 2:
        raise QuantspikeError(
            f"{folder}: train/ and test/ must hold the same classes, at least 2; "
            f"found {', '.join(train.classes)} in train/ and {', '.join(test.classes)} in test/"
        )
    images = decode_all([path for path, _ in train.samples + test.samples])
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
        # Every file but those of file managers: what is no image is refused by name, not skipped.
        return ImageFolder(str(folder), is_valid_file=lambda path: not re.match(_LEFT_BY_VIEWERS, Path(path).name))
    except (FileNotFoundError, NotADirectoryError) as error:  # no such folder, no classes, or a class without images
        source = folder.parent
        inside = chain([source], islice(chain(source.glob("*"), source.glob("*/*")), 1000))
        raise QuantspikeError(
            f"{folder} must hold a folder of images for every class, as in train/<class>/ and test/<class>/: "
            f"{str(error).rstrip('.')}{_other_form(path.name for path in inside)}"
        ) from error
