"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantspike.errors import QuantspikeError

_LEFTOVER = re.compile(r"\.(.*\.(safetensors|csv)|tmp.*)")
"""What a training's files are written to before they are whole: by `atomic_path`, and by safetensors before that."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there takes its place on success.

    On any failure, Ctrl-C included, the temporary file is removed and `path` stays as it was.

    Raises:
        QuantspikeError: the file system refuses the write (disk full, no permission).
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Same folder, since a rename is atomic only within one file system.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # mkstemp creates private files; results get the permissions any other file would get.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise QuantspikeError(f"{path} could not be written: {error}; what stood there before is untouched") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Deletes the temporary files that killed processes left in a folder, if there is one.

    Nothing else may be writing there.
    """
    for path in folder.glob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically, making its folder if needed."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes an indented JSON file atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes a table atomically: a header line, then rows; None becomes an empty cell.

    Args:
        path: the file.
        columns: name and values of each column, all of the same length.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        QuantspikeError: the file is absent or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantspikeError(f"{path} is not there: run the stage that writes it (dvc repro)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise QuantspikeError(f"{path} is damaged: {error}; delete it and run dvc repro") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
