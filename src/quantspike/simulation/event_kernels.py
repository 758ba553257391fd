"""The inner loop of the event engine: add rows of weights and fire neurons, for one layer and many steps.

Numba compiles the loops, but it neither keeps sums of 16 bits in registers from row to row nor turns comparisons into
bit masks. Both are written in LLVM's vector types, which are split into the registers that a processor has (AVX-512,
AVX2, NEON).

This file imports nothing of the package and holds its constants itself: Numba caches compiled code on disk and
compiles again when the file of a function changes, but not when an imported file does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 64
"""Neurons of a tile: one bit each in a mask of 64 bits."""

MEMBRANE_LIMIT = 2**30
"""As in `quantspike.conversion.integer`."""

MARGIN = 16
"""Values beyond the end that `copy_shifted` may read and write."""

_INT16, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)

Codegen = Callable[[Any, ir.IRBuilder, Any, list[Any]], Any]


def compiled(function: Any) -> Any:
    """Compile a function for one thread of many, and keep the code on disk where that can be written to."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's can
        return njit(nogil=True, error_model="numpy")(function)


def _row_adder(lanes: int) -> Any:
    row_sums_type, sums_type = ir.VectorType(_INT16, lanes), ir.VectorType(_INT32, lanes)

    def add_rows(
        typing_context: Any,
        membrane: Any,
        start: Any,
        weights: Any,
        lane: Any,
        rows: Any,
        first: Any,
        added: Any,
        subtracted: Any,
    ) -> tuple[Any, Codegen]:
        """Add rows of weights to membrane[start : start + lanes] and subtract further rows.

        The sums are kept in 16 bits, so at most 32767 // max |w| rows may be given at once.

        Args:
            membrane: int32, contiguous, of any shape; `start` counts its values.
            start: index of the first neuron.
            weights: int8 or int16 [values].
            lane: of the first neuron within a row of weights.
            rows: int32 [rows], where each row begins in `weights`.
            first: index of the first of the rows.
            added: number of rows to add, from `first` on.
            subtracted: number of rows to subtract, after those.
        """

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
            membrane, start, weights, lane, rows, first, added, subtracted = arguments
            kinds = signature.args
            data = _pointer(context, builder, kinds[2], weights, lane)
            row_at = _pointer(context, builder, kinds[4], rows, _number(0))
            middle = builder.add(first, added)
            total = _fold_rows(builder, builder.add, row_at, first, middle, data, ir.Constant(row_sums_type, None))
            total = _fold_rows(builder, builder.sub, row_at, middle, builder.add(middle, subtracted), data, total)
            target = _vector(builder, _pointer(context, builder, kinds[0], membrane, start), sums_type)
            _store(builder, builder.add(_load(builder, target), builder.sext(total, sums_type)), target)
            return context.get_dummy_value()

        return types.void(membrane, start, weights, lane, rows, first, added, subtracted), codegen

    return intrinsic(add_rows)


add_rows = _row_adder(LANES)
add_wide_rows = _row_adder(2 * LANES)
"""The same for two tiles at once, which halves the lookups."""


