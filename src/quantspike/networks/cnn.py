"""Layer string to convolutional network, quantized or in full precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quantspike.errors import QuantspikeError
from quantspike.files import Header
from quantspike.networks.architecture import Architecture, Layer
from quantspike.networks.grids import INPUT_BITS, Grid, classifier_grid, counts, fold, round_through, to_grid
from quantspike.params import WEIGHT_BITS, Precision, Setting, check_clip

BATCH_NORM_EPS = 1e-5


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, steps_per_unit: float) -> Tensor:
        # Both factors are powers of two, so only the rounding itself changes a value.
        return values.mul(steps_per_unit).round_().mul_(1.0 / steps_per_unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def quantize(values: Tensor, k: int) -> Tensor:
    """Round to multiples of 2^-k, ties to even: Q_k(x) = round(2^k x) / 2^k, without an upper clip.

    The gradient is that of the identity (the straight-through estimator of Bengio et al., 2013).

    Args:
        values: tensor of any shape.
        k: number of binary places, 0 or more.

    Returns:
        A tensor of the same shape and type.
    """
    rounded: Tensor = _RoundToGrid.apply(values, float(2**k))
    return rounded


class Quantizer(nn.Module):
    """Q_k as a layer of a network."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, values: Tensor) -> Tensor:
        return quantize(values, self.k)


class Block(nn.Sequential):
    """Convolution without bias, batch normalization, ReLU with an optional clip and, for an integer k, the quantizer.

    The clip is a multiple of 2^-k, so it can come before the quantizer: min(Q_k(x), c) = Q_k(min(x, c)).
    """

    def __init__(self, layer: Layer, k: Precision, clip: float | None) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding, bias=False
        )
        # torch's momentum 0.1 is a decay of 0.9 for the running averages.
        self.normalization = nn.BatchNorm2d(layer.out_channels, eps=BATCH_NORM_EPS, momentum=0.1)
        # Rectifier and clip in one pass over the map.
        self.rectifier = nn.ReLU(inplace=True) if clip is None else nn.Hardtanh(0.0, clip, inplace=True)
        if k != "fp32":
            self.quantizer = Quantizer(k)


