"""What dvc.yaml says of the stages of a chain, read without DVC, and files as DVC names them: by their MD5."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from quantspike.errors import QuantspikeError
from quantspike.paths import Chain

STAGES = ("download", "pretrain", "train", "finetune", "evaluate", "convert", "simulate")
"""The stages of a chain, in order; the first is shared by all chains of a profile, the second by every k."""

_ITEM = re.compile(r"\$\{item\.(profile|model|k|seed)\}")


class FileHash(BaseModel):
    """A file or folder as dvc.lock names it.

    Attributes:
        md5: of the file's bytes; of a folder that of DVC's list of its files, which ends in `.dir`.
        size: in bytes, of all files together.
        nfiles: of a folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    md5: str
    size: int
    nfiles: int | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml for one chain; all paths are relative to the project.

    Attributes:
        name: in dvc.yaml, such as `train`.
        address: for DVC, such as `train@paper-cnn1-2-0`.
        command: what DVC runs.
        inputs: files and folders that it depends on.
        params: dotted names in params.yaml.
        outputs: files and folders that it writes.
    """

    name: str
    address: str
    command: str
    inputs: tuple[str, ...]
    params: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def code(self) -> tuple[str, ...]:
        """Of the inputs those that lie in git: all that no stage writes."""
        return tuple(path for path in self.inputs if not is_written(path))


def is_written(path: str) -> bool:
    """Whether a path of dvc.yaml is written by a stage, and not part of the code."""
    return path.startswith(("data/", "metrics/"))


def stages_of(chain: Chain) -> list[Stage]:
    """The stages that lead to the results of a chain, in order.

    Raises:
        QuantspikeError: dvc.yaml is absent, or does not hold these stages in a form that is known here.
    """
    path = chain.root / "dvc.yaml"
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
        return [_stage(name, declared[name], chain) for name in STAGES]
    except FileNotFoundError:
        raise QuantspikeError(f"{path} is not here: run from the project's folder, or name its params file") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise QuantspikeError(
            f"{path} must declare the stages {', '.join(STAGES)}, each with cmd, deps, params and outs as text or by "
            f"name: {type(error).__name__}: {error}"
        ) from error


def owner(stage: str, chain: Chain) -> str:
    """Whose stage it is: that of a profile, of a network and seed, or of one chain; as in DVC's addresses."""
    shared = {"download": chain.profile, "pretrain": f"{chain.profile}-{chain.model}-{chain.seed}"}
    return shared.get(stage, chain.key)


def hash_path(path: Path) -> FileHash:
    """The hash of a file or folder.

    A folder's is the MD5 of a JSON list of its files, sorted by path, as in `dvc_data.hashfile.tree`.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    if not path.is_dir():
        return FileHash(md5=_md5(path), size=path.stat().st_size)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    return hash_files([(name, _md5(file), file.stat().st_size) for name, file in files])


def hash_files(files: Sequence[tuple[str, str, int]]) -> FileHash:
    """The hash of a folder, from the path within it, MD5 and size of each of its files."""
    listed = [{"md5": md5, "relpath": name} for name, md5, _ in sorted(files)]
    digest = md5_of(json.dumps(listed, sort_keys=True).encode())
    return FileHash(md5=f"{digest}.dir", size=sum(size for _, _, size in files), nfiles=len(files))


def md5_of(content: bytes) -> str:
    """The MD5 of some bytes, in hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def params_of(stage: Stage, params_file: Path) -> dict[str, Any]:
    """What params.yaml says of the entries that a stage reads, by dotted name, as JSON has it.

    Raises:
        QuantspikeError: an entry is missing.
    """
    content = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    values = {}
    for name in stage.params:
        value = content
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise QuantspikeError(f"{params_file} lacks {name}, which {stage.address} reads: add it")
            value = value[part]
        values[name] = json.loads(json.dumps(value))
    return values


def _stage(name: str, declared: dict[str, Any], chain: Chain) -> Stage:
    item = {"profile": chain.profile, "model": chain.model, "k": str(chain.k), "seed": str(chain.seed)}

    def resolved(kind: str) -> tuple[str, ...]:
        entries = [entry if isinstance(entry, str) else next(iter(entry)) for entry in declared.get(kind, [])]
        texts = tuple(_ITEM.sub(lambda match: item[match[1]], entry) for entry in entries)
        if unknown := [text for text in texts if "$" in text]:
            raise ValueError(f"{unknown[0]} holds something else than ${{item.profile}}, model, k or seed")
        return texts

    command = _ITEM.sub(lambda match: item[match[1]], declared["cmd"])
    return Stage(
        name=name,
        address=f"{name}@{owner(name, chain)}",
        command=command,
        inputs=resolved("deps"),
        params=resolved("params"),
        outputs=(*resolved("outs"), *resolved("metrics"), *resolved("plots")),
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
