"""What the event kernels do to 64 neurons at a time, written in LLVM's vector types.

Numba compiles loops over arrays, but neither keeps sums of 16 bits in registers across rows nor turns
comparisons into bit masks. Vectors of LLVM do both, on every processor: it splits them into whatever registers
there are (AVX-512, AVX2, NEON).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantspike.integer import MEMBRANE_LIMIT

LANES = 64
"""Neurons of a tile: one bit each in a mask of 64 bits."""

_BIT, _INT16, _INT32, _INT64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WEIGHTS, _NEURONS, _FLAGS = (ir.VectorType(scalar, LANES) for scalar in (_INT16, _INT32, _BIT))

Codegen = Callable[[Any, ir.IRBuilder, Any, list[Any]], Any]


@intrinsic  # type: ignore[untyped-decorator]
def add_rows(
    typing_context: Any,
    membrane: Any,
    place: Any,
    weights: Any,
    lane: Any,
    rows: Any,
    first: Any,
    added: Any,
    subtracted: Any,
) -> tuple[Any, Codegen]:
    """membrane[place : place + 64] += sum of rows of weights - sum of further rows.

    The sums are kept in 16 bits, so at most 32767 // max |w| rows may be given at once.

    Args:
        membrane: int32, contiguous, of any shape; `place` counts its values.
        place: of the tile's first neuron.
        weights: int16 [values].
        lane: of the tile's first neuron within a row of weights.
        rows: int32 [rows], where each row begins in `weights`.
        first: of the rows to take.
        added: how many rows are added, from `first` on.
        subtracted: how many are subtracted, after those.
    """
    signature = types.void(membrane, place, weights, lane, rows, first, added, subtracted)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        membrane, place, weights, lane, rows, first, added, subtracted = arguments
        kinds = signature.args
        data = _pointer(context, builder, kinds[2], weights, lane)
        total = ir.Constant(_WEIGHTS, [0] * LANES)
        middle = builder.add(first, added)
        for begin, end, combine in (
            (first, middle, builder.add),
            (middle, builder.add(middle, subtracted), builder.sub),
        ):
            total = _fold(context, builder, kinds[4], rows, begin, end, data, total, combine)
        target = _tile(context, builder, kinds[0], membrane, place)
        _store(builder, builder.add(_load(builder, target, 4), builder.sext(total, _NEURONS)), target, 4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def fire(
    typing_context: Any,
    membrane: Any,
    net_spikes: Any,
    place: Any,
    threshold: Any,
    half_threshold: Any,
    channel: Any,
    masks: Any,
    word: Any,
) -> tuple[Any, Codegen]:
    """One step of 64 neurons by the rule of `neuron.fire`; their input is in the membrane already.

        d = max(0, U + h) - theta N
        s = +1 if d >= theta;  -1 if d < 0;  0 otherwise          N <- N + s

    Args:
        membrane: U, int32, contiguous; `place` counts its values.
        net_spikes: N, int32, likewise; changed in place.
        place: of the tile's first neuron.
        threshold: theta, int32 [channels].
        half_threshold: h, int32 [channels].
        channel: of the tile's first neuron.
        masks: uint64, contiguous; gets the tile's positive spikes at `word` and its negative ones behind, a bit each.
        word: where the masks go, counted in values.

    Returns:
        int64: bit 0 is set if one of the 64 is not at rest now, bit 1 if a |U| reaches 2^30; the bits above are the
        number of spikes.
    """
    signature = types.int64(membrane, net_spikes, place, threshold, half_threshold, channel, masks, word)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        membrane, net_spikes, place, threshold, half_threshold, channel, masks, word = arguments
        kinds = signature.args
        u = _load(builder, _tile(context, builder, kinds[0], membrane, place), 4)
        net_tile = _tile(context, builder, kinds[1], net_spikes, place)
        net = _load(builder, net_tile, 4)
        theta = _load(builder, _tile(context, builder, kinds[3], threshold, channel), 4)
        half = _load(builder, _tile(context, builder, kinds[4], half_threshold, channel), 4)
        zero = _splat(_INT32, 0)
        shifted = builder.add(u, half)
        shifted = builder.select(builder.icmp_signed(">", shifted, zero), shifted, zero)
        distance = builder.sub(shifted, builder.mul(theta, net))
        positive = builder.icmp_signed(">=", distance, theta)
        negative = builder.icmp_signed("<", distance, zero)
        spikes = builder.sub(builder.zext(positive, _NEURONS), builder.zext(negative, _NEURONS))
        _store(builder, builder.add(net, spikes), net_tile, 4)
        rest = builder.sub(distance, builder.mul(theta, spikes))
        # One unsigned comparison finds what lies below 0 or not below theta.
        restless = _any(builder, builder.icmp_unsigned(">=", rest, theta))
        limit = _splat(_INT32, MEMBRANE_LIMIT - 1)
        beyond = _any(
            builder, builder.icmp_unsigned(">", builder.add(u, limit), _splat(_INT32, 2 * (MEMBRANE_LIMIT - 1)))
        )
        result = builder.or_(builder.zext(restless, _INT64), builder.shl(builder.zext(beyond, _INT64), _number(1)))
        for offset, flags in enumerate((positive, negative)):
            mask = builder.bitcast(flags, _INT64)
            builder.store(mask, _pointer(context, builder, kinds[6], masks, builder.add(word, _number(offset))))
            result = builder.add(result, builder.shl(builder.ctpop(mask), _number(2)))
        return result

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing_context: Any, mask: Any) -> tuple[Any, Codegen]:
    """Position of the lowest bit that is set in a uint64 other than 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[Any]) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), codegen


