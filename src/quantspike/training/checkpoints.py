"""Networks as files: trained ones, and the states that an interrupted training resumes from.

States lie outside the files that DVC knows, since DVC deletes those before it runs a stage. Their names hold a hash of
everything the training depends on, so that a change of params, code or data starts anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.files import Header, load_tensors, save_tensors
from quantspike.networks.architecture import Architecture
from quantspike.networks.cnn import QuantizedCNN
from quantspike.params import OptimizerName, Precision
from quantspike.training.optimizer import Optimizer

FORMAT = "quantspike-cnn"
STATE_FORMAT = "quantspike-resume"
VERSION = 2
STATE_VERSION = 3

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained network.

    Attributes:
        path: the file.
        network: on the CPU, in training mode.
        moments: the optimizer's tensors by name.
        provenance: settings and machine of its training, as JSON.
    """

    path: Path
    network: QuantizedCNN
    moments: dict[str, Tensor]
    provenance: dict[str, Any]


def save_checkpoint(path: Path, network: QuantizedCNN, optimizer: Optimizer, provenance: Mapping[str, Any]) -> None:
    """Write a network, the moments of its optimizer and its provenance.

    Tensors: `network.<name>` as in the state dict, and `optimizer.<moment>.<parameter>`.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    header = _identity(network.architecture, network.k)
    header |= {"clip": network.clip, "weight_bits": network.weight_bits}
    header |= {"provenance": json.dumps(provenance, sort_keys=True)}
    save_tensors(path, FORMAT, VERSION, header, tensors | optimizer.tensors())


def load_checkpoint(path: Path, architecture: Architecture, k: Precision) -> Checkpoint:
    """Read a network and check that it is the expected one; its clip and whether it is integer-aware are read.

    Args:
        path: file written by `save_checkpoint`.
        architecture: the expected layers.
        k: the expected precision.

    Raises:
        QuantspikeError: the file is absent or damaged, of another version, holds another network
            or a weight that is not finite.
    """
    header, tensors = load_tensors(path, FORMAT, VERSION)
    for name, expected in _identity(architecture, k).items():
        if header.get(name) != expected:
            raise QuantspikeError(
                f"{path} holds a network with {name} = {header.get(name)}, expected {expected}: run dvc repro"
            )
    network = QuantizedCNN(architecture, k, header["clip"], header["weight_bits"])
    state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise QuantspikeError(f"{path} does not hold the weights its header announces: {error}") from error
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise QuantspikeError(f"{path}: {name} is not finite; train again")
    moments = {name: value for name, value in tensors.items() if name.startswith("optimizer.")}
    return Checkpoint(path, network, moments, json.loads(str(header.get("provenance", "{}"))))


def resume_optimizer(checkpoint: Checkpoint, network: QuantizedCNN, kind: OptimizerName) -> Optimizer:
    """Return an optimizer over a copy of a checkpoint's network, on any device, with the checkpoint's moments.

    Raises:
        QuantspikeError: the file holds no moments for a parameter, or some that do not fit it.
    """
    optimizer = Optimizer(network, kind)
    try:
        optimizer.restore(checkpoint.moments)
    except QuantspikeError as error:
        raise QuantspikeError(f"{checkpoint.path}: {error}; train again") from error
    return optimizer


def _identity(architecture: Architecture, k: Precision) -> Header:
    """Return the header entries that tell networks apart."""
    return {
        "layers": architecture.text,
        "image_size": architecture.image_size,
        "image_channels": architecture.image_channels,
        "classes": architecture.classes,
        "k": k,
    }


@dataclass(frozen=True)
class ResumeStore:
    """The states of one phase of training, one per epoch, of which the two newest are kept.

    Attributes:
        folder: where they lie, one folder per run.
        phase: name of the phase.
        fingerprint: hash of everything the training depends on.
    """

    folder: Path
    phase: str
    fingerprint: str

    def save(self, tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]]) -> None:
        """Write a state, then delete all but this one and the one before it.

        Args:
            tensors: by name, on any device.
            records: the complete epochs, as JSON.

        Raises:
            QuantspikeError: the file system refuses the write; earlier states are untouched.
        """
        path = self.folder / f"{self.phase}-{self.fingerprint}-{len(records):06d}.safetensors"
        content = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        header: Header = {"records": json.dumps(records), "sha256": _digest(content, records)}
        save_tensors(path, STATE_FORMAT, STATE_VERSION, header, content)
        # States after this one are corrupt, or training would have resumed from them.
        self._keep([state for state in self.states() if state <= path][-_KEPT:])

    def load(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """Return the latest valid state, or None; corrupt ones are named on stderr and skipped."""
        for path in reversed(self.states()):
            try:
                header, tensors = load_tensors(path, STATE_FORMAT, STATE_VERSION)
                records = json.loads(str(header["records"]))
                if _digest(tensors, records) != header["sha256"]:
                    raise ValueError("its content is not what was written")
            except (QuantspikeError, ValueError, KeyError):
                print(f"{path.name} is skipped: it is damaged", file=sys.stderr)
            else:
                return tensors, records
        return None

    def keep_last(self) -> None:
        """Delete all states but the newest.

        The newest survives the end of training: if DVC dies before it has recorded the network, it deletes that
        network and runs the stage again, which the state makes a matter of seconds.
        """
        self._keep(self.states()[-1:])

    def states(self) -> list[Path]:
        """Return the states from the oldest to the newest."""
        return sorted(self.folder.glob(f"{self.phase}-{self.fingerprint}-*.safetensors"))

    def _keep(self, kept: Sequence[Path]) -> None:
        for state in set(self.states()).difference(kept):
            state.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], records: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
