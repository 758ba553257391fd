"""States of a training: what is loaded is what was saved last, whole, whatever happened to files and processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.resume import ResumeStore, fingerprint, sole_writer
from stage_processes import limit_files, start, wait_until

posix = pytest.mark.skipif(os.name != "posix", reason="this system has no limits on file sizes, or no kill -9")

PROGRESS = {"records": [{"epoch": 1, "loss": 0.1, "validation_accuracy": None}], "step": 3, "seconds": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> ResumeStore:
    return ResumeStore(tmp_path / "tiny-small-1-0", "train", "0123456789abcdef")


def tensors(number: float) -> dict[str, Tensor]:
    """Every kind of tensor that a training has: fp32 in four dimensions, fp64, int64, and one of no dimension."""
    return {
        "network.weight": torch.full((2, 3, 2, 2), number),
        "losses": torch.full((4,), number / 3, dtype=torch.float64),
        "network.batches": torch.tensor(7),
        "adam.step": torch.tensor([number]),
    }


def save(store: ResumeStore, epoch: int, step: int = 0) -> Path:
    return store.save(tensors(epoch), PROGRESS | {"step": step}, epoch, step)


def loaded(store: ResumeStore) -> float | None:
    """Which number the tensors hold that are found, all of them checked."""
    found = store.load()
    if found is None:
        return None
    content, progress = found
    number = content["adam.step"].item()
    expected = tensors(number)
    assert content.keys() == expected.keys()
    for name, tensor in content.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    assert progress | {"step": 3} == PROGRESS
    return float(number)


# What is saved is found


def test_a_state_comes_back_as_it_was_saved(store: ResumeStore) -> None:
    assert store.load() is None
    store.save(tensors(1.5), PROGRESS, epoch=2, step=3)
    found = store.load()
    assert found is not None
    assert found[1] == PROGRESS
    assert loaded(store) == 1.5


def test_tensors_of_any_memory_layout_are_saved(store: ResumeStore) -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    store.save({"weight": weight.requires_grad_()}, PROGRESS, 1, 1)
    found = store.load()
    assert found is not None
    assert torch.equal(found[0]["weight"], weight)


def test_the_newest_two_states_are_kept(store: ResumeStore) -> None:
    paths = [save(store, epoch, step) for epoch, step in ((1, 0), (2, 0), (2, 150), (10, 0), (10, 9), (10, 10))]
    assert store.states() == paths[-2:]
    assert loaded(store) == 10


def test_discarding_deletes_all_own_states_and_no_others(store: ResumeStore) -> None:
    other = save(ResumeStore(store.folder, "train", "f" * 16), 1)
    later = save(ResumeStore(store.folder, "finetune", store.fingerprint), 1)
    for epoch in (1, 2):
        save(store, epoch)
    store.discard()
    assert sorted(store.folder.iterdir()) == sorted([other, later])


def test_states_of_another_fingerprint_or_stage_are_never_taken(store: ResumeStore) -> None:
    other = save(ResumeStore(store.folder, "train", "f" * 16), 9)
    save(ResumeStore(store.folder, "finetune", store.fingerprint), 9)
    assert store.load() is None
    assert store.others() == [other]  # of the same stage
    save(store, 1)
    assert loaded(store) == 1
    assert store.others() == [other]


# Damage


def test_a_state_that_was_cut_off_anywhere_is_passed_over(
    store: ResumeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    save(store, 1)
    newest = save(store, 2)
    whole = newest.read_bytes()
    for size in range(len(whole)):
        newest.write_bytes(whole[:size])
        assert loaded(store) == 1, f"{size} of {len(whole)} bytes"
    assert capsys.readouterr().err.count(f"{newest.name} is passed over: ") == len(whole)
    newest.write_bytes(whole)
    assert loaded(store) == 2


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_a_state_with_any_byte_changed_is_passed_over(flip: int, store: ResumeStore) -> None:
    save(store, 1)
    newest = save(store, 2)
    whole = newest.read_bytes()
    for place, byte in enumerate(whole):
        newest.write_bytes(whole[:place] + bytes([byte ^ flip]) + whole[place + 1 :])
        # A change that JSON takes for the same, such as that of a space, does no harm.
        assert loaded(store) == 1 or harmless(whole, place), f"byte {place} of {len(whole)}"


def harmless(content: bytes, place: int) -> bool:
    return chr(content[place]).isspace()


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"no state at all", b"\xff" * 100])
def test_a_file_of_something_else_is_passed_over(content: bytes, store: ResumeStore) -> None:
    save(store, 1)
    save(store, 2).write_bytes(content)
    assert loaded(store) == 1


def test_bytes_added_at_the_end_are_noticed(store: ResumeStore) -> None:
    save(store, 1)
    newest = save(store, 2)
    newest.write_bytes(newest.read_bytes() + b"\0")
    assert loaded(store) == 1


def test_where_all_states_are_damaged_training_begins_anew_and_its_states_are_kept(store: ResumeStore) -> None:
    for epoch in (6, 7):
        save(store, epoch).write_bytes(b"damaged")
    assert store.load() is None
    first = save(store, 1)
    assert store.states() == [first]
    second = save(store, 2)
    assert store.states() == [first, second]
    assert loaded(store) == 2


def test_after_a_damaged_state_the_newest_two_whole_ones_are_kept(store: ResumeStore) -> None:
    before = save(store, 4)
    save(store, 5, step=9).write_bytes(b"damaged")
    assert loaded(store) == 4
    after = save(store, 5, step=2)
    assert store.states() == [before, after]


# Fingerprints


def test_a_fingerprint_depends_on_every_setting_and_every_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("content")
    two.write_text("more")
    seen = [fingerprint({"a": 1, "b": [2]}, [one, two]), fingerprint({"a": 1, "b": [3]}, [one, two])]
    seen += [fingerprint({"a": 1, "b": [2]}, [one]), fingerprint({"a": 1, "b": [2]}, [two, one])]
    assert fingerprint({"b": [2], "a": 1}, [one, two]) == seen[0]
    one.write_text("contenT")
    seen.append(fingerprint({"a": 1, "b": [2]}, [one, two]))
    one.write_text("contentm")
    two.write_text("ore")  # the same bytes in a row
    seen.append(fingerprint({"a": 1, "b": [2]}, [one, two]))
    assert len(set(seen)) == len(seen)


# One writer


def hold(folder: Path, ready: Path) -> None:
    """Trains a chain, as far as others can tell."""
    with sole_writer(folder):
        ready.touch()
        signal.pause()


@contextmanager
def holder(folder: Path, ready: Path) -> Iterator[BaseProcess]:
    process = start(hold, folder, ready)
    try:
        wait_until(ready.exists)
        yield process
    finally:
        process.kill()
        process.join()


@posix
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-small-1-0"
    with holder(folder, tmp_path / "ready") as process:
        half_written = folder / ".train-0123.safetensors.x1y2z3.safetensors"
        half_written.touch()
        with (
            pytest.raises(QuantspikeError, match=r"another process is training tiny-small-1-0 already: .*/lock\)"),
            sole_writer(folder),
        ):
            pass
        assert half_written.exists()  # it may be at work on it
        with sole_writer(tmp_path / "tiny-small-2-0"):  # another chain
            pass
        process.kill()
        process.join()
        with sole_writer(folder):
            assert not half_written.exists()


def test_the_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path):
        _ = 1 / 0
    with sole_writer(tmp_path):
        pass


def test_what_was_left_half_written_is_deleted_and_nothing_else(store: ResumeStore) -> None:
    kept = [save(store, 1), store.folder / "notes.txt", store.folder / ".hidden"]
    for path in kept[1:]:
        path.touch()
    (store.folder / f".{kept[0].name}.abc123.safetensors").write_bytes(b"half of it")
    (store.folder / ".tmpAbC123").write_bytes(b"half of it")  # of safetensors itself
    with sole_writer(store.folder):
        assert sorted(store.folder.iterdir()) == sorted([*kept, store.folder / "lock"])


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "resume").touch()
    with pytest.raises(QuantspikeError, match="resume"), sole_writer(tmp_path / "resume" / "chain"):
        pass


# Disk full, and killed at any byte


def save_with_limit(store: ResumeStore, size: int, action: Any, message: Path) -> None:
    limit_files(size, action)
    try:
        store.save({"weight": torch.ones(3_000_000)}, PROGRESS, 2, 0)
    except QuantspikeError as error:
        sys.stdout.flush()
        message.write_text(str(error))


@posix
@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_on_a_full_disk_file_and_size_are_named_and_the_state_before_is_kept(
    size: int, store: ResumeStore, tmp_path: Path
) -> None:
    before = save(store, 1)
    process = start(save_with_limit, store, size, signal.SIG_IGN, tmp_path / "message")
    process.join(60)
    message = (tmp_path / "message").read_text()
    # 3,000,000 numbers of 4 bytes
    assert str(store.folder / "train-0123456789abcdef-000002-00000000.safetensors could not be written: ") in message
    assert "it needs 12.0 MB" in message
    assert "what stood there before is untouched" in message
    assert list(store.folder.iterdir()) == [before]
    assert loaded(store) == 1


def die_while_saving(store: ResumeStore, size: int) -> None:
    limit_files(size, signal.SIG_DFL)  # the kernel kills the process at this byte
    save(store, 2)


@posix
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_process_that_is_killed_at_any_byte_of_a_state_leaves_the_one_before(
    share: float, store: ResumeStore
) -> None:
    before = save(store, 1)
    whole = save(ResumeStore(store.folder, "size", store.fingerprint), 2)
    process = start(die_while_saving, store, int(share * whole.stat().st_size))
    process.join(60)
    whole.unlink()
    assert process.exitcode == -signal.SIGXFSZ
    assert len(list(store.folder.iterdir())) > 1  # the state before, and something half-written
    assert (store.states(), loaded(store)) == ([before], 1)
    with sole_writer(store.folder):
        assert sorted(store.folder.iterdir()) == sorted([before, store.folder / "lock"])
