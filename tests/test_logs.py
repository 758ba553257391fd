"""Logs in the published format, read back: whole ones in every spelling, and every way in which they can be broken."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspike.errors import QuantspikeError
from quantspike.logs import FILES, Logs, command, find_logs, read_logs
from quantspike.logs.checks import CORRECT, NET_SPIKES, SPIKES, SYNOPS
from quantspike.logs.command import table
from quantspike.logs.reading import exact_numbers, plain_numbers, read_numbers
from quantspike.simulation.measures import CURVE_COLUMNS, curves, stable_step, write_logs
from quantspike.simulation.trace import Trace

LABELS = np.array([1, 0, 2, 1, 0])

WHOLE = {
    # Batches of images 1 and 2, 3 and 4, and 5 alone; four steps each.
    CORRECT: [*(1, 2, 2, 2), *(0, 0, 2, 2), *(1, 0, 0, 0)],
    SPIKES: [*(2, 5, 6, 6), *(4, 5, 7, 7), *(4, 7, 10, 12)],
    NET_SPIKES: [*(2, 3, 4, 4), *(4, 5, 5, 5), *(4, 5, 6, 6)],
    SYNOPS: [*(6, 15, 18, 18), *(12, 15, 21, 21), *(12, 21, 30, 36)],
}
"""Five images in three batches of two, as `write_logs` writes them."""

Content = dict[str, list[int]]


@pytest.fixture
def trace() -> Trace:
    """What `WHOLE` was made from: five images, four steps, every spike reaches three synapses."""
    positive = np.array([[2, 0, 1, 3, 4], [4, 0, 2, 3, 6], [5, 0, 3, 3, 8], [5, 0, 3, 3, 9]])
    negative = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 1, 0, 2], [1, 0, 1, 0, 3]])
    by_layer = np.zeros((4, 1), np.int64)
    return Trace(
        predictions=np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 2, 1, 1], [1, 0, 2, 1, 1]]),
        positive_spikes=positive,
        negative_spikes=negative,
        synops=3 * (positive + negative),
        largest_counts=np.array([9]),
        layer_positive=by_layer,
        layer_negative=by_layer,
        layer_synops=by_layer,
        layer_settled=by_layer,
        settled_step=np.array([3, 1, 3, 1, 6]),
        final_predictions=LABELS,
        integer_predictions=LABELS,
        mismatching_images=0,
        first_mismatch=None,
    )


def write(folder: Path, content: Content, changes: dict[tuple[str, int], object] | None = None) -> Path:
    """Writes logs in which some lines, counted from 1, read otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in content.items():
        lines = [(changes or {}).get((name, line), number) for line, number in enumerate(numbers, 1)]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def same(found: Logs, other: Logs) -> bool:
    names = ("correct", "positive_spikes", "negative_spikes", "synops")
    return all(getattr(found, name).tolist() == getattr(other, name).tolist() for name in names)


def in_lines(words: list[str], ending: str = "\n") -> bytes:
    return "".join(f"{word}{ending}" for word in words).encode()


# What is read


def test_what_was_written_is_read_back_summed_over_the_batches(tmp_path: Path, trace: Trace) -> None:
    write_logs(tmp_path, trace, LABELS, log_batch=2)
    found = read_logs(tmp_path, images=5, steps=4)
    assert (found.folder, found.images, found.steps, found.batches) == (tmp_path, 5, 4, 3)
    assert found.correct.tolist() == [2, 2, 4, 4]
    assert found.positive_spikes.tolist() == trace.positive_spikes.sum(axis=1).tolist() == [10, 15, 19, 20]
    assert found.negative_spikes.tolist() == trace.negative_spikes.sum(axis=1).tolist() == [0, 2, 4, 5]
    assert found.net_spikes.tolist() == [10, 13, 15, 15]
    assert found.synops.tolist() == trace.synops.sum(axis=1).tolist() == [30, 51, 69, 75]
    assert found.accuracy.tolist() == [2 / 5, 2 / 5, 4 / 5, 4 / 5]
    assert found.stable_step == 3
    counts = (found.correct, found.positive_spikes, found.negative_spikes, found.synops)
    assert {array.dtype for array in counts} == {np.dtype(np.int64)}


