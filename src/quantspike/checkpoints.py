"""Trained networks as files, with the Adam moments where training is to go on from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quantspike.architecture import Architecture
from quantspike.errors import QuantspikeError
from quantspike.networks import QuantizedCNN
from quantspike.params import Precision
from quantspike.tensors import Header, load_tensors, save_tensors
from quantspike.training import make_adam

FORMAT = "quantspike-cnn"
VERSION = 1

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(path: Path, network: QuantizedCNN, optimizer: torch.optim.Adam | None = None) -> None:
    """Writes a network, and with `optimizer` its Adam moments, so that training can go on from them.

    Tensors: `network.<name>` as in the state dict; `adam.step`, `adam.exp_avg.<parameter>` and
    `adam.exp_avg_sq.<parameter>`.
    """
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if optimizer is not None:
        tensors |= _adam_tensors(network, optimizer)
    save_tensors(path, FORMAT, VERSION, _identity(network.architecture, network.k), tensors)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file it was read from.
        network: on the CPU, in training mode.
        moments: Adam's tensors by name, empty if none were saved.
    """

    path: Path
    network: QuantizedCNN
    moments: dict[str, Tensor]


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
    return Checkpoint(path, network, {name: value for name, value in tensors.items() if name.startswith("adam.")})


def resume_adam(checkpoint: Checkpoint, learning_rate: float) -> torch.optim.Adam:
    """Adam for a checkpoint's network, wherever that lies now, with the moments that were saved.

    Args:
        checkpoint: its network may have been moved to another device since it was read.
        learning_rate: the rate to go on with.

    Raises:
        QuantspikeError: the file held no moments for some parameter, or some that do not fit it.
    """
    optimizer = make_adam(checkpoint.network, learning_rate)
    for name, parameter in checkpoint.network.named_parameters():
        state = {moment: _moment(checkpoint, f"adam.{moment}.{name}", parameter) for moment in _MOMENTS}
        step = _moment(checkpoint, "adam.step", torch.zeros(1, device=parameter.device))
        optimizer.state[parameter] = {"step": step.reshape(()), **state}
    return optimizer


def _moment(checkpoint: Checkpoint, name: str, like: Tensor) -> Tensor:
    """A copy of a saved tensor, laid out in memory as `like` is.

    Fused Adam walks weights and moments side by side in the order they have in memory and looks at no
    strides: a moment of another layout would be taken for that of other weights, without an error.
    """
    saved = checkpoint.moments.get(name)
    if saved is None:
        raise QuantspikeError(f"{checkpoint.path} lacks the Adam moments {name!r}: train again")
    if saved.shape != like.shape or not torch.isfinite(saved).all():
        raise QuantspikeError(f"{checkpoint.path}: {name} does not fit its weights or is not finite; train again")
    return torch.empty_like(like.detach()).copy_(saved)


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


def _adam_tensors(network: QuantizedCNN, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"adam.{moment}.{name}": state[moment] for moment in _MOMENTS}
        tensors["adam.step"] = state["step"].reshape(1).clone()
    return tensors