def _fire(
    typing_context: Any,
    membrane: Any,
    net_spikes: Any,
    start: Any,
    threshold: Any,
    half_threshold: Any,
    limit: Any,
    channel: Any,
    barrier: Any,
    masks: Any,
    word: Any,
) -> tuple[Any, Codegen]:
    """Advance a tile by one step with the rule of `neuron.fire`, after its input was added to the membrane.

    Args:
        membrane: U, int32, contiguous; `start` counts its values.
        net_spikes: N, int32, likewise; changed in place.
        start: index of the tile's first neuron.
        threshold: theta, int32 [channels], and then as many values that no membrane reaches.
        half_threshold: h, int32 [channels].
        limit: largest U + h that counts, int32 [channels].
        channel: of the tile's first neuron.
        barrier: index in `threshold` of what d must reach for a spike: `channel`, or in the second half if the tile
            may not fire yet. Its N is 0 then, so that d < 0 does not occur.
        masks: uint64, contiguous; one bit per neuron.
        word: index of the mask of positive spikes; the mask of negative ones follows.

    Returns:
        int64: bit 0 is set if a neuron of the tile is not settled, bit 1 if a |U| reaches 2^30; the bits above
        are the number of spikes.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        membrane, net_spikes, start, threshold, half_threshold, limit, channel, barrier, masks, word = arguments
        kinds, tile = signature.args, ir.VectorType(_INT32, LANES)

        def at(kind: int, array: Any, index: Any) -> Any:
            return _vector(builder, _pointer(context, builder, kinds[kind], array, index), tile)

        u, net_at = _load(builder, at(0, membrane, start)), at(1, net_spikes, start)
        net = _load(builder, net_at)
        theta, half = _load(builder, at(3, threshold, channel)), _load(builder, at(4, half_threshold, channel))
        most = _load(builder, at(5, limit, channel))
        zero = _splat(tile, 0)
        shifted = builder.add(u, half)
        shifted = builder.select(builder.icmp_signed(">", shifted, zero), shifted, zero)
        shifted = builder.select(builder.icmp_signed("<", shifted, most), shifted, most)
        distance = builder.sub(shifted, builder.mul(theta, net))
        positive = builder.icmp_signed(">=", distance, _load(builder, at(3, threshold, barrier)))
        negative = builder.icmp_signed("<", distance, zero)
        spikes = builder.sub(builder.zext(positive, tile), builder.zext(negative, tile))
        _store(builder, builder.add(net, spikes), net_at)
        rest = builder.sub(distance, builder.mul(theta, spikes))
        # Unsigned, values below 0 are large: one comparison finds them and those not below theta.
        unsettled = _any(builder, builder.icmp_unsigned(">=", rest, theta))
        moved = builder.add(u, _splat(tile, MEMBRANE_LIMIT - 1))
        beyond = _any(builder, builder.icmp_unsigned(">", moved, _splat(tile, 2 * (MEMBRANE_LIMIT - 1))))
        result = builder.or_(builder.zext(unsettled, _INT64), builder.shl(builder.zext(beyond, _INT64), _number(1)))
        for offset, flags in enumerate((positive, negative)):
            mask = builder.bitcast(flags, _INT64)
            builder.store(mask, _pointer(context, builder, kinds[8], masks, builder.add(word, _number(offset))))
            result = builder.add(result, builder.shl(builder.ctpop(mask), _number(2)))
        return result

    kinds = membrane, net_spikes, start, threshold, half_threshold, limit, channel, barrier, masks, word
    return types.int64(*kinds), codegen


fire: Any = intrinsic(_fire)


def _copy_shifted(
    typing_context: Any, target: Any, start: Any, source: Any, begin: Any, end: Any, shift: Any
) -> tuple[Any, Codegen]:
    """Set target[start:] = source[begin:end] + shift; read and write up to MARGIN - 1 values beyond. Arrays: int32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        target, start, source, begin, end, shift = arguments
        few = ir.VectorType(_INT32, MARGIN)
        lone = builder.insert_element(ir.Constant(few, ir.Undefined), builder.trunc(shift, _INT32), _number(0))
        shifts = builder.shuffle_vector(lone, lone, ir.Constant(ir.VectorType(_INT32, MARGIN), None))
        to = _pointer(context, builder, signature.args[0], target, builder.sub(start, begin))
        at = _pointer(context, builder, signature.args[2], source, _number(0))
        with _counting(builder, begin, end, MARGIN) as index:
            moved = builder.add(_load(builder, _vector(builder, builder.gep(at, [index]), few)), shifts)
            _store(builder, moved, _vector(builder, builder.gep(to, [index]), few))
        return context.get_dummy_value()

    return types.void(target, start, source, begin, end, shift), codegen


copy_shifted: Any = intrinsic(_copy_shifted)


