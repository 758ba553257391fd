"""Files that are either complete or absent, and locks that let one process at a time write."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import textwrap
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantspike.errors import DamagedFileError, QuantspikeError, out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

Header = dict[str, Any]  # what a file of tensors says of itself


@contextmanager
def atomic_path(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path`, and move it into place on success.

    On any failure, Ctrl-C included, the temporary file is removed and `path` stays as it was.

    Args:
        path: the file.
        size: bytes that it needs, for the message; None if unknown.

    Raises:
        QuantspikeError: the file system refuses the write (disk full, no permission).
    """
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        needs = "" if size is None else f"; it needs {-(-size // 10**5) / 10} MB"
        raise QuantspikeError(f"{path} could not be written: {error}{needs}; the previous file is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(folder: Path, message: str) -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it when its holder dies.

    Temporary files that killed processes left in the folder are deleted.

    Args:
        folder: where the lock lies; created if absent.
        message: the error if another process holds the lock.

    Raises:
        QuantspikeError: another process holds the lock, or it cannot be created.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise QuantspikeError(message) from None
    except OSError as error:
        raise QuantspikeError(f"{folder / 'lock'} cannot be locked: {error}") from error
    try:
        delete_temporary_files(folder)
        yield
    finally:
        lock.release()


def delete_temporary_files(folder: Path) -> None:
    """Delete what killed processes left of `atomic_path` in a folder; no other process may be writing there."""
    for pattern in (".*.part", ".tmp??????"):  # safetensors has temporary files of its own
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; create its folder if needed."""
    content = text.encode()
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table atomically: a header line, then rows; None becomes an empty cell.

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
    """Read a JSON file.

    Raises:
        QuantspikeError: the file is absent or not JSON.
    """
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def save_tensors(path: Path, file_format: str, version: int, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and a header as safetensors, atomically, with a checksum; the same content gives the same bytes.

    Args:
        path: the file.
        file_format: kind of file, such as `quantspike-cnn`.
        version: of that kind.
        header: what a reader must know about the tensors.
        tensors: by name, on any device.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"version": version} | header
    # One entry holds the whole header: safetensors writes several in an order that changes from run to run.
    metadata = {file_format: json.dumps(header | {"sha256": _digest(header, content)})}
    with atomic_path(path, sum(tensor.nbytes for tensor in content.values())) as temporary:
        try:
            save_file(content, temporary, metadata=metadata)
        except SafetensorError as error:
            raise OSError(error) from error


def load_tensors(path: Path, file_format: str, *versions: int) -> tuple[Header, dict[str, Tensor]]:
    """Read the header and the tensors, on the CPU, of a file that `save_tensors` wrote.

    Args:
        path: the file.
        file_format: kind of file.
        versions: of that kind, that the caller reads; files of the last one have a checksum.

    Raises:
        QuantspikeError: the file is absent or damaged, or of another format or version.
    """
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if file_format not in metadata:
            raise DamagedFileError(f"{path} is not a {file_format} file: delete it and run dvc repro")
        header: Header = json.loads(metadata[file_format])
        if not isinstance(header, dict):
            raise ValueError("its header is not a mapping")
        if header.get("version") not in versions:
            raise DamagedFileError(
                f"{path} has version {header.get('version')}, this quantspike reads "
                f"{', '.join(map(str, versions))}: delete it and run dvc repro"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = header.pop("sha256", None)
        if (checksum or header["version"] == versions[-1]) and checksum != _digest(header, tensors):
            raise ValueError("its content does not match its checksum")
        return header, tensors


def _digest(header: Header, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 in hex of a header and of contiguous tensors on the CPU."""
    import torch

    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        # As bytes, since NumPy lacks some of the types.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is parsed into an error that names the file.

    Parsers fail on hostile content in more ways than they document: by overflow, recursion or missing keys.

    Raises:
        QuantspikeError: the file is absent, cannot be read or is damaged; one that is raised inside and names it passes
            unchanged.
    """
    try:
        yield
    except QuantspikeError as error:
        if str(path) in str(error):
            raise
        raise damaged(path, reason(error)) from error
    except FileNotFoundError:
        raise absent(path) from None
    except OSError as error:  # says nothing about the content, nor does lack of memory
        raise QuantspikeError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        if out_of_memory(error):
            raise
        raise damaged(path, reason(error)) from error


def reason(error: Exception) -> str:
    """Return what an exception says, in one line; its kind where it says nothing or no more than a name."""
    text, kind = textwrap.shorten(str(error), 200), type(error).__name__
    return f"{kind}: {text}" if text and isinstance(error, (LookupError, RecursionError)) else text or kind


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def absent(path: Path) -> QuantspikeError:
    """Return the error for a file that an earlier stage should have written."""
    return QuantspikeError(f"{path} does not exist: run the stage that writes it (dvc repro)")


def damaged(path: Path, reason: object) -> DamagedFileError:
    """Return the error for a file of this project that cannot be what was written."""
    return DamagedFileError(f"{path} is damaged ({reason}): delete it and run dvc repro")
