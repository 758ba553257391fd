"""Files of tensors: read back as written, the same bytes twice, and refused where something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantspike.errors import QuantspikeError
from quantspike.tensors import Header, load_tensors, save_tensors

HEADER: Header = {"layers": "4C3-5", "k": 1, "note": "größer", "another": 0}
TENSORS = {
    "b": torch.arange(6, dtype=torch.int16).reshape(2, 3),
    "a": torch.tensor([0.5, -1.0]),
    "empty": torch.zeros(0),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "folder" / "some.safetensors"
    save_tensors(file, "some-format", 3, HEADER, TENSORS)
    return file


def test_header_and_tensors_are_read_back_as_they_were_written(path: Path) -> None:
    header, tensors = load_tensors(path, "some-format", 3)
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


def test_a_tensor_that_is_a_view_is_written_in_its_own_order(path: Path) -> None:
    view = torch.arange(12).reshape(3, 4).T[1:3]
    save_tensors(path, "some-format", 3, {}, {"view": view})
    assert torch.equal(load_tensors(path, "some-format", 3)[1]["view"], view)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"nothing\.safetensors is not there: run the stage that writes it"):
        load_tensors(tmp_path / "nothing.safetensors", "some-format", 3)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_file_that_was_cut_is_damaged(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(QuantspikeError, match=r"some\.safetensors is damaged \(.*\): delete it and run dvc repro"):
        load_tensors(path, "some-format", 3)


def test_a_file_of_something_else_is_damaged(path: Path) -> None:
    path.write_text("no tensors at all, but a text that is longer than a header's length")
    with pytest.raises(QuantspikeError, match="is damaged"):
        load_tensors(path, "some-format", 3)


def test_another_format_is_refused(path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"is no other-format file: delete it and run dvc repro"):
        load_tensors(path, "other-format", 3)


def test_a_file_without_any_header_is_refused(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(QuantspikeError, match="is no some-format file"):
        load_tensors(path, "some-format", 3)


def test_another_version_is_refused(path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"is of version 3, this quantspike reads 4"):
        load_tensors(path, "some-format", 4)


@pytest.mark.parametrize("header", ["{", "[]", "3", "null", '"version"'])
def test_a_header_that_is_no_mapping_is_damaged(path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"some-format": header})
    with pytest.raises(QuantspikeError, match="is damaged"):
        load_tensors(path, "some-format", 3)


def test_a_folder_that_refuses_writing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QuantspikeError, match=r"some\.safetensors could not be written"):
        save_tensors(tmp_path / "file" / "some.safetensors", "some-format", 3, HEADER, TENSORS)


def test_a_write_that_fails_leaves_the_file_before_it(path: Path) -> None:
    before = path.read_bytes()
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        save_tensors(path, "some-format", 3, HEADER, {"a": shared, "b": shared})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["some.safetensors"]