def test_the_curve_is_that_of_the_trace_without_settled(tmp_path: Path, trace: Trace) -> None:
    write_logs(tmp_path, trace, LABELS, log_batch=2)
    curve = read_logs(tmp_path, images=5, steps=4).curve()
    assert tuple(curve.columns) == CURVE_COLUMNS[:-1]
    assert CURVE_COLUMNS[-1] == "settled"
    expected = curves(trace, LABELS)
    assert {name: curve[name].tolist() for name in curve} == {name: expected[name] for name in curve}


@pytest.mark.parametrize(("log_batch", "batches"), [(1, 5), (2, 3), (3, 2), (4, 2), (5, 1), (50, 1)])
def test_every_batch_size_gives_the_same(tmp_path: Path, trace: Trace, log_batch: int, batches: int) -> None:
    write_logs(tmp_path / "some", trace, LABELS, log_batch)
    write_logs(tmp_path / "all", trace, LABELS, log_batch=5)
    found = read_logs(tmp_path / "some", images=5, steps=4)
    assert found.batches == batches
    assert same(found, read_logs(tmp_path / "all", images=5, steps=4))


def test_a_batch_of_full_size_may_be_all_correct_whatever_the_last_one_holds(tmp_path: Path) -> None:
    # 12 images in batches of 5 are 5, 5 and 2, not three times 4.
    content = {CORRECT: [5, 5, 2], SPIKES: [0] * 3, NET_SPIKES: [0] * 3, SYNOPS: [0] * 3}
    assert read_logs(write(tmp_path, content), images=12, steps=1).correct.tolist() == [12]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_stable_step_is_that_of_the_measures(correct: list[int]) -> None:
    counts = np.array(correct)
    found = Logs(Path(), 3, len(correct), 1, counts, counts, counts, counts)
    assert found.stable_step == stable_step(counts / 3)


def test_more_spikes_taken_back_than_fired_make_a_negative_net_count(tmp_path: Path) -> None:
    content = {CORRECT: [0, 0], SPIKES: [3, 5], NET_SPIKES: [-3, -1], SYNOPS: [0, 0]}
    found = read_logs(write(tmp_path, content), images=1, steps=2)
    # Three of -1, then two of +1.
    assert (found.positive_spikes.tolist(), found.negative_spikes.tolist()) == ([0, 2], [3, 3])


def test_counts_are_exact_up_to_half_of_what_64_bits_hold(tmp_path: Path) -> None:
    # Spikes and net spikes are added up before they are halved.
    largest = 2**62 - 1
    content = {CORRECT: [0], SPIKES: [largest], NET_SPIKES: [largest], SYNOPS: [largest]}
    found = read_logs(write(tmp_path, content), images=1, steps=1)
    assert (found.positive_spikes[0], found.negative_spikes[0], found.synops[0]) == (largest, 0, largest)
    write(tmp_path, content, {(SPIKES, 1): 2**62, (NET_SPIKES, 1): 2**62})
    with pytest.raises(
        QuantspikeError, match=rf"spike_num\.txt, line 1 .*: {2**62} is too large to be added up over 1"
    ):
        read_logs(tmp_path, images=1, steps=1)


