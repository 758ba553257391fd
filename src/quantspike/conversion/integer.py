"""The integer network: the quantized network in whole numbers, and the counts it settles on.

Every device, batch size and order of summation gives the same integers, since each sum is exact in the number format
it is computed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from quantspike.conversion.exact import LARGEST, convolve, exact_format
from quantspike.data.preparation import center_crop, standardize_exactly
from quantspike.errors import QuantspikeError
from quantspike.files import Header, load_tensors, reading, save_tensors
from quantspike.networks.architecture import Architecture, Layer
from quantspike.networks.cnn import check_clipped, check_description, description, largest_count
from quantspike.networks.grids import CLASSIFIER_LIMIT, INPUT_BITS, LARGEST_THRESHOLD, count_
from quantspike.params import WEIGHT_BITS, check_k

FORMAT = "quantspike-integer-network"
VERSION = 3

MEMBRANE_LIMIT = 2**30
"""Membranes and biases stay below this in magnitude, so that 32 bits hold every difference."""

NO_LIMIT = 2**31 - 1
"""Stands for no limit: the largest number of 32 bits, which no membrane reaches."""

COMPARED_AT_ONCE = 25
"""Images whose integer network is computed together: enough for speed, few enough for memory."""

_LARGEST_EXPONENT = 1023
"""Powers of two beyond this in magnitude are not all numbers of 64 bits."""


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

    @cached_property
    def largest_weight(self) -> int:
        """The largest |w| of all channels."""
        return int(self.weight.abs().max())


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """A converted network.

    Attributes:
        architecture: its layers.
        k: binary places of the activations: a count of n stands for n 2^-k.
        weight_bits: width of the weights, sign included.
        clip: the largest activation, a positive multiple of 2^-k; None for no bound.
        layers: the convolutions.
        classifier: v, int16 [classes, features].
        classifier_exponent: q of the classifier's grid, v = rint(2^q V).

    Raises:
        QuantspikeError: the clip is not allowed.
    """

    architecture: Architecture
    k: int
    weight_bits: int
    clip: float | None
    layers: tuple[IntegerLayer, ...]
    classifier: Tensor
    classifier_exponent: int

    def __post_init__(self) -> None:
        check_clipped(self.clip, self.k)

    @property
    def largest_count(self) -> int | None:
        """M = 2^k clip, the largest count of any neuron; None without a clip."""
        return largest_count(self.k, self.clip)

    def limit(self, layer: IntegerLayer) -> Tensor:
        """Return theta (M + 1) - 1, the value beyond which U + h counts no further: int32 [out]."""
        if self.largest_count is None:
            return torch.full_like(layer.threshold, NO_LIMIT)
        return layer.threshold * (self.largest_count + 1) - 1

    def input_current(self, images: Tensor) -> Tensor:
        """Return the input current of the encoding layer, before its bias.

        The image z is standardized with mean and variance from exact integer sums and rounded to whole numbers
        x = rint(2^8 2^k z); then I = rint(sum w x / 2^8). Always on the CPU.

        Args:
            images: uint8 [N, C, H, W], as stored.

        Returns:
            int64 [N, out, size, size].

        Raises:
            QuantspikeError: the images do not fit the network.
        """
        architecture = self.architecture
        if images.shape[1] != architecture.image_channels or min(images.shape[2:]) < architecture.image_size:
            raise QuantspikeError(
                f"the images are {tuple(images.shape[1:])} (channels, height, width), but the network needs "
                f"{architecture.image_channels} channels and at least {architecture.image_size} x "
                f"{architecture.image_size} pixels"
            )
        standardized = standardize_exactly(center_crop(images.cpu(), architecture.image_size))
        whole = (standardized * 2.0 ** (INPUT_BITS + self.k)).round()
        return (_sums(whole, self.layers[0], 0) / 2.0**INPUT_BITS).round().long()

    def settled_counts(self, input_current: Tensor, first: int = 0) -> list[Tensor]:
        """Return the net spike counts of every layer of the settled network.

        n_o = floor(clamp(sum_i w_oi n_i + c_o + h_o, 0, theta_o (M + 1) - 1) / theta_o), which is Q_k, clipped,
        of the folded network with ties broken upward.

        Args:
            input_current: int64 [N, out, size, size], from `input_current`.
            first: number of the first image in the whole set, for messages.

        Returns:
            Per layer, int32 [N, out, size, size].

        Raises:
            QuantspikeError: a membrane reaches 2^30.
        """
        settled: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            drive = _sums(settled[-1], layer, index) if settled else input_current
            # 32 bits hold the sums of bytes and of fp32 plus a bias below 2^30.
            whole = drive.long() if drive.dtype in (torch.int64, torch.float64) else drive.int()
            membrane = whole + layer.bias[:, None, None]
            check_membrane(membrane, index, first)
            settled.append(count_(membrane.int(), layer.threshold[:, None, None], self.largest_count))
        return settled

    def logits(self, counts: Tensor) -> Tensor:
        """Return whole-number class scores from the last layer's net counts.

        Args:
            counts: any integer type, [N, features, 1, 1].

        Returns:
            int64 [N, classes]; the prediction is the lowest class among the largest.
        """
        # No device multiplies matrices of int64, so multiply and add one by one: there are few classes.
        products = counts.flatten(1).long()[:, None, :] * self.classifier.to(counts.device).long()[None, :, :]
        return products.sum(dim=2)


def class_scores(network: IntegerNetwork, images: Tensor) -> Tensor:
    """Return the exact class scores of test images, in the units of the trained network's; on the CPU.

    Args:
        network: the integer network.
        images: uint8 [N, C, H, W], as stored.

    Returns:
        Logits times 2^-(q + k), float64 [N, classes].

    Raises:
        QuantspikeError: the images do not fit the network, or a membrane reaches 2^30.
    """
    logits = []
    with torch.inference_mode():
        for first in range(0, len(images), COMPARED_AT_ONCE):
            current = network.input_current(images[first : first + COMPARED_AT_ONCE])
            logits.append(network.logits(network.settled_counts(current, first)[-1]))
    return torch.cat(logits).double() * 2.0 ** -(network.classifier_exponent + network.k)


def check_membrane(membrane: Tensor, layer: int, images: Tensor | int = 0) -> None:
    """Check that membranes stay where 32 bits hold every difference.

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
    index = (membrane.long().abs() >= MEMBRANE_LIMIT).nonzero()[0].tolist()
    image = images + index[0] if isinstance(images, int) else int(images[index[0]])
    raise membrane_error(image, layer, index[1], int(membrane[tuple(index)]))


