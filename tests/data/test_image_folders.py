"""Folders with images in train/<class>/ and test/<class>/, read through `load_source` as users do."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import ExifTags, Image

from hostile import fuzz, mutations
from quantspike.data.dataset import Dataset
from quantspike.data.decoding import decode_all
from quantspike.data.sources import load_source
from quantspike.errors import QuantspikeError

Files = dict[str, bytes]


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def colour(shade: int, size: tuple[int, int] = (4, 4)) -> bytes:
    return encoded(Image.new("RGB", size, (shade, 0, 255)))


def uniform(mode: str, value: int | tuple[int, ...]) -> bytes:
    return encoded(Image.new(mode, (4, 4), value))


def palette(transparent: bool) -> bytes:
    """A picture in the colour (9, 8, 7), the first of its palette."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 8, 7, 0, 0, 0])
    return encoded(image, **({"transparency": 0} if transparent else {}))


def deep_png(colour_type: int, channels: int) -> bytes:
    """A PNG of 4 x 4 pixels with 16 bits per value, which Pillow does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, colour_type, 0, 0, 0)
    pixels = zlib.compress(4 * (b"\x00" + 4 * channels * b"\x80\x01"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def frames(file_format: str) -> bytes:
    """An animation of a red and a blue frame."""
    red, blue = (Image.new("RGB", (4, 4), name) for name in ("red", "blue"))
    return encoded(red, file_format, save_all=True, append_images=[blue])


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
    content = {name: uniform("L", shade) for shade, name in enumerate(files())}
    dataset = load(content | {"train/dog/b.png": uniform("LA", (7, 255)), "train/dog/a.png": uniform("1", 1)}, tmp_path)
    assert dataset.train_images.shape == (3, 1, 4, 4)
    assert shades(dataset.train_images) == [2, 255, 7]


SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: stored[::-1, ::-1],
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # a quarter turn clockwise
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
    9: lambda stored: stored,  # no such orientation
}
"""What a viewer makes of stored pixels, by the orientation in the EXIF tags."""


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_images_are_turned_as_viewers_show_them(file_format: str, orientation: int, tmp_path: Path) -> None:
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:16, :16], stored[:16, 16:], stored[16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encoded(Image.fromarray(stored), file_format, exif=exif)
    read = load(dict.fromkeys(files(), content), tmp_path).train_images[0].transpose(1, 2, 0)
    corners = np.ix_([2, 29], [2, 29])  # away from the edges, where compression shows
    assert abs(read[corners].astype(int) - SHOWN[orientation](stored)[corners]).max() < 30


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (uniform("L", 9), [9, 9, 9]),
        (uniform("1", 1), [255, 255, 255]),
        (b"P1 4 4 " + b"0 " * 16, [255, 255, 255]),
        (b"P6 4 4 51 " + bytes([51, 0, 17] * 16), [255, 0, 85]),  # 17 / 51 of 255
        (uniform("LA", (9, 255)), [9, 9, 9]),
        (uniform("RGBA", (9, 8, 7, 255)), [9, 8, 7]),
        (palette(transparent=False), [9, 8, 7]),
        (encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "GIF"), [9, 8, 7]),
        (encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "BMP"), [9, 8, 7]),
        (encoded(Image.new("RGB", (4, 4), (9, 8, 7)), "WEBP", lossless=True), [9, 8, 7]),
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
        (without("test/cat") | {"test/cat/.n": b""}, r"pets/test must .*: Found no valid file for the classes cat"),
        (
            files() | {"test/dog/z.png": colour(1, size=(5, 6))},
            r"test/dog/z\.png has 5 x 6 pixels, expected 4 x 4: images must be square and all of one size",
        ),
        (files() | {"test/dog/z.png": colour(1, size=(5, 5))}, r"test/dog/z\.png has 5 x 5 pixels, expected 4 x 4"),
        (dict.fromkeys(files(), colour(1, size=(6, 5))), r"train/cat/c\.png has 6 x 5 pixels, expected 6 x 6"),
        (
            dict.fromkeys(files(), b"P6 5000 5000 255 "),
            r"train/cat/c\.png has 5000 x 5000 pixels, expected 4096 x 4096: .* at most 4096 x 4096",
        ),
        (files() | {"train/dog/x.GIF": b"GIF89a"}, r"train/dog/x\.GIF does not decode"),
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
        (encoded(Image.new("RGB", (4, 4)), "JPEG")[:-4], r"does not decode: .*truncated"),
        (bytes(range(256)), "does not decode: cannot identify .* Images are PNG, JPEG, BMP, GIF, PPM, WEBP: remove it"),
        (colour(1)[:33], r"does not decode: \w"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "does not decode: cannot identify"),
        (b"P6 30000 30000 255 ", "does not decode: .*decompression bomb"),
        (b"P6 10000 10000 255 ", "(has 10000 x 10000 pixels, expected 4 x 4|does not decode: .*decompression bomb)"),
        (b"P6 5000 5000 255 ", "has 5000 x 5000 pixels, expected 4 x 4"),
        (uniform("I;16", 9), "has more than 8 bits per value: save it as an 8-bit PNG, grey or RGB, without"),
        (deep_png(2, 3), "has more than 8 bits per value"),
        (deep_png(4, 2), "has more than 8 bits per value"),
        (deep_png(6, 4), "has more than 8 bits per value"),
        (b"P6 4 4 65535 " + bytes(96), "has more than 8 bits per value"),
        (b"P3 4 4 256 " + b"0 " * 48, "has more than 8 bits per value"),
        (b"P5 4 4 1000 " + bytes(32), "has more than 8 bits per value"),
        (b"Pf 4 4 -1.0 " + bytes(64), "has colours of mode F"),
        (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "has colours of mode CMYK: save it as an 8-bit PNG"),
        (frames("PNG"), "has 2 frames: save it as an 8-bit PNG"),
        (frames("GIF"), "has 2 frames"),
        (frames("WEBP"), "has 2 frames"),
        (uniform("RGBA", (9, 8, 7, 254)), "has transparent pixels: save it as an 8-bit PNG, grey or RGB, without"),
        (uniform("LA", (9, 0)), "has transparent pixels"),
        (palette(transparent=True), "has transparent pixels"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=rf"train/dog/b\.png {message}"):
        load(files() | {"train/dog/b.png": content}, tmp_path)


@pytest.mark.parametrize("name", ["photo.heic", "array.npy", "picture"])
def test_a_file_among_the_images_that_is_none_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=rf"train/dog/{re.escape(name)} does not decode"):
        load(files() | {f"train/dog/{name}": b"no image"}, tmp_path)


def test_what_file_managers_leave_among_the_images_is_no_image(tmp_path: Path) -> None:
    left = {f"train/dog/{name}": b"no image" for name in ("Thumbs.db", "desktop.ini", ".DS_Store")}
    assert len(load(files() | left, tmp_path).train_images) == sum(name.startswith("train/") for name in files())


PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)
WHOLE = [encoded(PICTURE, file_format) for file_format in ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF")]


def outcome(path: Path) -> str:
    """Return the type and shape of what a file decodes to, or the error."""
    try:
        images = decode_all([str(path)])
    except QuantspikeError as error:
        return str(error)
    return f"{images.dtype} {images.shape}"


@fuzz(content=st.sampled_from(WHOLE).flatmap(mutations))
def test_damaged_images_are_read_whole_or_named(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(content)
    assert re.fullmatch(rf"uint8 \(1, [13], (\d+), \1\)|{re.escape(str(path))} .*", outcome(path))
