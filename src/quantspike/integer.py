"""The integer network: the quantized network in whole numbers, and the counts it settles on.

Every device, batch size and order of summation gives the same integers, since each sum is exact in
the number format it is computed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from quantspike.architecture import Architecture, Layer
from quantspike.augmentation import center_crop
from quantspike.errors import QuantspikeError
from quantspike.exact import LARGEST, convolve, exact_format
from quantspike.params import WEIGHT_BITS
from quantspike.tensors import Header, load_tensors, save_tensors

FORMAT = "quantspike-integer-network"
VERSION = 1

INPUT_BITS = 8
"""Binary places of the image beyond those of the activations."""

MEMBRANE_LIMIT = 2**30
"""Membranes, and biases with them, stay below this in magnitude, so that 32 bits hold every difference."""

LARGEST_THRESHOLD = 2**20

CLASSIFIER_LIMIT = 2**15 - 1


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """One convolution in whole numbers, each output channel on a grid of its own.

    Attributes:
        shape: sizes, stride and padding.
        weight: w, int16 [out, in, kernel, kernel].
        bias: c, int32 [out].
        threshold: theta, int32 [out], even, from 2 to 2^20.
    """

    shape: Layer
    weight: Tensor
    bias: Tensor
    threshold: Tensor

    @cached_property
    def half_threshold(self) -> Tensor:
        """h = theta / 2, which turns rounding down into rounding to the nearest. int32 [out]."""
        return self.threshold // 2

    @cached_property
    def absolute_sums(self) -> Tensor:
        """S_o = sum_i |w_oi|, the largest change that one step of spikes can make. int64 [out]."""
        return self.weight.long().abs().sum(dim=(1, 2, 3))


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A converted network.

    Attributes:
        architecture: its layers.
        k: binary places of the activations: a count of n stands for n 2^-k.
        weight_bits: width of the weights, sign included.
        layers: the convolutions.
        classifier: v, int16 [classes, features].
        classifier_exponent: q of the classifier's grid, v = rint(2^q V).
    """

    architecture: Architecture
    k: int
    weight_bits: int
    layers: tuple[IntegerLayer, ...]
    classifier: Tensor
    classifier_exponent: int

    def input_current(self, images: Tensor) -> Tensor:
        """Input current of the encoding layer, before its bias.

        The image z is standardized with mean and variance from exact integer sums, brought to whole
        numbers x = rint(2^8 2^k z), and I = rint(sum w x / 2^8). Always on the CPU.

        Args:
            images: uint8 [N, C, H, W], as stored.

        Returns:
            int64 [N, out, size, size].

        Raises:
            QuantspikeError: the images are of other sizes than the network's.
        """
        architecture = self.architecture
        if images.shape[1] != architecture.image_channels or min(images.shape[2:]) < architecture.image_size:
            raise QuantspikeError(
                f"the images are {tuple(images.shape[1:])} (channels, height, width), but the network wants "
                f"{architecture.image_channels} channels and at least {architecture.image_size} x "
                f"{architecture.image_size} pixels"
            )
        standardized = _standardize_exactly(center_crop(images.cpu(), architecture.image_size))
        whole = (standardized * 2.0 ** (INPUT_BITS + self.k)).round()
        return (_sums(whole, self.layers[0], 0) / 2.0**INPUT_BITS).round().long()

    def settled_counts(self, input_current: Tensor, first: int = 0) -> list[Tensor]:
        """Net spike counts of every layer once nothing changes any more: equation (1) of the conversion.

        n_o = floor(max(0, sum_i w_oi n_i + c_o + h_o) / theta_o), which is Q_k of the folded network
        with ties broken upward.

        Args:
            input_current: int64 [N, out, size, size], from `input_current`.
            first: number of the first image in the whole set, for messages.

        Returns:
            Per layer, int32 [N, out, size, size].

        Raises:
            QuantspikeError: a membrane would leave 31 bits.
        """
        counts: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            drive = _sums(counts[-1], layer, index) if counts else input_current
            membrane = _whole(drive) + layer.bias[:, None, None]
            check_membrane(membrane, index, first)
            shifted = membrane.int().add_(layer.half_threshold[:, None, None]).clamp_(min=0)
            counts.append(shifted.div_(layer.threshold[:, None, None], rounding_mode="floor"))
        return counts

    def logits(self, counts: Tensor) -> Tensor:
        """Whole-number class scores from the last layer's net counts.

        Args:
            counts: any integer type, [N, features, 1, 1].

        Returns:
            int64 [N, classes]; the prediction is the lowest class among the largest.
        """
        # No device multiplies matrices of int64, so multiply and add one by one: there are few classes.
        products = counts.flatten(1).long()[:, None, :] * self.classifier.to(counts.device).long()[None, :, :]
        return products.sum(dim=2)


