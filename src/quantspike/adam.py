"""Adam, and its moments as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from quantspike.errors import QuantspikeError

_MOMENTS = ("exp_avg", "exp_avg_sq")


def make_adam(network: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """Adam as published: betas 0.9 and 0.999, eps 1e-8.

    Args:
        network: whose parameters are to be optimized.
        learning_rate: the rate.
        weight_decay: share of the weights that is taken off at each step, times the rate, apart from the gradient
            (Loshchilov and Hutter, 2019); batch normalization is left alone.
    """
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    normalization = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": normalization, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def adam_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`adam.step`, `adam.exp_avg.<parameter>` and `adam.exp_avg_sq.<parameter>`; nothing before the first step."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        if state:
            tensors |= {f"adam.{moment}.{name}": state[moment] for moment in _MOMENTS}
            tensors["adam.step"] = state["step"].reshape(1).clone()
    return tensors


def restore_adam(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives Adam the moments that `adam_tensors` took.

    Raises:
        QuantspikeError: there are none for some parameter, or some that do not fit it.
    """
    for name, parameter in network.named_parameters():
        state = {moment: _moment(tensors, f"adam.{moment}.{name}", parameter) for moment in _MOMENTS}
        step = _moment(tensors, "adam.step", torch.zeros(1, device=parameter.device))
        optimizer.state[parameter] = {"step": step.reshape(()), **state}


def _moment(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A copy of a saved tensor, laid out in memory as `like` is.

    Fused Adam walks weights and moments side by side in the order they have in memory and looks at no
    strides: a moment of another layout would be taken for that of other weights, without an error.
    """
    saved = tensors.get(name)
    if saved is None:
        raise QuantspikeError(f"the Adam moments {name!r} are lacking")
    if saved.shape != like.shape or not torch.isfinite(saved).all():
        raise QuantspikeError(f"{name} does not fit its weights or is not finite")
    return torch.empty_like(like.detach()).copy_(saved)
