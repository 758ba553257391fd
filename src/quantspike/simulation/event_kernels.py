"""The loops of the event engine, compiled by Numba; `events` says what they work on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantspike.simulation.vectors import LANES, MARGIN, add_rows, add_wide_rows, copy_shifted, fire, lowest_bit

_compiled: Any = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def advance_layer(
    images: Any,
    membrane: Any,
    net_spikes: Any,
    threshold: Any,
    half_threshold: Any,
    weights: Any,
    numbers: Any,
    spikes: Any,
    bounds: Any,
    last: Any,
    allowed: Any,
    masks: Any,
    used: Any,
    restless: Any,
    beyond: Any,
) -> int:
    """Runs a layer of n images through all steps of a chunk, since its whole input is known by then.

    The loops run block by block of output channels, whose weights stay in the second-level cache, then image by
    image, place by place and step by step, so that a place's membranes stay in the first-level cache until it is
    done. A place is done when no further spike reaches it and all its neurons are at rest.

    Args:
        images: int64 [n]: which images of the batch to run.
        membrane: U of the batch, int32 [batch, places, channels], changed in place; channels are a multiple of 64.
        net_spikes: N, likewise.
        threshold: theta, int32 [channels].
        half_threshold: h, int32 [channels].
        weights: int16 [values]: for each block of `width` channels, row by row and column by column of the kernel,
            a row of `width` weights for each channel in.
        numbers: int64 [8]: channels in, side of the map in, side of the map out, kernel, stride, padding, width, and
            how many rows may be summed in 16 bits.
        spikes: the spikes in, int32 [spikes + MARGIN], from `list_spikes` with a scale of `width`.
        bounds: where they stand, int32 [n, 2 steps, places in + 1].
        last: int32 [n, places in]: step after which a place sends no further spikes.
        allowed: int64 [n]: steps of the chunk that an image may run.
        masks: uint64 [n, steps, places, channels / 64, 2]: gets the spikes, a bit each, positive ones first.
        used: int32 [n, places, blocks]: gets how many steps of the masks are meant.
        restless: uint8 [n, steps]: set to 1 after whose step a neuron was not at rest.
        beyond: int64 [n]: lowered to the first step with a membrane that leaves 31 bits.

    Returns:
        The number of spikes out.
    """
    channels_in, size_in, size_out, kernel, stride, padding, width, most_rows = numbers
    _, places, lanes = membrane.shape
    tiles, blocks = width // LANES, lanes // width
    block_size = kernel * kernel * channels_in * width
    rows = np.empty(kernel * kernel * channels_in + MARGIN, np.int32)
    fired = 0
    for block in range(blocks):
        block_weights = weights[block * block_size : (block + 1) * block_size]
        for image in range(len(images)):
            for place in range(places):
                # The part of the map in under the kernel: rows top to bottom, columns left to right.
                y, x = (place // size_out) * stride - padding, (place % size_out) * stride - padding
                top, bottom = max(y, 0), min(y + kernel, size_in)
                left, right = max(x, 0), min(x + kernel, size_in)
                horizon = 0
                if channels_in > 0:
                    for source_y in range(top, bottom):
                        for source in range(source_y * size_in + left, source_y * size_in + right):
                            horizon = max(horizon, last[image, source])
                resting, step = False, 0
                while step < allowed[image] and (step < horizon or not resting):
                    total, added = 0, 0
                    if step < horizon:
                        for sign in range(2):
                            added = total
                            for source_y in range(top, bottom):
                                source = source_y * size_in
                                base = ((source_y - y) * kernel - x) * channels_in * width
                                begin: Any = np.int64(bounds[image, 2 * step + sign, source + left])
                                end: Any = np.int64(bounds[image, 2 * step + sign, source + right])
                                copy_shifted(rows, total, spikes, begin, end, base)
                                total += end - begin
                    word = 2 * (((image * masks.shape[1] + step) * places + place) * masks.shape[3] + block * tiles)
                    if total == 0 and resting:
                        for tile in range(block * tiles, (block + 1) * tiles):
                            masks[image, step, place, tile, 0] = 0
                            masks[image, step, place, tile, 1] = 0
                        step += 1
                        continue
                    flags, groups = 0, (total + most_rows - 1) // most_rows
                    for tile in range(tiles):
                        channel = block * width + tile * LANES
                        start = (images[image] * places + place) * lanes + channel
                        for group in range(groups):
                            # Every other step backwards: the rows of the step before that came last are the nearest.
                            first = most_rows * (group if step % 2 == 0 else groups - 1 - group)
                            taken = min(most_rows, total - first)
                            plus = min(taken, max(0, added - first))
                            if tiles % 2 == 1:
                                add_rows(membrane, start, block_weights, tile * LANES, rows, first, plus, taken - plus)
                            elif tile % 2 == 0:
                                add_wide_rows(
                                    membrane, start, block_weights, tile * LANES, rows, first, plus, taken - plus
                                )
                        result = fire(
                            membrane, net_spikes, start, threshold, half_threshold, channel, masks, word + 2 * tile
                        )
                        flags |= result
                        fired += result >> 2
                    resting = flags & 1 == 0
                    if not resting:
                        restless[image, step] = 1
                    step += 1
                    if flags & 2:
                        beyond[image] = min(beyond[image], step - 1)
                        break
                used[image, place, block] = step
    return fired


@_compiled
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
                            spikes[cursor] = (column + tile * LANES + lowest_bit(mask)) * scale
                            cursor += 1
                            mask &= mask - np.uint64(1)
                if cursor > begin:
                    last[image, place] = step + 1
                    reached += (cursor - begin) * fan_out[place]
            bounds[image, half_step, places] = cursor
            counts = negative if sign else positive
            counts[step, image] = cursor - before
            synops[step, image] += reached


@_compiled
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
