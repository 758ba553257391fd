"""Spike by spike on the CPU: each spike adds one row of weights to each position that it reaches.

A layer's spikes never reach back, so a layer can run through many steps once the spikes of the layer before are
known. That order keeps the work in the caches: the membranes of a position stay in the first-level cache from its
first step to its last, and a block of weights stays in the second-level cache for all positions of a few images.
Threads take a few images each. The time of a step follows its spikes; a position where nothing arrives and nothing is
left to fire costs nothing.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantspike.conversion.integer import MEMBRANE_LIMIT, NO_LIMIT, IntegerLayer, IntegerNetwork, check_membrane
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import Layer, fan_outs
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.event_kernels import LANES, MARGIN, advance_layer
from quantspike.simulation.spike_lists import classify, list_spikes
from quantspike.simulation.trace import Integers, Recording

CHUNK = 32
"""Steps that a layer runs before the next layer follows: most images are settled by then, and spikes of more steps
would only take memory."""

BLOCK_BYTES = 640 * 1024
"""Weights that are used together, to fit a second-level cache of 1 MB and more."""

IMAGES_AT_ONCE = 8
"""Images that share a block of weights while it is in the cache."""

CACHE_LINE = 64

INT8_LIMIT, INT16_LIMIT = 2**7 - 1, 2**15 - 1

Int32Array = NDArray[np.int32]
Weights = NDArray[np.int8] | NDArray[np.int16]


class _OverflowError(Exception):
    """A membrane reached 2^30."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer as the kernels need it, its channels padded to whole tiles; see `advance_layer` and `list_spikes`."""

    shape: Layer
    bias: Int32Array
    threshold: Int32Array
    half_threshold: Int32Array
    limit: Int32Array
    weights: Weights
    width: int
    rows_at_once: int
    fan_out: Integers

    @property
    def lanes(self) -> int:
        """Output channels, padded to whole tiles."""
        return len(self.bias)

    @property
    def arguments(self) -> tuple[Int32Array, Int32Array, Int32Array, Weights, tuple[int, ...]]:
        """`layer` of `advance_layer`."""
        shape = self.shape
        sizes = (shape.in_channels, shape.in_size, shape.out_size, shape.kernel, shape.stride, shape.padding)
        geometry = (*sizes, self.width, self.rows_at_once)
        return self.threshold, self.half_threshold, self.limit, self.weights, geometry


Spikes = tuple[Int32Array, Int32Array, Int32Array]
"""Spikes of one layer in a chunk, their bounds and their last steps; see `list_spikes`."""


def fits(network: IntegerNetwork) -> bool:
    """Return whether no step can move a membrane by 2^30 or more, so that 32 bits hold it until it is checked."""
    return all(int(layer.absolute_sums.max()) < MEMBRANE_LIMIT for layer in network.layers[1:])


