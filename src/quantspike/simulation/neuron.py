"""The neuron with positive and negative spikes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NeuronParameters:
    """Constants of neurons: int32, broadcastable to the layer's [N, C, H, W].

    Attributes:
        threshold: theta, even.
        half_threshold: h = theta / 2.
        limit: theta (M + 1) - 1, with M the largest count; the largest int32 without one.
    """

    threshold: Tensor
    half_threshold: Tensor
    limit: Tensor


@dataclass(frozen=True, eq=False)
class NeuronState:
    """State of neurons: int32 [N, C, H, W].

    Attributes:
        membrane: U, the bias and all input so far.
        net_spikes: N, positive minus negative spikes so far.
    """

    membrane: Tensor
    net_spikes: Tensor


def fire(
    parameters: NeuronParameters, state: NeuronState, *, waiting: bool = False
) -> tuple[Tensor, NeuronState, Tensor]:
    """Advance every neuron by one step, after its input was added to the membrane.

        d = clamp(U + h, 0, limit) - theta N
        s = +1 if d >= theta;  -1 if d < 0;  0 otherwise          N <- N + s

    A negative spike takes back one that was fired on partial evidence. A neuron is settled if
    0 <= d < theta holds for the new N: then N is what the integer network computes for this U.

    Args:
        parameters: theta, h and limit.
        state: U with this step's input, and N.
        waiting: whether the neurons may not fire yet: s = 0.

    Returns:
        The spikes, int8 in {-1, 0, 1}; the new state, with the same membrane; and whether each neuron
        is settled now, bool.
    """
    excess = (state.membrane + parameters.half_threshold).clamp_(min=0).clamp_(max=parameters.limit)
    excess -= parameters.threshold * state.net_spikes
    spikes = (excess >= parameters.threshold).to(torch.int8) - (excess < 0).to(torch.int8)
    if waiting:
        spikes.zero_()
    excess -= parameters.threshold * spikes
    settled = (excess >= 0) & (excess < parameters.threshold)
    return spikes, NeuronState(state.membrane, state.net_spikes + spikes), settled
