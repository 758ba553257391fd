"""From the masks in which neurons fire to lists of spikes, and to what the last layer's spikes say of the class.

As in `event_kernels`, all that is compiled stands in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_BITS = 64
"""Neurons of a mask."""


def _lowest_bit(typing_context: Any, mask: Any) -> tuple[Any, Callable[..., Any]]:
    """Position of the lowest bit that is set in a uint64 other than 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


lowest_bit: Any = intrinsic(_lowest_bit)


@njit(nogil=True, cache=True, error_model="numpy")
def list_spikes(
    masks: Any,
    used: Any,
    size: Any,
    channels: Any,
    scale: Any,
    fan_out: Any,
    spikes: Any,
    bounds: Any,
    last: Any,
    positive: Any,
    negative: Any,
    synops: Any,
) -> None:
    """Lists and counts the spikes of a layer by step, sign and place, so that those of a row of places stand together.

    A spike of channel c in column x is written as (x channels + c) scale: the next layer only has to add where its
    kernel begins.

    Args:
        masks: from `advance_layer`, uint64 [n, steps, places, tiles, 2].
        used: likewise, int32 [n, places, blocks].
        size: side of the layer's map.
        channels: of the layer.
        scale: weights in a row of the next layer.
        fan_out: synapses that a spike reaches, by place, int64 [places].
        spikes: int32 [spikes + MARGIN], filled but for the margin.
        bounds: int32 [n, 2 span, places + 1], filled: where the positive spikes of step t begin in row 2t, and the
            negative ones in row 2t + 1, place by place; the last column is where they end.
        last: int32 [n, places], filled: step after which a place sends no further spikes.
        positive: int64 [steps, n], filled where there are spikes: their number.
        negative: likewise.
        synops: likewise: synapses that the spikes of both signs reach.
    """
    n, _, places, tiles, _ = masks.shape
    block_tiles = tiles // used.shape[2]
    cursor = 0
    for image in range(n):
        last[image] = 0
        for half_step in range(bounds.shape[1]):
            step, sign = half_step // 2, half_step % 2
            before = cursor
            reached = 0
            for place in range(places):
                begin = cursor
                bounds[image, half_step, place] = begin
                column = (place % size) * channels
                for tile in range(tiles):
                    if step < used[image, place, tile // block_tiles]:
                        mask = masks[image, step, place, tile, sign]
                        while mask:
                            spikes[cursor] = (column + tile * _BITS + lowest_bit(mask)) * scale
                            cursor += 1
                            mask &= mask - np.uint64(1)
                if cursor > begin:
                    last[image, place] = step + 1
                    reached += (cursor - begin) * fan_out[place]
            bounds[image, half_step, places] = cursor
            counts = negative if sign else positive
            counts[step, image] = cursor - before
            synops[step, image] += reached


@njit(nogil=True, cache=True, error_model="numpy")
def classify(spikes: Any, bounds: Any, classifier: Any, logits: Any, predictions: Any) -> None:
    """Class with the largest logit after each step, the lowest one of equals.

    Args:
        spikes: the last layer's, int32 [spikes], from `list_spikes` with a scale of 1: their channels.
        bounds: int32 [n, 2 span, 2].
        classifier: int64 [features, classes].
        logits: int64 [n, classes], brought up to date.
        predictions: int64 [steps, n], filled; beyond the span with the last one.
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
