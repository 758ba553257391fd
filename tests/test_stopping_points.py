"""Where a simulation may be ended early: curves made by hand, and a slow search in whole numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspike.simulation.measures import stable_step
from quantspike.stopping_points import LOSSES, stopping_step


def test_it_is_the_first_step_from_which_the_accuracy_stays_close() -> None:
    curve = [0.10, 0.50, 0.85, 0.895, 0.899, 0.90]
    assert [stopping_step(curve, loss) for loss in (0.001, 0.005, 0.01, 0.05, 0.4, 0.8)] == [5, 4, 4, 3, 2, 1]


def test_an_accuracy_that_falls_back_does_not_count() -> None:
    # Step 2 is close, step 3 is not: only from step 4 on it stays.
    assert stopping_step([0.1, 0.9, 0.7, 0.9, 0.9], 0.01) == 4


def test_an_accuracy_above_the_last_one_is_close_enough() -> None:
    assert stopping_step([0.2, 0.97, 0.95, 0.90], 0.001) == 2
    # A curve that only falls is good enough from the beginning.
    assert stopping_step([0.97, 0.95, 0.90], 0.001) == 1


def test_a_distance_of_exactly_the_loss_is_within_it() -> None:
    assert 0.9264 - 0.9254 > 0.001  # in binary
    assert stopping_step([0.9253, 0.9254, 0.9264], 0.001) == 2


def test_without_any_loss_it_is_the_first_step_that_is_never_undercut_again() -> None:
    assert stopping_step([0.5, 0.9, 0.8, 0.9, 0.9], 0.0) == 4
    # It may come before the stable step, since more than the last accuracy is no loss.
    curve = [0.5, 0.9, 0.91, 0.9]
    assert (stopping_step(curve, 0.0), stable_step(np.array(curve))) == (2, 4)


@pytest.mark.parametrize("curve", [[0.0], [0.9], [0.9] * 7])
def test_a_constant_accuracy_may_be_stopped_at_the_first_step(curve: list[float]) -> None:
    assert [stopping_step(curve, loss) for loss in (0.0, *LOSSES)] == [1, 1, 1, 1]


def test_a_curve_whose_last_step_gains_more_than_the_loss_cannot_be_stopped_early() -> None:
    assert stopping_step([0.1, 0.2, 0.3], 0.01) == 3


def test_steps_count_from_the_beginning_whatever_the_labels_of_a_column() -> None:
    assert stopping_step(pd.Series([0.1, 0.9, 0.9], index=[1, 2, 3]), 0.01) == 2


@given(correct=st.lists(st.integers(9_800, 10_000), min_size=1, max_size=30), loss=st.sampled_from((0, 10, 50, 100)))
def test_a_slow_search_in_whole_numbers_finds_the_same_step(correct: list[int], loss: int) -> None:
    close = [correct[-1] - one <= loss for one in correct]
    (first, *_) = [step for step in range(1, len(correct) + 1) if all(close[step - 1 :])]
    assert stopping_step([one / 10_000 for one in correct], loss / 10_000) == first
