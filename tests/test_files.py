"""Files are complete or absent, tensors come back as written, and one process at a time holds a lock."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantspike.errors import QuantspikeError
from quantspike.files import (
    Header,
    atomic_path,
    delete_temporary_files,
    load_tensors,
    locked,
    read_json,
    save_tensors,
    write_csv,
    write_json,
    write_text,
)
from stage_processes import start, wait_until


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# Atomic writes


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"first", b"second, longer"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent  # a rename is atomic within one file system only
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644  # as any other file


def write_half(path: Path, failure: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt("x"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("before", [[], [("file", "old")]])
def test_a_failure_leaves_the_folder_as_it_was(
    before: list[tuple[str, str]], failure: BaseException, tmp_path: Path
) -> None:
    for name, text in before:
        (tmp_path / name).write_text(text)
    expected: tuple[type[BaseException], str] = (type(failure), "x")
    if isinstance(failure, OSError):
        expected = (QuantspikeError, r"file could not be written: .*No space left.*; the previous file is untouched")
    with pytest.raises(expected[0], match=expected[1]):
        write_half(tmp_path / "file", failure)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == before


@pytest.mark.parametrize("name", ["folder", "file/below", "n" * 300])
def test_a_path_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(QuantspikeError, match=f"{name} could not be written"):
        write_text(tmp_path / name, "text")
    assert names(tmp_path) == ["file", "folder"]


def test_temporary_files_of_killed_processes_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    others = ["train.csv", "train.safetensors", ".gitignore", "notes.part"]
    for name in [".train.safetensors.ab12.part", ".train.csv.ab12.part", *others]:
        (tmp_path / name).touch()
    delete_temporary_files(tmp_path)
    assert names(tmp_path) == sorted(others)
    delete_temporary_files(tmp_path / "absent")


# Locks


def hold_lock(folder: Path) -> None:
    """Hold a lock until killed."""
    with locked(folder, "not free"):
        folder.with_name("held").touch()
        signal.pause()


def test_a_lock_has_one_holder_and_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    holder = start(hold_lock, folder)
    wait_until(folder.with_name("held").exists)
    (folder / ".state.ab12.part").touch()
    with pytest.raises(QuantspikeError, match="somebody holds it"), locked(folder, "somebody holds it"):
        pass
    assert names(folder) == [".state.ab12.part", "lock"]
    holder.kill()
    holder.join()
    with locked(folder, "somebody holds it"):
        assert names(folder) == ["lock"]  # what the killed process left half-written is deleted


def test_a_lock_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QuantspikeError, match="file/lock cannot be locked"), locked(tmp_path / "file", "busy"):
        pass


# JSON and CSV


def test_json_is_indented_utf8_in_the_order_given(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None, True], "a": {"name": "größer"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert (tmp_path / "x.json").read_bytes().startswith(b'{\n  "b": [')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan_and_no_infinity(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": [value]})
    assert read_json(tmp_path / "x.json") == {"loss": 1.0}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"{'a': 1}"])
def test_a_damaged_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"x\.json is damaged \(.*\): delete it and run dvc repro"):
        read_json(tmp_path / "x.json")


def test_a_table_has_a_header_and_a_row_per_value(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", {"step": [1, 2], "share": [0.5, None], "name": ["a,b", 'c"d']})
    assert (tmp_path / "x.csv").read_bytes() == b'step,share,name\n1,0.5,"a,b"\n2,,"c""d"\n'
    write_csv(tmp_path / "x.csv", {"step": [], "share": []})
    assert (tmp_path / "x.csv").read_bytes() == b"step,share\n"
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "x.csv", {"step": [1, 2], "share": [0.5]})


# Tensors

HEADER: Header = {"layers": "4C3-5", "k": 1, "note": "größer", "another": 0}
TENSORS = {
    "b": torch.arange(6, dtype=torch.int16).reshape(2, 3),
    "a": torch.tensor([0.5, -1.0]),
    "empty": torch.zeros(0),
    "view": torch.arange(12).reshape(3, 4).T[1:3],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "folder" / "some.safetensors"
    save_tensors(file, "some-format", 3, HEADER, TENSORS)
    return file


def load(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    return load_tensors(path, "some-format", 3)


def test_header_and_tensors_are_read_back_as_they_were_written(path: Path) -> None:
    header, tensors = load(path)
    assert header == {"version": 3} | HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_the_same_content_gives_the_same_bytes(path: Path) -> None:
    first = path.read_bytes()
    for _ in range(5):
        save_tensors(path, "some-format", 3, dict(HEADER), dict(TENSORS))
        assert path.read_bytes() == first


@pytest.mark.parametrize("read", [read_json, load])
def test_an_absent_file_is_named_with_the_remedy(read: object, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(QuantspikeError, match=r"nothing does not exist: run the stage that writes it \(dvc repro\)"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_file_that_was_cut_is_damaged(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(QuantspikeError, match=r"some\.safetensors is damaged \(.*\): delete it and run dvc repro"):
        load(path)


@pytest.mark.parametrize("header", ["{", "[]", "3", "null", '"version"'])
def test_a_header_that_is_not_a_mapping_is_damaged(path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"some-format": header})
    with pytest.raises(QuantspikeError, match="is damaged"):
        load(path)


def test_another_format_or_version_is_refused(path: Path) -> None:
    with pytest.raises(QuantspikeError, match="is not a other-format file: delete it and run dvc repro"):
        load_tensors(path, "other-format", 3)
    with pytest.raises(QuantspikeError, match="has version 3, this quantspike reads 4: delete it"):
        load_tensors(path, "some-format", 4)
    with pytest.raises(QuantspikeError, match="has version 3, this quantspike reads 1 and 2: delete it"):
        load_tensors(path, "some-format", 1, 2)
    assert load_tensors(path, "some-format", 2, 3)[0]["version"] == 3
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(QuantspikeError, match="is not a some-format file"):
        load(path)