def _fold_rows(
    builder: ir.IRBuilder, combine: Callable[[Any, Any], Any], row_at: Any, begin: Any, end: Any, data: Any, total: Any
) -> Any:
    """Combine the rows from `begin` to `end` with `total`, one by one, in registers."""
    before, stored = builder.block, ir.VectorType(data.type.pointee, total.type.count)
    with _counting(builder, begin, end, 1) as index:
        running = builder.phi(total.type)
        offset = builder.sext(builder.load(builder.gep(row_at, [index])), _INT64)
        row = _load(builder, _vector(builder, builder.gep(data, [offset]), stored))
        combined = combine(running, row if stored == total.type else builder.sext(row, total.type))
        running.add_incoming(total, before)
        running.add_incoming(combined, builder.block)
        body = builder.block
    result = builder.phi(total.type)
    result.add_incoming(total, before)
    result.add_incoming(combined, body)
    return result


@contextmanager
def _counting(builder: ir.IRBuilder, begin: Any, end: Any, step: int) -> Iterator[Any]:
    """Build a loop in one block; yield its index, which runs from `begin` to `end` exclusive."""
    before = builder.block
    body, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", begin, end), body, after)
    builder.position_at_end(body)
    index = builder.phi(_INT64)
    yield index
    following = builder.add(index, _number(step))
    index.add_incoming(begin, before)
    index.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, end), body, after)
    builder.position_at_end(after)


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    """Return a pointer to the value at `index` of a contiguous array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _vector(builder: ir.IRBuilder, pointer: Any, kind: ir.VectorType) -> Any:
    return builder.bitcast(pointer, kind.as_pointer())


def _load(builder: ir.IRBuilder, pointer: Any) -> Any:
    value = builder.load(pointer)
    value.align = 1  # that of a single weight; processors load it as fast if it is aligned after all
    return value


def _store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = 2


def _splat(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _any(builder: ir.IRBuilder, flags: Any) -> Any:
    return builder.icmp_unsigned("!=", builder.bitcast(flags, _INT64), _number(0))


def _number(value: int) -> ir.Constant:
    return ir.Constant(_INT64, value)


@njit(nogil=True, forceinline=True, error_model="numpy")
def _last_arrival(last: Any, window: Any, size: Any) -> int:
    """Return the step after which no spike comes from a window of the map (top, bottom, left, right)."""
    top, bottom, left, right = window
    arrival = 0
    for y in range(top, bottom):
        for position in range(y * size + left, y * size + right):
            arrival = max(arrival, last[position])
    return arrival


@njit(nogil=True, forceinline=True, error_model="numpy")
def _gather(
    rows: Any, total: Any, spikes: Any, bounds: Any, window: Any, size: Any, y: Any, row_size: Any, shift: Any
) -> Any:
    """Append the rows of weights that the spikes of a step and sign select; return the number of rows so far.

    The spikes of a row of the window are consecutive, and all select the same row of the kernel, which begins at y.
    """
    top, bottom, left, right = window
    for source_y in range(top, bottom):
        begin: Any = np.int64(bounds[source_y * size + left])
        end: Any = np.int64(bounds[source_y * size + right])
        copy_shifted(rows, total, spikes, begin, end, (source_y - y) * row_size + shift)
        total += end - begin
    return total


@njit(nogil=True, forceinline=True, error_model="numpy")
def _add_all(
    membrane: Any,
    start: Any,
    weights: Any,
    lane: Any,
    rows: Any,
    added: Any,
    total: Any,
    most_rows: Any,
    backwards: Any,
    wide: Any,
) -> None:
    """Add the first `added` rows to one tile, or two, and subtract the rest, as many at once as 16 bits hold."""
    groups = (total + most_rows - 1) // most_rows
    for group in range(groups):
        first = most_rows * (groups - 1 - group if backwards else group)
        taken = min(most_rows, total - first)
        plus = min(taken, max(0, added - first))
        if wide:
            add_wide_rows(membrane, start, weights, lane, rows, first, plus, taken - plus)
        else:
            add_rows(membrane, start, weights, lane, rows, first, plus, taken - plus)


@compiled
def advance_layer(
    images: Any, state: Any, layer: Any, waiting: Any, spikes: Any, masks: Any, used: Any, unsettled: Any
) -> int:
    """Run a layer of n images through all steps of a chunk, since its whole input is known by then.

    The loops run block by block of output channels, whose weights stay in the second-level cache, then image by
    image, position by position and step by step, so that the membranes of a position stay in the first-level cache.
    A position is done when no further spike reaches it and all its neurons are settled.

    Args:
        images: int64 [n], indices of the images in the batch.
        state: of the batch, changed in place: U and N, int32 [batch, positions, channels]; channels are a multiple
            of 64.
        layer: theta, h and the limit of U + h, as `fire` needs them; weights, int8 or int16 [values]: for each block of
            `width` channels, row by row and column by column of the kernel, a row of `width` weights for each channel
            in; geometry, int64 [8]: channels in, side of the map in, side of the map out, kernel, stride, padding,
            width, and the number of rows that may be summed in 16 bits.
        waiting: number of steps, from the first, in which the layer adds up its input and fires nothing.
        spikes: input, as `list_spikes` fills it in with a scale of `width`: the spikes, their bounds and last steps.
        masks: uint64 [n, steps, positions, channels / 64, 2], filled in: the spikes, a bit each, positive ones first.
        used: int32 [n, positions, blocks], filled in: number of steps whose masks are valid; no spikes follow.
        unsettled: uint8 [n, steps], set to 1 where a neuron was not settled after a step.

    Returns:
        The number of spikes, or -1 as soon as a membrane reaches 2^30.
    """
    membrane, net_spikes = state
    threshold, half_threshold, limit, weights, geometry = layer
    listed, bounds, last = spikes
    channels_in, size_in, size_out, kernel, stride, padding, width, most_rows = geometry
    _, positions, lanes = membrane.shape
    tiles, blocks, steps = width // LANES, lanes // width, masks.shape[1]
    wide = tiles % 2 == 0
    row_size = kernel * channels_in * width
    rows = np.empty(kernel * kernel * channels_in + MARGIN, np.int32)
    fired = 0
    for block in range(blocks):
        block_weights = weights[block * kernel * row_size : (block + 1) * kernel * row_size]
        for image in range(len(images)):
            for position in range(positions):
                # The window of the map in under the kernel: rows top to bottom, columns left to right.
                y, x = (position // size_out) * stride - padding, (position % size_out) * stride - padding
                top, bottom = max(y, 0), min(y + kernel, size_in)
                left, right = max(x, 0), min(x + kernel, size_in)
                window = (top, bottom, left, right)
                horizon = _last_arrival(last[image], window, size_in) if channels_in > 0 else 0
                settled, step = False, 0
                while step < steps and (step < horizon or not settled):
                    total, added = 0, 0
                    if step < horizon:
                        shift = -x * channels_in * width
                        positive, negative = bounds[image, 2 * step], bounds[image, 2 * step + 1]
                        added = _gather(rows, 0, listed, positive, window, size_in, y, row_size, shift)
                        total = _gather(rows, added, listed, negative, window, size_in, y, row_size, shift)
                    # Without input nothing changes in neurons that are settled, nor in those that still wait.
                    if total == 0 and (settled or 0 < step < waiting):
                        for tile in range(block * tiles, (block + 1) * tiles):
                            masks[image, step, position, tile, 0] = 0
                            masks[image, step, position, tile, 1] = 0
                        if not settled:
                            unsettled[image, step] = 1
                        step += 1
                        continue
                    word = 2 * (((image * steps + step) * positions + position) * masks.shape[3] + block * tiles)
                    flags = 0
                    barrier = block * width + (lanes if step < waiting else 0)
                    # Every other step backwards: the rows that the step before used last are still near.
                    backwards = step % 2 == 1
                    for tile in range(tiles):
                        lane = tile * LANES
                        channel = block * width + lane
                        start = (images[image] * positions + position) * lanes + channel
                        if not wide or tile % 2 == 0:
                            _add_all(
                                membrane, start, block_weights, lane, rows, added, total, most_rows, backwards, wide
                            )
                        result = fire(
                            membrane,
                            net_spikes,
                            start,
                            threshold,
                            half_threshold,
                            limit,
                            channel,
                            barrier + lane,
                            masks,
                            word + 2 * tile,
                        )
                        flags |= result
                        fired += result >> 2
                    if flags & 2:
                        return -1
                    settled = flags & 1 == 0
                    if not settled:
                        unsettled[image, step] = 1
                    step += 1
                used[image, position, block] = step
    return fired
