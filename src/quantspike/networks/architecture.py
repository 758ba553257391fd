"""Layer strings: what `96C3-256C3-P2-1024` means, layer by layer, for a given image size, and what it costs to run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from quantspike.errors import QuantspikeError
from quantspike.params import Simulate
from quantspike.paths import Run

_NUMBER = r"([1-9][0-9]{0,5})"
_CONVOLUTION = re.compile(f"{_NUMBER}C{_NUMBER}")
_POOLING = re.compile(f"P{_NUMBER}")
_HEAD = re.compile(_NUMBER)

_GRAMMAR = (
    "write cCn (convolution), Pn (learned pooling) or, at the end, bare channel numbers, joined by '-', "
    "with numbers of at most 6 digits"
)

MOST_LAYERS = 100
LARGEST = 2**30
"""The largest number of weights and of neurons: gigabytes at most, and far more than any network here needs."""


@dataclass(frozen=True)
class Layer:
    """One convolution, square in every respect.

    Attributes:
        token: its part of the layer string, such as `96C3`, with the channels as scaled by the width.
        in_channels: channels in.
        out_channels: channels out.
        kernel: side of the kernel.
        stride: step of the kernel.
        padding: rows and columns of zeros on each side.
        in_size: side of the map that comes in, in pixels.
        out_size: side of the map that goes out, in pixels.
    """

    token: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    in_size: int
    out_size: int

    @property
    def neurons(self) -> int:
        """Neurons of the layer: one per value of the map that goes out."""
        return self.out_channels * self.out_size**2


@dataclass(frozen=True)
class Architecture:
    """The hidden layers of a network, in order.

    Attributes:
        layers: the convolutions; a linear classifier without bias follows the last.
        image_size: side of the square image that comes in, in pixels.
        image_channels: colour channels of the image.
        classes: outputs of the classifier.
    """

    layers: tuple[Layer, ...]
    image_size: int
    image_channels: int = 3
    classes: int = 10

    @cached_property
    def neurons(self) -> int:
        """Neurons of all hidden layers, the classifier left out."""
        return sum(layer.neurons for layer in self.layers)

    @cached_property
    def text(self) -> str:
        """Layer string with the channels as they are after scaling: parsing it gives the same layers."""
        return "-".join(layer.token for layer in self.layers)

    @classmethod
    def parse(
        cls, text: str, *, image_size: int, image_channels: int = 3, classes: int = 10, width: float = 1.0
    ) -> Architecture:
        """Parse a layer string.

        `cCn` is an n x n convolution (n odd) to c channels with stride 1 and same padding; `Pn` an
        n x n convolution of stride n that keeps the channels; a bare number c belongs to the head:
        the first is a convolution over all that is left of the map, the next ones are 1 x 1.

        Args:
            text: the layer string.
            image_size: side of the square images, in pixels.
            image_channels: colour channels of the images.
            classes: outputs of the classifier.
            width: factor on every number of channels, rounded to at least 1.

        Raises:
            QuantspikeError: the string does not parse, or a layer does not fit the map it gets.
        """
        layers: list[Layer] = []
        size, channels, in_head = image_size, image_channels, False
        tokens = text.split("-")
        if len(tokens) > MOST_LAYERS:
            raise QuantspikeError(f"the layer string has {len(tokens)} layers, at most {MOST_LAYERS} are allowed")
        for position, token in enumerate(tokens, start=1):
            place = f"layer {position} ({token!r}) of {text!r}"
            if match := _CONVOLUTION.fullmatch(token):
                if in_head:
                    raise QuantspikeError(f"{place}: no convolution may follow the head")
                out, kernel, stride = _scaled(match[1], width), int(match[2]), 1
                if kernel % 2 == 0:
                    raise QuantspikeError(
                        f"{place}: a {kernel}x{kernel} kernel cannot keep the map's size; use an odd one"
                    )
                padding, out_size = kernel // 2, size
            elif match := _POOLING.fullmatch(token):
                if in_head:
                    raise QuantspikeError(f"{place}: no pooling may follow the head")
                out, kernel, stride, padding = channels, int(match[1]), int(match[1]), 0
                if not layers:
                    raise QuantspikeError(f"{place}: pooling cannot come first; begin with a convolution")
                if size % kernel:
                    raise QuantspikeError(
                        f"{place}: the map is {size}x{size} there, which {kernel} does not divide; "
                        f"choose an image size (data.crop, now {image_size}) that is divided evenly by every P layer"
                    )
                out_size = size // kernel
            elif _HEAD.fullmatch(token):
                if not layers:
                    raise QuantspikeError(f"{place}: the head cannot come first; begin with a convolution")
                out, kernel, stride, padding, out_size = _scaled(token, width), size, 1, 0, 1
                in_head = True
            else:
                raise QuantspikeError(f"{place} is not understood: {_GRAMMAR}")
            layers.append(Layer(_rescaled(token, out), channels, out, kernel, stride, padding, size, out_size))
            size, channels = out_size, out
        if not in_head:
            raise QuantspikeError(f"{text!r} has no head: end with a bare number of channels, such as -1024")
        architecture = cls(tuple(layers), image_size, image_channels, classes)
        weights = sum(layer.in_channels * layer.out_channels * layer.kernel**2 for layer in layers)
        if max(weights, architecture.neurons) > LARGEST:
            raise QuantspikeError(
                f"{text!r} has {weights:,} weights and {architecture.neurons:,} neurons, at most {LARGEST:,} of "
                "each are allowed: use fewer channels, smaller kernels or more pooling"
            )
        return architecture


def architecture_of(run: Run, image_channels: int = 3, classes: int = 10) -> Architecture:
    """Return the layers of a run's network at the width and image size of its profile.

    Args:
        run: the run.
        image_channels: colour channels of the images.
        classes: number of classes.

    Raises:
        QuantspikeError: the layer string does not parse, or does not fit the image size.
    """
    settings = run.settings
    try:
        return Architecture.parse(
            run.layers,
            image_size=settings.data.crop,
            image_channels=image_channels,
            classes=classes,
            width=settings.width,
        )
    except QuantspikeError as error:
        raise QuantspikeError(f"models.{run.model}.layers with profiles.{run.profile}: {error}") from error


def check_layer_delay(architecture: Architecture, settings: Simulate, place: str) -> None:
    """Check that every layer may fire within T steps; `place` is that of the settings in params.yaml, for the message.

    Raises:
        QuantspikeError: a layer delay is too long for the network.
    """
    layers, longest = len(architecture.layers), max(settings.layer_delay)
    if (needed := (layers - 1) * longest + 1) > settings.steps:
        raise QuantspikeError(
            f"{place}.layer_delay holds {longest}, with which the last of {layers} layers fires from step {needed} "
            f"on, but {place}.steps is {settings.steps}: set it to {(settings.steps - 1) // (layers - 1)} or less, "
            f"or the steps to {needed} or more"
        )


def _rescaled(token: str, channels: int) -> str:
    return token if token.startswith("P") else re.sub(r"^\d+", str(channels), token)


def _scaled(channels: str, width: float) -> int:
    return max(1, round(int(channels) * width))


def fan_out(layer: Layer) -> NDArray[np.int64]:
    """Return the synapses that a spike reaches in `layer`, by the place in the map that it comes from.

    Borders and stride count exactly: a synapse exists where the kernel, moved over the padded map,
    covers the place. In one dimension, place p is covered by every output o with
    0 <= p + padding - o stride < kernel; both dimensions multiply, and so do the output channels.

    Args:
        layer: the layer that receives the spike.

    Returns:
        int64 [in_size, in_size], the same for every channel the spike may come from.
    """
    places = np.arange(layer.in_size)[:, None] + layer.padding
    offsets = places - layer.stride * np.arange(layer.out_size)[None, :]
    covered = ((offsets >= 0) & (offsets < layer.kernel)).sum(axis=1, dtype=np.int64)
    return layer.out_channels * np.outer(covered, covered)


def fan_outs(architecture: Architecture) -> list[NDArray[np.int64]]:
    """Return for every layer the synapses that a spike of its neurons reaches, int64 [out_size, out_size].

    A spike of the last layer reaches one synapse per class.
    """
    last = architecture.layers[-1].out_size
    inner = [fan_out(layer) for layer in architecture.layers[1:]]
    return [*inner, np.full((last, last), architecture.classes, dtype=np.int64)]


def layer_macs(architecture: Architecture) -> list[int]:
    """Return multiply-accumulates of the plain network per image, by the layer whose activations are multiplied.

    As published: positions in the padding and the classifier are counted, the encoding layer is not.
    """
    convolutions = [layer.neurons * layer.in_channels * layer.kernel**2 for layer in architecture.layers[1:]]
    return [*convolutions, architecture.layers[-1].neurons * architecture.classes]


def macs(architecture: Architecture) -> int:
    """Return multiply-accumulates of the plain network per image, as `layer_macs` counts them."""
    return sum(layer_macs(architecture))
