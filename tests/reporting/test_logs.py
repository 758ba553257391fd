"""Logs in the published format: valid ones in every spelling, and every way in which they can be wrong."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile import fuzz, mutations
from quantspike.errors import QuantspikeError
from quantspike.reporting.logs import (
    CORRECT,
    FILES,
    NET_SPIKES,
    SPIKES,
    SYNOPS,
    Logs,
    find_logs,
    labelled,
    read_logs,
    table,
)
from quantspike.simulation.measures import stable_step, write_logs

VALID = {
    # Batches of images 1 and 2, 3 and 4, and 5 alone; four steps each.
    CORRECT: [*(1, 2, 2, 2), *(0, 0, 2, 2), *(1, 0, 0, 0)],
    SPIKES: [*(2, 5, 6, 6), *(4, 5, 7, 7), *(4, 7, 10, 12)],
    NET_SPIKES: [*(2, 3, 4, 4), *(4, 5, 5, 5), *(4, 5, 6, 6)],
    SYNOPS: [*(6, 15, 18, 18), *(12, 15, 21, 21), *(12, 21, 30, 36)],
}
"""Five images in three batches of two, as `write_logs` writes them."""

Content = dict[str, list[int]]


def write(folder: Path, content: Content, changes: dict[tuple[str, int], object] | None = None) -> Path:
    """Write logs in which some lines, counted from 1, read otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in content.items():
        lines = [(changes or {}).get((name, line), number) for line, number in enumerate(numbers, 1)]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def counts(logs: Logs) -> list[list[int]]:
    return [array.tolist() for array in (logs.correct, logs.positive_spikes, logs.negative_spikes, logs.synops)]


# What is read


@pytest.mark.parametrize(("log_batch", "batches"), [(1, 5), (2, 3), (3, 2), (5, 1), (50, 1)])
def test_logs_of_a_simulation_are_read_back_summed_over_the_batches(
    tmp_path: Path, log_batch: int, batches: int
) -> None:
    # By step and image; every spike reaches three synapses.
    positive = np.array([[2, 0, 1, 3, 4], [4, 0, 2, 3, 6], [5, 0, 3, 3, 8], [5, 0, 3, 3, 9]])
    negative = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 1, 0, 2], [1, 0, 1, 0, 3]])
    predictions = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 2, 1, 1], [1, 0, 2, 1, 1]])
    synops = 3 * (positive + negative)
    simulated: Any = SimpleNamespace(
        images=5, predictions=predictions, positive_spikes=positive, negative_spikes=negative, synops=synops
    )
    write_logs(tmp_path, simulated, np.array([1, 0, 2, 1, 0]), log_batch)
    found = read_logs(tmp_path, images=5, steps=4, batch=log_batch)
    assert (found.folder, found.images, found.steps, found.batches) == (tmp_path, 5, 4, batches)
    assert counts(found) == [[2, 2, 4, 4], [10, 15, 19, 20], [0, 2, 4, 5], [30, 51, 69, 75]]
    assert found.stable_step == 3
    curve = found.curve()
    assert list(curve.columns) == ["step", "accuracy", "positive_spikes", "negative_spikes", "net_spikes", "synops"]
    assert curve.iloc[3].tolist() == [4, 4 / 5, 20 / 5, 5 / 5, 15 / 5, 75 / 5]
    if log_batch == 2:
        written = {name: [int(line) for line in (tmp_path / name).read_text().split()] for name in FILES}
        assert written == VALID


def test_a_batch_of_full_size_may_be_all_correct(tmp_path: Path) -> None:
    # 12 images in batches of 5 are 5, 5 and 2, not three times 4.
    content = {CORRECT: [5, 5, 2], SPIKES: [0] * 3, NET_SPIKES: [0] * 3, SYNOPS: [0] * 3}
    assert read_logs(write(tmp_path, content), images=12, steps=1).correct.tolist() == [12]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_the_stable_step_is_that_of_the_measures(correct: list[int]) -> None:
    numbers = np.array(correct)
    assert Logs(Path(), 3, len(correct), 1, *[numbers] * 4).stable_step == stable_step(numbers / 3)


