"""Folders with images in train/<class>/ and test/<class>/, read through `load_source` as users do."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantspike.data.dataset import Dataset
from quantspike.data.sources import load_source
from quantspike.errors import QuantspikeError

Files = dict[str, bytes]


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


def colour(shade: int, size: tuple[int, int] = (4, 4)) -> bytes:
    return encoded(Image.new("RGB", size, (shade, 0, 255)))


def uniform(mode: str, value: int | tuple[int, ...]) -> bytes:
    return encoded(Image.new(mode, (4, 4), value))


def palette(transparent: bool) -> bytes:
    """A picture in the colour (9, 8, 7), the first of its palette."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 8, 7, 0, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"transparency": 0} if transparent else {}))
    return buffer.getvalue()


def files() -> Files:
    """Two classes; the shade of an image tells it from the others."""
    return {
        "train/dog/b.png": colour(1),
        "train/dog/a.png": colour(2),
        "train/cat/c.png": colour(3),
        "test/dog/z.png": colour(4),
        "test/cat/y.png": colour(5),
    }


def without(start: str) -> Files:
    return {name: content for name, content in files().items() if not name.startswith(start)}


def load(content: Files, tmp_path: Path) -> Dataset:
    folder = tmp_path / "pets"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            (folder / name).write_bytes(data)
        else:
            (folder / name).mkdir()
    return load_source("pets", downloads=tmp_path / "unused", root=tmp_path)


def shades(images: np.ndarray) -> list[int]:
    return [int(shade) for shade in images[:, 0, 0, 0]]


def test_classes_and_files_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    dataset = load(dict(reversed(files().items())), tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert shades(dataset.train_images) == [3, 2, 1]
    assert dataset.train_labels.tolist() == [0, 1, 1]
    assert shades(dataset.test_images) == [5, 4]
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.train_images[0, :, 2, 3].tolist() == [3, 0, 255]


def test_the_fingerprint_names_the_folder_but_not_where_it_is(tmp_path: Path) -> None:
    fingerprint = load(files(), tmp_path).fingerprint
    assert (fingerprint["kind"], fingerprint["name"]) == ("images", "images of pets")
    assert fingerprint["source_md5"] is None
    assert tmp_path.name not in str(fingerprint)


def test_files_that_are_not_images_are_ignored(tmp_path: Path) -> None:
    extra = {"train/.DS_Store": b"", "train/cat/.DS_Store": b"", "test/dog/Thumbs.db": b"", "README.md": b"Pets."}
    assert len(load(files() | extra, tmp_path).train_images) == 3


def test_jpegs_and_endings_in_capitals_are_read(tmp_path: Path) -> None:
    jpeg = encoded(Image.new("L", (4, 4), 80).convert("RGB"), "JPEG")
    images = load({f"{name[:-4]}{ending}": jpeg for name in files() for ending in (".JPG", ".jpeg")}, tmp_path)
    assert images.train_images.shape == (6, 3, 4, 4)
    assert abs(images.train_images.astype(int) - 80).max() <= 3  # JPEG is not exact


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    dataset = load({name: uniform("L", shade) for shade, name in enumerate(files())}, tmp_path)
    assert dataset.train_images.shape == (3, 1, 4, 4)
    assert shades(dataset.train_images) == [2, 1, 0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (uniform("L", 9), [9, 9, 9]),
        (uniform("1", 1), [255, 255, 255]),
        (uniform("RGBA", (9, 8, 7, 255)), [9, 8, 7]),
        (palette(transparent=False), [9, 8, 7]),
    ],
)
def test_other_images_among_coloured_ones_become_rgb(content: bytes, expected: list[int], tmp_path: Path) -> None:
    dataset = load(files() | {"train/cat/c.png": content}, tmp_path)
    assert dataset.train_images.shape == (3, 3, 4, 4)
    assert dataset.train_images[0, :, 1, 2].tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("train/"), r"pets/train must hold a folder .*train/<class>/ and test/<class>/: .*No such file"),
        (without("test/"), r"pets/test must .*No such file"),
        ({}, r"pets/train must .*No such file"),
        ({"train/": b"", "test/": b""}, r"pets/train must .*: Couldn't find any class folder"),
        ({f"pets-master/{name}": content for name, content in files().items()}, r"pets/train must .*No such file"),
        (without("test/cat"), r"the same classes, at least 2; found cat, dog in train/ and dog in test/"),
        (without("train/dog"), r"the same classes, at least 2; found cat in train/ and cat, dog in test/"),
        (
            {name: content for name, content in files().items() if "cat" in name},
            r"at least 2; found cat in train/ and cat in test/",
        ),
        (files() | {"train/fox/": b""}, r"pets/train must .*: Found no valid file for the classes fox"),
        (without("test/cat") | {"test/cat/n.gif": b""}, r"pets/test must .*: Found no valid file for the classes cat"),
        (
            files() | {"test/dog/z.png": colour(1, size=(5, 6))},
            r"test/dog/z\.png has 5 x 6 pixels, expected 4 x 4: images must be square and all of one size",
        ),
        (files() | {"test/dog/z.png": colour(1, size=(5, 5))}, r"test/dog/z\.png has 5 x 5 pixels, expected 4 x 4"),
        (dict.fromkeys(files(), colour(1, size=(6, 5))), r"train/cat/c\.png has 6 x 5 pixels, expected 6 x 6"),
    ],
)
def test_a_wrong_layout_is_named(content: Files, message: str, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=message):
        load(content, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not decode: cannot identify image file"),
        (b"text", "does not decode: cannot identify image file"),
        (colour(1)[:-30], r"does not decode: \w"),
        (colour(1)[:40], r"does not decode: \w"),
        (encoded(Image.new("RGB", (32, 32)), "JPEG")[:-20], r"does not decode: .*truncated"),
        (b"P6 20000 20000 255 ", "does not decode: .*decompression bomb"),
        (uniform("I;16", 9), r"has more than 8 bits per value \(mode I;16\): convert it to 8"),
        (uniform("RGBA", (9, 8, 7, 254)), "has transparent pixels: remove its alpha channel"),
        (uniform("LA", (9, 0)), "has transparent pixels"),
        (palette(transparent=True), "has transparent pixels"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=rf"train/dog/b\.png {message}"):
        load(files() | {"train/dog/b.png": content}, tmp_path)