SPELLINGS: dict[str, Callable[[list[int]], bytes]] = {
    "CRLF": lambda numbers: in_lines([str(n) for n in numbers], "\r\n"),
    "byte order mark": lambda numbers: b"\xef\xbb\xbf" + in_lines([str(n) for n in numbers]),
    "byte order mark and CRLF": lambda numbers: b"\xef\xbb\xbf" + in_lines([str(n) for n in numbers], "\r\n"),
    "no newline at the end": lambda numbers: in_lines([str(n) for n in numbers]).rstrip(),
    "blank lines at the end": lambda numbers: in_lines([*(str(n) for n in numbers), "", " ", ""], "\r\n"),
    "blanks around": lambda numbers: in_lines([f"  {n}\t" for n in numbers]),
    "Python floats": lambda numbers: in_lines([str(float(n)) for n in numbers]),
    "torch's printing": lambda numbers: in_lines([f"{n}." for n in numbers]),
    "exponents": lambda numbers: in_lines([f"{n / 10}e+01" for n in numbers]),
    "zeros and signs": lambda numbers: in_lines([f"+000{n}" for n in numbers]),
    "a mixture": lambda numbers: in_lines([f"{n}.0" if i % 3 else str(n) for i, n in enumerate(numbers)]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_whole_numbers_is_read(tmp_path: Path, spelling: str) -> None:
    for name, numbers in WHOLE.items():
        (tmp_path / name).write_bytes(SPELLINGS[spelling](numbers))
    found = read_logs(tmp_path, images=5, steps=4)
    assert same(found, read_logs(write(tmp_path / "plain", WHOLE), images=5, steps=4))


@pytest.mark.parametrize("form", ["%.18e", "%d", "%g", "%.2f"])
def test_what_numpy_savetxt_writes_is_read(tmp_path: Path, form: str) -> None:
    for name, numbers in WHOLE.items():
        np.savetxt(tmp_path / name, np.array(numbers, np.float64), fmt=form)
    found = read_logs(tmp_path, images=5, steps=4)
    assert same(found, read_logs(write(tmp_path / "plain", WHOLE), images=5, steps=4))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9007199254740993", 2**53 + 1),  # no float
        ("9007199254740993.0", 2**53 + 1),
        ("9.007199254740993e15", 2**53 + 1),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775807.000", 2**63 - 1),
        ("-9223372036854775807", 1 - 2**63),
        ("1.23e+05", 123_000),
        ("1230e-1", 123),
        (".5e1", 5),
        ("-0.0", 0),
        ("0e999999999", 0),
    ],
)
def test_numbers_are_never_rounded(tmp_path: Path, text: str, number: int) -> None:
    (tmp_path / "numbers.txt").write_text(f"{text}\n7\n")
    assert read_numbers(tmp_path / "numbers.txt").tolist() == [number, 7]


