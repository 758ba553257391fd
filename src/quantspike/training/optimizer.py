"""The optimizers of the protocols, and their moments as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quantspike.errors import QuantspikeError
from quantspike.networks.cnn import QuantizedCNN
from quantspike.params import OptimizerName

_ADAM_SHARE = 0.05
"""Learning rate of AdamW next to Muon, as a share of Muon's."""

_MOMENTUM = 0.6


class Muon(torch.optim.Optimizer):
    """Muon for the weights of convolutions that batch normalization follows (K. Jordan, 2024).

    With W a weight as a matrix of one row per output channel, G its gradient, B the momentum and r the learning rate:

        W <- W sqrt(rows) / |W|      B <- 0.6 B + 0.4 G      W <- W - r max(1, sqrt(rows / columns)) orthogonal(G')

    with G' = 0.6 B + 0.4 G. `orthogonal` divides by the norm and brings singular values towards 1, by three
    Newton-Schulz steps; very small ones stay small. The norm of W is free while batch normalization takes it out again.

    torch.optim.Muon always multiplies in bf16. Where the hardware does not, that takes many times as long as fp32.
    """

    def __init__(self, weights: Sequence[Tensor], *, scaled: bool = True) -> None:
        """Prepare the first step.

        Args:
            weights: float [out, in, height, width].
            scaled: whether the norm of W is set; not where batch normalization does not take it out.
        """
        super().__init__(weights, {"lr": 0.0, "bf16": False})
        self._scaled = scaled

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change the weights by their gradients."""
        group = self.param_groups[0]
        for weight in group["params"]:
            gradient, rows = weight.grad, len(weight)
            if self._scaled:
                weight.mul_(math.sqrt(rows) / weight.norm())
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            momentum = state["momentum_buffer"]
            momentum.lerp_(gradient, 1 - _MOMENTUM)
            direction = _orthogonal(gradient.lerp(momentum, _MOMENTUM).flatten(1), group["bf16"])
            stretch = max(1, math.sqrt(rows / direction.shape[1]))
            weight.sub_(direction.reshape(weight.shape), alpha=group["lr"] * stretch)


def _orthogonal(matrix: Tensor, bf16: bool) -> Tensor:
    """Bring the singular values of a matrix towards 1 by Newton-Schulz steps of the fifth order."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.bfloat16() if bf16 else matrix
    if len(wide) > wide.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(3):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.T if len(matrix) > matrix.shape[1] else wide).to(matrix.dtype)


class Optimizer:
    """What changes the weights of a network, one step at a time.

    `adam`: every parameter by Adam with betas 0.9 and 0.999, eps 1e-8 and no weight decay (Zou et al., 2023).

    `muon`: convolutions by `Muon`, batch normalization and the classifier by AdamW with betas 0.9 and 0.99, no
    weight decay and a twentieth of the learning rate (after K. Jordan's cifar10-airbench, 2024).
    """

    def __init__(self, network: QuantizedCNN, kind: OptimizerName) -> None:
        """Prepare the first step.

        Args:
            network: on the device that it trains on.
            kind: as in params.yaml.
        """
        named = dict(network.named_parameters())
        self._shares: dict[torch.optim.Optimizer, float]
        if kind == "adam":
            self._shares = {torch.optim.Adam(named.values(), betas=(0.9, 0.999), eps=1e-8, fused=True): 1.0}
        else:
            others = [value for value in named.values() if value.ndim != 4]
            adam = torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0, fused=True)
            weights = [value for value in named.values() if value.ndim == 4]
            self._shares = {Muon(weights, scaled=network.weight_bits is None): 1.0, adam: _ADAM_SHARE}
        names = {value: name for name, value in named.items()}
        self._trained = {
            names[value]: (part, value) for part in self._shares for value in part.param_groups[0]["params"]
        }

    def step(self, learning_rate: float, *, bf16: bool = False) -> None:
        """Change the weights by the gradients that the backward pass has left; `bf16`: how Muon multiplies."""
        for part, share in self._shares.items():
            part.param_groups[0]["lr"] = learning_rate * share
            if isinstance(part, Muon):
                part.param_groups[0]["bf16"] = bf16
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments as `optimizer.<moment>.<parameter>`; nothing before the first step."""
        return {
            f"optimizer.{moment}.{name}": tensor
            for name, (part, parameter) in self._trained.items()
            for moment, tensor in part.state[parameter].items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the moments that `tensors` returned.

        Raises:
            QuantspikeError: a moment is missing or does not fit its parameter.
        """
        for name, (part, parameter) in self._trained.items():
            moments = ["momentum_buffer"] if isinstance(part, Muon) else ["step", "exp_avg", "exp_avg_sq"]
            part.state[parameter] = {
                moment: _moment(tensors, f"optimizer.{moment}.{name}", parameter) for moment in moments
            }


def _moment(tensors: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """Copy a saved moment into the memory layout of its parameter.

    Fused Adam walks weights and moments side by side in the order they have in memory and ignores strides: a moment
    of another layout would be taken for that of other weights, without an error.
    """
    saved = tensors.get(name)
    if saved is None:
        raise QuantspikeError(f"the moment {name!r} is missing")
    like = parameter.detach()
    if name.startswith("optimizer.step."):
        like = like.new_zeros((), dtype=torch.float32)
    if saved.shape != like.shape or not torch.isfinite(saved).all():
        raise QuantspikeError(f"{name} does not fit its weights or is not finite")
    return torch.empty_like(like).copy_(saved)