def check_membrane(membrane: Tensor, layer: int, images: Tensor | int = 0) -> None:
    """Makes sure that membranes stay where 32 bits hold every difference.

    Args:
        membrane: integer [N, C, H, W].
        layer: index of the layer, from 0.
        images: numbers of the N images, or of the first of N consecutive ones.

    Raises:
        QuantspikeError: |U| reaches 2^30; image, layer and channel are named.
    """
    if membrane.numel() == 0:
        return
    low, high = torch.aminmax(membrane)
    if max(-int(low), int(high)) < MEMBRANE_LIMIT:
        return
    place = (membrane.long().abs() >= MEMBRANE_LIMIT).nonzero()[0].tolist()
    image = images + place[0] if isinstance(images, int) else int(images[place[0]])
    raise membrane_error(image, layer, place[1], int(membrane[tuple(place)]))


def membrane_error(image: int, layer: int, channel: int, value: int) -> QuantspikeError:
    """What to say of a membrane beyond 31 bits; `layer` is an index from 0."""
    return QuantspikeError(
        f"image {image}, layer {layer + 1}, channel {channel}: the membrane reaches {value}, beyond 2^30; "
        "convert with fewer weight_bits or a smaller k"
    )


def save_integer_network(path: Path, network: IntegerNetwork) -> None:
    """Writes a network as safetensors with a header that says what it is, atomically."""
    header: Header = {
        "layers": network.architecture.text,
        "image_size": network.architecture.image_size,
        "image_channels": network.architecture.image_channels,
        "classes": network.architecture.classes,
        "k": network.k,
        "weight_bits": network.weight_bits,
        "classifier_exponent": network.classifier_exponent,
    }
    save_tensors(path, FORMAT, VERSION, header, _tensors(network))


def load_integer_network(path: Path) -> IntegerNetwork:
    """Reads a network and checks that its parts fit together.

    Raises:
        QuantspikeError: the file is absent or damaged, of another version, or holds tensors that its
            header does not announce or values that no conversion makes.
    """
    header, tensors = load_tensors(path, FORMAT, VERSION)
    try:
        architecture = Architecture.parse(
            str(header["layers"]),
            image_size=int(header["image_size"]),
            image_channels=int(header["image_channels"]),
            classes=int(header["classes"]),
        )
        layers = tuple(
            IntegerLayer(
                shape,
                tensors[f"layer{index}.weight"],
                tensors[f"layer{index}.bias"],
                tensors[f"layer{index}.threshold"],
            )
            for index, shape in enumerate(architecture.layers)
        )
        network = IntegerNetwork(
            architecture,
            int(header["k"]),
            int(header["weight_bits"]),
            layers,
            tensors["classifier"],
            int(header["classifier_exponent"]),
        )
    except (KeyError, TypeError, ValueError, QuantspikeError) as error:
        raise QuantspikeError(f"{path} is no whole integer network ({error}): delete it and run dvc repro") from error
    if unexpected := set(tensors) - set(_tensors(network)):
        raise QuantspikeError(
            f"{path} holds tensors that its header does not announce: {', '.join(sorted(unexpected))}"
        )
    _check_values(path, network)
    return network


def _tensors(network: IntegerNetwork) -> dict[str, Tensor]:
    """The tensors of a network by the names that they have in its file."""
    tensors = {"classifier": network.classifier}
    for index, layer in enumerate(network.layers):
        tensors |= {f"layer{index}.{name}": getattr(layer, name) for name in ("weight", "bias", "threshold")}
    return tensors


