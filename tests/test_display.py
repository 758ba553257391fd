"""How training is shown: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

import pytest
import torch

from quantspike import display
from quantspike.adam import make_adam
from quantspike.architecture import Architecture
from quantspike.augmentation import Augmentation
from quantspike.data import Dataset
from quantspike.display import Display, describe
from quantspike.distributed import Group
from quantspike.measuring import splits
from quantspike.networks import new_network
from quantspike.training import TRAIN, Epoch, Settings, Training

PLAIN = Epoch(1, 2.30258509, 0.125, None, 0.1, 0.001, 12.3456789)
HELD_OUT = Epoch(2, 1.5, 1 / 3, 0.25, 0.5, 0.0001, 0.5)
SETTINGS = Settings(TRAIN, epochs=3, learning_rate=0.01, batch_size=10, seed=0, augmentation=Augmentation(4))
"""40 images: four steps an epoch, 120 images in all."""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the display looks at."""
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


@pytest.fixture
def training(tiny_dataset: Dataset) -> Training:
    """A phase before its first step."""
    network = new_network(Architecture.parse("2C1-3", image_size=4, image_channels=1, classes=3), 1, 0)
    return Training(network, make_adam(network, 0.01), SETTINGS, *splits(tiny_dataset, torch.device("cpu")))


class Shown:
    """Lets each step take some seconds of the display's clock."""

    def __init__(self, display: Display, clock: Clock, seconds: float) -> None:
        self.display, self.clock, self.seconds = display, clock, seconds

    def stepped(self, training: Training, images: int) -> None:
        self.clock.now += self.seconds if images else 0
        self.display.stepped(training, images)

    def measured(self, training: Training, epoch: Epoch) -> None:
        self.display.measured(training, epoch)


def test_an_epoch_is_a_line() -> None:
    assert describe(PLAIN, 2) == "epoch 1/2  loss 2.3026  train  12.50%  test  10.00%  12.3 s"
    assert describe(HELD_OUT, 100) == (
        "epoch 2/100  loss 1.5000  train  33.33%  validation  25.00%  test  50.00%  0.5 s"
    )


# Elsewhere than on a terminal


def test_each_epoch_is_a_line_with_speed_and_time_left(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Shown(Display(training), clock, seconds=2.0)
    records = training.run(shown)
    # 10 images in 2 seconds; after an epoch, 80 images are left.
    speed = ["  5 images/s  0:00:16 left", "  5 images/s  0:00:08 left", "  5 images/s  0:00:00 left"]
    lines = capsys.readouterr()
    assert lines.out.splitlines() == [f"{describe(r, 3)}{s}" for r, s in zip(records, speed, strict=True)]
    assert lines.err == ""


def test_in_a_long_epoch_there_is_a_line_a_minute(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Shown(Display(training), clock, seconds=40.0)
    training.run(shown)
    lines = capsys.readouterr().out.splitlines()
    # Steps end after 40, 80, 120 and 160 seconds; the first line is due at 60, the next one 60 after it was written.
    places = [line.split("  ")[0] for line in lines[:3]]
    assert places == ["epoch 1/3, step 2/4", "epoch 1/3, step 4/4", "epoch 1/3"]
    form = r"epoch 1/3, step 2/4  loss \d\.\d{4}  train +\d+\.\d\d%  0 images/s  0:06:40 left"  # 100 images of 0.25 / s
    assert re.fullmatch(form, lines[0])
    # The line of an epoch begins another minute.
    assert [line.split("  ")[0] for line in lines[3:6]] == ["epoch 2/3, step 2/4", "epoch 2/3, step 4/4", "epoch 2/3"]


def test_a_line_tells_loss_and_accuracy_of_the_epoch_so_far(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Display(training)
    training.step = 2  # 20 images
    training._losses[:2] = torch.tensor([4.0, 5.0])
    training._correct[:2] = torch.tensor([1, 2])
    clock.now += 61.0
    shown.stepped(training, 20)
    assert capsys.readouterr().out == "epoch 1/3, step 2/4  loss 0.4500  train  15.00%  0 images/s  0:05:05 left\n"


def test_while_images_are_only_measured_nothing_counts(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Display(training)
    clock.now += 10.0
    shown.stepped(training, 0)
    shown.measured(training, PLAIN)
    assert capsys.readouterr().out == f"{describe(PLAIN, 3)}\n"  # no speed yet, and no division by it


def test_a_resumed_training_is_shown_from_where_it_stands_at_its_own_speed(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    training.records = [PLAIN]
    training.step = 2  # 60 of 120 images are done
    shown = Display(training)
    training.step = 3
    clock.now += 5.0
    shown.stepped(training, 10)
    shown.measured(training, HELD_OUT)
    assert capsys.readouterr().out == f"{describe(HELD_OUT, 3)}  2 images/s  0:00:25 left\n"  # 10 in 5 s; 50 left


def test_of_several_processes_only_the_first_one_shows_anything(
    training: Training, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    training.group = Group(1, 2)
    shown = Display(training)
    clock.now += 100.0
    shown.stepped(training, 10)
    shown.measured(training, PLAIN)
    shown.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


# On a terminal


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """A terminal of 160 columns in place of stdout and stderr; gives what was written there since the last look."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 160))
    os.set_blocking(ours, False)

    def read() -> str:
        text = b""
        with suppress(BlockingIOError):
            while True:
                text += os.read(ours, 65536)
        return text.decode()

    with os.fdopen(theirs, "w") as screen, redirect_stdout(screen), redirect_stderr(screen):
        yield read
    os.close(ours)


def test_a_terminal_shows_a_bar_with_epoch_loss_accuracy_speed_and_time_left(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_LOOK_SECONDS", 0.0)
    with terminal() as read:
        training.run(Display(training))
        frames = [frame.strip() for frame in re.split(r"[\r\n]+", read())]
    form = r"epoch 2/3:  \d\d%\|.+\| \d+/120 \[00:0\d<00:0\d, +[\d.]+ images/s, accuracy=\d+\.\d%, loss=\d\.\d{3}\]"
    assert any(re.fullmatch(form, frame) for frame in frames), frames
    lines = [frame for frame in frames if "test" in frame]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("images/s" in line and line.endswith("left") for line in lines)
    assert not any("step" in frame for frame in frames)  # the lines of a minute are for elsewhere


def test_a_bar_begins_where_a_resumed_training_stands_and_is_taken_away_at_the_end(training: Training) -> None:
    training.records = [PLAIN]
    training.step = 2
    with terminal() as read:
        shown = Display(training)
        assert re.search(r" 50%\|.+\| 60/120 ", read())
        shown.close()
        assert read().strip() == ""


def test_a_second_process_shows_no_bar(training: Training) -> None:
    training.group = Group(1, 2)
    with terminal() as read:
        Display(training).close()
        assert read() == ""
