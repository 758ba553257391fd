"""The official CIFAR-10, the digits, and paths that lead nowhere; folders of images are in test_image_folders.py."""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
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

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ARCHIVE = "cifar-10-python.tar.gz"


# The official archive, in small: the same layout with two batches of four images and three test images.


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def batch(first_label: int, count: int) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(first_label).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, "labels": list(range(first_label, first_label + count))}, 2), pixels


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
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


def test_the_official_archive_is_read_under_any_file_name(official: Official, tmp_path: Path) -> None:
    path = tmp_path / "renamed.bin"
    path.write_bytes(official.archive)
    official.check(load_source(str(path), downloads=tmp_path / "unused"), md5(official.archive))
    assert os.listdir(tmp_path) == ["renamed.bin"], "nothing is left next to the archive"


def test_the_unpacked_folder_and_its_parent_give_the_same_images(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = official.unpack(tmp_path)
    dataset = load_source(str(folder), downloads=tmp_path)
    official.check(dataset, None)
    assert load_source(str(tmp_path), downloads=tmp_path).fingerprint == dataset.fingerprint
    assert load_source(folder.name, downloads=tmp_path, root=tmp_path).fingerprint == dataset.fingerprint
    monkeypatch.chdir(folder)
    assert load_source(".", downloads=tmp_path).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", tar_of({"data_batch_1": b"altered"})])
def test_any_other_file_is_refused_with_both_checksums(official: Official, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.zip"
    path.write_bytes(content)
    with pytest.raises(QuantspikeError) as caught:
        load_source(str(path), downloads=tmp_path)
    for part in (str(path), md5(content), md5(official.archive), official.cifar10.url, "unpack it first"):
        assert part in str(caught.value)


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
    with pytest.raises(QuantspikeError, match=r"data_batch_2, batches\.meta missing or damaged \(MD5\)\. Unpack"):
        load_source(str(folder), downloads=tmp_path)
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
    assert os.listdir(tmp_path / "downloads") == [ARCHIVE]
    server.content = b"nobody asks for it again"
    official.check(load_source("cifar10", downloads=tmp_path / "downloads"), md5(official.archive))


def test_a_download_that_was_cut_off_is_refused_and_then_replaced(
    official: Official, server: Server, tmp_path: Path
) -> None:
    server.content = official.archive[:-100]
    with pytest.raises(QuantspikeError, match="could not be downloaded"):
        load_source("cifar10", downloads=tmp_path)
    server.content = official.archive
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


def test_a_path_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"data\.source .* could not be read: .*too long"):
        load_source("x" * 300, downloads=tmp_path)
