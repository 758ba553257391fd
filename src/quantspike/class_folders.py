"""Images in class folders, `train/<class>/` and `test/<class>/`: a folder, a tar or a zip of it."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from quantspike.errors import QuantspikeError

OFFICIAL_FOLDER = "cifar-10-batches-py"
"""Folder inside the official CIFAR-10 archive."""

ENDINGS = (".jpg", ".jpeg", ".png")
"""Endings of image files, in any mixture of cases."""

Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
"""Images uint8 [N, C, H, W] and labels int64 [N]."""

_SPLITS = ("train", "test")
_LEFTOVERS = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_LAYOUT = "images lie in train/<class>/ and test/<class>/"
_UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,  # gzip and bz2 report damage as OSError
    NotImplementedError,  # a zip with a compression that Python does not know
)


@dataclass(frozen=True)
class Tree:
    """What lies below a source; hidden files and leftovers of file managers are not listed.

    Attributes:
        folders: names of folders, parts joined by `/`.
        files: name -> where the content is: a path, or the bytes themselves (empty where the ending is no image's).
    """

    folders: set[str]
    files: dict[str, Path | bytes]


def read_folder(path: Path) -> Tree:
    """Lists a folder four levels deep: wrapping folder, split, class, image. Links are followed.

    Raises:
        OSError: a folder cannot be listed.
    """
    tree = Tree(set(), {})
    for parent, folders, files in os.walk(path, onerror=_reraise, followlinks=True):
        place = Path(parent).relative_to(path)
        folders[:] = [name for name in folders if not _ignored(name)]
        tree.folders.update((place / name).as_posix() for name in folders)
        tree.files.update({(place / name).as_posix(): Path(parent, name) for name in files if not _ignored(name)})
        # The limit also ends loops of links.
        if len(place.parts) == 3:
            folders.clear()
    return tree


def read_archive(path: Path) -> Tree | None:
    """Reads a zip or a tar, compressed or not, into memory; nothing is unpacked to disk.

    Returns:
        its content, or None if it holds the folder of the official CIFAR-10 archive.

    Raises:
        QuantspikeError: the file is no archive, cut off or damaged, or holds a link, a name that
            points outside or the same name twice.
    """
    tree = Tree(set(), {})
    members = _zip_members(path) if _is_zip(path) else _tar_members(path)
    try:
        for name, content in members:
            if OFFICIAL_FOLDER in name.split("/"):
                return None
            if content is None:
                tree.folders.add(name)
            elif name in tree.files:
                raise QuantspikeError(f"{path} holds {name} twice; pack it again")
            else:
                tree.files[name] = content
    except _UNREADABLE as error:
        raise QuantspikeError(
            f"{path} cannot be read to its end: {error}. It is cut off, damaged or packed in an unusual way; "
            "get or pack it again"
        ) from error
    return tree


def load_class_folders(tree: Tree, source: Path) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Decodes the images of a tree. Only `train/` and `test/` are read; one wrapping folder may be around them.

    Args:
        tree: from `read_folder` or `read_archive`.
        source: where it comes from, for messages.

    Returns:
        training images with labels, test images with labels, class names. Classes and files are in
        the order of their names. One channel if every image is grayscale (mode L), else three.

    Raises:
        QuantspikeError: the layout is another one, a class is empty or only in one of the two, or an
            image does not decode, is not square or not as large as the first.
    """
    tree = _unwrapped(tree)
    train, test = (_classes(tree, split, source) for split in _SPLITS)
    names = tuple(sorted(train | test))
    for split, classes in zip(_SPLITS, (train, test), strict=True):
        if missing := [name for name in names if name not in classes]:
            raise QuantspikeError(f"{source}: {split}/ lacks the class {', '.join(missing)}, which the other one has")
    if len(names) < 2:
        raise QuantspikeError(f"{source} holds only the class {names[0]}; at least 2 are needed")
    images = _decode_all(tree, [file for classes in (train, test) for name in names for file in classes[name]], source)
    labels = [np.repeat(np.arange(len(names)), [len(classes[name]) for name in names]) for classes in (train, test)]
    n_train = len(labels[0])
    return (images[:n_train], labels[0]), (images[n_train:], labels[1]), names


def _reraise(error: OSError) -> NoReturn:
    """Keeps os.walk from leaving out, without a word, what it may not read."""
    raise error


def _ignored(name: str) -> bool:
    return not name or any(part.startswith(".") or part in _LEFTOVERS for part in name.split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _is_zip(path: Path) -> bool:
    # Not zipfile.is_zipfile: that looks at the end, which a zip that was cut off has lost.
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _tar_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names with contents, None for a folder."""
    try:
        tar = tarfile.open(path)  # noqa: SIM115 (closed below)
    except tarfile.ReadError as error:
        raise QuantspikeError(f"{path} is neither a tar nor a zip archive, or it was cut off") from error
    with tar:
        for member in tar:
            name = _inside(member.name, path)
            if _ignored(name):
                continue
            if member.isdir():
                yield name, None
            elif stream := tar.extractfile(member) if member.isfile() else None:
                yield name, stream.read() if _is_image(name) else b""
            else:
                _refuse_special(name, path)
        _check_end(tar)


def _zip_members(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Names with contents, None for a folder."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _inside(member.filename, path)
            if _ignored(name):
                continue
            if member.is_dir():
                yield name, None
            elif stat.S_ISLNK(member.external_attr >> 16):
                _refuse_special(name, path)
            elif member.flag_bits & 1:
                raise QuantspikeError(f"{path}: {name} is encrypted; pack the images without a password")
            else:
                yield name, archive.read(member) if _is_image(name) else b""


def _inside(name: str, path: Path) -> str:
    """The name without `./` and doubled slashes."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise QuantspikeError(f"{path} holds {name!r}, a name that points outside the archive; pack it again")
    return "/".join(parts)


def _refuse_special(name: str, path: Path) -> NoReturn:
    raise QuantspikeError(f"{path}: {name} is a link or device, not a file; pack the files themselves")


def _check_end(tar: tarfile.TarFile) -> None:
    """Reads a tar to its end, since tarfile takes a cut or a damaged header between two members for the end."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the end of the archive is missing")
    # A compressed file carries a checksum at its very end, which is compared on the way there.
    while stream.read(1 << 20):
        pass


def _unwrapped(tree: Tree) -> Tree:
    """The tree without the one folder that holds all the others, if there is one."""
    tops = {name.split("/")[0] for name in (*tree.folders, *(name for name in tree.files if "/" in name))}
    if len(tops) != 1 or tops & set(_SPLITS):
        return tree
    prefix = f"{tops.pop()}/"
    folders = {name.removeprefix(prefix) for name in tree.folders if name.startswith(prefix)}
    files = {name.removeprefix(prefix): content for name, content in tree.files.items() if name.startswith(prefix)}
    return Tree(folders, files)


def _classes(tree: Tree, split: str, source: Path) -> dict[str, list[str]]:
    """Class -> sorted names of its images."""
    folders = [name for name in tree.folders if name.startswith(f"{split}/")]
    classes: dict[str, list[str]] = {name.split("/")[1]: [] for name in folders}
    if deep := sorted(name for name in folders if name.count("/") > 1):
        raise QuantspikeError(f"{source}: {deep[0]}/ is a folder within a class; {_LAYOUT}, no deeper")
    for name in sorted(name for name in tree.files if name.startswith(f"{split}/")):
        if name.count("/") != 2:
            raise QuantspikeError(f"{source}: {name} lies at the wrong depth; {_LAYOUT}")
        if not _is_image(name):
            raise QuantspikeError(f"{source}: {name} is no image; only {', '.join(ENDINGS)} may lie there")
        classes.setdefault(name.split("/")[1], []).append(name)
    if not classes:
        found = sorted({name.split("/")[0] for name in (*tree.folders, *tree.files)})
        listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise QuantspikeError(f"{source} holds no classes in {split}/ (found: {listed or 'nothing'}); {_LAYOUT}")
    if empty := sorted(name for name, files in classes.items() if not files):
        raise QuantspikeError(f"{source}: {split}/{empty[0]}/ holds no image; add some, or remove it from both splits")
    return classes


def _decode_all(tree: Tree, names: list[str], source: Path) -> npt.NDArray[np.uint8]:
    """Images uint8 [N, C, H, W] in the order of `names`. One thread: more were slower on images of this size."""
    first = _decode(tree.files[names[0]], f"{source}: {names[0]}")
    images = np.empty((len(names), 3, *first.shape[1:]), np.uint8)
    grayscale = True
    for index, name in enumerate(tqdm(names, desc="decoding", unit="image", disable=None)):
        pixels = _decode(tree.files[name], f"{source}: {name}")
        if pixels.shape[1:] != first.shape[1:]:
            raise QuantspikeError(f"{source}: {name} is {_size(pixels)}, expected {_size(first)} as in {names[0]}")
        if pixels.shape[1] != pixels.shape[2]:
            raise QuantspikeError(f"{source}: {name} is {_size(pixels)}; images must be square")
        images[index] = pixels  # one channel is spread over three
        grayscale = grayscale and len(pixels) == 1
    return images[:, :1].copy() if grayscale else images


def _size(pixels: npt.NDArray[np.uint8]) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _decode(content: Path | bytes, place: str) -> npt.NDArray[np.uint8]:
    """One image as uint8 [1, H, W] if it is grayscale, else [3, H, W]."""
    try:
        with Image.open(content if isinstance(content, Path) else BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.mode.startswith(("I", "F")):
                raise QuantspikeError(f"{place} has more than 8 bits per value (mode {image.mode}); convert it to 8")
            if image.mode == "L":
                return np.asarray(image)[None]
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except UnidentifiedImageError as error:
        raise QuantspikeError(f"{place} does not decode: it is neither a JPEG nor a PNG") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise QuantspikeError(f"{place} does not decode: {error}") from error
