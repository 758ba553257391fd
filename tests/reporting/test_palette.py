"""Colours of the precisions."""

from __future__ import annotations

import re

import pytest

from quantspike.params import LARGEST_K
from quantspike.reporting.palette import color_of, spare_color


def test_every_precision_has_a_colour_of_its_own() -> None:
    colors = [color_of("fp32"), *(color_of(k) for k in range(LARGEST_K + 1))]
    assert len(set(colors)) == LARGEST_K + 2
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors)


def test_colours_beyond_the_palette_are_mixed_with_black_then_white() -> None:
    # 0.6 x (0, 114, 178) = (0, 68.4, 106.8); then 0.5 x (0, 114, 178) + 127.5 = (127.5, 184.5, 216.5), ties to even.
    assert (color_of(0), color_of(7), color_of(14)) == ("#0072b2", "#00446b", "#80b8d8")


def test_the_four_greys_for_what_has_no_k_differ_from_all_colours_of_precisions() -> None:
    greys = [spare_color(index) for index in range(4)]
    assert len(set(greys)) == 4
    assert all(re.fullmatch(r"#([0-9a-f]{2})\1\1", grey) for grey in greys)
    assert set(greys).isdisjoint({color_of("fp32"), *(color_of(k) for k in range(LARGEST_K + 1))})
    assert [spare_color(index) for index in range(4, 9)] == [*greys, greys[0]]


@pytest.mark.parametrize("k", [-1, 25])
def test_a_precision_that_does_not_exist_has_no_colour(k: int) -> None:
    with pytest.raises(ValueError, match=f"k from 0 to 24, found {k}"):
        color_of(k)
