"""What a simulation measured, image by image and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantspike.simulation.recording import Integers


@dataclass(frozen=True, order=True)
class Mismatch:
    """A neuron whose net count is not the integer network's, although its image is at rest."""

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
        layer_settled: images whose neurons of that layer are all at rest, int64 [T, L].
        settled_step: first step after which the whole image is at rest, which may lie beyond T;
            0 if it had not come to rest by the settling limit. int64 [N].
        final_predictions: class at rest, or at the settling limit, int64 [N].
        integer_predictions: class given by the integer network, int64 [N].
        largest_counts: largest net count of any neuron of each layer in the integer network, int64 [L].
        mismatching_images: images at rest with a net count that is not the integer network's.
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
        """Whether each image is at rest after each step, bool [T, N]."""
        steps = np.arange(1, self.steps + 1)[:, None]
        return (self.settled_step > 0) & (self.settled_step <= steps)


def concatenate(traces: Sequence[Trace]) -> Trace:
    """Joins the traces of pieces of a test set, in order."""

    def by_image(name: str) -> Integers:
        return np.concatenate([getattr(trace, name) for trace in traces], axis=-1)

    def summed(name: str) -> Integers:
        total: Integers = np.sum([getattr(trace, name) for trace in traces], axis=0)
        return total

    return Trace(
        predictions=by_image("predictions"),
        positive_spikes=by_image("positive_spikes"),
        negative_spikes=by_image("negative_spikes"),
        synops=by_image("synops"),
        layer_positive=summed("layer_positive"),
        layer_negative=summed("layer_negative"),
        layer_synops=summed("layer_synops"),
        layer_settled=summed("layer_settled"),
        settled_step=by_image("settled_step"),
        final_predictions=by_image("final_predictions"),
        integer_predictions=by_image("integer_predictions"),
        largest_counts=np.max([trace.largest_counts for trace in traces], axis=0),
        mismatching_images=sum(trace.mismatching_images for trace in traces),
        first_mismatch=min((trace.first_mismatch for trace in traces if trace.first_mismatch), default=None),
    )
