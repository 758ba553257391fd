"""This machine's own limit for event-driven simulation: how many synaptic operations per second its cores can add.

The stream of row additions is that of a real simulation, as many rows of each layer's weights, as wide, in as many
bits, from the same blocks of weights, on as many threads. But the rows simply follow each other in memory: nothing
is looked up, and no neuron fires. The sums are kept in registers as in the engine, so nothing on this machine adds
rows of these weights from these caches much faster.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from quantspike.integer import IntegerNetwork
from quantspike.simulation.event_kernels import LANES
from quantspike.simulation.events import EventEngine

TILE = 2 * LANES
"""Weights that are added at once, as the engine does with layers of 128 channels and more."""


@intrinsic
def _add_following_rows(typing_context: Any, sums: Any, weights: Any, start: Any, width: Any, count: Any) -> Any:
    """sums[0:128] += `count` rows of 128 weights that lie `width` weights apart, from weights[start] on."""
    row_type, sums_type = ir.VectorType(ir.IntType(16), TILE), ir.VectorType(ir.IntType(32), TILE)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        sums, weights, start, width, count = arguments
        at = [
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args[:2], (sums, weights), strict=True)
        ]
        before, body = builder.block, builder.append_basic_block("rows")
        builder.branch(body)
        builder.position_at_end(body)
        index, offset, total = builder.phi(count.type), builder.phi(start.type), builder.phi(row_type)
        row = builder.load(builder.bitcast(builder.gep(at[1], [offset]), row_type.as_pointer()))
        row.align = 2
        following, added = builder.add(index, ir.Constant(index.type, 1)), builder.add(total, row)
        for phi, first, again in (
            (index, ir.Constant(index.type, 0), following),
            (offset, start, builder.add(offset, width)),
            (total, ir.Constant(row_type, None), added),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(again, body)
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, count), body, after)
        builder.position_at_end(after)
        target = builder.bitcast(at[0], sums_type.as_pointer())
        old = builder.load(target)
        old.align = 4
        builder.store(builder.add(old, builder.sext(added, sums_type)), target).align = 4
        return context.get_dummy_value()

    return types.void(sums, weights, start, width, count), codegen


@njit(nogil=True)
def _add_stream(weights: Any, rows_in_block: int, width: int, rows: int, at_once: int) -> None:
    """Adds `rows` rows of every block, one tile after the other, each time as many as 16 bits hold."""
    sums = np.zeros(TILE, np.int32)
    block_size = rows_in_block * width
    most = min(at_once, rows_in_block)
    for block in range(len(weights) // block_size):
        for lane in range(0, width, TILE):
            row = 0
            for _ in range(rows // most):
                if row + most > rows_in_block:
                    row = 0
                _add_following_rows(sums, weights, block * block_size + row * width + lane, width, most)
                row += most


def row_additions_per_second(network: IntegerNetwork, synops: Sequence[int], threads: int) -> float:
    """Synaptic operations per second of a stream of plain row additions.

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
                _add_stream(layer.weights, rows_in_block, width, rows, layer.rows_at_once)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stream, [0.01] * threads))  # compiles, and fetches the weights
        start = time.perf_counter()
        list(pool.map(stream, [1.0] * threads))
        return sum(synops) * threads / (time.perf_counter() - start)
