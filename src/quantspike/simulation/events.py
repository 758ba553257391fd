"""Spike by spike on the CPU: each spike adds one row of weights to each place that it reaches.

A layer's spikes never reach back, so a layer can be run through all the steps once the spikes of the layer before
are known. That order keeps the work where the caches are: a place's membranes stay in the first-level cache from
its first step to its last, and a block of weights stays in the second-level cache for all places of a few images.
Threads take a few images each. What a step costs follows from its spikes; a place where nothing arrives and
nothing is left to fire costs nothing.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantspike.architecture import Layer
from quantspike.errors import QuantspikeError
from quantspike.integer import (
    LARGEST_THRESHOLD,
    MEMBRANE_LIMIT,
    IntegerLayer,
    IntegerNetwork,
    membrane_error,
)
from quantspike.operations import fan_outs
from quantspike.simulation.event_kernels import LANES, MARGIN, advance_layer
from quantspike.simulation.recording import Integers, Recording
from quantspike.simulation.spike_lists import classify, list_spikes

CHUNK = 32
"""Steps that a layer is run before the next layer follows: most images are at rest by then, and spikes of more steps
would only take memory."""

BLOCK_BYTES = 640 * 1024
"""Weights that are used together, to fit a second-level cache of 1 MB and more."""

IMAGES_AT_ONCE = 8
"""Images that share a block of weights while it is in the cache."""

CACHE_LINE = 64

INT16_LIMIT = 2**15 - 1


@dataclass(frozen=True, eq=False)
class _Layer:
    shape: Layer
    bias: NDArray[np.int32]
    threshold: NDArray[np.int32]
    half_threshold: NDArray[np.int32]
    weights: NDArray[np.int16]
    geometry: Integers
    width: int
    rows_at_once: int
    fan_out: Integers

    @property
    def lanes(self) -> int:
        """Output channels, filled up to whole tiles."""
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class _Spikes:
    """Spikes of one layer in a chunk, as the kernels lay them out."""

    listed: NDArray[np.int32]
    bounds: NDArray[np.int32]
    last: NDArray[np.int32]
    counts: Integers

    @classmethod
    def none(cls, n: int) -> _Spikes:
        last = np.zeros((n, 1), np.int32)
        return cls(np.empty(0, np.int32), last[..., None], last, np.zeros((3, 0, n), np.int64))


@dataclass(frozen=True, order=True)
class _Overflow:
    """The first membrane to leave 31 bits: an order in which other engines come upon it too."""

    step: int
    layer: int
    image: int
    channel: int
    value: int


def fits(network: IntegerNetwork) -> bool:
    """Whether no spikes of a step can move a membrane by 2^30 or more, so that 32 bits hold it until it is checked."""
    return all(int(layer.absolute_sums.max()) < MEMBRANE_LIMIT for layer in network.layers[1:])


class EventEngine:
    """Runs batches of one network on all cores of the CPU, one batch at a time.

    Nothing but scratch memory is kept from batch to batch.
    """

    def __init__(self, network: IntegerNetwork, threads: int | None = None) -> None:
        """Lays out the weights for the kernels.

        Args:
            network: the converted network.
            threads: how many to use (default: as many as torch does, which heeds OMP_NUM_THREADS).

        Raises:
            QuantspikeError: a step's sums could leave 32 bits.
        """
        if not fits(network):
            raise QuantspikeError(
                "the sums of one step may leave the 31 bits that the engine 'events' works with; "
                "set simulate.engine to dense or auto, or convert with fewer weight_bits"
            )
        self._layers = [
            _lay_out(layer, fan_out, encoding=index == 0)
            for index, (layer, fan_out) in enumerate(zip(network.layers, fan_outs(network.architecture), strict=True))
        ]
        self._classifier = np.ascontiguousarray(network.classifier.numpy().T.astype(np.int64))
        self._threads = threads or torch.get_num_threads()
        words = max(layer.shape.out_size**2 * layer.lanes // LANES * 2 for layer in self._layers)
        self._scratch = [np.empty(IMAGES_AT_ONCE * CHUNK * words, np.uint64) for _ in range(self._threads)]

    def run(self, input_current: Tensor, steps: int, settle_limit: int, first: int = 0) -> Recording:
        """Runs a batch until every image is at rest; see `Engine`."""
        n = len(input_current)
        batch = _Batch(self._layers, self._classifier, input_current, steps, settle_limit)
        # As many groups for every thread, which take one after the other.
        rounds = -(-n // (IMAGES_AT_ONCE * self._threads))
        groups = iter(np.array_split(np.arange(n), min(n, rounds * self._threads)))

        def work(scratch: NDArray[np.uint64]) -> list[_Overflow]:
            return [found for images in groups if (found := batch.run(images, scratch))]

        with ThreadPoolExecutor(self._threads) as pool:
            try:
                overflows = [found for part in pool.map(work, self._scratch) for found in part]
            except BaseException:
                # Ctrl-C: threads finish the group that they are at, and find no other.
                for _ in groups:
                    pass
                raise
        if overflows:
            worst = min(overflows)
            raise membrane_error(first + worst.image, worst.layer, worst.channel, worst.value)
        return batch.recording


class _Batch:
    """State and recording of a batch; groups of its images are run independently of each other."""

    def __init__(
        self, layers: list[_Layer], classifier: Integers, input_current: Tensor, steps: int, settle_limit: int
    ) -> None:
        n = len(input_current)
        self._layers, self._classifier, self._input_current = layers, classifier, input_current
        self._limit = settle_limit
        shapes = [(n, layer.shape.out_size**2, layer.lanes) for layer in layers]
        self._membranes = [np.empty(shape, np.int32) for shape in shapes]
        self._net_spikes = [np.empty(shape, np.int32) for shape in shapes]
        self._logits = np.zeros((n, classifier.shape[1]), np.int64)
        self.recording = Recording.blank(
            steps, [_as_maps(net, layer.shape) for net, layer in zip(self._net_spikes, layers, strict=True)]
        )

    def run(self, images: Integers, scratch: NDArray[np.uint64]) -> _Overflow | None:
        """Runs some images from the first step until they are at rest, chunk by chunk.

        Args:
            images: which of the batch, int64 [n], IMAGES_AT_ONCE at most.
            scratch: room for the masks of a layer.

        Returns:
            The first membrane that left 31 bits, if any; then the images are not run on.
        """
        if overflow := self._start(images):
            return overflow
        done = 0
        while len(images) and done < self._limit:
            chunk = min(CHUNK, self._limit - done)
            settled, overflow = self._advance(images, done, chunk, scratch)
            if overflow:
                return overflow
            images = images[~settled]
            done += chunk
        return None

    def _start(self, images: Integers) -> _Overflow | None:
        """Membranes before the first step: biases, and in the encoding layer the only input that it ever gets."""
        for layer, membranes, net_spikes in zip(self._layers, self._membranes, self._net_spikes, strict=True):
            membranes[images] = layer.bias
            net_spikes[images] = 0
        channels = self._input_current.shape[1]
        current = self._input_current[images].flatten(2).transpose(1, 2).numpy()
        encoder = current + self._layers[0].bias[:channels]
        self._membranes[0][images, :, :channels] = encoder
        wrong = np.abs(encoder) >= MEMBRANE_LIMIT
        if not wrong.any():
            return None
        i = int(wrong.any(axis=(1, 2)).argmax())
        channel, value = _first_beyond(wrong[i], encoder[i])
        return _Overflow(0, 0, int(images[i]), channel, value)

    def _advance(
        self, images: Integers, done: int, chunk: int, scratch: NDArray[np.uint64]
    ) -> tuple[NDArray[np.bool_], _Overflow | None]:
        """One chunk through all layers; tells which images are at rest at its end, and what left 31 bits first."""
        n, recording = len(images), self.recording
        recorded = min(chunk, max(0, len(recording.predictions) - done))
        steps = slice(done, done + recorded)
        task = _Task(images, chunk, np.full(n, chunk), scratch)
        restless_steps = np.zeros(n, np.int64)
        overflows: list[_Overflow] = []
        spikes = _Spikes.none(n)
        for index in range(len(self._layers)):
            spikes, restless, found = self._advance_layer(index, task, spikes)
            for values, counted in zip(
                (recording.positive, recording.negative, recording.synops), spikes.counts, strict=True
            ):
                values[steps, index, images] = counted[:recorded]
            recording.at_rest[steps, index, images] = restless.T[:recorded] == 0
            np.maximum(restless_steps, _last_set(restless), out=restless_steps)
            overflows += [replace(one, step=done + one.step) for one in found]
        predictions = np.empty((chunk, n), np.int64)
        logits = self._logits[images]
        classify(spikes.listed, spikes.bounds, self._classifier, logits, predictions)
        self._logits[images] = logits
        recording.predictions[steps, images] = predictions[:recorded]
        # An image at rest keeps its class.
        recording.predictions[steps.stop :, images] = predictions[-1]
        settled = restless_steps < chunk
        recording.settled_step[images[settled]] = done + restless_steps[settled] + 1
        return settled, min(overflows, default=None)

    def _advance_layer(
        self, index: int, task: _Task, spikes: _Spikes
    ) -> tuple[_Spikes, NDArray[np.uint8], list[_Overflow]]:
        """One chunk of one layer: its spikes, after which steps it was not at rest, and what left 31 bits."""
        layer, membranes, net_spikes = self._layers[index], self._membranes[index], self._net_spikes[index]
        n, places, chunk = len(task.images), layer.shape.out_size**2, task.steps
        masks_shape = (n, chunk, places, layer.lanes // LANES, 2)
        masks = task.scratch[: math.prod(masks_shape)].reshape(masks_shape)
        used = np.empty((n, places, layer.lanes // layer.width), np.int32)
        restless = np.zeros((n, chunk), np.uint8)
        beyond = task.allowed.copy()
        fired = advance_layer(
            task.images,
            membranes,
            net_spikes,
            layer.threshold,
            layer.half_threshold,
            layer.weights,
            layer.geometry,
            spikes.listed,
            spikes.bounds,
            spikes.last,
            task.allowed,
            masks,
            used,
            restless,
            beyond,
        )
        overflows = []
        for i in np.flatnonzero(beyond < task.allowed):
            # Where a membrane left 31 bits, its place stopped with that step in the block of the channel.
            stopped = np.repeat(used[i] == beyond[i] + 1, layer.width, axis=1)
            values = membranes[task.images[i]].astype(np.int64)
            wrong = stopped & (np.abs(values) >= MEMBRANE_LIMIT)
            channel, value = _first_beyond(wrong, values)
            overflows.append(_Overflow(int(beyond[i]) + 1, index, int(task.images[i]), channel, value))
        task.allowed[:] = beyond
        scale = self._layers[index + 1].width if index + 1 < len(self._layers) else 1
        return _listed(masks, used, fired, layer, scale), restless, overflows


@dataclass(frozen=True, eq=False)
class _Task:
    """What a group does in a chunk: its images, the number of steps, and how many of them each image may run."""

    images: Integers
    steps: int
    allowed: Integers
    scratch: NDArray[np.uint64]


def _first_beyond(wrong: NDArray[np.bool_], membranes: Integers) -> tuple[int, int]:
    """The lowest channel with a wrong membrane, and what it is at its first place: [places, channels] each."""
    channel = int(wrong.any(axis=0).argmax())
    return channel, int(membranes[wrong[:, channel].argmax(), channel])


def _listed(masks: NDArray[np.uint64], used: NDArray[np.int32], fired: int, layer: _Layer, scale: int) -> _Spikes:
    """The spikes of a chunk, counted and listed for the next layer, whose rows hold `scale` weights."""
    n, chunk, places = masks.shape[:3]
    spikes = _Spikes(
        np.empty(fired + MARGIN, np.int32),
        np.empty((n, 2 * int(used.max()), places + 1), np.int32),
        np.empty((n, places), np.int32),
        np.zeros((3, chunk, n), np.int64),
    )
    shape = layer.shape
    list_spikes(
        masks,
        used,
        shape.out_size,
        shape.out_channels,
        scale,
        layer.fan_out,
        spikes.listed,
        spikes.bounds,
        spikes.last,
        *spikes.counts,
    )
    return spikes


def _lay_out(layer: IntegerLayer, fan_out: Integers, *, encoding: bool) -> _Layer:
    """Weights in blocks of output channels, in each one row for each place of the kernel and channel in.

    No spikes reach the encoding layer, so to the kernels it has no channels in.
    """
    shape = replace(layer.shape, in_channels=0) if encoding else layer.shape
    lanes = -(-shape.out_channels // LANES) * LANES
    rows = shape.in_channels * shape.kernel**2
    width = _block_width(lanes, rows)
    padded = np.zeros((shape.kernel, shape.kernel, shape.in_channels, lanes), np.int16)
    padded[..., : shape.out_channels] = layer.weight[:, : shape.in_channels].permute(2, 3, 1, 0).numpy()
    blocks = padded.reshape(rows, lanes // width, width).transpose(1, 0, 2)
    # As many rows as 16 bits hold the sum of.
    rows_at_once = INT16_LIMIT // max(1, int(layer.weight.abs().max()))
    geometry = (
        shape.in_channels,
        shape.in_size,
        shape.out_size,
        shape.kernel,
        shape.stride,
        shape.padding,
        width,
        rows_at_once,
    )
    return _Layer(
        shape,
        _filled(layer.bias, lanes, 0),
        # A channel that is not there has no weights and never fires.
        _filled(layer.threshold, lanes, LARGEST_THRESHOLD),
        _filled(layer.half_threshold, lanes, LARGEST_THRESHOLD // 2),
        _aligned(blocks.ravel()),
        np.array(geometry, np.int64),
        width,
        rows_at_once,
        fan_out.ravel(),
    )


def _block_width(lanes: int, rows: int) -> int:
    """Channels of a block: as many as fit the cache, and an even number of tiles if there is one."""
    step = 2 * LANES if lanes % (2 * LANES) == 0 else LANES
    fitting = [
        width for width in range(step, lanes + 1, step) if lanes % width == 0 and 2 * width * rows <= BLOCK_BYTES
    ]
    return max(fitting, default=step)


def _filled(values: Tensor, lanes: int, rest: int) -> NDArray[np.int32]:
    filled = np.full(lanes, rest, np.int32)
    filled[: len(values)] = values.numpy()
    return filled


def _aligned(values: NDArray[np.int16]) -> NDArray[np.int16]:
    """A copy that begins where a cache line does, so that no vector of a row straddles two."""
    buffer = np.empty(values.nbytes + CACHE_LINE, np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE
    copy = buffer[start : start + values.nbytes].view(np.int16)
    copy[:] = values
    return copy


def _as_maps(net_spikes: NDArray[np.int32], shape: Layer) -> Tensor:
    """[n, places, lanes] seen as [n, C, H, W]."""
    n, size = len(net_spikes), shape.out_size
    return torch.from_numpy(net_spikes).view(n, size, size, -1)[..., : shape.out_channels].permute(0, 3, 1, 2)


def _last_set(flags: NDArray[np.uint8]) -> Integers:
    """For each row, how many columns there are up to the last one that is set: [n, steps] -> int64 [n]."""
    steps = flags.shape[1]
    return np.where(flags.any(axis=1), steps - flags[:, ::-1].argmax(axis=1), 0)
