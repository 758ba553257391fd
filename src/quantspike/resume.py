"""States from which a training goes on that was killed: whole, verified, and never those of another training.

A state lies outside the files that DVC knows, since those are deleted before a stage runs. Its name bears a hash of
all that the training depends on, so that a change of params, code or data begins anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.files import clear_leftovers
from quantspike.locks import sole_holder
from quantspike.tensors import Header, load_tensors, save_tensors

FORMAT = "quantspike-resume"
VERSION = 1

_KEPT = 2
_DIGITS = 16


def fingerprint(settings: Mapping[str, Any], files: Sequence[Path]) -> str:
    """A hash of settings, as JSON has them, and of the content of files, in their order."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class ResumeStore:
    """The states of one stage of a chain.

    Attributes:
        folder: where they lie, one folder per chain.
        stage: name of the stage.
        fingerprint: hash of what the training depends on.
    """

    folder: Path
    stage: str
    fingerprint: str

    def save(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], epoch: int, step: int) -> Path:
        """Writes a state, then deletes all but this one and the one before it.

        Args:
            tensors: by name, on any device.
            progress: the rest, as JSON has it.
            epoch: number of the epoch at work.
            step: steps done in it.

        Raises:
            QuantspikeError: the file system refuses the write; the states before are untouched.
        """
        path = self.folder / f"{self.stage}-{self.fingerprint}-{epoch:06d}-{step:08d}.safetensors"
        content = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        header: Header = {"progress": json.dumps(progress), "sha256": _digest(content, progress)}
        save_tensors(path, FORMAT, VERSION, header, content)
        # Later ones are damaged, or training would have gone on from them; kept, they would crowd out whole ones.
        kept = [state for state in self.states() if state <= path][-_KEPT:]
        for other in set(self.states()).difference(kept):
            other.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole, if there is one; damaged ones are named and passed over."""
        for path in reversed(self.states()):
            try:
                header, tensors = load_tensors(path, FORMAT, VERSION)
                progress = json.loads(str(header["progress"]))
                if _digest(tensors, progress) != header["sha256"]:
                    raise ValueError("its content is not what was written")
            except (QuantspikeError, ValueError, KeyError) as error:
                print(f"{path.name} is passed over: {error}", file=sys.stderr)
            else:
                return tensors, progress
        return None

    def discard(self) -> None:
        """Deletes the states."""
        for path in self.states():
            path.unlink(missing_ok=True)

    def others(self) -> list[Path]:
        """States of the same stage that belong to other params, code or data."""
        own = set(self.states())
        return [path for path in sorted(self.folder.glob(f"{self.stage}-*.safetensors")) if path not in own]

    def states(self) -> list[Path]:
        """Own states from the oldest to the newest."""
        return sorted(self.folder.glob(f"{self.stage}-{self.fingerprint}-*.safetensors"))


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a chain's training. The operating system releases it when its holder dies.

    What an earlier holder left half-written is deleted.

    Args:
        folder: of the chain's states.

    Raises:
        QuantspikeError: another process holds it, or it cannot be made.
    """
    busy = (
        f"another process is training {folder.name} already: wait for it, or stop it first (it holds {folder / 'lock'})"
    )
    with sole_holder(folder, busy):
        clear_leftovers(folder)
        yield


def _digest(tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(progress, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