def membrane_error(image: int, layer: int, channel: int, value: int) -> QuantspikeError:
    """Return the error for a membrane that reaches 2^30; `layer` is an index from 0."""
    return QuantspikeError(
        f"image {image}, layer {layer + 1}, channel {channel}: the membrane reaches {value}, beyond 2^30; "
        "convert with fewer weight_bits or a smaller k"
    )


def save_integer_network(path: Path, network: IntegerNetwork) -> None:
    """Write a network as safetensors, atomically, with a header that describes it."""
    header = description(
        network.architecture,
        network.k,
        weight_bits=network.weight_bits,
        clip=network.clip,
        classifier_exponent=network.classifier_exponent,
    )
    save_tensors(path, FORMAT, VERSION, header, _tensors(network))


def load_integer_network(path: Path, expected: Header | None = None) -> IntegerNetwork:
    """Read a network and check that its parts fit together; one of version 1 has no clip.

    Args:
        path: file written by `save_integer_network`, with a checksum since version 3.
        expected: its description, if it is known.

    Raises:
        QuantspikeError: the file is absent or damaged, has another version, holds another network, or tensors that
            its header does not announce or values that no conversion makes.
    """
    header, tensors = load_tensors(path, FORMAT, 1, 2, VERSION)
    check_description(path, header, expected or {})
    with reading(path):
        clip = None if header["version"] == 1 else header["clip"]
        k = check_k(header["k"])
        architecture = Architecture.parse(
            str(header["layers"]),
            image_size=int(header["image_size"]),
            image_channels=int(header["image_channels"]),
            classes=int(header["classes"]),
        )
        layers = tuple(
            IntegerLayer(shape, *(tensors[f"layer{index}.{name}"] for name in ("weight", "bias", "threshold")))
            for index, shape in enumerate(architecture.layers)
        )
        network = IntegerNetwork(
            architecture,
            k,
            int(header["weight_bits"]),
            None if clip is None else float(clip),
            layers,
            tensors["classifier"],
            int(header["classifier_exponent"]),
        )
        if unexpected := set(tensors) - set(_tensors(network)):
            raise ValueError(f"unexpected tensors {', '.join(sorted(unexpected))}")
        _check_values(network)
    return network


