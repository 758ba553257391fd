"""The results of a finished chain as one file, or as a few where it would be too large to come back."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantspike.away.pipeline import FileHash, hash_files, md5_of
from quantspike.away.provenance import FILE, Provenance, parse_provenance
from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path

PART = 16 * 2**20 - 2**16
"""Bytes of a file at most, for services that take no file above 16 MiB."""

_PACK = re.compile(r"(?P<key>.+)\.tar\.gz(?:\.(?P<part>[0-9]+)of(?P<parts>[0-9]+))?")


@dataclass(frozen=True)
class Pack:
    """What a pack holds, verified.

    Attributes:
        provenance: of a finished chain.
        files: contents by path, relative to the project.
    """

    provenance: Provenance
    files: dict[str, bytes]

    def holds(self, output: str) -> bool:
        """Whether a file or folder that a stage wrote is in it; large ones are not."""
        return any(_below(path, output) for path in self.files)

    def write(self, output: str, place: Path) -> None:
        """Writes a file or folder that it holds to another place."""
        for path, content in self.files.items():
            if _below(path, output):
                target = place / path.removeprefix(output).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


def packed_outputs(provenance: Provenance) -> list[str]:
    """What a pack holds of all that the stages wrote: results, the integer network, and `pretrain`'s file without one.

    Images and trained weights stay behind, known by their hashes.
    """
    outputs = [path for record in provenance.stages.values() for path in record.outputs]
    ends = ("/integer", "/pretrain.safetensors")
    return [path for path in outputs if path.startswith("metrics/") or path.endswith(ends)]


def write_pack(folder: Path, provenance: Provenance, files: Path, part: int = PART) -> list[Path]:
    """Writes the pack of a finished chain, each of its files atomically; the same content gives the same bytes.

    Args:
        folder: where to; a pack of the same chain there is replaced.
        provenance: of a finished chain.
        files: the folder that holds data/ and metrics/.
        part: bytes of a file at most; what is larger becomes several.

    Raises:
        QuantspikeError: a result is not what the provenance says, or the file system refuses.
    """
    contents = {
        path.relative_to(files).as_posix(): path.read_bytes()
        for output in packed_outputs(provenance)
        for path in _files_below(files / output)
    }
    chain = provenance.chain(files)
    _verify(provenance, contents, str(files))
    content = _archive({FILE: provenance.model_dump_json(indent=2).encode() + b"\n", **contents})
    parts = [content[start : start + part] for start in range(0, len(content), part)]
    name = f"{chain.key}.tar.gz"
    names = [name] if len(parts) == 1 else [f"{name}.{n}of{len(parts)}" for n in range(1, len(parts) + 1)]
    for one, piece in zip(names, parts, strict=True):
        with atomic_path(folder / one) as temporary:
            temporary.write_bytes(piece)
    for old in _packs(folder.glob(f"{chain.key}.tar.gz*")).get(chain.key, []):
        if old.name not in names:
            old.unlink()
    return [folder / one for one in names]


def find_packs(places: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of every pack among some files, and in some folders, by the chain's key and in the order of parts.

    Of the same chain in several folders the newest is taken.

    Raises:
        QuantspikeError: a place is not there, a file is no pack by its name, or a pack lacks a part.
    """
    found: dict[Path, list[Path]] = {}
    for place in places:
        if not place.exists():
            raise QuantspikeError(f"{place} is not there: name packs (<chain>.tar.gz), or a folder of packs")
        if place.is_file() and not _PACK.fullmatch(place.name):
            raise QuantspikeError(f"{place} is no pack by its name, expected <chain>.tar.gz or <chain>.tar.gz.<n>of<n>")
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            found.setdefault(path.parent.resolve(), []).append(path)
    packs: dict[str, list[Path]] = {}
    for files in found.values():
        for key, parts in _packs(files).items():
            _check_parts(key, parts)
            if key not in packs or packs[key][0].stat().st_mtime < parts[0].stat().st_mtime:
                packs[key] = parts
    return packs


def find_pack(folder: Path, key: str) -> list[Path]:
    """The files of the pack of one chain in a folder, in the order of parts; none if there is no such pack.

    Raises:
        QuantspikeError: it lacks a part.
    """
    files = _packs(folder.glob(f"{key}.tar.gz*")).get(key, [])
    if files:
        _check_parts(key, files)
    return files


