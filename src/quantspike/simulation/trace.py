"""What a simulation measures: the recording of one batch, and the trace of all images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Recording:
    """What n images did over T steps in L layers. Counts are those of single steps.

    Attributes:
        positive: spikes of +1, int64 [T, L, n].
        negative: spikes of -1, likewise.
        synops: synapses that these spikes reach, likewise.
        settled: whether all neurons of a layer are settled after a step, bool [T, L, n].
        predictions: class with the largest logit after each step, int64 [T, n].
        settled_step: first step after which the whole image is settled, possibly beyond T; 0 if it had
            not settled by the settling limit. int64 [n].
        net_spikes: net counts of every layer once settled, or at the settling limit, integers [n, C, H, W] on the CPU.
    """

    positive: Integers
    negative: Integers
    synops: Integers
    settled: NDArray[np.bool_]
    predictions: Integers
    settled_step: Integers
    net_spikes: Sequence[Tensor]

    @classmethod
    def blank(cls, steps: int, net_spikes: Sequence[Tensor]) -> Recording:
        """Return a recording to be filled in: no spikes, every layer settled, no settled step."""
        layers, n = len(net_spikes), len(net_spikes[0])
        positive, negative, synops = np.zeros((3, steps, layers, n), np.int64)
        settled, predictions = np.ones((steps, layers, n), np.bool_), np.zeros((steps, n), np.int64)
        return cls(positive, negative, synops, settled, predictions, np.zeros(n, np.int64), net_spikes)


@dataclass(frozen=True, order=True)
class Mismatch:
    """A neuron of a settled image whose net count is not the integer network's."""

    image: int
    layer: int
    channel: int
    y: int
    x: int
    spiking: int
    integer: int


@dataclass(frozen=True, eq=False)
class Trace:
    """Measures of N images over T steps and L layers; all counts are cumulative.

    Attributes:
        predictions: class with the largest logit after each step, int64 [T, N].
        positive_spikes: of each image over all layers, int64 [T, N].
        negative_spikes: likewise.
        synops: likewise.
        layer_positive: positive spikes of each layer over all images, int64 [T, L].
        layer_negative: likewise, negative spikes.
        layer_synops: likewise, synaptic operations.
        layer_settled: images whose neurons of that layer are all settled, int64 [T, L].
        settled_step: first step after which the whole image is settled, possibly beyond T; 0 if it had
            not settled by the settling limit. int64 [N].
        final_predictions: class once settled, or at the settling limit, int64 [N].
        integer_predictions: class given by the integer network, int64 [N].
        least_synops: synaptic operations if every neuron fired its net count and no more: no schedule takes fewer.
            int64 [N].
        largest_counts: largest net count of any neuron of each layer in the integer network, int64 [L].
        mismatching_images: settled images with a net count that is not the integer network's.
        first_mismatch: the first neuron of the first of them, if any.
    """

    predictions: Integers
    positive_spikes: Integers
    negative_spikes: Integers
    synops: Integers
    layer_positive: Integers
    layer_negative: Integers
    layer_synops: Integers
    layer_settled: Integers
    settled_step: Integers
    final_predictions: Integers
    integer_predictions: Integers
    least_synops: Integers
    largest_counts: Integers
    mismatching_images: int
    first_mismatch: Mismatch | None

    @property
    def images(self) -> int:
        """Number of images, N."""
        return len(self.settled_step)

    @property
    def steps(self) -> int:
        """Number of steps, T."""
        return len(self.predictions)

    @property
    def settled(self) -> NDArray[np.bool_]:
        """Whether each image is settled after each step, bool [T, N]."""
        steps = np.arange(1, self.steps + 1)[:, None]
        return (self.settled_step > 0) & (self.settled_step <= steps)


def concatenate(traces: Sequence[Trace]) -> Trace:
    """Join the traces of consecutive images."""

    def parts(name: str) -> list[Integers]:
        return [getattr(trace, name) for trace in traces]

    by_image = ["predictions", "positive_spikes", "negative_spikes", "synops", "settled_step", "final_predictions"]
    by_image += ["integer_predictions", "least_synops"]
    by_layer = "layer_positive layer_negative layer_synops layer_settled"
    return Trace(
        **{name: np.concatenate(parts(name), axis=-1) for name in by_image},
        **{name: np.sum(parts(name), axis=0) for name in by_layer.split()},
        largest_counts=np.max(parts("largest_counts"), axis=0),
        mismatching_images=sum(trace.mismatching_images for trace in traces),
        first_mismatch=min((trace.first_mismatch for trace in traces if trace.first_mismatch), default=None),
    )
