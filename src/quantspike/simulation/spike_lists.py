"""From the masks in which neurons fire to lists of spikes, and from the last layer's spikes to the class.

As `event_kernels`, this file imports nothing of the package that is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantspike.simulation.event_kernels import compiled

_BITS = 64
"""Neurons of a mask."""


def _lowest_bit(typing_context: Any, mask: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the position of the lowest bit that is set in a uint64 other than 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


lowest_bit: Any = intrinsic(_lowest_bit)


@compiled
def list_spikes(
    masks: Any, used: Any, size: Any, channels: Any, scale: Any, fan_out: Any, spikes: Any, counts: Any
) -> None:
    """List and count the spikes of a layer by step, sign and position, so that those of a row of the map follow.

    A spike of channel c in column x is written as (x channels + c) scale: the next layer only adds where its
    kernel begins.

    Args:
        masks: from `advance_layer`, uint64 [n, steps, positions, tiles, 2].
        used: likewise, int32 [n, positions, blocks].
        size: side of the layer's map.
        channels: of the layer.
        scale: weights in a row of the next layer.
        fan_out: synapses that a spike reaches, by position, int64 [positions].
        spikes: filled in: the spikes, int32 [spikes + MARGIN]; their bounds, int32 [n, 2 span, positions + 1]: where
            the positive spikes of step t begin in row 2t, and the negative ones in row 2t + 1, position by position,
            and in the last column where they end; and int32 [n, positions]: step after which a position sends no
            further spikes.
        counts: int64 [3, steps, n], filled in for the span: positive spikes, negative spikes, and synapses that both
            reach.
    """
    listed, bounds, last = spikes
    positive, negative, synops = counts[0], counts[1], counts[2]
    n, _, positions, tiles, _ = masks.shape
    block_tiles = tiles // used.shape[2]
    cursor = 0
    for image in range(n):
        last[image] = 0
        for half_step in range(bounds.shape[1]):
            step, sign = half_step // 2, half_step % 2
            before = cursor
            reached = 0
            for position in range(positions):
                begin = cursor
                bounds[image, half_step, position] = begin
                column = (position % size) * channels
                for tile in range(tiles):
                    if step < used[image, position, tile // block_tiles]:
                        mask = masks[image, step, position, tile, sign]
                        while mask:
                            listed[cursor] = (column + tile * _BITS + lowest_bit(mask)) * scale
                            cursor += 1
                            mask &= mask - np.uint64(1)
                if cursor > begin:
                    last[image, position] = step + 1
                    reached += (cursor - begin) * fan_out[position]
            bounds[image, half_step, positions] = cursor
            by_sign = negative if sign else positive
            by_sign[step, image] = cursor - before
            synops[step, image] += reached


@compiled
def classify(spikes: Any, bounds: Any, classifier: Any, logits: Any, predictions: Any) -> None:
    """Find the class with the largest logit after each step, the lowest one of equals.

    Args:
        spikes: the last layer's, int32 [spikes], from `list_spikes` with a scale of 1: their channels.
        bounds: int32 [n, 2 span, 2].
        classifier: int64 [features, classes].
        logits: int64 [n, classes], updated.
        predictions: int64 [steps, n], filled in; beyond the span with the last one.
    """
    steps, n = predictions.shape
    for image in range(n):
        for step in range(steps):
            if 2 * step < bounds.shape[1]:
                for spike in range(bounds[image, 2 * step, 0], bounds[image, 2 * step, 1]):
                    logits[image] += classifier[spikes[spike]]
                for spike in range(bounds[image, 2 * step + 1, 0], bounds[image, 2 * step + 1, 1]):
                    logits[image] -= classifier[spikes[spike]]
            best = 0
            for label in range(1, logits.shape[1]):
                if logits[image, label] > logits[image, best]:
                    best = label
            predictions[step, image] = best