def _fold(
    context: Any,
    builder: ir.IRBuilder,
    kind: Any,
    rows: Any,
    begin: Any,
    end: Any,
    data: Any,
    total: Any,
    combine: Callable[[Any, Any], Any],
) -> Any:
    """Runs over the rows from `begin` to `end` and combines each with `total`, which stays in registers."""
    before = builder.block
    body, after = builder.append_basic_block("rows"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", begin, end), body, after)
    builder.position_at_end(body)
    index, running = builder.phi(begin.type), builder.phi(_WEIGHTS)
    offset = builder.sext(builder.load(_pointer(context, builder, kind, rows, index)), _INT64)
    row = builder.bitcast(builder.gep(data, [offset]), _WEIGHTS.as_pointer())
    combined = combine(running, _load(builder, row, 2))
    following = builder.add(index, ir.Constant(index.type, 1))
    for phi, start, again in ((index, begin, following), (running, total, combined)):
        phi.add_incoming(start, before)
        phi.add_incoming(again, body)
    builder.cbranch(builder.icmp_signed("<", following, end), body, after)
    builder.position_at_end(after)
    result = builder.phi(_WEIGHTS)
    result.add_incoming(total, before)
    result.add_incoming(combined, body)
    return result


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    """Where value number `index` of a contiguous array lies."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _tile(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, index: Any) -> Any:
    return builder.bitcast(_pointer(context, builder, kind, array, index), _NEURONS.as_pointer())


def _load(builder: ir.IRBuilder, pointer: Any, align: int) -> Any:
    value = builder.load(pointer)
    value.align = align
    return value


def _store(builder: ir.IRBuilder, value: Any, pointer: Any, align: int) -> None:
    builder.store(value, pointer).align = align


def _splat(scalar: ir.IntType, value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(scalar, LANES), [value] * LANES)


def _any(builder: ir.IRBuilder, flags: Any) -> Any:
    mask = builder.bitcast(flags, _INT64)
    return builder.icmp_unsigned("!=", mask, _number(0))


def _number(value: int) -> ir.Constant:
    return ir.Constant(_INT64, value)
