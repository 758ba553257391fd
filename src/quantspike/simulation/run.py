"""Choose an engine and run images through the spiking network, each compared with the integer network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from quantspike.conversion.integer import COMPARED_AT_ONCE, IntegerNetwork
from quantspike.distributed import Group, resolve_device
from quantspike.errors import QuantspikeError
from quantspike.networks.architecture import fan_outs
from quantspike.params import Simulate
from quantspike.simulation.dense import DenseEngine
from quantspike.simulation.reference import ReferenceEngine
from quantspike.simulation.trace import Integers, Mismatch, Recording, Trace, concatenate

_CPU_ONLY = ("reference", "events")


class Engine(Protocol):
    """Runs batches of one network; no state is kept between batches. All engines give the same integers."""

    def run(self, input_current: Tensor, steps: int, settle_limit: int, delay: int = 0, first: int = 0) -> Recording:
        """Run a batch until every image is settled, for `settle_limit` steps at most.

        Args:
            input_current: int64 [n, out, size, size] of the encoding layer, of at least one image.
            steps: T, the number of steps that are recorded.
            settle_limit: step after which an image that has not settled is given up, T or more.
            delay: D, steps that each layer waits for the one before: layer l, from 0, only adds up its input until
                step l D and may fire from the next one on.
            first: number of the batch's first image in the whole set, for messages.

        Raises:
            QuantspikeError: a membrane reaches 2^30.
        """
        ...


def engine_device(engine: str, device: str) -> torch.device:
    """Return the device for an engine; `auto` means the CPU for an engine that runs only there.

    Args:
        engine: `simulate.engine` in params.yaml.
        device: `device` in params.yaml.

    Raises:
        QuantspikeError: the engine does not run on the named device, or the device does not exist.
    """
    if engine in _CPU_ONLY:
        _check_cpu(engine, device)
        return torch.device("cpu")
    return resolve_device(device)


def new_engine(name: str, network: IntegerNetwork, device: torch.device) -> Engine:
    """Return the named engine for a network.

    `auto` takes `dense` on a GPU and `events` on a CPU, unless the network's sums need more than the 32 bits of
    `events`.

    Raises:
        QuantspikeError: the engine does not run on the device, or the network does not fit it.
    """
    if name in _CPU_ONLY:
        _check_cpu(name, str(device))
    if name == "reference":
        return ReferenceEngine(network)
    if name == "dense" or device.type != "cpu":
        return DenseEngine(network, device)
    # Numba takes a second to import: only this engine pays for it.
    from quantspike.simulation.events import EventEngine, fits

    if name == "auto" and not fits(network):
        return DenseEngine(network, device)
    return EventEngine(network)


def simulate(
    network: IntegerNetwork, images: Tensor, settings: Simulate, device: torch.device, first: int = 0
) -> dict[int, Trace]:
    """Simulate images for T steps, and those that have not settled on up to the settling limit.

    Once an image is settled nothing changes in it any more, so engines may stop there; the trace is the one that
    all steps would give. Its net counts are compared with the integer network's, neuron by neuron.

    Args:
        network: the converted network.
        images: uint8 [N, C, H, W], as stored.
        settings: `steps` is T; `batch_size` changes speed and memory only.
        device: where the simulation runs.
        first: number of the first image in the whole set, for messages.

    Raises:
        QuantspikeError: there are no images, they do not fit the network, the engine does not run on the device, or
            a membrane reaches 2^30; of several membranes one of the first batch with any is named.
    """
    if len(images) == 0:
        raise QuantspikeError("there are no images to simulate")
    engine = new_engine(settings.engine, network, device)
    traces: dict[int, list[Trace]] = {delay: [] for delay in settings.layer_delay}
    with torch.inference_mode():
        batches = torch.split(images, settings.batch_size)
        # Of several processes, the first shows its progress.
        hidden = True if first > 0 else None
        for part in tqdm(batches, desc="simulate", unit="batch", leave=False, disable=hidden):
            current = network.input_current(part)
            expected = _expected(network, current, first)
            for delay, parts in traces.items():
                recording = engine.run(current, settings.steps, settings.settle_limit, delay, first)
                parts.append(_trace(network, expected, recording, first))
            first += len(part)
    return {delay: concatenate(parts) for delay, parts in traces.items()}


def simulate_shared(
    network: IntegerNetwork, images: Tensor, settings: Simulate, device: torch.device, group: Group
) -> dict[int, Trace] | None:
    """Simulate on several processes, each with its shard of the images; the traces are those of a single process.

    Args:
        network: the converted network.
        images: all of them, in every process.
        settings: the same in every process.
        device: where the simulation runs; of several GPUs each process of a machine takes one of its own.
        group: the processes.

    Returns:
        The whole traces in the first process, None in the others.

    Raises:
        QuantspikeError: in the first process, what `simulate` raised in any of them, the first shard first.
    """
    shard = group.shard(len(images))
    part: dict[int, Trace] | QuantspikeError | None = None
    if len(images) == 0 or shard.start < shard.stop:
        try:
            part = simulate(network, images[shard], settings, group.own_device(device), shard.start)
        except QuantspikeError as error:
            # The first process waits for every part, so an error is sent too.
            part = error
    parts = group.gather(part)
    if parts is None:
        return None
    for result in parts:
        if isinstance(result, QuantspikeError):
            raise result
    found = [result for result in parts if isinstance(result, dict)]
    return {delay: concatenate([traces[delay] for traces in found]) for delay in settings.layer_delay}


def _check_cpu(engine: str, device: str) -> None:
    if device.startswith("cuda"):
        raise QuantspikeError(
            f"simulate.engine is {engine!r}, which runs on the CPU only, but device is {device!r}; "
            "set device to cpu or auto, or the engine to dense or auto"
        )


@dataclass(frozen=True, eq=False)
class _Expected:
    """What the integer network computes for a batch: counts by piece of the batch and layer; the rest as in `Trace`."""

    counts: list[list[Tensor]]
    predictions: Integers
    least_synops: Integers
    largest_counts: Integers


def _expected(network: IntegerNetwork, current: Tensor, first: int) -> _Expected:
    """Run the integer network on a batch."""
    fans = [torch.from_numpy(fan) for fan in fan_outs(network.architecture)]
    pieces, predictions, least_synops, largest_counts = [], [], [], []
    for start in range(0, len(current), COMPARED_AT_ONCE):
        counts = network.settled_counts(current[start : start + COMPARED_AT_ONCE], first + start)
        pieces.append(counts)
        predictions.append(network.logits(counts[-1]).argmax(dim=1).numpy())
        largest_counts.append([int(layer.max()) for layer in counts])
        synops = torch.zeros(len(counts[0]), dtype=torch.int64)
        for layer, fan, largest in zip(counts, fans, largest_counts[-1], strict=True):
            # Where 32 bits hold the sums, they take a small part of the time.
            dtype = torch.int32 if largest * layer.shape[1] < 2**31 else torch.int64
            synops += (layer.sum(dim=1, dtype=dtype) * fan).sum(dim=(1, 2))
        least_synops.append(synops.numpy())
    return _Expected(pieces, np.concatenate(predictions), np.concatenate(least_synops), np.max(largest_counts, axis=0))


def _trace(network: IntegerNetwork, expected: _Expected, recording: Recording, first: int) -> Trace:
    """Sum up the recording of a batch and compare it with the integer network."""
    comparison = _Comparison(first)
    start = 0
    for counts in expected.counts:
        some = slice(start, start + len(counts[0]))
        comparison.add([net[some] for net in recording.net_spikes], counts, recording.settled_step[some], start)
        start = some.stop
    positive, negative, synops = (
        values.cumsum(axis=0) for values in (recording.positive, recording.negative, recording.synops)
    )
    return Trace(
        predictions=recording.predictions,
        positive_spikes=positive.sum(axis=1),
        negative_spikes=negative.sum(axis=1),
        synops=synops.sum(axis=1),
        layer_positive=positive.sum(axis=2),
        layer_negative=negative.sum(axis=2),
        layer_synops=synops.sum(axis=2),
        layer_settled=recording.settled.sum(axis=2, dtype=np.int64),
        settled_step=recording.settled_step,
        final_predictions=network.logits(recording.net_spikes[-1]).argmax(dim=1).numpy(),
        integer_predictions=expected.predictions,
        least_synops=expected.least_synops,
        largest_counts=expected.largest_counts,
        mismatching_images=comparison.mismatching,
        first_mismatch=comparison.first_mismatch,
    )


class _Comparison:
    """Settled images whose counts are not the integer network's: how many, and the first neuron of the first."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.mismatching = 0
        self.first_mismatch: Mismatch | None = None

    def add(self, actual: list[Tensor], expected: list[Tensor], settled_step: Integers, start: int) -> None:
        """Compare some images of a batch, from index `start` on, layer by layer."""
        settled = torch.from_numpy(settled_step > 0)
        wrong = torch.zeros_like(settled)
        for layer, (spiking, integer) in enumerate(zip(actual, expected, strict=True)):
            wrong_here = (spiking != integer).any(dim=(1, 2, 3)) & settled
            for image in wrong_here.nonzero().flatten()[:1].tolist():
                channel, y, x = (spiking[image] != integer[image]).nonzero()[0].tolist()
                counts = int(spiking[image, channel, y, x]), int(integer[image, channel, y, x])
                mismatch = Mismatch(self._first + start + image, layer + 1, channel, y, x, *counts)
                self.first_mismatch = min(self.first_mismatch or mismatch, mismatch)
            wrong |= wrong_here
        self.mismatching += int(wrong.sum())
