"""Images in class folders, read through `load_source` as users do."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quantspike.class_folders import Tree, load_class_folders, read_archive
from quantspike.data import Dataset, load_source
from quantspike.errors import QuantspikeError

Files = dict[str, bytes | None]  # None is a folder


def image(shade: int, mode: str = "RGB", size: tuple[int, int] = (4, 4), file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (shade, 0, 255) if mode == "RGB" else shade).save(buffer, file_format)
    return buffer.getvalue()


def files() -> Files:
    """Two classes; the shade of an image tells it from the others."""
    return {
        "train/dog/b.png": image(1),
        "train/dog/a.png": image(2),
        "train/cat/c.png": image(3),
        "test/dog/z.png": image(4),
        "test/cat/y.png": image(5),
    }


def write_folder(content: Files, path: Path) -> Path:
    for name, data in content.items():
        place = path / name
        (place if data is None else place.parent).mkdir(parents=True, exist_ok=True)
        if data is not None:
            place.write_bytes(data)
    return path


def write_tar(content: Files, path: Path) -> Path:
    compression = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path, f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data or b""))
    return path


def write_zip(content: Files, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"{name}/" if data is None else name, data or b"")
    return path


FORMS = {
    "folder": write_folder,
    "images.tar": write_tar,
    "images.tar.gz": write_tar,
    "images.tgz": write_tar,
    "images.tar.bz2": write_tar,
    "images.tar.xz": write_tar,
    "images.zip": write_zip,
}
every_form = pytest.mark.parametrize("form", FORMS)
MAIN_FORMS = ["folder", "images.tar", "images.zip"]


def load(content: Files, tmp_path: Path, form: str = "folder") -> Dataset:
    return load_source(str(FORMS[form](content, tmp_path / form)), downloads=tmp_path / "unused")


def shades(images: np.ndarray) -> list[int]:
    return [int(shade) for shade in images[:, 0, 0, 0]]


@every_form
def test_classes_and_files_come_in_the_order_of_their_names(tmp_path: Path, form: str) -> None:
    dataset = load(files(), tmp_path, form)
    assert dataset.class_names == ("cat", "dog")
    assert shades(dataset.train_images) == [3, 2, 1]
    assert dataset.train_labels.tolist() == [0, 1, 1]
    assert shades(dataset.test_images) == [5, 4]
    assert dataset.test_labels.tolist() == [0, 1]
    assert (dataset.train_images[0, :, 2, 3] == [3, 0, 255]).all()


def test_every_form_and_order_gives_the_same_fingerprint(tmp_path: Path) -> None:
    backwards = dict(reversed(files().items()))
    hashes = {load(content, tmp_path, form).fingerprint["sha256"] for form in FORMS for content in (files(), backwards)}
    assert len(hashes) == 1


def test_the_fingerprint_names_the_source_but_not_where_it_lies(tmp_path: Path) -> None:
    fingerprint = load(files(), tmp_path, "images.zip").fingerprint
    assert fingerprint["kind"] == "images"
    assert fingerprint["name"] == "images of images.zip"
    assert re.fullmatch("[0-9a-f]{32}", fingerprint["source_md5"])
    assert tmp_path.name not in str(fingerprint)
    assert load(files(), tmp_path, "folder").fingerprint["source_md5"] is None


@pytest.mark.parametrize("form", MAIN_FORMS)
def test_a_wrapping_folder_and_what_lies_beside_it_do_not_matter(tmp_path: Path, form: str) -> None:
    wrapped: Files = {f"pets-master/{name}": data for name, data in files().items()}
    wrapped |= {"pets-master/README.md": b"Pets.", "__MACOSX/pets-master/._train": b"", "LICENSE": b"Free."}
    for folder in ("wrapped", "bare"):
        (tmp_path / folder).mkdir()
    found, expected = load(wrapped, tmp_path / "wrapped", form), load(files(), tmp_path / "bare", form)
    assert found.fingerprint["sha256"] == expected.fingerprint["sha256"]


def test_a_tar_made_of_the_current_folder_is_read(tmp_path: Path) -> None:
    dotted: Files = {".": None, "./train": None}
    dotted |= {f"./{name}": data for name, data in files().items()}
    assert shades(load(dotted, tmp_path, "images.tar").train_images) == [3, 2, 1]


@pytest.mark.parametrize("form", MAIN_FORMS)
def test_hidden_files_and_leftovers_are_left_out(tmp_path: Path, form: str) -> None:
    extra: Files = {"train/cat/.DS_Store": b"", "train/dog/Thumbs.db": b"", "train/.hidden/x.txt": b"", ".git/x": b""}
    assert len(load(files() | extra, tmp_path, form).train_images) == 3


def test_endings_in_capitals_and_jpegs_are_read(tmp_path: Path) -> None:
    jpeg = image(80, file_format="JPEG")
    jpegs: Files = {f"{name[:-4]}{ending}": jpeg for name in files() for ending in (".JPG", ".jpeg")}
    images = load(jpegs, tmp_path).train_images
    assert images.shape == (6, 3, 4, 4)
    assert abs(images[:, 0].astype(int) - 80).max() <= 3  # JPEG is not exact


def test_grayscale_images_keep_one_channel(tmp_path: Path) -> None:
    gray: Files = {name: image(index, "L") for index, name in enumerate(files())}
    dataset = load(gray, tmp_path)
    assert (dataset.channels, dataset.train_images.shape) == (1, (3, 1, 4, 4))
    assert shades(dataset.train_images) == [2, 1, 0]


def test_one_colour_image_makes_all_of_them_colour_images(tmp_path: Path) -> None:
    dataset = load(files() | {"train/cat/c.png": image(9, "L")}, tmp_path)
    assert dataset.train_images.shape == (3, 3, 4, 4)
    assert (dataset.train_images[0] == 9).all()


def test_images_with_16_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"train/cat/c\.png has more than 8 bits per value \(mode I;16\)"):
        load(files() | {"train/cat/c.png": image(9, "I;16")}, tmp_path)


def without(*starts: str) -> Files:
    return {name: data for name, data in files().items() if not name.startswith(starts)}


@pytest.mark.parametrize("form", MAIN_FORMS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("train/"), r"no classes in train/ \(found: test\); images lie in train/<class>/ and test/<class>/"),
        (without("test/"), r"no classes in test/ \(found: train\)"),
        ({"notes.txt": b""}, r"no classes in train/ \(found: notes\.txt\)"),
        ({}, r"no classes in train/ \(found: nothing\)"),
        (without("test/cat"), r"test/ lacks the class cat, which the other one has"),
        (without("train/dog"), r"train/ lacks the class dog, which the other one has"),
        (files() | {"train/fox": None}, r"train/fox/ holds no image"),
        (files() | {"train/cat/more": None}, r"train/cat/more/ is a folder within a class"),
        (files() | {"train/cat/more/d.png": image(1)}, r"train/cat/more/(d\.png lies at the wrong depth| is a folder)"),
        (files() | {"test/x.png": image(1)}, r"test/x\.png lies at the wrong depth"),
        (files() | {"train/cat/n.gif": b""}, r"train/cat/n\.gif is no image; only \.jpg, \.jpeg, \.png may lie there"),
        (files() | {"train/cat/n": b""}, r"train/cat/n is no image"),
        (without("train/dog", "test/dog"), r"holds only the class cat; at least 2 are needed"),
        (files() | {"test/dog/z.png": image(1, size=(5, 6))}, r"z\.png is 5x6, expected 4x4 as in train/cat/c\.png"),
        (dict.fromkeys(files(), image(1, size=(6, 5))), r"train/cat/c\.png is 6x5; images must be square"),
        (files() | {"train/dog/b.png": b"text"}, r"train/dog/b\.png does not decode: it is neither a JPEG nor a PNG"),
        (files() | {"train/dog/b.png": image(1)[:-30]}, r"train/dog/b\.png does not decode: \w"),
        (files() | {"train/dog/b.png": image(1)[:40]}, r"train/dog/b\.png does not decode: \w"),
        (files() | {"train/dog/b.png": b""}, r"train/dog/b\.png does not decode"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, form: str, content: Files, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(QuantspikeError, match=message):
        load(content, tmp_path, form)


def test_a_cut_jpeg_is_named(tmp_path: Path) -> None:
    cut = image(1, size=(32, 32), file_format="JPEG")[:-20]
    cut_files: Files = {name.replace("png", "jpg"): cut for name in files()}
    with pytest.raises(QuantspikeError, match=r"train/cat/c\.jpg does not decode: .*truncated"):
        load(cut_files, tmp_path)


# Archives that are none, cut, or hold more than files.


@pytest.mark.parametrize("content", [b"", b"\x00", b"plain text " * 100, image(1)])
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.tar.gz"
    path.write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"images\.tar\.gz is neither a tar nor a zip archive"):
        load_source(str(path), downloads=tmp_path)


def noisy_files() -> Files:
    """Images that do not compress, so that the archive is larger than what tarfile reads at once."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    content: Files = {}
    for name, pixels in zip(files(), noise, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        content[name] = buffer.getvalue()
    return content


@pytest.mark.parametrize("form", ["images.tar", "images.tar.gz", "images.tar.bz2", "images.tar.xz", "images.zip"])
@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.8])
def test_an_archive_that_was_cut_off_is_named(tmp_path: Path, form: str, part: float) -> None:
    path = FORMS[form](noisy_files(), tmp_path / form)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(QuantspikeError, match=r"cannot be read to its end: .* cut off|neither a tar nor a zip"):
        load_source(str(path), downloads=tmp_path)


