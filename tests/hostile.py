"""Hostile input for the parsers: any content of a JSON file, files whose bytes were changed; and a full disk.

`make soak` draws many times as many examples of the tests that are marked with `fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Examples of ordinary runs are the same every time; those of a soak are drawn anew.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.register_profile(
    "soak",
    deadline=None,
    max_examples=int(os.environ.get("EXAMPLES", "100000")),
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("tests")


def fuzz(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator for a test of hostile input, which draws arguments as `hypothesis.given` does."""
    return lambda test: pytest.mark.fuzz(given(**strategies)(test))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from((2**53, 10**18, 10**400, "\ud800", "\0")),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3),
    max_leaves=6,
)
"""Any content of a JSON file; Python writes NaN and infinity, too."""

_DAMAGE = (b"\0" * 40, b"1e400", b"-inf", b"nan", b"9" * 5000, b"[" * 20_000, b"\n", b",", b'"', b"-", b"\xff", b"1e18")


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """Replace some of the bytes by others, or by input that parsers mishandle; or cut the end off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, start + 8) | st.just(len(content)))
        content = content[:start] + draw(st.binary(max_size=4) | st.sampled_from(_DAMAGE)) + content[stop:]
    return content


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the operating system refuse every file of more bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