def clear_unfinished(folder: Path) -> None:
    """Deletes what a killed process has left of packs that it was writing; nothing else may be writing there."""
    for path in folder.glob(".*.tar.gz*"):
        path.unlink(missing_ok=True)


def read_pack(parts: Sequence[Path]) -> Pack:
    """Reads a pack and compares every file in it with the MD5 in its provenance.

    Args:
        parts: its files, in order.

    Raises:
        QuantspikeError: it is damaged, or a file is missing, altered or not one of the results.
    """
    place = ", ".join(str(path) for path in parts)
    try:
        # All of it at once, since tarfile itself does not read as far as the checksum.
        content = gzip.decompress(b"".join(path.read_bytes() for path in parts))
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            contents = {member.name: _content(tar, member) for member in tar}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise QuantspikeError(f"{place} is damaged ({error}): fetch it again") from error
    if FILE not in contents:
        raise QuantspikeError(f"{place} lacks {FILE}: it is no pack of results")
    provenance = parse_provenance(contents.pop(FILE), f"{FILE} in {place}")
    if not provenance.finished:
        raise QuantspikeError(f"{place} holds only the stages {', '.join(provenance.stages)}: it was not finished")
    if not parts[0].name.startswith(f"{provenance.chain(Path()).key}.tar.gz"):
        raise QuantspikeError(f"{place} holds {provenance.chain(Path()).key}: give it its name back")
    _verify(provenance, contents, place)
    return Pack(provenance, contents)


def _verify(provenance: Provenance, contents: Mapping[str, bytes], place: str) -> None:
    """Whether the files are the packed outputs, all of them and nothing else, with the hashes they had."""
    packed = packed_outputs(provenance)
    if others := [path for path in contents if not _is_plain(path) or not any(_below(path, out) for out in packed)]:
        raise QuantspikeError(f"{place} holds {', '.join(others)}, which no stage of the chain wrote: it was altered")
    expected = {path: found for record in provenance.stages.values() for path, found in record.outputs.items()}
    for output in packed:
        if _hash_of(output, contents) != expected[output]:
            raise QuantspikeError(
                f"{place}: {output} is not what the stage wrote (MD5 {expected[output].md5}): altered or damaged"
            )


def _hash_of(output: str, contents: Mapping[str, bytes]) -> FileHash:
    if output in contents:
        return FileHash(md5=md5_of(contents[output]), size=len(contents[output]))
    within = [(path, content) for path, content in contents.items() if _below(path, output)]
    return hash_files([(path[len(output) + 1 :], md5_of(content), len(content)) for path, content in within])


def _archive(contents: Mapping[str, bytes]) -> bytes:
    """A compressed tar without dates, owners and the order of a file system."""
    compressed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=compressed, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(contents):
            member = tarfile.TarInfo(name)
            member.size = len(contents[name])
            tar.addfile(member, io.BytesIO(contents[name]))
    return compressed.getvalue()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None:
        raise tarfile.TarError(f"{member.name} is no plain file")
    return stream.read()


def _packs(found: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by the key of their chain, parts in their order; what is no pack by its name is left out."""
    packs: dict[str, list[tuple[int, Path]]] = {}
    for path in found:
        if match := _PACK.fullmatch(path.name):
            packs.setdefault(match["key"], []).append((int(match["part"] or 0), path))
    return {key: [path for _, path in sorted(files)] for key, files in packs.items()}


def _check_parts(key: str, files: Sequence[Path]) -> None:
    ends = [path.name.removeprefix(f"{key}.tar.gz") for path in files]
    count = len(files)
    if ends not in ([""], [f".{n}of{count}" for n in range(1, count + 1)]):
        raise QuantspikeError(
            f"{key} has the files {', '.join(path.name for path in files)}: expected {key}.tar.gz, or all of its parts "
            "(.1of2, .2of2) and nothing else"
        )


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    else:
        yield path


def _below(path: str, output: str) -> bool:
    return path == output or path.startswith(f"{output}/")


def _is_plain(path: str) -> bool:
    """Whether a path stays below where it starts from."""
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and PurePosixPath(path).as_posix() == path