@given(st.lists(st.text("0123456789-\r\n", max_size=25), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_the_fast_way_reads_what_the_exact_one_does_or_leaves_it_to_that(parts: list[str], ending: str) -> None:
    content = ending.join(parts).encode()
    found = plain_numbers(content)
    if found is not None:
        assert found.tolist() == exact_numbers(content, Path("log")).tolist()


@given(st.lists(st.integers(1 - 2**63, 2**63 - 1), min_size=1))
def test_the_fast_way_reads_all_whole_numbers_of_64_bits(numbers: list[int]) -> None:
    content = in_lines([str(number) for number in numbers])
    found = plain_numbers(content)
    assert found is not None
    assert found.tolist() == exact_numbers(content, Path("log")).tolist() == numbers


# What is refused

Changes = dict[tuple[str, int], object]

DEFECTS: dict[str, tuple[Changes, str, int, str]] = {
    "a word": ({(SPIKES, 3): "six"}, SPIKES, 3, "expected one whole number, found 'six'; write or copy"),
    "two numbers": ({(SPIKES, 3): "6 6"}, SPIKES, 3, "expected one whole number, found '6 6'"),
    "an underscore": ({(SPIKES, 3): "1_0"}, SPIKES, 3, "expected one whole number, found '1_0'"),
    "digits that are not ASCII": ({(SPIKES, 3): "٦"}, SPIKES, 3, "expected one whole number, found '٦'"),
    "a long line": ({(SPIKES, 3): "x" * 99}, SPIKES, 3, f"found '{'x' * 37}...'"),
    "a blank line": ({(SYNOPS, 5): ""}, SYNOPS, 5, "expected a whole number, found a blank line"),
    "a first line that is blank": ({(SYNOPS, 1): " "}, SYNOPS, 1, "expected a whole number, found a blank line"),
    "a fraction": ({(NET_SPIKES, 2): "3.5"}, NET_SPIKES, 2, "expected a whole number, found the fraction '3.5'"),
    "a tiny fraction": ({(SYNOPS, 2): "1e-999999999"}, SYNOPS, 2, "found the fraction '1e-999999999'"),
    "a fraction no float has": (
        {(SYNOPS, 2): "9007199254740992.01"},
        SYNOPS,
        2,
        "found the fraction '9007199254740992.01'",
    ),
    "nan": ({(CORRECT, 12): "nan"}, CORRECT, 12, "expected one whole number, found 'nan'"),
    "infinity": ({(CORRECT, 12): "-inf"}, CORRECT, 12, "expected one whole number, found '-inf'"),
    "more than int64": (
        {(SYNOPS, 4): 2**63},
        SYNOPS,
        4,
        "expected a whole number of 64 bits, at most 9223372036854775807, found '9223372036854775808'",
    ),
    "far more than int64": ({(SYNOPS, 4): "1e999999999"}, SYNOPS, 4, "at most 9223372036854775807, found '1e999"),
    "sums of more than int64": (
        {(SYNOPS, 4): 2**62},
        SYNOPS,
        4,
        f"{2**62} is too large to be added up over 3 batches in 64 bits",
    ),
    "a negative accuracy": ({(CORRECT, 5): -1}, CORRECT, 5, "expected a count from 0, found -1"),
    "negative spikes": ({(SPIKES, 1): -2}, SPIKES, 1, "expected a count from 0, found -2"),
    "negative SOPs": ({(SYNOPS, 8): -21}, SYNOPS, 8, "expected a count from 0, found -21"),
    "spikes that fall": (
        {(SPIKES, 7): 1},
        SPIKES,
        7,
        "1 follows 5, but cumulative numbers never fall within a batch: a number is damaged or cut off, "
        "or --steps is not 4",
    ),
    "SOPs that fall": ({(SYNOPS, 11): 3}, SYNOPS, 11, "3 follows 21, but cumulative numbers never fall"),
    "more net spikes than spikes": (
        {(NET_SPIKES, 6): 7},
        NET_SPIKES,
        6,
        "expected net spikes no larger than the 5 spikes in the same line of spike_num.txt, found 7",
    ),
    "more spikes taken back than there are": ({(NET_SPIKES, 6): -7}, NET_SPIKES, 6, "than the 5 spikes"),
    "an odd sum": (
        {(NET_SPIKES, 10): 4},
        NET_SPIKES,
        10,
        "4 net spikes cannot come from 7 spikes (same line of spike_num.txt), since their sum, twice the positive "
        "spikes, is odd",
    ),
    "negative spikes that fall": (
        # Of 7 spikes after 5 were 6 positive, after 5: 2 new ones cannot change the net count from 5 to 1.
        {(NET_SPIKES, 7): 1},
        NET_SPIKES,
        7,
        "net spikes change by -4 in a step of 2 spikes (spike_num.txt): a number is damaged or cut off, or --steps "
        "is not 4",
    ),
    "more correct than a batch holds": (
        # Of five images in three batches, the first two have two at most.
        {(CORRECT, 7): 3},
        CORRECT,
        7,
        "3 correct images, but with 5 images in 3 batches none holds more than 2; a number is damaged, --images is "
        "more than 5, or --steps more than 4",
    ),
    "more correct than all images": (
        {(CORRECT, 10): 2, (CORRECT, 6): 2},
        CORRECT,
        10,
        "up to this batch 6 images are correct at this step, of 5; a number is damaged",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_named_with_file_and_line(tmp_path: Path, defect: str) -> None:
    changes, name, line, message = DEFECTS[defect]
    write(tmp_path, WHOLE, changes)
    where = re.escape(f"{tmp_path / name}, line {line}")
    with pytest.raises(QuantspikeError, match=rf"^{where}( \(batch \d, step \d\))?: .*{re.escape(message)}"):
        read_logs(tmp_path, images=5, steps=4)


def test_batch_and_step_of_a_line_are_named(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, {(SPIKES, 7): 1})
    with pytest.raises(QuantspikeError, match=r"spike_num\.txt, line 7 \(batch 2, step 3\): 1 follows 5"):
        read_logs(tmp_path, images=5, steps=4)


def test_a_fall_from_one_batch_to_the_next_is_none(tmp_path: Path) -> None:
    assert WHOLE[SPIKES][3:5] == [6, 4]
    assert read_logs(write(tmp_path, WHOLE), images=5, steps=4).batches == 3


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_what_was_found(tmp_path: Path, name: str) -> None:
    write(tmp_path, WHOLE)
    (tmp_path / name).rename(tmp_path / f"{name}.gz")
    others = ", ".join(sorted([*(other for other in FILES if other != name), f"{name}.gz"]))
    message = f"{tmp_path} lacks {name}: expected {', '.join(FILES)}, found {others}; write or copy"
    with pytest.raises(QuantspikeError, match=rf"^{re.escape(message)}"):
        read_logs(tmp_path, images=5, steps=4)


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / CORRECT).mkdir()
    with pytest.raises(QuantspikeError, match=r"lacks accuracy\.txt, .*sop_num\.txt: .* found accuracy\.txt/; "):
        read_logs(tmp_path, images=5, steps=4)


@pytest.mark.parametrize("content", [b"", b"\n\r\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    (write(tmp_path, WHOLE) / SPIKES).write_bytes(content)
    with pytest.raises(QuantspikeError, match=r"spike_num\.txt, line 1: the file is empty: expected one number per"):
        read_logs(tmp_path, images=5, steps=4)


@pytest.mark.parametrize(("content", "line"), [(b"2\n5\n\xe4\n", 3), ("2\n5\n".encode("utf-16"), 1)])
def test_what_is_not_utf_8_is_named(tmp_path: Path, content: bytes, line: int) -> None:
    (write(tmp_path, WHOLE) / SPIKES).write_bytes(content)
    with pytest.raises(QuantspikeError, match=rf"spike_num\.txt, line {line}: .* found bytes that are not UTF-8 text"):
        read_logs(tmp_path, images=5, steps=4)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, WHOLE)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(QuantspikeError, match=r"accuracy\.txt could not be read: .*Permission denied.*permissions"):
        read_logs(tmp_path, images=5, steps=4)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(QuantspikeError, match=r"could not be read: .*Permission denied.*check its permissions"):
        read_logs(tmp_path, images=5, steps=4)


@pytest.mark.parametrize("read", [find_logs, lambda folder: read_logs(folder, images=5, steps=4)])
def test_a_folder_that_is_none_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(QuantspikeError, match=r"/away is not there: name a folder of logs"):
        read(tmp_path / "away")
    (tmp_path / "file").touch()
    with pytest.raises(QuantspikeError, match=r"/file is a file: name the folder that it lies in"):
        read(tmp_path / "file")


def test_logs_that_were_cut_short_are_told_from_their_number_of_lines(tmp_path: Path) -> None:
    write(tmp_path, {name: numbers[:-1] for name, numbers in WHOLE.items()})
    message = (
        "accuracy.txt, line 11: the file ends at step 3 of batch 3: 11 lines are no whole number of batches of 4 "
        "steps; the logs were cut short, or --steps is not 4"
    )
    with pytest.raises(QuantspikeError, match=re.escape(message)):
        read_logs(tmp_path, images=5, steps=4)


def test_files_of_different_length_are_named_with_their_lines(tmp_path: Path) -> None:
    write(tmp_path, WHOLE | {NET_SPIKES: WHOLE[NET_SPIKES][:8]})
    message = (
        "spike_collect.txt, line 8: the file ends here, the others after other numbers of lines "
        "(accuracy.txt 12, spike_num.txt 12, sop_num.txt 12); all four have a line per batch and step: write or copy"
    )
    with pytest.raises(QuantspikeError, match=re.escape(message)):
        read_logs(tmp_path, images=5, steps=4)


def test_more_batches_than_images_are_refused(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    message = "accuracy.txt, line 9: batch 3 begins here, but there are 2 images; --images is more than 2, or --steps"
    with pytest.raises(QuantspikeError, match=re.escape(message)):
        read_logs(tmp_path, images=2, steps=4)


def test_too_many_steps_show_in_numbers_that_fall(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    with pytest.raises(QuantspikeError, match=r"line 5 \(batch 1, step 5\): 4 follows 6, .* or --steps is not 12"):
        read_logs(tmp_path, images=5, steps=12)


def test_too_few_steps_show_in_more_correct_images_than_there_are(tmp_path: Path) -> None:
    # Two batches of four steps read as four of two: 2 + 2 + 1 + 2 = 7 correct images at the second step.
    numbers = [2, 2, 2, 2, 1, 1, 2, 2]
    write(tmp_path, {CORRECT: numbers, SPIKES: [0] * 8, NET_SPIKES: [0] * 8, SYNOPS: [0] * 8})
    assert read_logs(tmp_path, images=4, steps=4).accuracy.tolist() == [3 / 4, 3 / 4, 1, 1]
    with pytest.raises(QuantspikeError, match=r"accuracy\.txt, line 1 .* --images is more than 4, or --steps more th"):
        read_logs(tmp_path, images=4, steps=2)


@pytest.mark.parametrize(
    ("images", "steps", "batch", "name"),
    [(0, 4, None, "--images"), (5, -1, None, "--steps"), (5, 4, 0, "--batch"), (5, 4, -1, "--batch")],
)
def test_images_steps_and_batches_are_counted_from_one(
    tmp_path: Path, images: int, steps: int, batch: int | None, name: str
) -> None:
    with pytest.raises(QuantspikeError, match=rf"^{name} must be a whole number from 1, found (0|-1)$"):
        read_logs(write(tmp_path, WHOLE), images, steps, batch)


@pytest.mark.parametrize(("batch", "expected"), [(1, 5), (3, 2), (4, 2), (5, 1), (50, 1)])
def test_another_number_of_batches_than_their_size_makes_is_refused(tmp_path: Path, batch: int, expected: int) -> None:
    message = (
        f"{write(tmp_path, WHOLE) / CORRECT}, line 12: the file ends after 3 batches, but 5 images in batches of "
        f"{batch} make {expected}; the logs were cut short, or --batch is not {batch}"
    )
    with pytest.raises(QuantspikeError, match=f"^{re.escape(message)}$"):
        read_logs(tmp_path, images=5, steps=4, batch=batch)


def test_logs_that_end_between_two_batches_are_taken_for_whole_unless_the_size_is_told(tmp_path: Path) -> None:
    assert read_logs(write(tmp_path / "whole", WHOLE), images=5, steps=4, batch=2).batches == 3
    short = write(tmp_path / "short", {name: numbers[:8] for name, numbers in WHOLE.items()})
    assert read_logs(short, images=5, steps=4).batches == 2
    with pytest.raises(
        QuantspikeError, match=r"accuracy\.txt, line 8: .* after 2 batches, .* of 2 make 3; the logs were"
    ):
        read_logs(short, images=5, steps=4, batch=2)


# The published figures


def published(name: str) -> list[dict[str, str]]:
    path = Path(__file__).resolve().parents[2] / "shared" / "published" / name
    if not path.is_file():
        pytest.skip(f"no published figures here: {path.name} is not beside the project")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_logs_of_the_published_curves_give_the_published_summary(tmp_path: Path) -> None:
    columns = {
        CORRECT: "accuracy",
        SPIKES: "spikes_per_image",
        NET_SPIKES: "net_spikes_per_image",
        SYNOPS: "sops_per_image",
    }
    content: dict[tuple[str, str], Content] = {}
    for row in published("curves.csv"):
        lists = content.setdefault((row["model"], row["k"]), {name: [] for name in FILES})
        for name, column in columns.items():
            total = Decimal(row[column]) * 10_000
            assert total == int(total)
            lists[name].append(int(total))
    summary = [row for row in published("summary.csv") if row["k"] != "fp32"]
    assert {(row["model"], row["k"]) for row in summary} == set(content)
    for row in summary:
        key = row["model"], row["k"]
        found = read_logs(write(tmp_path / row["model"] / f"k{row['k']}", content[key]), images=10_000, steps=100)
        curve = found.curve().set_index("step")
        last = curve.loc[100]
        assert found.accuracy[-1] == float(row["final_accuracy"]), key
        assert found.stable_step == int(row["stable_from_step"]), key
        assert {f"accuracy_at_{t}": curve.accuracy[t] for t in (1, 2, 4, 8, 16, 32, 64)} == {
            name: float(value) for name, value in row.items() if name.startswith("accuracy_at_")
        }, key
        spikes = curve.positive_spikes + curve.negative_spikes
        assert int((spikes != spikes[100]).sum()) + 1 == int(row["last_spike_step"]), key
        # The summary is rounded to whole numbers, and the curves to tenths (SOPs) and hundredths (spikes) before.
        for name, value, rounding in (
            ("sops_per_image", last.synops, 0.55),
            ("spikes_per_image", spikes[100], 0.505),
            ("positive_spikes_per_image", last.positive_spikes, 0.505),
            ("negative_spikes_per_image", last.negative_spikes, 0.505),
        ):
            assert abs(value - int(row[name])) <= rounding, (key, name)
    assert [folder.name for folder in find_logs(tmp_path / "cnn1")] == ["k0", "k1", "k2"]


# The command


def test_folders_of_k_are_found_by_number(tmp_path: Path) -> None:
    for k in (10, 2, 0):
        write(tmp_path / f"k{k}", WHOLE)
    (tmp_path / "kfp32").mkdir()
    (tmp_path / "k7").touch()
    assert find_logs(tmp_path) == [tmp_path / "k0", tmp_path / "k2", tmp_path / "k10"]
    assert find_logs(tmp_path / "k2") == [tmp_path / "k2"]


def test_a_folder_of_k_that_lacks_its_logs_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "k0", WHOLE)
    (tmp_path / "k1").mkdir()
    assert find_logs(tmp_path) == [tmp_path / "k0", tmp_path / "k1"]
    with pytest.raises(QuantspikeError, match=r"/k1 lacks accuracy\.txt, .* found nothing; "):
        read_logs(tmp_path / "k1", images=5, steps=4)


def test_a_folder_with_logs_of_its_own_beside_those_of_k_stands_for_all(tmp_path: Path) -> None:
    write(tmp_path / "k0", WHOLE)
    write(tmp_path, WHOLE)
    assert find_logs(tmp_path) == [tmp_path, tmp_path / "k0"]


def test_a_folder_without_logs_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
    message = (
        f"{tmp_path} holds no logs: expected accuracy.txt, spike_num.txt, spike_collect.txt, sop_num.txt or folders "
        "k0, k1, ... with them, found a/, b/, c/, d/, e/, f/, g/, h/ and 2 more; name the folder that they lie in"
    )
    with pytest.raises(QuantspikeError, match=f"^{re.escape(message)}$"):
        find_logs(tmp_path)


def test_the_table_has_a_line_per_folder_and_averages_per_image(tmp_path: Path) -> None:
    large = {CORRECT: [1, 1], SPIKES: [1_000_000, 3_000_002], NET_SPIKES: [0, 2], SYNOPS: [0, 2**53 - 1]}
    folders = [write(tmp_path / "a" / "k0", WHOLE), write(tmp_path / "b" / "k0", large)]
    assert table([read_logs(folders[0], images=5, steps=4), read_logs(folders[1], images=2, steps=2)]).splitlines() == [
        "folder  accuracy %  stable step  positive spikes  negative spikes                   SOPs  batches",
        "a/k0         80.00            3                4                1                     15        3",
        "b/k0         50.00            1          750,001          750,000  4,503,599,627,370,496        1",
    ]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["metrics/one/logs/k0", "metrics/one/logs/k1"], ["k0", "k1"]),
        (["metrics/one/logs/k0", "metrics/two/logs/k1"], ["one/logs/k0", "two/logs/k1"]),
        (["logs", "logs/k0"], ["logs", "logs/k0"]),
        (["logs/k1"], ["k1"]),
        (["logs", "logs"], ["logs", "logs"]),
        (["."], ["here"]),
    ],
)
def test_folders_go_by_what_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], names: list[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    counts = np.ones(1, np.int64)
    lines = table([Logs(Path(folder), 1, 1, 1, *[counts] * 4) for folder in folders]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == names


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "k1", WHOLE)
    write(tmp_path / "mine" / "k0", WHOLE, {(CORRECT, 8): 1, (SYNOPS, 12): 5036})
    command = [sys.executable, "-m", "quantspike.logs", "mine", "--images", "5", "--steps", "4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    note = (
        "note: mine/{} has 3 batches, which cannot share 5 images equally; if that is not so, the logs were cut short: "
        "name the size of the batches with --batch"
    )
    assert (done.returncode, done.stderr.splitlines()) == (0, [note.format("k0"), note.format("k1")])
    assert done.stdout.splitlines() == [
        "folder  accuracy %  stable step  positive spikes  negative spikes   SOPs  batches",
        "k0           60.00            4                4                1  1,015        3",
        "k1           80.00            3                4                1     15        3",
        "",
        "After step 4; spikes and SOPs per image, averages of 5 images.",
    ]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["logs", *arguments])
    command.main()


def test_with_the_size_of_the_batches_or_with_equal_ones_there_is_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, WHOLE)
    call(monkeypatch, str(tmp_path), "--images", "5", "--steps", "4", "--batch", "2")
    call(monkeypatch, str(tmp_path), "--images", "6", "--steps", "4")  # three times two
    found = capsys.readouterr()
    assert found.err == ""
    assert found.out.count("After step 4;") == 2