def test_a_tar_cut_between_two_images_is_named(tmp_path: Path) -> None:
    path = write_tar(noisy_files(), tmp_path / "images.tar")
    with tarfile.open(path) as tar:
        fourth = tar.getmembers()[3].offset
    path.write_bytes(path.read_bytes()[:fourth])
    with pytest.raises(QuantspikeError, match="the end of the archive is missing"):
        load_source(str(path), downloads=tmp_path)


@pytest.mark.parametrize("form", ["images.tar.gz", "images.zip"])
def test_a_flipped_byte_in_a_compressed_archive_is_noticed(tmp_path: Path, form: str) -> None:
    path = FORMS[form](noisy_files(), tmp_path / form)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(QuantspikeError, match="cannot be read to its end"):
        load_source(str(path), downloads=tmp_path)


@pytest.mark.parametrize("name", ["/train/cat/x.png", "../train/cat/x.png", "train/../../x.png"])
@pytest.mark.parametrize("form", ["images.tar", "images.zip"])
def test_names_that_point_outside_are_refused(tmp_path: Path, form: str, name: str) -> None:
    with pytest.raises(QuantspikeError, match="a name that points outside the archive"):
        load(files() | {name: image(1)}, tmp_path, form)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(files(), tmp_path / "images.tar")
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("train/cat/link.png")
        member.type, member.linkname = kind, "train/cat/c.png"
        tar.addfile(member)
    with pytest.raises(QuantspikeError, match=r"train/cat/link\.png is a link or device, not a file"):
        load_source(str(path), downloads=tmp_path)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = write_zip(files(), tmp_path / "images.zip")
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("train/cat/link.png")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "c.png")
    with pytest.raises(QuantspikeError, match=r"train/cat/link\.png is a link or device, not a file"):
        load_source(str(path), downloads=tmp_path)


