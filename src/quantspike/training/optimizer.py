"""Adam as published, and its moments as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantspike.errors import QuantspikeError

_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adam(network: nn.Module) -> torch.optim.Adam:
    """Return Adam with betas 0.9 and 0.999, eps 1e-8 and no weight decay (Zou et al., 2023).

    Its learning rate is that of the phase it is used in (see `Training`).
    """
    return torch.optim.Adam(network.parameters(), betas=(0.9, 0.999), eps=1e-8, fused=True)


def adam_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return `adam.step` and `adam.exp_avg[_sq].<parameter>`; nothing before the first step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        if state:
            tensors |= {f"adam.{moment}.{name}": state[moment] for moment in _MOMENTS}
            tensors["adam.step"] = state["step"].reshape(1).clone()
    return tensors


def restore_adam(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give Adam the moments that `adam_tensors` returned.

    Raises:
        QuantspikeError: the moments of a parameter are missing or do not fit it.
    """
    for name, parameter in network.named_parameters():
        state = {moment: _moment(tensors, f"adam.{moment}.{name}", parameter) for moment in _MOMENTS}
        step = _moment(tensors, "adam.step", torch.zeros(1, device=parameter.device))
        optimizer.state[parameter] = {"step": step.reshape(()), **state}


def _moment(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Copy a saved tensor into the memory layout of `like`.

    Fused Adam walks weights and moments side by side in the order they have in memory and ignores strides: a moment
    of another layout would be taken for that of other weights, without an error.
    """
    saved = tensors.get(name)
    if saved is None:
        raise QuantspikeError(f"the Adam moments {name!r} are missing")
    if saved.shape != like.shape or not torch.isfinite(saved).all():
        raise QuantspikeError(f"{name} does not fit its weights or is not finite")
    return torch.empty_like(like.detach()).copy_(saved)
