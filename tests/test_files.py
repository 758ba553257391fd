"""Files are whole or not there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path, clear_leftovers, read_json, write_csv, write_json, write_text


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def write_half(path: Path, failure: BaseException) -> None:
    """A write that fails in the middle."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise failure


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_was_written_takes_the_place_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    for content in (b"first", b"second, longer"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent  # a rename is atomic within one file system only
            assert temporary.suffix == path.suffix
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    assert listing(path.parent) == ["file.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, QuantspikeError])
def test_a_failure_leaves_nothing_where_nothing_was(failure: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(failure, match="in the middle"):
        write_half(tmp_path / "file", failure("in the middle"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_content(failure: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(failure):
        write_half(path, failure())
    assert (listing(tmp_path), path.read_text()) == (["file"], "old")


def test_a_write_that_the_file_system_refuses_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(QuantspikeError, match=r"file could not be written: .*No space left.*untouched"):
        write_half(path, OSError(28, "No space left on device"))
    assert (listing(tmp_path), path.read_text()) == (["file"], "old")


def test_a_folder_of_that_name_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(QuantspikeError, match="name could not be written"):
        write_text(tmp_path / "name", "text")
    assert listing(tmp_path) == ["name"]


def test_a_file_where_a_folder_should_be_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("a file")
    with pytest.raises(QuantspikeError, match=r"metrics/ann\.json could not be written"):
        write_text(tmp_path / "metrics" / "ann.json", "text")


def test_a_name_that_is_too_long_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="could not be written"):
        write_text(tmp_path / ("n" * 300), "text")


def test_a_block_that_removes_its_file_is_an_error_and_not_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match="could not be written"), atomic_path(tmp_path / "file") as temporary:
        temporary.unlink()
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("usual_umask")
def test_files_get_the_permissions_that_any_other_file_would_get(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "text")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_text_is_utf8_and_line_ends_are_kept(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "größer\nals\n")
    assert (tmp_path / "file").read_bytes() == "größer\nals\n".encode()


def test_json_comes_back_as_it_was_and_is_indented(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None, True], "a": {"name": "k"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    text = (tmp_path / "x.json").read_text()
    assert text.startswith('{\n  "b": [')  # in the order it was given
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan_and_no_infinity(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": [value]})
    assert read_json(tmp_path / "x.json") == {"loss": 1.0}
    assert listing(tmp_path) == ["x.json"]


def test_a_table_has_a_header_and_a_row_per_value(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", {"step": [1, 2], "share": [0.5, None], "name": ["a,b", 'c"d']})
    assert (tmp_path / "x.csv").read_bytes() == b'step,share,name\n1,0.5,"a,b"\n2,,"c""d"\n'


def test_a_table_without_rows_keeps_its_header(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", {"step": [], "share": []})
    assert (tmp_path / "x.csv").read_bytes() == b"step,share\n"


def test_columns_of_unequal_length_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_csv(tmp_path / "x.csv", {"step": [1, 2], "share": [0.5]})
    assert listing(tmp_path) == []


def test_an_absent_json_file_names_itself_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(QuantspikeError, match=r"x\.json is not there: run the stage that writes it"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"{'a': 1}"])
def test_a_damaged_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"x\.json is damaged: .*delete it"):
        read_json(tmp_path / "x.json")


def test_what_killed_processes_left_half_written_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    leftovers = [".train.safetensors.ab12.safetensors", ".train.csv.ab12.csv", ".tmpX1"]
    others = ["train.csv", "train.safetensors", ".gitignore", "notes.tmp"]
    for name in leftovers + others:
        (tmp_path / name).touch()
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    clear_leftovers(tmp_path / "absent")
