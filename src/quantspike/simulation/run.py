"""Images through the spiking network: batch by batch, and each one compared with the integer network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from quantspike.distributed import Group
from quantspike.errors import QuantspikeError
from quantspike.integer import IntegerNetwork
from quantspike.params import Simulate
from quantspike.simulation.engines import new_engine
from quantspike.simulation.recording import Integers, Recording
from quantspike.simulation.trace import Mismatch, Trace, concatenate

COMPARED_AT_ONCE = 25
"""Images whose integer network is computed together: enough for speed, and few enough for little memory."""


def simulate(
    network: IntegerNetwork, images: Tensor, settings: Simulate, device: torch.device, first: int = 0
) -> Trace:
    """Simulates images for T steps and runs those that are not at rest on, up to the settling limit.

    An image at rest is given no further work, since nothing changes in it any more; the trace is the one that all
    the steps would have given. Its net counts are compared with the integer network's, neuron by neuron.

    Args:
        network: the converted network.
        images: uint8 [N, C, H, W], as stored.
        settings: `engine` is one of ENGINES; `steps` is T, the length of the curves; after `settle_limit`
            steps an image is given up as not settling; `batch_size` images are simulated together, which
            changes nothing but speed and memory.
        device: where the simulation runs.
        first: number of the first image in the whole set, for messages.

    Raises:
        QuantspikeError: there are no images, they do not fit the network, the machine lacks the engine, or a
            membrane would leave 31 bits; of several membranes one of the first batch with any is named.
    """
    if len(images) == 0:
        raise QuantspikeError("there are no images to simulate")
    engine = new_engine(settings.engine, network, device)
    traces = []
    with torch.inference_mode():
        batches = torch.split(images, settings.batch_size)
        # Of several processes one shows how far it has come.
        hidden = True if first > 0 else None
        for part in tqdm(batches, desc="simulate", unit="batch", leave=False, disable=hidden):
            current = network.input_current(part)
            recording = engine.run(current, settings.steps, settings.settle_limit, first)
            traces.append(_trace(network, current, recording, first))
            first += len(part)
    return concatenate(traces)


def simulate_shared(
    network: IntegerNetwork, images: Tensor, settings: Simulate, device: torch.device, group: Group
) -> Trace | None:
    """Shares the images between processes; the trace is the one that a single process would give.

    Args:
        network: as for `simulate`, like the arguments that follow.
        images: all of them, in every process.
        settings: the same in every process.
        device: where the simulation runs; processes without a GPU of their own by number take one each.
        group: the processes.

    Returns:
        The whole trace in the first process, None in the others.

    Raises:
        QuantspikeError: in the first process, what `simulate` raised in any of them, the first share first.
    """
    share = group.share(len(images))
    part: Trace | QuantspikeError | None = None
    if len(images) == 0 or share.start < share.stop:
        try:
            part = simulate(network, images[share], settings, group.own_device(device), share.start)
        except QuantspikeError as error:
            # The first process waits for every part, so that none may stay away.
            part = error
    parts = group.gather(part)
    if parts is None:
        return None
    for found in parts:
        if isinstance(found, QuantspikeError):
            raise found
    return concatenate([found for found in parts if isinstance(found, Trace)])


def _trace(network: IntegerNetwork, current: Tensor, recording: Recording, first: int) -> Trace:
    """What is reported of a batch, the comparison with the integer network included."""
    proof = _Proof(first)
    integer_predictions, largest_counts = [], []
    for start in range(0, len(current), COMPARED_AT_ONCE):
        some = slice(start, start + COMPARED_AT_ONCE)
        expected = network.settled_counts(current[some], first + start)
        proof.compare([counts[some] for counts in recording.net_spikes], expected, recording.settled_step[some], start)
        integer_predictions.append(network.logits(expected[-1]).argmax(dim=1).numpy())
        largest_counts.append([int(counts.max()) for counts in expected])
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
        layer_settled=recording.at_rest.sum(axis=2, dtype=np.int64),
        settled_step=recording.settled_step,
        final_predictions=network.logits(recording.net_spikes[-1]).argmax(dim=1).numpy(),
        integer_predictions=np.concatenate(integer_predictions),
        largest_counts=np.max(largest_counts, axis=0),
        mismatching_images=proof.mismatching,
        first_mismatch=proof.first_mismatch,
    )


class _Proof:
    """Images at rest on other counts than the integer network's: how many, and the first neuron of the first."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.mismatching = 0
        self.first_mismatch: Mismatch | None = None

    def compare(self, found: list[Tensor], expected: list[Tensor], settled_step: Integers, start: int) -> None:
        """Compares some images of a batch, which begin at number `start` in it, layer by layer."""
        settled = torch.from_numpy(settled_step > 0)
        wrong = torch.zeros_like(settled)
        for layer, (spiking, integer) in enumerate(zip(found, expected, strict=True)):
            wrong_here = (spiking != integer).any(dim=(1, 2, 3)) & settled
            for image in wrong_here.nonzero().flatten()[:1].tolist():
                channel, y, x = (spiking[image] != integer[image]).nonzero()[0].tolist()
                counts = int(spiking[image, channel, y, x]), int(integer[image, channel, y, x])
                mismatch = Mismatch(self._first + start + image, layer + 1, channel, y, x, *counts)
                self.first_mismatch = min(self.first_mismatch or mismatch, mismatch)
            wrong |= wrong_here
        self.mismatching += int(wrong.sum())
