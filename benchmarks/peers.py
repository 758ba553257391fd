"""The same layers with the same weights in other libraries, as their documentation simulates a converted network.

Integrate-and-fire neurons with reset by subtraction, a constant input at every step, class scores summed over the
steps. A neuron's rate stands for its count divided by the largest count, so that no rate exceeds one spike per step.
Neither library has neurons with negative spikes. The time of a step does not depend on that, since it is a dense
convolution for every layer whatever fires.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from quantspike.conversion.integer import IntegerLayer, IntegerNetwork
from quantspike.data.preparation import central_images
from quantspike.errors import QuantspikeError

AT_ONCE = 2
"""Images whose steps lie in memory together, in the multi-step mode."""

Peer = Callable[[Tensor, int], Tensor]
"""Returns class scores after each of so many steps: fp32 [N, C, H, W], steps -> fp32 [steps, N, classes]."""


def check_installed() -> None:
    """Check that the other libraries are installed.

    Raises:
        QuantspikeError: one of them is not.
    """
    if missing := [name for name in ("spikingjelly", "snntorch") if find_spec(name) is None]:
        raise QuantspikeError(
            f"{' and '.join(missing)} not installed: run pip install --constraint constraints.txt --editable "
            "'.[bench]', or leave the other libraries out with --no-peers"
        )


def make_peers(network: IntegerNetwork, largest: int) -> dict[str, Peer]:
    """Return a network in the other libraries, by library and mode; `largest` is its largest count."""
    return {
        "spikingjelly single-step": SpikingJelly(network, largest, "s").run,
        "spikingjelly multi-step": SpikingJelly(network, largest, "m").run,
        "snntorch": SnnTorch(network, largest).run,
    }


def encode(network: IntegerNetwork, largest: int, images: Tensor) -> Tensor:
    """Return what the first convolution gets at every step: uint8 [N, C, H, W] -> fp32 [N, C, size, size]."""
    return central_images(images, network.architecture.image_size) * (2.0**network.k / largest)


class SpikingJelly:
    """A network of SpikingJelly's IFNode, step by step ("s") or layer by layer over all steps ("m")."""

    def __init__(self, network: IntegerNetwork, largest: int, step_mode: str) -> None:
        from spikingjelly.activation_based import functional, layer, neuron

        modules: list[nn.Module] = []
        for integer in network.layers:
            modules.append(_fill(layer.Conv2d(*_sizes(integer), step_mode=step_mode), integer, largest))
            modules.append(neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode=step_mode))
        classifier = layer.Linear(network.classifier.shape[1], len(network.classifier), bias=False, step_mode=step_mode)
        classifier.weight.data.copy_(network.classifier)
        self._network = nn.Sequential(*modules, layer.Flatten(step_mode=step_mode), classifier).eval()
        self._step_mode, self._reset = step_mode, functional.reset_net

    @torch.inference_mode()
    def run(self, inputs: Tensor, steps: int) -> Tensor:
        """Return class scores after each step; see `Peer`."""
        if self._step_mode == "m":
            return torch.cat([self._run_part(part, steps) for part in torch.split(inputs, AT_ONCE)], dim=1)
        self._reset(self._network)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        return torch.stack([self._network(inputs) for _ in range(steps)]).cumsum(dim=0)

    def _run_part(self, inputs: Tensor, steps: int) -> Tensor:
        self._reset(self._network)
        scores: Tensor = self._network(inputs.expand(steps, *inputs.shape))
        return scores.cumsum(dim=0)


class SnnTorch:
    """A network of snnTorch's Leaky without a leak, step by step."""

    def __init__(self, network: IntegerNetwork, largest: int) -> None:
        from snntorch import Leaky

        self._convolutions = [_fill(nn.Conv2d(*_sizes(layer)), layer, largest) for layer in network.layers]
        self._neurons = [Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in network.layers]
        self._classifier = network.classifier.float()

    @torch.inference_mode()
    def run(self, inputs: Tensor, steps: int) -> Tensor:
        """Return class scores after each step; see `Peer`."""
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        membranes = [neuron.init_leaky() for neuron in self._neurons]
        scores = torch.empty(steps, len(inputs), len(self._classifier))
        for step in range(steps):
            spikes = inputs
            for index, (convolution, neuron) in enumerate(zip(self._convolutions, self._neurons, strict=True)):
                spikes, membranes[index] = neuron(convolution(spikes), membranes[index])
            scores[step] = spikes.flatten(1) @ self._classifier.T
        return scores.cumsum(dim=0)


def _sizes(integer: IntegerLayer) -> tuple[int, int, int, int, int]:
    shape = integer.shape
    return shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding


def _fill(convolution: Any, integer: IntegerLayer, largest: int) -> Any:
    """Set weights and biases in units of the threshold, so that neurons fire at 1 and rates are counts / `largest`."""
    threshold = integer.threshold.float()
    convolution.weight.data.copy_(integer.weight / threshold[:, None, None, None])
    convolution.bias.data.copy_(integer.bias / (threshold * largest))
    return convolution.eval().to(memory_format=torch.channels_last)
