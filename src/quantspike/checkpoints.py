"""Trained networks as files, with the Adam moments where training is to go on from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantspike.adam import adam_tensors, make_adam, restore_adam
from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN, with_precision
from quantspike.params import Precision
from quantspike.tensors import Header, load_tensors, save_tensors

FORMAT = "quantspike-cnn"
VERSION = 1


def save_checkpoint(
    path: Path,
    network: QuantizedCNN,
    optimizer: torch.optim.Optimizer | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network, and with `optimizer` its Adam moments, so that training can go on from them.

    Tensors: `network.<name>` as in the state dict; `adam.step`, `adam.exp_avg.<parameter>` and
    `adam.exp_avg_sq.<parameter>`. The header also tells, as JSON, what it was `made_with`: settings and machine.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if optimizer is not None:
        tensors |= adam_tensors(network, optimizer)
    header = _identity(network.architecture, network.k) | {"made_with": json.dumps(made_with or {}, sort_keys=True)}
    save_tensors(path, FORMAT, VERSION, header, tensors)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file it was read from.
        network: on the CPU, in training mode.
        moments: Adam's tensors by name, empty if none were saved.
        made_with: settings and machine of its training, as far as they were saved.
    """

    path: Path
    network: QuantizedCNN
    moments: dict[str, Tensor]
    made_with: dict[str, Any]


def load_checkpoint(path: Path, architecture: Architecture, k: Precision) -> Checkpoint:
    """Reads a network and checks that it is the one that is wanted.

    Args:
        path: file written by `save_checkpoint`.
        architecture: the layers it must have.
        k: the precision it must have.

    Raises:
        QuantspikeError: the file is absent or damaged, of another version, holds another network
            or a weight that is not finite.
    """
    header, tensors = load_tensors(path, FORMAT, VERSION)
    _check_header(path, header, _identity(architecture, k))
    network = QuantizedCNN(architecture, k)
    state = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise QuantspikeError(f"{path} does not hold the weights its header announces: {error}") from error
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise QuantspikeError(f"{path}: {name} holds a value that is not finite; train again")
    moments = {name: value for name, value in tensors.items() if name.startswith("adam.")}
    return Checkpoint(path, network, moments, json.loads(str(header.get("made_with", "{}"))))


def save_no_network(path: Path) -> None:
    """Writes a file that holds no network, where there has to be a file."""
    save_tensors(path, FORMAT, VERSION, {"network": "none"}, {})


def load_start(path: Path, architecture: Architecture, k: Precision) -> Checkpoint:
    """Reads a network in full precision, with its Adam moments, and gives its activations the precision k.

    Raises:
        QuantspikeError: see `load_checkpoint`.
    """
    checkpoint = load_checkpoint(path, architecture, "fp32")
    return replace(checkpoint, network=with_precision(checkpoint.network, k))


def resume_adam(checkpoint: Checkpoint, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam for a checkpoint's network, wherever that lies now, with the moments that were saved.

    Args:
        checkpoint: its network may have been moved to another device since it was read.
        learning_rate: the rate to go on with.
        weight_decay: see `make_adam`.

    Raises:
        QuantspikeError: the file held no moments for some parameter, or some that do not fit it.
    """
    optimizer = make_adam(checkpoint.network, learning_rate, weight_decay)
    try:
        restore_adam(checkpoint.network, optimizer, checkpoint.moments)
    except QuantspikeError as error:
        raise QuantspikeError(f"{checkpoint.path}: {error}; train again") from error
    return optimizer


def _identity(architecture: Architecture, k: Precision) -> Header:
    """Header entries that make a network the one it is."""
    return {
        "layers": architecture.text,
        "image_size": architecture.image_size,
        "image_channels": architecture.image_channels,
        "classes": architecture.classes,
        "k": k,
    }


def _check_header(path: Path, header: Header, wanted: Header) -> None:
    for name, value in wanted.items():
        if header.get(name) != value:
            raise QuantspikeError(
                f"{path} holds a network with {name} = {header.get(name)}, but {value} is asked for: run dvc repro"
            )
