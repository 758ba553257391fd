"""The official CIFAR-10, the digits, and paths that lead nowhere; folders of images are in test_image_folders.py."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
import re
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantspike.data import sources
from quantspike.data.dataset import Dataset
from quantspike.data.sources import load_source
from quantspike.errors import QuantspikeError
from quantspike.files import locked

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ARCHIVE = "cifar-10-python.tar.gz"


# The official archive, in small: the same layout with two batches of four images and three test images.


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def batch(first_label: int, count: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(first_label).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, "labels": list(range(first_label, first_label + count))}, 2), pixels


def tar_of(files: dict[str, bytes], compression: str = "gz", folder: str = "cifar-10-batches-py/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Official:
    """A small archive that torchvision takes for the official one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import CIFAR10

        first, first_pixels = batch(0, 4)
        second, second_pixels = batch(4, 4)
        test, self.test_pixels = batch(7, 3)
        self.train_pixels = np.concatenate([first_pixels, second_pixels])
        meta = pickle.dumps({"label_names": NAMES}, 2)
        self.files = {"data_batch_1": first, "data_batch_2": second, "test_batch": test, "batches.meta": meta}
        self.archive = tar_of(self.files)
        self.cifar10 = CIFAR10
        self.patch = monkeypatch.setattr
        self.patch(CIFAR10, "train_list", [["data_batch_1", md5(first)], ["data_batch_2", md5(second)]])
        self.patch(CIFAR10, "test_list", [["test_batch", md5(test)]])
        self.patch(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5(meta)})
        self.patch(CIFAR10, "tgz_md5", md5(self.archive))
        self.patch(CIFAR10, "url", "file:///nothing-is-here.tar.gz")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def unpack(self, folder: Path) -> Path:
        """Write the unpacked folder and return it."""
        target = folder / "cifar-10-batches-py"
        target.mkdir()
        for name, content in self.files.items():
            (target / name).write_bytes(content)
        return target

    def check(self, dataset: Dataset, source_md5: str | None) -> None:
        assert np.array_equal(dataset.train_images, self.train_pixels.reshape(-1, 3, 32, 32))
        assert np.array_equal(dataset.test_images, self.test_pixels.reshape(-1, 3, 32, 32))
        assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert dataset.test_labels.tolist() == [7, 8, 9]
        assert dataset.class_names == tuple(NAMES)
        assert dataset.fingerprint["kind"] == "cifar10"
        assert dataset.fingerprint["name"] == "CIFAR-10 (official archive)"
        assert dataset.fingerprint["source_md5"] == source_md5


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Official:
    return Official(monkeypatch)


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("folder", ["cifar-10-batches-py/", "", "./", "/some/where/", "../../"])
def test_an_archive_is_known_by_its_content_and_nothing_of_it_is_unpacked(
    official: Official, tmp_path: Path, compression: str, folder: str
) -> None:
    extra = {"readme.html": b"", "._data_batch_1": b"what macOS adds"}
    path = tmp_path / "deep" / "er" / "renamed.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(tar_of(extra | official.files, compression, folder))
    official.check(load_source(str(path), downloads=tmp_path / "unused"), md5(path.read_bytes()))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_the_unpacked_folder_under_any_name_and_its_parent_give_the_same_images(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official.unpack(tmp_path)
    dataset = load_source(str(folder), downloads=tmp_path)
    official.check(dataset, None)
    assert load_source(str(tmp_path), downloads=tmp_path).fingerprint == dataset.fingerprint
    assert load_source(folder.name, downloads=tmp_path, root=tmp_path).fingerprint == dataset.fingerprint
    renamed = folder.rename(tmp_path / "cifar")
    assert load_source(str(renamed), downloads=tmp_path).fingerprint == dataset.fingerprint
    monkeypatch.chdir(renamed)
    assert load_source(".", downloads=tmp_path).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "file could not be opened successfully"),
        (b"PK\x03\x04", "file could not be opened successfully"),
        (bytes(2000), "it holds none of the official files"),
        (tar_of({"a": b"text"}), "it holds none of the official files"),
        (tar_of({"a": b"text"})[:60], "."),
        (os.urandom(2000), "file could not be opened successfully"),
    ],
    ids=["empty", "zip", "zeros", "other archive", "cut archive", "noise"],
)
def test_any_other_file_is_refused(official: Official, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "images.bin"
    path.write_bytes(content)
    with pytest.raises(
        QuantspikeError, match=rf"images\.bin is not the official .* archive \({problem}.*\)\. A"
    ) as caught:
        load_source(str(path), downloads=tmp_path)
    for part in (f"A damaged copy: get it again from {official.cifar10.url}.", "Any other archive: unpack it first"):
        assert part in str(caught.value)


def test_a_damaged_archive_names_the_files_that_suffered(official: Official, tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    plain = tar_of(official.files, compression="")
    second = plain.index(official.files["data_batch_2"])
    for content, names in (
        (plain[:second] + b"xxxx" + plain[second + 4 :], "data_batch_2"),
        (plain[: second + 4], "data_batch_2, test_batch, batches.meta"),
        (tar_of({"data_batch_1": b"altered"}), "data_batch_1, data_batch_2, test_batch, batches.meta"),
    ):
        path.write_bytes(content)
        with pytest.raises(QuantspikeError, match=rf"{ARCHIVE}: {names} missing or damaged \(MD5\)\. Get the official"):
            load_source(str(path), downloads=tmp_path)


def test_links_and_files_too_large_in_an_archive_are_not_followed_or_read(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in official.files.items():
            target, link = tarfile.TarInfo(f"target of {name}"), tarfile.TarInfo(name)
            target.size = len(content)
            tar.addfile(target, io.BytesIO(content))
            link.type, link.linkname = tarfile.SYMTYPE, target.name
            tar.addfile(link)
    with pytest.raises(QuantspikeError, match=r"links\.tar is not the official"):
        load_source(str(path), downloads=tmp_path)
    monkeypatch.setattr(sources, "_LARGEST", len(official.files["data_batch_1"]) - 1)
    path.write_bytes(official.archive)
    for source in (path, official.unpack(tmp_path)):
        with pytest.raises(QuantspikeError, match=r": data_batch_1\b.* missing or damaged"):
            load_source(str(source), downloads=tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cifar-10-batches-bin/data_batch_1.bin"], "the binary version of CIFAR-10: set data.source to cifar10"),
        (["mine/data_batch_1.bin"], "the binary version of CIFAR-10: set data.source to cifar10"),
        (["cifar-10-batches-mat/data_batch_1.mat"], "arrays of MATLAB: save its images as PNG files in train/<class>/"),
        (["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"], "CIFAR-100: save its images"),
        (["mine/train", "mine/test", "mine/meta"], "CIFAR-100: save its images"),
        (["mine/train/1.png", "mine/test/1.png", "mine/trainLabels.csv"], "Kaggle's version of CIFAR-10: set"),
        (["mine/train/1.png", "mine/test/1.png", "mine/sampleSubmission.csv"], "Kaggle's version of CIFAR-10: set"),
        (["mine/plain_text/train-00000-of-00001.parquet"], "a table of Hugging Face: save its images as PNG files in"),
        (["mine/train.npz"], "arrays of NumPy: save its images as PNG files in train/<class>/"),
        (["mine/cifar10.zip"], "a zip archive: unpack it first and set data.source to the folder"),
    ],
)
def test_other_forms_are_recognized_as_a_folder_as_an_archive_and_as_a_file(
    names: list[str], message: str, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    folder = names[0].split("/")[0]
    (tmp_path / "archive").write_bytes(tar_of(dict.fromkeys(names, b"content"), folder=""))
    for source in (folder, "archive", names[-1]):
        with pytest.raises(QuantspikeError, match=rf"\. \S+ looks like {re.escape(message)}") as caught:
            load_source(source, downloads=tmp_path, root=tmp_path)
        assert "damaged" not in str(caught.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_batch_with_another_checksum_is_named_and_never_unpickled(official: Official, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = official.unpack(tmp_path)
    for name in ("data_batch_2", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(QuantspikeError, match=r"data_batch_2, batches\.meta missing or damaged \(MD5\)\. Get"):
        load_source(str(folder), downloads=tmp_path)
    (tmp_path / "trapped.tar").write_bytes(tar_of({file.name: file.read_bytes() for file in folder.iterdir()}))
    with pytest.raises(QuantspikeError, match=r"trapped\.tar: data_batch_2, batches\.meta missing or damaged"):
        load_source("trapped.tar", downloads=tmp_path, root=tmp_path)
    assert not sprung.exists()
    pickle.loads((folder / "data_batch_2").read_bytes())
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_missing_batch_is_named(official: Official, tmp_path: Path, name: str) -> None:
    folder = official.unpack(tmp_path)
    (folder / name).unlink()
    with pytest.raises(QuantspikeError, match=rf"cifar-10-batches-py: {name} missing or damaged"):
        load_source(str(folder), downloads=tmp_path)


class Server(HTTPServer):
    """Sends `content` as the official archive."""

    content = b""


@pytest.fixture
def server(official: Official) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(official.archive)))
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        official.patch(official.cifar10, "url", f"http://127.0.0.1:{server.server_port}/archive")
        yield server
        server.shutdown()
        thread.join()


def test_cifar10_is_downloaded_once(official: Official, server: Server, tmp_path: Path) -> None:
    server.content = official.archive
    official.check(load_source("cifar10", downloads=tmp_path / "downloads"), md5(official.archive))
    assert sorted(os.listdir(tmp_path / "downloads")) == [ARCHIVE, "lock"]
    server.content = b"nobody asks for it again"
    official.check(load_source("cifar10", downloads=tmp_path / "downloads"), md5(official.archive))


def test_a_download_that_was_cut_off_is_refused_and_then_replaced(
    official: Official, server: Server, tmp_path: Path
) -> None:
    server.content = official.archive[:-100]
    with pytest.raises(QuantspikeError, match="could not be downloaded"):
        load_source("cifar10", downloads=tmp_path)
    assert os.listdir(tmp_path) == ["lock"]
    server.content = official.archive
    official.check(load_source("cifar10", downloads=tmp_path), md5(official.archive))


def test_an_interrupt_deletes_what_was_half_downloaded_and_nothing_else(
    official: Official, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    archive = tmp_path / ARCHIVE
    archive.write_bytes(official.archive)
    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils.check_md5", interrupt)  # Ctrl-C while an intact archive is checked
        with pytest.raises(KeyboardInterrupt):
            load_source("cifar10", downloads=tmp_path)
    assert archive.read_bytes() == official.archive

    archive.write_bytes(official.archive[:-100])
    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._urlretrieve", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_source("cifar10", downloads=tmp_path)
    assert not archive.exists()


def test_a_server_that_says_nothing_is_not_waited_for(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        official.patch(official.cifar10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{ARCHIVE}")
        with pytest.raises(QuantspikeError, match=r"could not be downloaded: .*timed out"):
            load_source("cifar10", downloads=tmp_path)
    assert socket.getdefaulttimeout() is None


def test_two_downloads_do_not_collide(official: Official, server: Server, tmp_path: Path) -> None:
    server.content = official.archive
    with (
        locked(tmp_path, "free"),
        pytest.raises(QuantspikeError, match=r"another process is downloading to .*: wait for it, or stop it first"),
    ):
        load_source("cifar10", downloads=tmp_path)
    official.check(load_source("cifar10", downloads=tmp_path), md5(official.archive))


def test_without_network_the_other_sources_are_named(official: Official, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"nothing-is-here\.tar\.gz could not be downloaded: ") as caught:
        load_source("cifar10", downloads=tmp_path)
    for part in (ARCHIVE, "cifar-10-batches-py", "train/<class>/", "digits", "make demo"):
        assert part in str(caught.value)


# Digits, and paths that lead nowhere.


def test_digits_are_split_evenly_over_the_classes(tmp_path: Path) -> None:
    dataset = load_source("digits", downloads=tmp_path)
    assert dataset.train_images.shape == (1437, 1, 8, 8)
    assert dataset.test_images.shape == (360, 1, 8, 8)
    assert dataset.class_names == tuple("0123456789")
    # 360 / 10 classes = 36 each; the classes hold 174 to 183 of 1,797 images, 360 / 1797 of which are 34.9 to 36.7
    assert set(np.bincount(dataset.test_labels)) <= {35, 36, 37}
    assert (dataset.fingerprint["kind"], dataset.fingerprint["source_md5"]) == ("digits", None)
    assert dataset.fingerprint == load_source("digits", downloads=tmp_path).fingerprint


def test_digits_use_the_whole_range_of_a_byte(tmp_path: Path) -> None:
    shades = np.unique(load_source("digits", downloads=tmp_path).train_images).tolist()
    # v 255 / 16 for v = 0, 1, 8, 15, 16: 0, 15.94, 127.5 (to even: 128), 239.06, 255
    assert {0, 16, 128, 239, 255} <= set(shades)
    assert len(shades) == 17


def test_digits_do_not_need_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torchvision", "torchvision.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    importlib.reload(sources)
    assert sources.load_source("digits", downloads=tmp_path).classes == 10
    with pytest.raises(ModuleNotFoundError, match="torchvision"):
        sources.load_source(__file__, downloads=tmp_path)


@pytest.mark.parametrize("source", ["no/such/place", "~nobody-has-this-name/images"])
def test_a_path_that_does_not_exist_lists_the_sources(source: str, tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=rf"{source}' does not exist[\s\S]*cifar10 [\s\S]*digits"):
        load_source(source, downloads=tmp_path)


def test_a_relative_path_starts_from_the_root_alone(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official.unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    looked_for = re.escape(str(tmp_path / "project" / "cifar-10-batches-py"))
    message = rf"data\.source 'cifar-10-batches-py' does not exist[\s\S]*\nThe path looked for was {looked_for}$"
    with pytest.raises(QuantspikeError, match=message):
        load_source("cifar-10-batches-py", downloads=tmp_path, root=Path("project"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(QuantspikeError, match=r"data\.source 'pipe' does not exist"):
        load_source("pipe", downloads=tmp_path, root=tmp_path)


def test_a_path_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"data\.source .* could not be read: .*too long"):
        load_source("x" * 300, downloads=tmp_path)
