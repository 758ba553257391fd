"""A folder that one process at a time works in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from quantspike.errors import QuantspikeError


@contextmanager
def sole_holder(folder: Path, busy: str) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there; the operating system releases it when we die.

    Args:
        folder: where the lock lies.
        busy: what to say if another process holds it.

    Raises:
        QuantspikeError: another process holds it, or it cannot be made.
    """
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise QuantspikeError(busy) from None
    except OSError as error:
        raise QuantspikeError(f"{folder / 'lock'} cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()
