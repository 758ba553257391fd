"""Files are complete or absent, tensors come back as written, and one process at a time holds a lock."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from hostile import JSON, fuzz, largest_file, mutations
from make_networks import random_integer_network
from quantspike.conversion import integer
from quantspike.conversion.integer import class_scores, load_integer_network, save_integer_network
from quantspike.data import dataset
from quantspike.data.dataset import build_dataset, load_dataset, save_dataset
from quantspike.errors import QuantspikeError
from quantspike.files import (
    Header,
    atomic_path,
    damaged,
    delete_temporary_files,
    load_tensors,
    locked,
    read_json,
    reading,
    save_tensors,
    write_csv,
    write_json,
    write_text,
)
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import new_network
from quantspike.training import checkpoints, evaluation
from quantspike.training.checkpoints import ResumeStore, load_checkpoint, save_checkpoint
from quantspike.training.evaluation import load_scores, save_scores
from quantspike.training.optimizer import Optimizer
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


@pytest.mark.parametrize(
    "write",
    [
        lambda path, n: write_text(path, n * "x"),
        lambda path, n: write_json(path, n * "x"),
        lambda path, n: write_csv(path, {"x": ["x" * n]}),
        lambda path, n: save_tensors(path, "some-format", 3, {}, {"x": torch.zeros(n, dtype=torch.uint8)}),
    ],
)
def test_on_a_full_disk_the_error_names_file_and_size_and_the_old_file_is_kept(
    write: Callable[[Path, int], None], tmp_path: Path
) -> None:
    write(tmp_path / "file", 1)
    before = (tmp_path / "file").read_bytes()
    # Sizes are rounded up: a few bytes more than 2.3 MB.
    message = r"file could not be written: .*; it needs 2\.[34] MB; the previous file is untouched"
    with largest_file(1_000_000), pytest.raises(QuantspikeError, match=message):
        write(tmp_path / "file", 2_300_000)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == before


@pytest.mark.parametrize("name", ["folder", "file/below", "n" * 300])
def test_a_path_that_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(QuantspikeError, match=f"{name} could not be written"):
        write_text(tmp_path / name, "text")
    assert names(tmp_path) == ["file", "folder"]


def test_temporary_files_of_killed_processes_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    others = ["train.csv", "train.safetensors", ".gitignore", "notes.part"]
    for name in [".train.safetensors.ab12.part", ".train.csv.ab12.part", ".tmpoEW2PM", *others]:
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


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"{'a': 1}", bytes(64), b"[" * 100_000, b"9" * 5000])
def test_a_damaged_json_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"x\.json is damaged \(.*\): delete it and run dvc repro"):
        read_json(tmp_path / "x.json")


def test_a_json_file_that_was_cut_or_zeroed_anywhere_is_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": [1, 2.5, None, True], "a": {"name": "größer"}})
    whole = (tmp_path / "x.json").read_bytes()
    for place in range(len(whole) - 1):  # the last byte is the end of the last line
        for content in (whole[:place], whole[:place] + bytes(len(whole) - place)):
            (tmp_path / "x.json").write_bytes(content)
            with pytest.raises(QuantspikeError, match=r"x\.json is damaged"):
                read_json(tmp_path / "x.json")


def test_an_error_while_a_file_is_read_names_the_file_once(tmp_path: Path) -> None:
    for error in (OverflowError("too large"), QuantspikeError("too large"), damaged(tmp_path, "too large")):
        with pytest.raises(QuantspikeError) as raised, reading(tmp_path):
            raise error
        assert str(raised.value) == f"{tmp_path} is damaged (too large): delete it and run dvc repro"


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


@pytest.mark.parametrize(
    "header", ["{", "[]", "3", "null", '"version"', "[" * 100_000, '{"version": %s}' % ("9" * 5000)]
)
def test_a_header_that_is_not_a_mapping_is_damaged(path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"some-format": header})
    with pytest.raises(QuantspikeError, match="is damaged"):
        load(path)


@pytest.mark.parametrize("checksum", [{}, {"sha256": None}, {"sha256": "0" * 64}, {"sha256": [1]}])
def test_a_file_of_the_current_version_without_its_checksum_is_damaged(checksum: Header, path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"some-format": json.dumps({"version": 3} | checksum)})
    with pytest.raises(
        QuantspikeError, match=r"is damaged \(its content does not match its checksum\): delete it and run"
    ):
        load(path)
    missing = not checksum.get("sha256")
    with nullcontext() if missing else pytest.raises(QuantspikeError, match="does not match its checksum"):
        load_tensors(path, "some-format", 3, 4)  # 3 is an old version here, which had none


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "float16", "uint8", "complex64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_tensors_of_every_type_are_read_back_and_a_change_is_detected(
    shape: tuple[int, ...], dtype: str, path: Path
) -> None:
    tensor = torch.ones(shape).to(getattr(torch, dtype))
    save_tensors(path, "some-format", 3, {}, {"x": tensor})
    loaded = load(path)[1]["x"]
    assert (loaded.dtype, loaded.shape, loaded.tolist()) == (tensor.dtype, tensor.shape, tensor.tolist())
    if tensor.numel():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(QuantspikeError, match="does not match its checksum"):
            load(path)


@pytest.mark.parametrize(("shape", "end"), [([2**40], 2**42), ([2**32, 2**32], 64), ([2**62, 4], 0), ([16], 2**63)])
def test_a_file_that_claims_more_than_it_holds_is_damaged(shape: list[int], end: int, path: Path) -> None:
    claim = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
    text = json.dumps({"a": claim, "__metadata__": {"some-format": '{"version": 3}'}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(QuantspikeError, match=r"some\.safetensors is damaged"):
        load(path)


def test_another_format_or_version_is_refused(path: Path) -> None:
    with pytest.raises(QuantspikeError, match="is not a other-format file: delete it and run dvc repro"):
        load_tensors(path, "other-format", 3)
    with pytest.raises(QuantspikeError, match="has version 3, this quantspike reads 4: delete it"):
        load_tensors(path, "some-format", 4)
    with pytest.raises(QuantspikeError, match="has version 3, this quantspike reads 1, 2: delete it"):
        load_tensors(path, "some-format", 1, 2)
    assert load_tensors(path, "some-format", 2, 3)[0]["version"] == 3
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(QuantspikeError, match="is not a some-format file"):
        load(path)


# Files of every kind: checkpoint, state, integer network, class scores and images

ARCHITECTURE = Architecture.parse("2C3-P2-3", image_size=4, image_channels=1, classes=3)
IMAGES = torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4)
STORE = ResumeStore(Path(), "train-1", "0" * 16)


def save_trained(path: Path) -> None:
    network = new_network(ARCHITECTURE, 1, 0, clip=2)
    save_checkpoint(path, network, Optimizer(network, "adam"), {"settings": {}, "device": "größer"})


def use_trained(path: Path) -> None:
    load_checkpoint(path, ARCHITECTURE, 1).network(IMAGES.float())


def save_state(path: Path) -> None:
    replace(STORE, folder=path.parent).save({"network.x": torch.arange(20.0)}, [{"epoch": 1, "loss": 0.1}])


def use_state(path: Path) -> None:
    state = replace(STORE, folder=path.parent).load()
    if state is None:
        raise QuantspikeError(f"{path} is damaged: skipped")
    assert all(isinstance(record, dict) for record in state[1])


def save_integers(path: Path) -> None:
    save_integer_network(path, random_integer_network("2C3-P2-3", 4, 0, channels=1, largest_count=5))


def use_integers(path: Path) -> None:
    class_scores(load_integer_network(path), IMAGES)


def save_images(path: Path) -> None:
    train, test = ((IMAGES.numpy().copy(), np.array([0, 1, 0])) for _ in range(2))
    save_dataset(build_dataset(train, test, ("cat", "dog"), kind="images", name="pets"), path)


def use_images(path: Path) -> None:
    dataset = load_dataset(path)
    assert dataset.test_labels.max() < dataset.classes
    json.dumps(dataset.fingerprint)


def save_evaluation(path: Path) -> None:
    save_scores(path, torch.arange(21.0).reshape(7, 3))


def use_evaluation(path: Path) -> None:
    load_scores(path, 7).argmax(1)


KINDS = {
    "quantspike-cnn": (checkpoints.VERSION, save_trained, use_trained),
    "quantspike-resume": (checkpoints.STATE_VERSION, save_state, use_state),
    "quantspike-integer-network": (integer.VERSION, save_integers, use_integers),
    "quantspike-images": (dataset.VERSION, save_images, use_images),
    "quantspike-scores": (evaluation.VERSION, save_evaluation, use_evaluation),
}


@pytest.fixture(scope="module")
def any_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every kind of file can lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # most of the time, and no power is cut here
        yield tmp_path_factory.mktemp("kinds") / f"train-1-{'0' * 16}-000001.safetensors"


def rewrite(path: Path, content: bytes) -> None:
    """Write a file anew, which takes a file system less time than to cut the old one."""
    path.unlink()
    path.write_bytes(content)


def damaged_contents(whole: bytes) -> Iterator[bytes]:
    """Yield what a power cut or a bad cell of memory leaves of a file: it is cut or zeroed, or a bit is flipped."""
    for place in range(0, len(whole), len(whole) // 80):
        yield whole[:place]
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for end in (len(whole), min(place + 64, len(whole))):
            if any(whole[place:end]):
                yield whole[:place] + bytes(end - place) + whole[end:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_zeroed_or_changed_anywhere_is_named(kind: str, any_path: Path) -> None:
    _, save, use = KINDS[kind]
    save(any_path)
    use(any_path)
    for content in damaged_contents(any_path.read_bytes()):
        rewrite(any_path, content)
        with pytest.raises(QuantspikeError, match=any_path.name):
            use(any_path)


def used_or_named(use: Callable[[Path], object], path: Path) -> bool:
    """Return whether a file can be used; check that an error names it."""
    try:
        use(path)
    except QuantspikeError as error:
        assert path.name in str(error)  # noqa: PT017 (it may also be used)
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@fuzz(data=st.data())
def test_random_edits_of_a_file_are_detected(kind: str, data: st.DataObject, any_path: Path) -> None:
    version, save, use = KINDS[kind]
    save(any_path)
    before = load_tensors(any_path, kind, version)
    rewrite(any_path, data.draw(mutations(any_path.read_bytes())))
    if used_or_named(use, any_path):
        # An edit that changes nothing, or white space.
        assert repr(load_tensors(any_path, kind, version)) == repr(before)


WRONG_TENSORS = (
    torch.zeros(0, 3),
    torch.tensor(1.0),
    torch.full((7, 3), torch.nan),
    torch.zeros(7, 3).to(torch.float8_e4m3fn),
    torch.zeros(7, 3, dtype=torch.complex64),
    torch.full((2, 1, 3, 3), 2**14, dtype=torch.int16),
    torch.full((3,), -(2**31), dtype=torch.int32),
)


@pytest.mark.parametrize("kind", KINDS)
@fuzz(data=st.data())
def test_a_file_of_other_content_is_refused_or_can_be_used(kind: str, data: st.DataObject, any_path: Path) -> None:
    version, save, use = KINDS[kind]
    save(any_path)
    header, tensors = load_tensors(any_path, kind, version)
    entries = st.sampled_from([name for name in header if name != "version"] or ["x"])
    header |= data.draw(st.dictionaries(entries, JSON, max_size=2))
    if data.draw(st.booleans()):
        tensors[data.draw(st.sampled_from([*tensors, "x"]))] = data.draw(st.sampled_from(WRONG_TENSORS))
    save_tensors(any_path, kind, version, header, tensors)
    used_or_named(use, any_path)
