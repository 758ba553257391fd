"""Data sources other than class folders."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantspike import data
from quantspike.data import Dataset, first_source, load_source
from quantspike.errors import QuantspikeError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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
        self.patch(CIFAR10, "url", "http://127.0.0.1:9/nobody-listens-here.tar.gz")

    def unpack(self, folder: Path) -> Path:
        """Writes the unpacked folder and returns it."""
        target = folder / "cifar-10-batches-py"
        target.mkdir()
        for name, content in self.files.items():
            (target / name).write_bytes(content)
        return target

    def check(self, dataset: Dataset, source_md5: str | None) -> None:
        assert (dataset.train_images == self.train_pixels.reshape(-1, 3, 32, 32)).all()
        assert (dataset.test_images == self.test_pixels.reshape(-1, 3, 32, 32)).all()
        assert dataset.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert dataset.test_labels.tolist() == [7, 8, 9]
        assert dataset.class_names == tuple(NAMES)
        assert (dataset.image_size, dataset.channels, dataset.classes) == (32, 3, 10)
        assert dataset.fingerprint["kind"] == "cifar10"
        assert dataset.fingerprint["name"] == "CIFAR-10 (official archive)"
        assert dataset.fingerprint["source_md5"] == source_md5


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Official:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Official(monkeypatch)


@pytest.fixture
def archive(official: Official, tmp_path: Path) -> Path:
    path = tmp_path / "renamed.bin"
    path.write_bytes(official.archive)
    return path


def test_the_official_archive_is_read_under_any_file_name(official: Official, archive: Path, tmp_path: Path) -> None:
    official.check(load_source(str(archive), downloads=tmp_path / "unused"), md5(official.archive))
    assert [path.name for path in tmp_path.iterdir()] == [archive.name], "nothing is left beside the archive"


def test_the_unpacked_folder_and_its_parent_give_the_same_images(official: Official, tmp_path: Path) -> None:
    folder = official.unpack(tmp_path)
    inner, outer = (load_source(str(path), downloads=tmp_path) for path in (folder, tmp_path))
    official.check(inner, None)
    assert inner.fingerprint == outer.fingerprint


def test_the_unpacked_folder_may_be_the_current_one(
    official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(official.unpack(tmp_path))
    dataset = load_source(".", downloads=tmp_path)
    official.check(dataset, None)
    assert dataset.fingerprint["kind"] == "cifar10"


@pytest.mark.parametrize("cut", [0, 1000])
def test_an_official_archive_with_another_checksum_is_refused(official: Official, archive: Path, cut: int) -> None:
    altered = official.archive[:-cut] if cut else tar_of({**official.files, "readme.html": b"more"})
    archive.write_bytes(altered)
    with pytest.raises(QuantspikeError) as caught:
        load_source(str(archive), downloads=archive.parent)
    for part in (str(archive), md5(altered), md5(official.archive), "Delete it and get it again from"):
        assert part in str(caught.value)


def test_a_zip_of_the_official_folder_is_refused_as_no_official_archive(official: Official, tmp_path: Path) -> None:
    path = tmp_path / "cifar.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("cifar-10-batches-py/data_batch_1", b"")
    with pytest.raises(QuantspikeError, match=r"has MD5 .* expected is"):
        load_source(str(path), downloads=tmp_path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_batch_with_another_checksum_is_named_and_never_unpickled(official: Official, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    folder = official.unpack(tmp_path)
    (folder / "data_batch_2").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(QuantspikeError, match=r"data_batch_2 has MD5 .*Unpack the archive again"):
        load_source(str(folder), downloads=tmp_path)
    assert not sprung.exists()
    pickle.loads((folder / "data_batch_2").read_bytes())
    assert sprung.exists(), "the trap works"


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_missing_batch_is_named(official: Official, tmp_path: Path, name: str) -> None:
    folder = official.unpack(tmp_path)
    (folder / name).unlink()
    with pytest.raises(QuantspikeError, match=rf"{name} is missing: unpack"):
        load_source(str(folder), downloads=tmp_path)


# Downloads, from a server on this machine.


class Server(HTTPServer):
    """Counts its requests."""

    n_requests = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.n_requests += 1
        super().process_request(request, client_address)


@pytest.fixture
def server(official: Official) -> Iterator[Server]:
    """Serves /whole, /cut (half the body), /silent (nothing more after the header), else 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in ("/whole", "/cut", "/silent"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(official.archive)))
            self.end_headers()
            if self.path == "/silent":
                released.wait(10)
            else:
                self.wfile.write(official.archive[: len(official.archive) // (1 if self.path == "/whole" else 2)])

        def log_message(self, *_: object) -> None:
            pass

    released = threading.Event()
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def point_to(official: Official, server: Server, path: str) -> None:
    official.patch(official.cifar10, "url", f"http://127.0.0.1:{server.server_port}{path}")


def test_cifar10_is_downloaded_once(official: Official, server: Server, tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    point_to(official, server, "/whole")
    official.check(load_source("cifar10", downloads=downloads), md5(official.archive))
    assert [path.name for path in downloads.iterdir()] == ["cifar-10-python.tar.gz"]
    n_requests = server.n_requests
    assert n_requests > 0
    official.check(load_source("cifar10", downloads=downloads), md5(official.archive))
    assert server.n_requests == n_requests


def expect_failed_download(downloads: Path, message: str) -> str:
    with pytest.raises(QuantspikeError, match=message) as caught:
        load_source("cifar10", downloads=downloads)
    assert list(downloads.iterdir()) == [], "nothing half-written may stay"
    return str(caught.value)


def test_without_network_the_other_sources_are_named(official: Official, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        official.patch(official.cifar10, "url", f"http://127.0.0.1:{taken.getsockname()[1]}/archive")
        message = expect_failed_download(tmp_path, "could not be downloaded: .*refused")
    for part in ("cifar-10-python.tar.gz", "cifar-10-batches-py", "train/<class>/", "zip", "digits", "make demo"):
        assert part in message


def test_a_missing_page_is_reported(official: Official, server: Server, tmp_path: Path) -> None:
    point_to(official, server, "/moved")
    expect_failed_download(tmp_path, "moved could not be downloaded: HTTP Error 404")


def test_a_download_that_is_cut_off_is_removed(official: Official, server: Server, tmp_path: Path) -> None:
    point_to(official, server, "/cut")
    expect_failed_download(tmp_path, "has MD5 .* it is cut off|could not be downloaded")


def test_a_download_that_goes_silent_is_given_up(
    official: Official, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "NETWORK_TIMEOUT", 0.2)
    # Only the second request, the one for the body, must hang: the first looks for redirections.
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    point_to(official, server, "/silent")
    expect_failed_download(tmp_path, "could not be downloaded: .*timed out")
    assert socket.getdefaulttimeout() is None


def test_an_interrupted_download_leaves_nothing(
    official: Official, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(url: str, filename: str) -> None:
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    point_to(official, server, "/whole")
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_source("cifar10", downloads=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_among_the_downloads_is_named(official: Official, tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(b"half")
    with pytest.raises(QuantspikeError, match=rf"{re.escape(str(path))} has MD5 .*Delete it"):
        load_source("cifar10", downloads=tmp_path)


# Digits, and paths that lead nowhere.


def test_digits_are_split_evenly_over_the_classes(tmp_path: Path) -> None:
    dataset = load_source("digits", downloads=tmp_path)
    assert dataset.train_images.shape == (1437, 1, 8, 8)
    assert dataset.test_images.shape == (360, 1, 8, 8)
    assert dataset.class_names == tuple("0123456789")
    # 360 / 10 classes = 36 each; the classes hold 174 to 183 of 1,797 images, 360 / 1797 of which are 34.9 to 36.7
    assert set(np.bincount(dataset.test_labels)) <= {35, 36, 37}
    assert dataset.fingerprint["kind"] == "digits"
    assert dataset.fingerprint["source_md5"] is None
    assert dataset.fingerprint == load_source("digits", downloads=tmp_path).fingerprint


def test_digits_use_the_whole_range_of_a_byte(tmp_path: Path) -> None:
    dataset = load_source("digits", downloads=tmp_path)
    # v 255 / 16 for v = 0, 1, 8, 15, 16: 0, 15.94, 127.5 (to even: 128), 239.06, 255
    assert {0, 16, 128, 239, 255} <= set(np.unique(dataset.train_images).tolist())
    assert len(np.unique(dataset.train_images)) == 17


def test_a_path_that_does_not_exist_lists_the_sources(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"'no/such/place' does not exist[\s\S]*cifar10 [\s\S]*digits"):
        load_source("no/such/place", downloads=tmp_path)


def test_of_several_sources_the_first_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert first_source(["nothing", "images", "digits"], tmp_path) == "images"
    assert first_source([str(tmp_path / "images"), "digits"]) == str(tmp_path / "images")
    assert first_source(["nothing", "digits", "images"], tmp_path) == "digits"
    assert first_source(["nothing", "nothing either"], tmp_path) == "nothing either"


@pytest.mark.parametrize("source", ["~nobody-has-this-name/images", "x" * 300])
def test_a_place_that_cannot_be_looked_at_is_an_error(source: str, tmp_path: Path) -> None:
    for call in (lambda: first_source([source], tmp_path), lambda: load_source(source, downloads=tmp_path)):
        with pytest.raises(QuantspikeError, match=r"data\.source .* could not be read: "):
            call()