def _tensors(network: IntegerNetwork) -> dict[str, Tensor]:
    """Return the tensors of a network by the names that they have in its file."""
    tensors = {"classifier": network.classifier}
    for index, layer in enumerate(network.layers):
        tensors |= {f"layer{index}.{name}": getattr(layer, name) for name in ("weight", "bias", "threshold")}
    return tensors


def _check_values(network: IntegerNetwork) -> None:
    """Check shapes, then the ranges that every conversion keeps to."""
    if network.weight_bits not in WEIGHT_BITS or abs(network.classifier_exponent) > _LARGEST_EXPONENT:
        raise ValueError(f"{network.weight_bits} bits and the exponent {network.classifier_exponent} do not exist")
    architecture = network.architecture
    _check_tensor(
        "classifier",
        network.classifier,
        torch.int16,
        (architecture.classes, architecture.layers[-1].out_channels),
        CLASSIFIER_LIMIT,
    )
    for index, layer in enumerate(network.layers):
        shape, name = layer.shape, f"layer{index}"
        channels, kernel = (shape.out_channels,), (shape.in_channels, shape.kernel, shape.kernel)
        largest_weight = 2 ** (network.weight_bits - 1) - 1
        _check_tensor(f"{name}.weight", layer.weight, torch.int16, (*channels, *kernel), largest_weight)
        _check_tensor(f"{name}.bias", layer.bias, torch.int32, channels, MEMBRANE_LIMIT - 1)
        _check_tensor(f"{name}.threshold", layer.threshold, torch.int32, channels, LARGEST_THRESHOLD)
        if bool(((layer.threshold < 2) | (layer.threshold % 2 != 0)).any()):
            raise ValueError(f"{name} holds a threshold that is not an even number from 2 to 2^20")


def _check_tensor(name: str, values: Tensor, dtype: torch.dtype, shape: tuple[int, ...], limit: int) -> None:
    if (found := (values.dtype, tuple(values.shape))) != (dtype, shape):
        raise ValueError(f"{name} is {found}, expected {(dtype, shape)}")
    if (largest := int(values.long().abs().max())) > limit:
        raise ValueError(f"{name} holds a value of magnitude {largest}, beyond {limit}")


def _sums(values: Tensor, layer: IntegerLayer, index: int) -> Tensor:
    """Return sum_i w_oi x_i of whole numbers, exactly: [N, in, H, W] -> int32, fp32 or float64 [N, out, H', W']."""
    largest = int(values.abs().max()) if values.numel() else 0
    factor, largest_sum = max(largest, layer.largest_weight), _largest_sum(values, layer, largest)
    dtype = exact_format(layer.shape, largest_sum, factor, values.device, f"layer {index + 1}")
    return convolve(values, layer.weight, layer.shape, dtype)


def _largest_sum(values: Tensor, layer: IntegerLayer, largest: int) -> int:
    """Bound |sum_i w_oi x_i| and all its parts: S_o max |x|, or max |w| times the sum of |x| under the kernel."""
    by_weights = int(layer.absolute_sums.max()) * largest
    if by_weights < LARGEST[torch.float32]:
        return by_weights
    shape = layer.shape
    by_position = values.abs().sum(dim=1, keepdim=True, dtype=torch.float64)
    under_kernel = functional.avg_pool2d(by_position, shape.kernel, shape.stride, shape.padding, divisor_override=1)
    return min(by_weights, layer.largest_weight * int(under_kernel.max()))
