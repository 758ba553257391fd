"""The machine's limit for event-driven simulation: how many synaptic operations per second its cores can add.

The stream of row additions is that of a real simulation: as many rows of each layer's weights, as wide, in as many
bits, from the same blocks of weights, by the same kernel, on as many threads. But the rows simply follow each other in
memory, no list of them is made, and no neuron fires. The machine can hardly add rows of these weights from these caches
any faster.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from quantspike.conversion.integer import IntegerNetwork
from quantspike.simulation.event_kernels import LANES, add_wide_rows
from quantspike.simulation.events import EventEngine

TILE = 2 * LANES
"""Weights that are added at once, as the engine does with layers of 128 channels and more."""


@njit(nogil=True)
def add_stream(weights: Any, rows_in_block: int, width: int, rows: int, at_once: int) -> Any:
    """Add `rows` rows of every block, tile by tile, each time as many as 16 bits hold; return the sums, int32 [128].

    Args:
        weights: int16, blocks of rows of weights.
        rows_in_block: rows of a block.
        width: weights of a row.
        rows: rows to add; from the end of a block the stream returns to its beginning.
        at_once: rows whose sum 16 bits hold.
    """
    sums = np.zeros(TILE, np.int32)
    starts = (width * np.arange(rows_in_block)).astype(np.int32)
    most = min(at_once, rows_in_block)
    for block in range(len(weights) // (rows_in_block * width)):
        for lane in range(0, width, TILE):
            row = 0
            for _ in range(rows // most):
                if row + most > rows_in_block:
                    row = 0
                add_wide_rows(sums, 0, weights, block * rows_in_block * width + lane, starts, row, most, 0)
                row += most
    return sums


def row_additions_per_second(network: IntegerNetwork, synops: Sequence[int], threads: int) -> float:
    """Return the synaptic operations per second of a stream of plain row additions.

    Args:
        network: whose weights are added.
        synops: SOPs that reach each layer from the second on, of the simulation to be matched.
        threads: each runs the whole stream, on sums of its own.
    """
    layers = EventEngine(network)._layers[1:]

    def stream(share: float) -> None:
        for layer, operations in zip(layers, synops, strict=True):
            width, rows = layer.width, int(share * operations) // layer.shape.out_channels
            rows_in_block = layer.shape.in_channels * layer.shape.kernel**2
            if width % TILE:
                # The same weights, seen as rows of a tile.
                rows, rows_in_block, width = (rows * width) // TILE, (rows_in_block * width) // TILE, TILE
            if rows_in_block:
                add_stream(layer.weights, rows_in_block, width, rows, layer.rows_at_once)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stream, [0.01] * threads))  # compiles, and fetches the weights
        start = time.perf_counter()
        list(pool.map(stream, [1.0] * threads))
        return sum(synops) * threads / (time.perf_counter() - start)