def test_more_negative_than_positive_spikes_make_a_negative_net_count(tmp_path: Path) -> None:
    content = {CORRECT: [0, 0], SPIKES: [3, 5], NET_SPIKES: [-3, -1], SYNOPS: [0, 0]}
    found = read_logs(write(tmp_path, content), images=1, steps=2)
    # Three of -1, then two of +1.
    assert (found.positive_spikes.tolist(), found.negative_spikes.tolist()) == ([0, 2], [3, 3])


def in_lines(words: list[str], ending: str = "\n") -> bytes:
    return "".join(f"{word}{ending}" for word in words).encode()


SPELLINGS: dict[str, Callable[[list[int]], bytes]] = {
    "byte order mark and CRLF": lambda numbers: b"\xef\xbb\xbf" + in_lines([str(n) for n in numbers], "\r\n"),
    "no newline at the end": lambda numbers: in_lines([str(n) for n in numbers]).rstrip(),
    "blank lines at the end": lambda numbers: in_lines([*(str(n) for n in numbers), "", " ", ""], "\r\n"),
    "blanks around": lambda numbers: in_lines([f"  {n}\t" for n in numbers]),
    "Python floats": lambda numbers: in_lines([str(float(n)) for n in numbers]),
    "numpy.savetxt": lambda numbers: in_lines([f"{n:.18e}" for n in numbers]),
    "torch's printing": lambda numbers: in_lines([f"{n}." for n in numbers]),
    "zeros and signs": lambda numbers: in_lines([f"+000{n}" for n in numbers]),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_whole_numbers_is_read(tmp_path: Path, spelling: str) -> None:
    for name, numbers in VALID.items():
        (tmp_path / name).write_bytes(SPELLINGS[spelling](numbers))
    found = read_logs(tmp_path, images=5, steps=4)
    assert counts(found) == counts(read_logs(write(tmp_path / "plain", VALID), images=5, steps=4))


def test_sums_are_exact_up_to_what_a_float_holds_exactly(tmp_path: Path) -> None:
    largest = 2**53
    content = {CORRECT: [0] * 512, SPIKES: [largest] * 512, NET_SPIKES: [largest] * 512, SYNOPS: [largest] * 512}
    found = read_logs(write(tmp_path, content), images=512, steps=1)
    assert counts(found) == [[0], [2**62], [0], [2**62]]
    # One batch more, and spikes and net spikes together would need more than 64 bits.
    write(tmp_path, {name: [*numbers, 0] for name, numbers in content.items()})
    with pytest.raises(QuantspikeError, match=rf"line 1: expected a whole number of at most {2**62 // 513}, found '90"):
        read_logs(tmp_path, images=513, steps=1)


# What is refused

Changes = dict[tuple[str, int], object]

DEFECTS: dict[str, tuple[Changes, str, int, str]] = {
    "a word": (
        {(SPIKES, 3): "six"},
        SPIKES,
        3,
        "expected a whole number of at most 9007199254740992, found 'six'; write",
    ),
    "two numbers": ({(SPIKES, 3): "6 6"}, SPIKES, 3, "found '6 6'"),
    "a number as Python writes it": ({(SPIKES, 3): "1_2"}, SPIKES, 3, "found '1_2'"),
    "a long line": ({(SPIKES, 3): "x" * 99}, SPIKES, 3, f"found '{'x' * 37}...'"),
    "a blank line": ({(SYNOPS, 5): ""}, SYNOPS, 5, "found ''"),
    "a fraction": ({(NET_SPIKES, 2): "3.5"}, NET_SPIKES, 2, "found '3.5'"),
    "nan": ({(CORRECT, 12): "nan"}, CORRECT, 12, "found 'nan'"),
    "infinity": ({(CORRECT, 12): "-inf"}, CORRECT, 12, "found '-inf'"),
    "a number that floats round": ({(SYNOPS, 4): 2**53 + 2}, SYNOPS, 4, "found '9007199254740994'"),
    "a negative accuracy": ({(CORRECT, 5): -1}, CORRECT, 5, "found -1, but of 5 images in 3 batches, each has 0 to 2"),
    "negative spikes": ({(SPIKES, 1): -2}, SPIKES, 1, "found -2, but cumulative numbers start from 0"),
    "spikes that fall": (
        {(SPIKES, 7): 1},
        SPIKES,
        7,
        "found 1, but cumulative numbers start from 0 and never fall within a batch: a number is damaged, or --steps "
        "is not 4",
    ),
    "SOPs that fall": ({(SYNOPS, 11): 3}, SYNOPS, 11, "found 3, but cumulative numbers start from 0 and never fall"),
    "more net spikes than spikes": (
        {(NET_SPIKES, 6): 7},
        NET_SPIKES,
        6,
        "found 7, but net spikes cannot change by more than the new spikes (spike_num.txt): a number is damaged",
    ),
    # Of 7 spikes after 5 were 6 positive, after 5: 2 new ones cannot change the net count from 5 to 1.
    "negative spikes that fall": ({(NET_SPIKES, 7): 1}, NET_SPIKES, 7, "found 1, but net spikes cannot change by more"),
    "an odd sum": (
        {(NET_SPIKES, 10): 4},
        NET_SPIKES,
        10,
        "found 4, but spikes (spike_num.txt) and net spikes are both even or both odd",
    ),
    "more correct than a batch holds": (
        # Of five images in three batches, the first two have two at most.
        {(CORRECT, 7): 3},
        CORRECT,
        7,
        "found 3, but of 5 images in 3 batches, each has 0 to 2 correct ones: a number is damaged, --images is more "
        "than 5, or --steps more than 4",
    ),
    "more correct than all images": (
        {(CORRECT, 10): 2, (CORRECT, 6): 2},
        CORRECT,
        10,
        "found 2, but with the batches before, more than 5 images are correct at this step: a number is damaged",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_every_defect_is_named_with_file_and_line(tmp_path: Path, defect: str) -> None:
    changes, name, line, message = DEFECTS[defect]
    write(tmp_path, VALID, changes)
    where = re.escape(f"{tmp_path / name}, line {line}")
    position = rf" \(batch {(line + 3) // 4}, step {(line - 1) % 4 + 1}\)"
    with pytest.raises(QuantspikeError, match=rf"^{where}({position})?: .*{re.escape(message)}"):
        read_logs(tmp_path, images=5, steps=4)


LAYOUTS: dict[str, tuple[Content, dict[str, int], str]] = {
    "cut short within a batch": (
        {name: numbers[:-1] for name, numbers in VALID.items()},
        {"images": 5, "steps": 4},
        "accuracy.txt, line 11: the file ends at step 3 of batch 3: 11 lines are not batches of 4 steps; the logs were "
        "cut short, or --steps is not 4",
    ),
    "cut short between two batches": (
        {name: numbers[:8] for name, numbers in VALID.items()},
        {"images": 5, "steps": 4, "batch": 2},
        "accuracy.txt, line 8: the file ends after 2 batches, but 5 images in batches of 2 make 3; the logs were cut "
        "short, or --batch is not 2",
    ),
    "another size of the batches": (VALID, {"images": 5, "steps": 4, "batch": 3}, "after 3 batches, but 5 images"),
    "files of different length": (
        VALID | {NET_SPIKES: VALID[NET_SPIKES][:8]},
        {"images": 5, "steps": 4},
        "spike_collect.txt, line 8: the file ends here, but the other files have accuracy.txt 12, spike_num.txt 12, "
        "sop_num.txt 12 lines; all of them have a line per batch and step: write or copy",
    ),
    "more batches than images": (
        VALID,
        {"images": 2, "steps": 4},
        "accuracy.txt, line 9: batch 3 begins here, but there are 2 images; --images is more than 2, or --steps more",
    ),
    "too many steps": (VALID, {"images": 5, "steps": 12}, "spike_num.txt, line 5 (batch 1, step 5): found 4, but cum"),
    # Two batches of four steps, read as four of two, have 2 + 2 + 1 + 2 = 7 correct images at the second step.
    "too few steps": (
        {CORRECT: [2, 2, 2, 2, 1, 1, 2, 2], SPIKES: [0] * 8, NET_SPIKES: [0] * 8, SYNOPS: [0] * 8},
        {"images": 4, "steps": 2},
        "accuracy.txt, line 1 (batch 1, step 1): found 2, but of 4 images in 4 batches, each has 0 to 1 correct",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_lines_images_steps_and_batches_must_agree(tmp_path: Path, layout: str) -> None:
    content, options, message = LAYOUTS[layout]
    with pytest.raises(QuantspikeError, match=re.escape(message)):
        read_logs(write(tmp_path, content), **options)


def test_empty_and_binary_and_missing_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, VALID) / SPIKES
    binary = path.read_bytes().replace(b"5", b"\xff", 1)
    for content, message in (
        (b"\xef\xbb\xbf\n\r\n \n", r"line 1: the file is empty: expected one number per line"),
        (binary, r"line 2: expected a whole number of at most \d+, found '\ufffd'"),
    ):
        path.write_bytes(content)
        with pytest.raises(QuantspikeError, match=rf"spike_num\.txt, {message}"):
            read_logs(tmp_path, images=5, steps=4)
    path.unlink()
    path.mkdir()
    found = "accuracy.txt, sop_num.txt, spike_collect.txt, spike_num.txt/"
    message = f"{tmp_path} lacks spike_num.txt: expected {', '.join(FILES)}, found {found}; write or copy"
    with pytest.raises(QuantspikeError, match=rf"^{re.escape(message)}"):
        read_logs(tmp_path, images=5, steps=4)


@pytest.mark.parametrize("read", [find_logs, lambda folder: read_logs(folder, images=5, steps=4)])
def test_what_is_not_a_folder_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "file").touch()
    for name, reason in (("away", "No such file"), ("file", "Not a directory")):
        with pytest.raises(QuantspikeError, match=rf"/{name} could not be read: .*{reason}.*; name a folder of logs"):
            read(tmp_path / name)


def test_a_file_of_more_bytes_than_its_lines_can_have_is_not_read(tmp_path: Path) -> None:
    # 5 images make at most 5 batches of 4 lines, of 64 bytes each.
    path = write(tmp_path, VALID) / SYNOPS
    path.write_text(f"{'0' * (1280 - 12 * 2)}6\n" + "6\n" * 11)
    assert read_logs(tmp_path, images=5, steps=4).synops.tolist() == [18] * 4
    path.write_text(f"{'0' * (1281 - 12 * 2)}6\n" + "6\n" * 11)
    message = r"sop_num\.txt has 1,281 bytes, too many for the 20 lines that there can be: it is not a log, or --images"
    with pytest.raises(QuantspikeError, match=message):
        read_logs(tmp_path, images=5, steps=4)


@fuzz(data=st.data(), name=st.sampled_from(FILES))
def test_whatever_happens_to_the_bytes_of_a_log_it_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    folder = write(tmp_path_factory.mktemp("logs"), VALID)
    (folder / name).write_bytes(data.draw(mutations((folder / name).read_bytes())))
    found, message = None, ""
    try:
        found = read_logs(folder, images=5, steps=4)
    except QuantspikeError as error:
        message = str(error)
    if found is None:
        # Where files contradict each other, any of them can be the damaged one: all are named.
        assert str(folder) in message
        assert name in message
    else:
        assert (found.images, found.steps, found.batches) == (5, 4, 3)
        assert set(found.correct.tolist()) <= set(range(6))
        rising = (found.positive_spikes, found.negative_spikes, found.synops)
        assert all((np.diff(one, prepend=0) >= 0).all() for one in rising)
        assert table([found])


# Folders and their names


def test_folders_of_k_are_found_by_number_and_after_logs_of_the_folder_itself(tmp_path: Path) -> None:
    for k in (10, 2, 0):
        write(tmp_path / f"k{k}", VALID)
    (tmp_path / "k1").mkdir()
    (tmp_path / "kfp32").mkdir()
    (tmp_path / "k7").touch()
    folders = [tmp_path / name for name in ("k0", "k1", "k2", "k10")]
    assert find_logs(tmp_path) == folders
    assert find_logs(tmp_path / "k2") == [tmp_path / "k2"]
    assert find_logs(write(tmp_path, VALID)) == [tmp_path, *folders]
    with pytest.raises(QuantspikeError, match=r"/k1 lacks accuracy\.txt, .* found nothing; "):
        read_logs(tmp_path / "k1", images=5, steps=4)


def test_folders_of_any_name_are_found_by_their_files_and_net_spikes_may_be_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = {name: numbers for name, numbers in VALID.items() if name != NET_SPIKES}
    for name in ("k10B1", "k2B1", "k2B0", "run 1"):
        write(tmp_path / name, three)
    (tmp_path / "other").mkdir()
    (tmp_path / "k3B1").mkdir()  # by its name, logs are missing there
    folders = find_logs(tmp_path)
    with pytest.raises(QuantspikeError, match=r"/k3B1 lacks accuracy\.txt, .* found nothing; "):
        read_logs(folders.pop(2), images=5, steps=4)
    assert [folder.name for folder in folders] == ["k2B0", "k2B1", "k10B1", "run 1"]
    logs = [read_logs(folder, images=5, steps=4, batch=2) for folder in folders]
    # All 6 + 7 + 12 spikes are positive.
    assert counts(logs[0]) == [[2, 2, 4, 4], [10, 17, 23, 25], [0, 0, 0, 0], [30, 51, 69, 75]]
    assert [(k, name) for _, k, name in labelled(logs)] == [(None, folder.name) for folder in folders]
    note = f"note: {folders[0]} has no spike_collect.txt: read as a network without negative spikes"
    assert capsys.readouterr().err.splitlines()[0] == note
    (folders[0] / SPIKES).unlink()
    with pytest.raises(QuantspikeError, match=r"/k2B0 lacks spike_num\.txt: expected accuracy\.txt"):
        read_logs(folders[0], images=5, steps=4)


def test_a_folder_without_logs_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    for name in "abcdefghij":
        (tmp_path / name).mkdir()
    message = (
        f"{tmp_path} holds no logs: expected accuracy.txt, spike_num.txt, spike_collect.txt, sop_num.txt or folders "
        "with them, found a/, b/, c/, d/, e/, f/, g/, h/ and 2 more; name the folder that holds them"
    )
    with pytest.raises(QuantspikeError, match=f"^{re.escape(message)}$"):
        find_logs(tmp_path)


def test_the_table_has_a_line_per_folder_and_averages_per_image(tmp_path: Path) -> None:
    large = {CORRECT: [1, 1], SPIKES: [1_000_000, 3_000_002], NET_SPIKES: [0, 2], SYNOPS: [0, 2**53 - 1]}
    folders = [write(tmp_path / "a" / "k0", VALID), write(tmp_path / "b" / "k0", large)]
    assert table([read_logs(folders[0], images=5, steps=4), read_logs(folders[1], images=2, steps=2)]).splitlines() == [
        "folder  accuracy %  stable step  positive spikes  negative spikes                   SOPs  batches",
        "a/k0         80.00            3                4                1                     15        3",
        "b/k0         50.00            1          750,001          750,000  4,503,599,627,370,496        1",
    ]


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["metrics/one/logs/k0", "metrics/one/logs/k1"], [(0, ""), (1, "")]),
        (["demo/logs/k1", "their/logs/k1", "k2"], [(1, "demo/logs/k1"), (1, "their/logs/k1"), (2, "")]),
        (["logs", "logs/k0"], [(None, "logs"), (0, "")]),
        (["k99", "k100"], [(None, "k99"), (None, "k100")]),
    ],
)
def test_logs_are_labelled_by_k_or_by_what_tells_them_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], labels: list[tuple[int | None, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    ones = np.ones(1, np.int64)
    logs = [Logs(Path(folder), 1, 1, 1, *[ones] * 4) for folder in folders]
    assert [(k, name) for _, k, name in labelled(logs)] == labels


def test_reading_logs_imports_neither_torch_nor_matplotlib() -> None:
    code = "import sys, quantspike.reporting.logs; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# The published figures


def published(name: str) -> list[dict[str, str]]:
    path = Path(__file__).resolve().parents[3] / "shared" / "published" / name
    if not path.is_file():
        pytest.skip(f"no published figures here: {path.name} is not next to the project")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_logs_of_the_published_curves_give_the_published_summary(tmp_path: Path) -> None:
    columns = dict(zip(FILES, ("accuracy", "spikes_per_image", "net_spikes_per_image", "sops_per_image"), strict=True))
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
        assert found.stable_step == int(row["stable_from_step"]), key
        assert curve.accuracy[100] == float(row["final_accuracy"]), key
        for step in (1, 2, 4, 8, 16, 32, 64):
            assert curve.accuracy[step] == float(row[f"accuracy_at_{step}"]), key
        spikes = curve.positive_spikes + curve.negative_spikes
        assert int((spikes != spikes[100]).sum()) + 1 == int(row["last_spike_step"]), key
        # The summary is rounded to whole numbers, and the curves to tenths (SOPs) and hundredths (spikes) before.
        assert abs(curve.synops[100] - int(row["sops_per_image"])) <= 0.55, key
        for name in ("positive_spikes", "negative_spikes"):
            assert abs(curve[name][100] - int(row[f"{name}_per_image"])) <= 0.505, (key, name)