def test_the_command_refuses_logs_that_end_between_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {name: numbers[:8] for name, numbers in WHOLE.items()})
    with pytest.raises(SystemExit, match=r"^error: .*/accuracy\.txt, line 8: the file ends after 2 batches, "):
        call(monkeypatch, str(tmp_path), "--images", "5", "--steps", "4", "--batch", "2")


def test_a_folder_counts_once_however_often_and_by_whatever_path_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "mine" / "k0", WHOLE)
    write(tmp_path / "mine" / "k1", WHOLE)
    (tmp_path / "link").symlink_to("mine")
    monkeypatch.chdir(tmp_path)
    names = ["mine", "mine/k1", "link", "./mine/../mine/k0", str(tmp_path / "mine")]
    call(monkeypatch, *names, "--images", "6", "--steps", "4")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["k0", "k1"]
    assert lines[3] == ""


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (
            ["metrics/demo/cnn1-1-0/logs/k1", "their/logs/k1"],  # as in README.md
            [(1, "metrics/demo/cnn1-1-0"), (1, "their")],
        ),
        (["k1/ours", "k1/theirs/logs", "logs/k2"], [(None, "k1/ours"), (None, "k1/theirs"), (2, "")]),
        (["a/k1", "b/logs/k1", "c/logs/old/k1"], [(1, "a"), (1, "b"), (1, "c/logs/old")]),
        (["k1", "logs/k1"], [(1, "k1"), (1, "logs")]),
        # Without `logs` these would have one name.
        (["a/k1", "a/logs/k1", "b/k1"], [(1, "a/k1"), (1, "a/logs/k1"), (1, "b")]),
        (["x", "x/logs"], [(None, "x"), (None, "x/logs")]),
    ],
)
def test_logs_are_labelled_by_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], labels: list[tuple[int | None, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = np.ones(1, np.int64)
    labelled = command.labelled([Logs(Path(folder), 1, 1, 1, *[counts] * 4) for folder in folders])
    assert [(k, origin) for _, k, origin in labelled] == labels


def test_the_command_tells_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "k0", WHOLE)
    write(tmp_path / "k1", WHOLE, {(SPIKES, 3): "six"})
    with pytest.raises(SystemExit, match=r"^error: .*/k1/spike_num\.txt, line 3: expected one whole number, found 'si"):
        call(monkeypatch, str(tmp_path), "--images", "5", "--steps", "4")


@pytest.mark.parametrize(("images", "steps"), [("0", "4"), ("5", "-1"), ("5", "1.5"), ("many", "4")])
def test_the_command_counts_images_and_steps_from_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: str, steps: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "folder", "--images", images, "--steps", steps)
    assert re.search(r"argument --(images|steps): expected a whole number from 1, found ", capsys.readouterr().err)


def test_reading_logs_takes_no_torch() -> None:
    code = "import sys, quantspike.logs.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
