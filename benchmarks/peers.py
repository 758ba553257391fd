"""The same layers with the same weights in other libraries, as their documentation simulates a converted network.

Integrate-and-fire neurons with reset by subtraction, a constant input at every step, class scores summed over the
steps. Neither library has neurons that take spikes back; what a step costs does not depend on that, since it is a
dense convolution for every layer whatever fires.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantspike.augmentation import central_images
from quantspike.integer import IntegerLayer, IntegerNetwork


def encoded(network: IntegerNetwork, images: Tensor) -> Tensor:
    """What the first convolution sees at every step: uint8 [N, C, H, W] -> fp32 [N, C, size, size]."""
    return central_images(images, network.architecture.image_size) * 2.0**network.k


AT_ONCE = 2
"""Images whose steps lie in memory together, in the multi-step mode."""


class SpikingJelly:
    """A network of SpikingJelly's IFNode, step by step ("s") or layer by layer over all steps ("m")."""

    def __init__(self, network: IntegerNetwork, step_mode: str) -> None:
        from spikingjelly.activation_based import functional, layer, neuron

        modules: list[nn.Module] = []
        for integer in network.layers:
            shape = integer.shape
            convolution = layer.Conv2d(
                shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding, step_mode=step_mode
            )
            _fill(convolution, integer)
            modules += [convolution, neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode=step_mode)]
        classifier = layer.Linear(network.classifier.shape[1], len(network.classifier), bias=False, step_mode=step_mode)
        classifier.weight.data.copy_(network.classifier)
        modules += [layer.Flatten(step_mode=step_mode), classifier]
        self._network = nn.Sequential(*modules).eval().to(memory_format=torch.channels_last)
        self._step_mode, self._reset = step_mode, functional.reset_net

    def run(self, inputs: Tensor, steps: int) -> Tensor:
        """Class scores after all steps: fp32 [N, C, H, W] -> fp32 [N, classes]."""
        with torch.inference_mode():
            if self._step_mode == "m":
                parts = []
                for part in inputs.split(AT_ONCE):
                    self._reset(self._network)
                    parts.append(self._network(part.expand(steps, *part.shape)).sum(dim=0))
                return torch.cat(parts)
            self._reset(self._network)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            scores: Tensor = self._network(inputs)
            for _ in range(steps - 1):
                scores = scores + self._network(inputs)
            return scores


class SnnTorch:
    """A network of snnTorch's Leaky without a leak, step by step."""

    def __init__(self, network: IntegerNetwork) -> None:
        import snntorch

        self._convolutions = []
        for integer in network.layers:
            shape = integer.shape
            convolution = nn.Conv2d(shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding)
            _fill(convolution, integer)
            self._convolutions.append(convolution.eval().to(memory_format=torch.channels_last))
        self._neurons = [snntorch.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract") for _ in network.layers]
        self._classifier = network.classifier.float()

    def run(self, inputs: Tensor, steps: int) -> Tensor:
        """Class scores after all steps: fp32 [N, C, H, W] -> fp32 [N, classes]."""
        with torch.inference_mode():
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            membranes = [neuron.init_leaky() for neuron in self._neurons]
            scores = torch.zeros(len(inputs), len(self._classifier))
            for _ in range(steps):
                spikes = inputs
                for index, (convolution, neuron) in enumerate(zip(self._convolutions, self._neurons, strict=True)):
                    spikes, membranes[index] = neuron(convolution(spikes), membranes[index])
                scores += spikes.flatten(1) @ self._classifier.T
            return scores


def _fill(convolution: Any, integer: IntegerLayer) -> None:
    """Weights and biases in units of the threshold, so that neurons fire at 1."""
    threshold = integer.threshold.float()
    convolution.weight.data.copy_(integer.weight / threshold[:, None, None, None])
    convolution.bias.data.copy_(integer.bias / threshold)