def _check_values(path: Path, network: IntegerNetwork) -> None:
    """Shapes first, then the ranges that every conversion keeps to."""
    if network.k < 0 or network.weight_bits not in WEIGHT_BITS:
        raise QuantspikeError(f"{path} announces k = {network.k} and {network.weight_bits} bits, which do not exist")
    architecture = network.architecture
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "classifier": (torch.int16, (architecture.classes, architecture.layers[-1].out_channels))
    }
    for index, shape in enumerate(architecture.layers):
        channels = (shape.out_channels,)
        expected |= {
            f"layer{index}.weight": (torch.int16, (*channels, shape.in_channels, shape.kernel, shape.kernel)),
            f"layer{index}.bias": (torch.int32, channels),
            f"layer{index}.threshold": (torch.int32, channels),
        }
    for name, tensor in _tensors(network).items():
        if (found := (tensor.dtype, tuple(tensor.shape))) != expected[name]:
            raise QuantspikeError(f"{path}: {name} is {found}, expected {expected[name]}")
    _check_range(path, "classifier", network.classifier, CLASSIFIER_LIMIT)
    for index, layer in enumerate(network.layers):
        _check_range(path, f"layer{index}.weight", layer.weight, 2 ** (network.weight_bits - 1) - 1)
        _check_range(path, f"layer{index}.bias", layer.bias, MEMBRANE_LIMIT - 1)
        if bool(((layer.threshold < 2) | (layer.threshold > LARGEST_THRESHOLD) | (layer.threshold % 2 != 0)).any()):
            raise QuantspikeError(f"{path}: layer{index} holds a threshold that is not even and from 2 to 2^20")


def _check_range(path: Path, name: str, values: Tensor, limit: int) -> None:
    largest = int(values.long().abs().max())
    if largest > limit:
        raise QuantspikeError(f"{path}: {name} holds a value of magnitude {largest}, beyond the {limit} of its format")


def _standardize_exactly(pixels: Tensor) -> Tensor:
    """(x - mean) / max(std, 1/sqrt(n)) over all n values of an image. uint8 [N, C, H, W] -> float64.

    Multiplied by n above and below, all but one root and one division is in whole numbers, with S and Q
    the sums of the pixels and of their squares: (n x - S) / sqrt(max(n Q - S^2, n)).
    """
    values = pixels.long()
    n = values[0].numel()
    total = values.sum(dim=(1, 2, 3), keepdim=True)
    squares = values.square().sum(dim=(1, 2, 3), keepdim=True)
    radicand = (n * squares - total.square()).clamp(min=n)
    return (n * values - total).double() / radicand.double().sqrt()


def _sums(values: Tensor, layer: IntegerLayer, index: int) -> Tensor:
    """sum_i w_oi x_i of whole numbers, exactly: [N, in, H, W] -> fp32 or float64 [N, out, H', W']."""
    shape = layer.shape
    dtype = exact_format(shape, _largest_sum(values, layer), values.device, f"layer {index + 1}")
    return convolve(values, layer.weight, shape, dtype)


def _whole(sums: Tensor) -> Tensor:
    """As integers: 32 bits hold the sums that fp32 holds, and a bias below 2^30 besides."""
    return sums.int() if sums.dtype == torch.float32 else sums.long()


def _largest_sum(values: Tensor, layer: IntegerLayer) -> int:
    """Bound on |sum_i w_oi x_i| and all its parts: S_o max |x|, or max |w| times the sum of |x| under the kernel."""
    if values.numel() == 0:
        return 0
    shape, magnitudes = layer.shape, values.abs()
    by_weights = int(layer.absolute_sums.max()) * int(magnitudes.max())
    if by_weights < LARGEST[torch.float32]:
        return by_weights
    by_place = magnitudes.sum(dim=1, keepdim=True, dtype=torch.float64)
    under_kernel = functional.avg_pool2d(by_place, shape.kernel, shape.stride, shape.padding, divisor_override=1)
    return min(by_weights, int(layer.weight.abs().max()) * int(under_kernel.max()))
