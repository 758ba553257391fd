"""The optimizers of the protocols, and their moments as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from quantspike.errors import QuantspikeError
from quantspike.networks.cnn import QuantizedCNN
from quantspike.params import OptimizerName

_ADAM_SHARE = 0.05
"""Learning rate of AdamW next to Muon, as a share of Muon's."""


def make_muon(weights: Sequence[Tensor], *, scaled: bool = True) -> torch.optim.Muon:
    """Return Muon for the weights of convolutions that batch normalization follows (K. Jordan, 2024).

    With W a weight as a matrix of one row per output channel, G its gradient, B the momentum and r the learning rate:

        W <- W sqrt(rows) / |W|      B <- 0.6 B + G      W <- W - r max(1, sqrt(rows / columns)) orthogonal(G + 0.6 B)

    where `orthogonal` brings all singular values close to 1, by three Newton-Schulz steps in bf16. The norm of W is
    free while batch normalization takes it out again.

    Args:
        weights: float [out, in, height, width], in channels-last order.
        scaled: whether the norm of W is set; not where batch normalization does not take it out.
    """
    matrices = [nn.Parameter(_matrix(weight.detach())) for weight in weights]  # they share the weights' memory
    muon = torch.optim.Muon(matrices, momentum=0.6, nesterov=True, weight_decay=0, ns_steps=3)

    def prepare(*_: object) -> None:
        for weight, matrix in zip(weights, matrices, strict=True):
            assert weight.grad is not None
            matrix.grad = _matrix(weight.grad)
            if scaled:
                with torch.no_grad():
                    matrix.mul_(math.sqrt(len(matrix)) / matrix.norm())

    muon.register_step_pre_hook(prepare)
    return muon


def _matrix(weight: Tensor) -> Tensor:
    """Return a weight [out, in, height, width] as [out, height x width x in], in the same memory."""
    return weight.permute(0, 2, 3, 1).view(len(weight), -1)


class Optimizer:
    """What changes the weights of a network, one step at a time.

    `adam`: every parameter by Adam with betas 0.9 and 0.999, eps 1e-8 and no weight decay (Zou et al., 2023).

    `muon`: convolutions by `make_muon`, batch normalization and the classifier by AdamW with betas 0.9 and 0.99, no
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
            self._shares = {make_muon(weights, scaled=network.weight_bits is None): 1.0, adam: _ADAM_SHARE}
        names = {value.data_ptr(): name for name, value in named.items()}
        # Muon's matrices share the memory of the weights, and with it the name.
        self._trained = {
            names[value.data_ptr()]: (part, value) for part in self._shares for value in part.param_groups[0]["params"]
        }

    def step(self, learning_rate: float) -> None:
        """Change the weights by the gradients that the backward pass has left."""
        for part, share in self._shares.items():
            part.param_groups[0]["lr"] = learning_rate * share
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
            moments = ["momentum_buffer"] if isinstance(part, torch.optim.Muon) else ["step", "exp_avg", "exp_avg_sq"]
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
