"""Images through the spiking network: batch by batch, until every image is at rest."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.params import Simulate
from quantspike.simulation.dense import Batch, DenseEngine, StepCounts, exact_convolutions
from quantspike.simulation.trace import Mismatch, Trace, concatenate

ENGINES: Mapping[str, type[DenseEngine]] = MappingProxyType({"auto": DenseEngine, "dense": DenseEngine})
"""What `simulate.engine` may name; auto is the fastest of them."""


def simulate(network: IntegerNetwork, images: Tensor, settings: Simulate, device: torch.device) -> Trace:
    """Simulates images for T steps and runs those that are not at rest on, up to the settling limit.

    An image at rest is dropped, since nothing changes in it any more; the trace is the one that all the
    steps would have given. Its net counts are compared with the integer network's, neuron by neuron.

    Args:
        network: the converted network.
        images: uint8 [N, C, H, W], as stored.
        settings: `engine` is one of ENGINES; `steps` is T, the length of the curves; after `settle_limit`
            steps an image is given up as not settling; `batch_size` images are simulated together, which
            changes nothing but speed and memory.
        device: where the simulation runs.

    Raises:
        QuantspikeError: there are no images, they do not fit the network, or a membrane would leave 31 bits.
    """
    if len(images) == 0:
        raise QuantspikeError("there are no images to simulate")
    with exact_convolutions():
        engine = ENGINES[settings.engine](network, device)
        traces = []
        first = 0
        for part in tqdm(
            torch.split(images, settings.batch_size), desc="simulate", unit="batch", leave=False, disable=None
        ):
            traces.append(_simulate_batch(engine, network, part, settings, first))
            first += len(part)
        return concatenate(traces)


def _simulate_batch(
    engine: DenseEngine, network: IntegerNetwork, images: Tensor, settings: Simulate, first: int
) -> Trace:
    """One batch; `first` is the number of its first image in the whole set."""
    current = network.input_current(images)
    expected = network.settled_counts(current, first)
    batch = engine.start(current, first)
    record = _Record(len(images), len(network.layers), settings.steps, first)
    step = 0
    while len(batch.images) and step < settings.settle_limit:
        step += 1
        counts = batch.step()
        settled = counts.at_rest.all(dim=0)
        record.add(step, batch, counts, network.logits(batch.net_spikes()[-1]).argmax(dim=1))
        if bool(settled.any()):
            record.settle(step, batch, settled, expected)
            batch.keep(~settled)
    return record.trace(network.logits(expected[-1]).argmax(dim=1))


class _Record:
    """Fills the arrays of a trace, step by step, for one batch."""

    def __init__(self, images: int, layers: int, steps: int, first: int) -> None:
        self._steps, self._first = steps, first
        self._predictions = np.zeros((steps, images), np.int64)
        self._by_image = np.zeros((3, steps, images), np.int64)
        self._by_layer = np.zeros((3, steps, layers), np.int64)
        self._layer_settled = np.zeros((steps, layers), np.int64)
        self._settled_step = np.zeros(images, np.int64)
        self._final = np.zeros(images, np.int64)
        self._mismatching = 0
        self._mismatch: Mismatch | None = None

    def add(self, step: int, batch: Batch, counts: StepCounts, predictions: Tensor) -> None:
        """Books one step of the running images; beyond T only the predictions still matter."""
        running = batch.images.cpu().numpy() - self._first
        self._final[running] = predictions.cpu().numpy()
        if step > self._steps:
            return
        parts = torch.stack((counts.positive, counts.negative, counts.synops)).cpu().numpy()
        self._predictions[step - 1] = self._final
        self._by_image[:, step - 1, running] = parts.sum(axis=1)
        self._by_layer[:, step - 1] = parts.sum(axis=2)
        dropped = len(self._settled_step) - len(running)
        self._layer_settled[step - 1] = counts.at_rest.sum(dim=1).cpu().numpy() + dropped

    def settle(self, step: int, batch: Batch, settled: Tensor, expected: list[Tensor]) -> None:
        """Books images that have come to rest, and compares every net count with the integer network's."""
        chosen = batch.images[settled].cpu() - self._first
        self._settled_step[chosen.numpy()] = step
        wrong = torch.zeros(len(chosen), dtype=torch.bool)
        for layer, (spiking, integer) in enumerate(zip(batch.net_spikes(settled), expected, strict=True)):
            counts, target = spiking.cpu().long(), integer[chosen]
            different = counts != target
            if bool(different.any()):
                wrong |= different.flatten(1).any(dim=1)
                n, channel, y, x = different.nonzero()[0].tolist()
                spikes, count = int(counts[n, channel, y, x]), int(target[n, channel, y, x])
                image = self._first + int(chosen[n])
                self._note(Mismatch(image, layer + 1, channel, y, x, spikes, count))
        self._mismatching += int(wrong.sum())

    def trace(self, integer_predictions: Tensor) -> Trace:
        """The finished trace: steps that no image ran any more repeat the last counts."""
        last = int(self._settled_step.max()) if (self._settled_step > 0).all() else self._steps
        self._predictions[last:] = self._final
        self._layer_settled[last:] = len(self._settled_step)
        positive, negative, synops = self._by_image.cumsum(axis=1)
        layer_positive, layer_negative, layer_synops = self._by_layer.cumsum(axis=1)
        return Trace(
            predictions=self._predictions,
            positive_spikes=positive,
            negative_spikes=negative,
            synops=synops,
            layer_positive=layer_positive,
            layer_negative=layer_negative,
            layer_synops=layer_synops,
            layer_settled=self._layer_settled,
            settled_step=self._settled_step,
            final_predictions=self._final,
            integer_predictions=integer_predictions.numpy(),
            mismatching_images=self._mismatching,
            first_mismatch=self._mismatch,
        )

    def _note(self, mismatch: Mismatch) -> None:
        """Keeps the first in the order of images, layers and places, whatever order they came to rest in."""
        self._mismatch = min(self._mismatch or mismatch, mismatch)
