"""Networks as files: trained ones, and the states that an interrupted training resumes from.

States lie outside the files that DVC knows, since DVC deletes those before it runs a stage. Their names hold a hash of
everything the training depends on, so that a change of params, code or data starts anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantspike.data.dataset import Dataset
from quantspike.errors import DamagedFileError, QuantspikeError
from quantspike.files import load_tensors, reading, save_tensors
from quantspike.networks.architecture import Architecture, architecture_of
from quantspike.networks.cnn import QuantizedCNN, check_description, description
from quantspike.params import OptimizerName, Precision, Setting
from quantspike.paths import Run
from quantspike.training.optimizer import Optimizer

FORMAT = "quantspike-cnn"
STATE_FORMAT = "quantspike-resume"
VERSION = 3
STATE_VERSION = 4

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
    header = description(network.architecture, network.k, clip=network.clip, weight_bits=network.weight_bits)
    header |= {"provenance": json.dumps(provenance, sort_keys=True)}
    save_tensors(path, FORMAT, VERSION, header, tensors | optimizer.tensors())


def load_checkpoint(path: Path, architecture: Architecture, k: Precision, **settings: Setting) -> Checkpoint:
    """Read a network and check that it is the expected one; its clip and whether it is integer-aware are read.

    Args:
        path: file written by `save_checkpoint`.
        architecture: the expected layers.
        k: the expected precision.
        settings: the expected `clip` and `weight_bits`, if they are known.

    Raises:
        QuantspikeError: the file is absent or damaged, of another version, holds another network
            or a weight that is not finite.
    """
    header, tensors = load_tensors(path, FORMAT, VERSION)
    # First, so that layers which only the file announces are never built.
    check_description(path, header, description(architecture, k, **settings))
    state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    moments = {name: value for name, value in tensors.items() if name.startswith("optimizer.")}
    with reading(path):
        network = QuantizedCNN(architecture, k, header["clip"], header["weight_bits"])
        network.load_state_dict(state)
        for name, value in state.items():
            if not torch.isfinite(value).all():
                raise QuantspikeError(f"{path}: {name} is not finite; train again")
        provenance: dict[str, Any] = dict(json.loads(header["provenance"]))
    return Checkpoint(path, network, moments, provenance)


def load_network(run: Run, dataset: Dataset) -> Checkpoint:
    """Read the trained network of a run, whose results count, and check that it is that of the run's settings.

    Raises:
        QuantspikeError: as for `load_checkpoint`.
    """
    settings = run.settings
    aware = run.k != "fp32" and settings.finetune.integer_aware
    return load_checkpoint(
        run.network,
        architecture_of(run, dataset.channels, dataset.classes),
        run.k,
        clip=settings.recipe.clip,
        weight_bits=settings.convert.weight_bits if aware else None,
    )


def resume_optimizer(checkpoint: Checkpoint, network: QuantizedCNN, kind: OptimizerName) -> Optimizer:
    """Return an optimizer over a copy of a checkpoint's network, on any device, with the checkpoint's moments.

    Raises:
        QuantspikeError: the file holds no moments for a parameter, or some that do not fit it.
    """
    optimizer = Optimizer(network, kind)
    with reading(checkpoint.path):
        optimizer.restore(checkpoint.moments)
    return optimizer


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
        save_tensors(path, STATE_FORMAT, STATE_VERSION, {"records": json.dumps(records)}, tensors)
        # States after this one are corrupt, or training would have resumed from them.
        self._keep([state for state in self.states() if state <= path][-_KEPT:])

    def load(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """Return the latest valid state, or None; corrupt ones are named on stderr and skipped.

        Raises:
            QuantspikeError: a state cannot be read; skipping it would delete it after the next epoch.
        """
        for path in reversed(self.states()):
            try:
                header, tensors = load_tensors(path, STATE_FORMAT, STATE_VERSION)
                with reading(path):
                    return tensors, [dict(record) for record in json.loads(header["records"])]
            except DamagedFileError:
                print(f"{path.name} is skipped: it is damaged", file=sys.stderr)
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
