"""Files of tensors: safetensors with a header that says what they are. No pickles."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.files import atomic_path

Header = dict[str, str | int]


def save_tensors(path: Path, file_format: str, version: int, header: Header, tensors: dict[str, Tensor]) -> None:
    """Writes tensors with their header, atomically; the same content gives the same bytes.

    Args:
        path: the file.
        file_format: what kind of file it is.
        version: of that kind.
        header: what a reader must know about the tensors.
        tensors: by name, on any device.

    Raises:
        QuantspikeError: the file system refuses the write.
    """
    # One entry holds the whole header: safetensors writes several in an order that changes from run to run.
    metadata = {file_format: json.dumps({"version": version} | header)}
    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        except (SafetensorError, OSError) as error:
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise OSError(f"{error}; it needs {size / 1e6:.1f} MB") from error


def load_tensors(path: Path, file_format: str, version: int) -> tuple[Header, dict[str, Tensor]]:
    """Reads a file that `save_tensors` wrote, its header and its tensors on the CPU.

    Raises:
        QuantspikeError: the file is absent or damaged, or of another format or version.
    """
    if not path.is_file():
        raise QuantspikeError(f"{path} is not there: run the stage that writes it (dvc repro)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if file_format not in metadata:
                raise QuantspikeError(f"{path} is no {file_format} file: delete it and run dvc repro")
            header: Header = json.loads(metadata[file_format])
            if not isinstance(header, dict):
                raise ValueError("its header is no mapping")
            if header.get("version") != version:
                raise QuantspikeError(
                    f"{path} is of version {header.get('version')}, this quantspike reads {version}: "
                    "delete it and run dvc repro"
                )
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise QuantspikeError(f"{path} is damaged ({error}): delete it and run dvc repro") from error