class QuantizedCNN(nn.Module):
    """The network of a layer string: blocks, then a linear classifier without bias.

    Neither the image nor the classifier is quantized, unless the network is integer-aware: then it computes what the
    integer network will, with batch-norm averages that stay as they are. In bf16 its sums are rounded.

    Attributes:
        architecture: the layers, with the sizes of their maps.
        k: binary places of the activations, or `fp32` for none.
        clip: the largest activation, a multiple of 2^-k, or None.
        weight_bits: width of the weights of an integer-aware network, or None for one that is not.

    Raises:
        QuantspikeError: clip or width are not allowed.
    """

    def __init__(
        self, architecture: Architecture, k: Precision, clip: float | None = None, weight_bits: int | None = None
    ) -> None:
        super().__init__()
        if k != "fp32":
            check_clipped(clip, k)
        if weight_bits is not None and (k == "fp32" or weight_bits not in WEIGHT_BITS):
            raise QuantspikeError(f"integers of {weight_bits} bits are not allowed with k = {k}")
        self.architecture = architecture
        self.k = k
        self.clip = clip
        self.weight_bits = weight_bits
        self._fixed: list[Grid] = []
        self._fixed_classifier: tuple[Tensor, int] | None = None
        self.blocks = nn.ModuleList(Block(layer, k, clip) for layer in architecture.layers)
        self.classifier = nn.Linear(architecture.layers[-1].out_channels, architecture.classes, bias=False)
        # The layout in which convolutions run fastest. It must not change once an optimizer holds the weights:
        # fused Adam walks weights and moments in their order in memory.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class scores of standardized images: [N, C, H, W] float -> [N, classes] float."""
        *_, activations = self.activations(images)
        return self.classify(activations)

    def activations(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the output of each layer in turn, float [N, channels, H, W], for images as in `forward`.

        Of an integer-aware network these are counts of steps of 2^-k.
        """
        activations = images
        for index, block in enumerate(self.blocks):
            activations = block(activations) if self.weight_bits is None else self._counts(activations, index)
            yield activations

    def classify(self, activations: Tensor) -> Tensor:
        """Return class scores [N, classes] from the activations of the last layer."""
        features = activations.flatten(1)
        if self.weight_bits is None:
            scores: Tensor = self.classifier(features)
            return scores
        assert self.k != "fp32"
        weight, exponent = self._fixed_classifier or classifier_grid(self.classifier.weight)
        return functional.linear(features, weight.to(features.dtype)) * 2.0 ** -(exponent + self.k)

    def fix_grids(self) -> None:
        """Compute the grids of an integer-aware network once, for weights that no longer change."""
        with torch.no_grad():
            self._fixed = [self._grid(index) for index in range(len(self.blocks))]
            self._fixed_classifier = classifier_grid(self.classifier.weight)

    def _grid(self, index: int) -> Grid:
        """Return the weights, biases and thresholds of a layer in whole numbers."""
        if self._fixed:
            return self._fixed[index]
        block = self.blocks[index]
        assert isinstance(block, Block)
        assert self.k != "fp32"
        assert self.weight_bits is not None
        return to_grid(*fold(block.convolution.weight, block.normalization, self.k), self.weight_bits, index)

    def _counts(self, values: Tensor, index: int) -> Tensor:
        """Return the counts of a layer from those of the layer before, or from the image: [N, in, H, W] float."""
        grid, shape = self._grid(index), self.architecture.layers[index]
        assert self.k != "fp32"
        if index == 0:
            values = (values * 2.0 ** (INPUT_BITS + self.k)).round()
        dtype = values.dtype
        current = functional.conv2d(values, grid.weight.to(dtype), stride=shape.stride, padding=shape.padding).to(dtype)
        if index == 0:
            current = round_through(current / 2.0**INPUT_BITS)
        bias, threshold = (part.to(dtype)[:, None, None] for part in (grid.bias, grid.threshold))
        return counts(current + bias, threshold, largest_count(self.k, self.clip))

    @property
    def weights(self) -> int:
        """Number of weights of the convolutions and the classifier, without batch normalization."""
        # Scales and shifts of batch normalization have one dimension, weights two or four.
        return sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1)


def check_clipped(clip: float | None, k: int) -> None:
    """Check that activations of precision k can be clipped.

    Raises:
        QuantspikeError: they cannot; see `check_clip`.
    """
    if clip is not None:
        try:
            check_clip(clip, k)
        except ValueError as error:
            raise QuantspikeError(f"the clip {error}") from error


def largest_count(k: int, clip: float | None) -> int | None:
    """Return M = 2^k c, the largest count of steps of 2^-k that a clip c allows, or None without a clip."""
    return None if clip is None else int(2**k * clip)


def description(architecture: Architecture, k: Precision, **settings: Setting) -> Header:
    """Return what the file of a network says of it: layers, k and further settings, such as the clip."""
    return {
        "layers": architecture.text,
        "image_size": architecture.image_size,
        "image_channels": architecture.image_channels,
        "classes": architecture.classes,
        "k": k,
        **settings,
    }


def check_description(path: Path, header: Header, expected: Header) -> None:
    """Check that a file holds the expected network.

    Raises:
        QuantspikeError: an entry of its header differs from the expected one.
    """
    for name, value in expected.items():
        if header.get(name) != value:
            raise QuantspikeError(
                f"{path} holds a network with {name} = {header.get(name)}, expected {value}: run dvc repro"
            )


def with_precision(network: QuantizedCNN, k: Precision, weight_bits: int | None = None) -> QuantizedCNN:
    """Return a network in training mode with the same weights and running averages, and activations of precision k."""
    result = QuantizedCNN(network.architecture, k, network.clip, weight_bits)
    result.load_state_dict(network.state_dict())
    return result


def new_network(architecture: Architecture, k: Precision, seed: int, clip: float | None = None) -> QuantizedCNN:
    """Return an untrained network on the CPU, with the initial weights of a seed."""
    network = QuantizedCNN(architecture, k, clip)
    initialize(network, torch.Generator().manual_seed(seed))
    return network


def initialize(network: QuantizedCNN, generator: torch.Generator) -> None:
    """Draw the initial weights.

    Convolutions: normal of std 0.02 truncated at two std; classifier: the same with 0.1;
    batch-norm scales from N(1, 0.002), shifts 0 (Zou et al., 2023).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = 0.02 if isinstance(module, nn.Conv2d) else 0.1
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.002, generator=generator)
            nn.init.zeros_(module.bias)