def test_encrypted_images_are_refused(tmp_path: Path) -> None:
    path = write_zip(files(), tmp_path / "images.zip")
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1  # the bit for "encrypted", in the directory's first entry
    path.write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"train/dog/b\.png is encrypted"):
        load_source(str(path), downloads=tmp_path)


def test_a_name_that_an_archive_holds_twice_is_refused(tmp_path: Path) -> None:
    path = write_tar(files(), tmp_path / "images.tar")
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("./train/cat/c.png"))
    with pytest.raises(QuantspikeError, match=r"holds train/cat/c\.png twice"):
        load_source(str(path), downloads=tmp_path)


def test_a_folder_may_be_made_of_links_and_a_loop_ends(tmp_path: Path) -> None:
    write_folder(files(), tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "real" / split)
    assert len(load_source(str(tmp_path / "linked"), downloads=tmp_path).train_images) == 3
    (tmp_path / "real" / "train" / "cat" / "loop").symlink_to(tmp_path / "real")
    with pytest.raises(QuantspikeError, match="train/cat/loop/ is a folder within a class"):
        load_source(str(tmp_path / "linked"), downloads=tmp_path)


def test_a_file_that_may_not_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "images.zip")

    path = write_zip(files(), tmp_path / "images.zip")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(QuantspikeError, match=r"data\.source .* could not be read: .*Permission denied"):
        load_source(str(path), downloads=tmp_path)


def test_the_60000_jpegs_of_cifar10_are_all_found() -> None:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg.tar.gz"
    path = Path(os.environ.get("QUANTSPIKE_CIFAR10_JPEG", beside))
    if not path.is_file():
        pytest.skip("no archive of CIFAR-10 as JPEGs here; set QUANTSPIKE_CIFAR10_JPEG to the path of one")
    tree = read_archive(path)
    assert tree is not None
    assert len(tree.files) == 60_000
    # Decoding all of them takes longer than a test should: one in a hundred, 50 + 10 of every class.
    sample = Tree(tree.folders, {name: content for name, content in tree.files.items() if name.endswith("00.jpg")})
    (train_images, train_labels), (test_images, test_labels), names = load_class_folders(sample, path)
    assert (train_images.shape, test_images.shape) == ((500, 3, 32, 32), (100, 3, 32, 32))
    assert np.bincount(train_labels).tolist() == [50] * 10
    assert np.bincount(test_labels).tolist() == [10] * 10
    assert (names[0], names[9]) == ("airplane", "truck")