class EventEngine:
    """Run batches of one network on all cores of the CPU; only scratch memory is kept between batches."""

    def __init__(self, network: IntegerNetwork, threads: int | None = None) -> None:
        """Lay out the weights for the kernels.

        Args:
            network: the converted network.
            threads: number of threads (default: that of torch, which respects OMP_NUM_THREADS).

        Raises:
            QuantspikeError: a step's sums could exceed 32 bits.
        """
        if not fits(network):
            raise QuantspikeError(
                "the sums of one step may exceed the 31 bits that the engine 'events' works with; "
                "set simulate.engine to dense or auto, or convert with fewer weight_bits"
            )
        self._network = network
        self._layers = [
            _lay_out(layer, network.limit(layer), fan_out, encoding=index == 0)
            for index, (layer, fan_out) in enumerate(zip(network.layers, fan_outs(network.architecture), strict=True))
        ]
        self._classifier = np.ascontiguousarray(network.classifier.numpy().T.astype(np.int64))
        self._threads = threads or torch.get_num_threads()
        words = max(layer.shape.out_size**2 * layer.lanes // LANES * 2 for layer in self._layers)
        self._scratch = [np.empty(IMAGES_AT_ONCE * CHUNK * words, np.uint64) for _ in range(self._threads)]

    def run(self, input_current: Tensor, steps: int, settle_limit: int, delay: int = 0, first: int = 0) -> Recording:
        """Run a batch until every image is settled; see `Engine`."""
        check_membrane(input_current + self._network.layers[0].bias[:, None, None], 0, first)
        n = len(input_current)
        batch = _Batch(self._layers, self._classifier, input_current, steps, settle_limit, delay)
        # Every thread gets as many groups, one after the other.
        rounds = -(-n // (IMAGES_AT_ONCE * self._threads))
        groups = iter(np.array_split(np.arange(n), min(n, rounds * self._threads)))

        def work(scratch: NDArray[np.uint64]) -> None:
            for images in groups:
                batch.run(images, scratch)

        try:
            with ThreadPoolExecutor(self._threads) as pool:
                try:
                    list(pool.map(work, self._scratch))
                except BaseException:
                    # Also on Ctrl-C: threads finish their current group and find no other.
                    for _ in groups:
                        pass
                    raise
        except _OverflowError:
            # The dense engine names the first membrane by step, layer and image.
            dense = DenseEngine(self._network, torch.device("cpu"))
            return dense.run(input_current, steps, settle_limit, delay, first)
        return batch.recording


class _Batch:
    """State and recording of a batch, whose images run in groups that are independent of each other."""

    def __init__(
        self, layers: list[_Layer], classifier: Integers, input_current: Tensor, steps: int, limit: int, delay: int
    ) -> None:
        n = len(input_current)
        self._layers, self._classifier, self._input_current = layers, classifier, input_current
        self._limit, self._delay = limit, delay
        shapes = [(n, layer.shape.out_size**2, layer.lanes) for layer in layers]
        self._states = [(np.empty(shape, np.int32), np.zeros(shape, np.int32)) for shape in shapes]
        self._logits = np.zeros((n, classifier.shape[1]), np.int64)
        self.recording = Recording.blank(
            steps, [_as_maps(net, layer.shape) for (_, net), layer in zip(self._states, layers, strict=True)]
        )

    def run(self, images: Integers, scratch: NDArray[np.uint64]) -> None:
        """Run some images from the first step until they are settled, chunk by chunk.

        Args:
            images: indices in the batch, int64 [n], IMAGES_AT_ONCE at most.
            scratch: room for the masks of a layer.

        Raises:
            _OverflowError: a membrane reaches 2^30.
        """
        for layer, (membranes, _) in zip(self._layers, self._states, strict=True):
            membranes[images] = layer.bias
        # The only input that the encoding layer ever gets.
        current = self._input_current[images].flatten(2).transpose(1, 2).numpy()
        self._states[0][0][images, :, : current.shape[2]] += current.astype(np.int32)
        done = 0
        while len(images) and done < self._limit:
            chunk = min(CHUNK, self._limit - done)
            settled = self._advance(images, done, chunk, scratch)
            images = images[~settled]
            done += chunk

    def _advance(self, images: Integers, done: int, chunk: int, scratch: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Run one chunk through all layers and return which images are settled at its end."""
        n, recording = len(images), self.recording
        recorded = min(chunk, max(0, len(recording.predictions) - done))
        steps = slice(done, done + recorded)
        unsettled_steps = np.zeros(n, np.int64)
        spikes = np.empty(0, np.int32), np.zeros((n, 1, 1), np.int32), np.zeros((n, 1), np.int32)
        for index in range(len(self._layers)):
            waiting = max(0, index * self._delay - done)
            spikes, counts, unsettled = self._advance_layer(index, images, chunk, waiting, scratch, spikes)
            for values, counted in zip((recording.positive, recording.negative, recording.synops), counts, strict=True):
                values[steps, index, images] = counted[:recorded]
            recording.settled[steps, index, images] = unsettled.T[:recorded] == 0
            np.maximum(unsettled_steps, _last_set(unsettled), out=unsettled_steps)
        predictions = np.empty((chunk, n), np.int64)
        logits = self._logits[images]
        listed, bounds, _ = spikes
        classify(listed, bounds, self._classifier, logits, predictions)
        self._logits[images] = logits
        recording.predictions[steps, images] = predictions[:recorded]
        # A settled image keeps its class.
        recording.predictions[steps.stop :, images] = predictions[-1]
        settled = unsettled_steps < chunk
        recording.settled_step[images[settled]] = done + unsettled_steps[settled] + 1
        return settled

    def _advance_layer(
        self, index: int, images: Integers, chunk: int, waiting: int, scratch: NDArray[np.uint64], spikes: Spikes
    ) -> tuple[Spikes, Integers, NDArray[np.uint8]]:
        """Run one chunk of one layer, which fires nothing in its first `waiting` steps.

        Return its spikes, their counts, and after which steps it was not settled.
        """
        layer, n = self._layers[index], len(images)
        positions = layer.shape.out_size**2
        shape = (n, chunk, positions, layer.lanes // LANES, 2)
        masks = scratch[: math.prod(shape)].reshape(shape)
        used = np.empty((n, positions, layer.lanes // layer.width), np.int32)
        unsettled = np.zeros((n, chunk), np.uint8)
        fired = advance_layer(images, self._states[index], layer.arguments, waiting, spikes, masks, used, unsettled)
        if fired < 0:
            raise _OverflowError
        bounds = np.empty((n, 2 * int(used.max()), positions + 1), np.int32)
        sent = np.empty(fired + MARGIN, np.int32), bounds, np.empty((n, positions), np.int32)
        counts = np.zeros((3, chunk, n), np.int64)
        scale = self._layers[index + 1].width if index + 1 < len(self._layers) else 1
        list_spikes(masks, used, layer.shape.out_size, layer.shape.out_channels, scale, layer.fan_out, sent, counts)
        return sent, counts, unsettled


def _lay_out(layer: IntegerLayer, limit: Tensor, fan_out: Integers, *, encoding: bool) -> _Layer:
    """Arrange weights in blocks of output channels, each with one row per kernel position and input channel.

    No spikes reach the encoding layer, so to the kernels it has no channels in.
    """
    shape = replace(layer.shape, in_channels=0) if encoding else layer.shape
    lanes = -(-shape.out_channels // LANES) * LANES
    rows = shape.in_channels * shape.kernel**2
    dtype = np.dtype(np.int8 if layer.largest_weight <= INT8_LIMIT else np.int16)
    width = _block_width(lanes, rows * dtype.itemsize)
    padded = np.zeros((shape.kernel, shape.kernel, shape.in_channels, lanes), dtype)
    padded[..., : shape.out_channels] = layer.weight[:, : shape.in_channels].permute(2, 3, 1, 0).numpy()
    blocks = padded.reshape(rows, lanes // width, width).transpose(1, 0, 2)
    return _Layer(
        shape,
        _filled(layer.bias, lanes, 0),
        # A padded channel has no weights and never fires; nor does a layer that waits, by the second half.
        np.concatenate((_filled(layer.threshold, lanes, 2), np.full(lanes, NO_LIMIT, np.int32))),
        _filled(layer.half_threshold, lanes, 1),
        _filled(limit, lanes, NO_LIMIT),
        _aligned(blocks.ravel()),
        width,
        # As many rows as 16 bits hold the sum of.
        INT16_LIMIT // max(1, layer.largest_weight),
        fan_out.ravel(),
    )


def _block_width(lanes: int, column_bytes: int) -> int:
    """Return the channels of a block: as many as fit the cache, and an even number of tiles if possible."""
    step = 2 * LANES if lanes % (2 * LANES) == 0 else LANES
    widths = range(step, lanes + 1, step)
    return max((width for width in widths if lanes % width == 0 and width * column_bytes <= BLOCK_BYTES), default=step)


def _filled(values: Tensor, lanes: int, rest: int) -> Int32Array:
    filled = np.full(lanes, rest, np.int32)
    filled[: len(values)] = values.numpy()
    return filled


def _aligned(values: Weights) -> Weights:
    """Return a copy that starts at a cache line, so that no vector of a row straddles two."""
    buffer = np.empty(values.nbytes + CACHE_LINE, np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE
    copy = buffer[start : start + values.nbytes].view(values.dtype)
    copy[:] = values
    return copy


def _as_maps(net_spikes: Int32Array, shape: Layer) -> Tensor:
    """View [n, positions, lanes] as [n, C, H, W]."""
    n, size = len(net_spikes), shape.out_size
    return torch.from_numpy(net_spikes).view(n, size, size, -1)[..., : shape.out_channels].permute(0, 3, 1, 2)


def _last_set(flags: NDArray[np.uint8]) -> Integers:
    """Return, for each row, the number of columns up to the last one that is set: [n, steps] -> int64 [n]."""
    steps = flags.shape[1]
    return np.where(flags.any(axis=1), steps - flags[:, ::-1].argmax(axis=1), 0)
