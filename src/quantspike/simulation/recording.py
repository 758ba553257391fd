"""What an engine hands over: a batch of images, step by step and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
        at_rest: whether all neurons of a layer are at rest after a step, bool [T, L, n].
        predictions: class with the largest logit after each step, int64 [T, n].
        settled_step: first step after which the whole image is at rest, which may lie beyond T; 0 if it
            had not come to rest by the settling limit. int64 [n].
        net_spikes: net counts of every layer at rest, or at the settling limit, integers [n, C, H, W] on the CPU.
    """

    positive: Integers
    negative: Integers
    synops: Integers
    at_rest: NDArray[np.bool_]
    predictions: Integers
    settled_step: Integers
    net_spikes: Sequence[Tensor]

    @classmethod
    def blank(cls, steps: int, net_spikes: Sequence[Tensor]) -> Recording:
        """A recording to be filled in: nothing has fired, everything is at rest, no image has settled."""
        layers, n = len(net_spikes), len(net_spikes[0])
        positive, negative, synops = np.zeros((3, steps, layers, n), np.int64)
        return cls(
            positive,
            negative,
            synops,
            np.ones((steps, layers, n), np.bool_),
            np.zeros((steps, n), np.int64),
            np.zeros(n, np.int64),
            net_spikes,
        )


class Engine(Protocol):
    """Runs batches of one network; keeps nothing between batches."""

    def run(self, input_current: Tensor, steps: int, settle_limit: int, first: int = 0) -> Recording:
        """Runs a batch until every image is at rest, for `settle_limit` steps at most.

        Args:
            input_current: int64 [n, out, size, size] of the encoding layer, of at least one image.
            steps: T, how many steps are recorded.
            settle_limit: steps after which an image is given up, T or more.
            first: number of the batch's first image in the whole set, for messages.

        Raises:
            QuantspikeError: a membrane would leave 31 bits.
        """
        ...
