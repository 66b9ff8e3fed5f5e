"""The delta rule on one state as vector code, for the compiled CPU form.

A row i of the state changes by its own gate and its own error, so the R rows are the natural vector: with the state
held transposed (column j contiguous over the rows), `S k` is R multiply-adds of whole columns and the write is R more,
with no sum across a vector. A loop compiler does not find this for small R (it unrolls the inner loop into scalars),
hence these lines of LLVM. Up to R = 16 they are straight-line code, and the state stays in registers from token to
token.

Every sum runs in one fixed order and every multiply-add is fused, so the bits depend on the inputs alone.

Four functions to be called from numba code, each compiled once for each rank (a constant, like all arguments named so):

    columns = scratch(rank)                         room for a transposed state and one vector more, on the stack
    turn(rank, source, at, target, to)              transpose R × R numbers from `source[at:]` into `target[to:]`
    token_step(rank, columns, q, …)                 advance the state by one token
    measure(rank, columns)                          sum of squares and largest entry
"""

# mypy: disable-error-code="no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, extending
from numba.np.arrayobj import populate_array

intrinsic: Any = extending.intrinsic  # what it decorates is called from compiled code, not as Python sees it

UNROLLED = 16  # up to this rank the state fits the vector registers
_COUNT = ir.IntType(64)
_FLOAT = ir.FloatType()
_WIDE = ir.DoubleType()


class _Vectors:
    """Float vectors of one width in the code under construction."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder, self.width = builder, width
        self.kind = ir.VectorType(_FLOAT, width)
        self.wide = ir.VectorType(_WIDE, width)

    def constant(self, value: float) -> Any:
        return ir.Constant(self.kind, [value] * self.width)

    def splat(self, scalar: Any) -> Any:
        one = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, one, [0] * self.width)

    def shuffle(self, a: Any, b: Any, picks: list[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), picks))

    def load(self, base: Any, element: Any) -> Any:
        return self.builder.load(self._address(base, element), align=4)

    def store(self, value: Any, base: Any, element: Any) -> None:
        self.builder.store(value, self._address(base, element), align=4)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """a · b + c, rounded once."""
        return self._call("llvm.fma", "f32", self.kind, [a, b, c])

    def fused_wide(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("llvm.fma", "f64", self.wide, [a, b, c])

    def magnitude(self, a: Any) -> Any:
        return self._call("llvm.fabs", "f32", self.kind, [a])

    def widen(self, a: Any) -> Any:
        return self.builder.fpext(a, self.wide)

    def total(self, wide: Any) -> Any:
        """The sum of a float64 vector, as a tree."""
        name = f"llvm.vector.reduce.fadd.v{self.width}f64"
        kind = ir.FunctionType(_WIDE, [_WIDE, self.wide])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [ir.Constant(_WIDE, -0.0), wide], fastmath=("reassoc",))

    def sum_of_squares(self, value: Any) -> Any:
        wide = self.widen(value)
        return self.total(self.builder.fmul(wide, wide))

    def _address(self, base: Any, element: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [element]), self.kind.as_pointer())

    def _call(self, name: str, suffix: str, kind: Any, values: list[Any]) -> Any:
        function_type = ir.FunctionType(kind, [kind] * len(values))
        function = cgutils.get_or_insert_function(self.builder.module, function_type, f"{name}.v{self.width}{suffix}")
        return self.builder.call(function, values)


def _repeat(builder: Any, times: int, unroll: bool, body: Any) -> None:
    """Emit `body(index)` `times` times, or a loop around it."""
    if unroll:
        for number in range(times):
            body(ir.Constant(_COUNT, number))
    else:
        with cgutils.for_range(builder, ir.Constant(_COUNT, times)) as loop:
            body(loop.index)


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _tile(rank: int) -> int:
    return next(width for width in (16, 8, 4, 2, 1) if rank % width == 0)


@intrinsic(prefer_literal=True)
def scratch(typing: Any, rank: Any) -> Any:
    """Return `[R · R + R]` float32 on the stack: a transposed state, and a vector that turns NaN once a non-finite
    number has been met. Memory that nobody else can see is what lets the compiler keep it in registers.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None  # numba then asks again with the literal
    size = rank.literal_value * (rank.literal_value + 1)
    signature = types.Array(types.float32, 1, "C")(rank)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(_FLOAT, size))
        room.align = 64
        array = context.make_array(sig.return_type)(context, builder)
        populate_array(
            array,
            data=builder.bitcast(room, _FLOAT.as_pointer()),
            shape=[ir.Constant(_COUNT, size)],
            strides=[ir.Constant(_COUNT, 4)],
            itemsize=ir.Constant(_COUNT, 4),
            meminfo=None,
        )
        return array._getvalue()

    return signature, codegen


@intrinsic(prefer_literal=True)
def turn(typing: Any, rank: Any, source: Any, at: Any, target: Any, to: Any) -> Any:
    """Transpose R × R numbers, tile by tile: each tile's rows are loaded, interleaved in registers, and stored."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value
    tile = _tile(R)
    signature = types.void(rank, source, types.int64, target, types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _Vectors(builder, tile)
        read_from, write_to = (
            _data(context, builder, sig.args[1], args[1]),
            _data(context, builder, sig.args[3], args[3]),
        )
        tiles, unroll = R // tile, R <= UNROLLED

        def one_tile(number: Any) -> None:
            row = builder.mul(builder.udiv(number, ir.Constant(_COUNT, tiles)), ir.Constant(_COUNT, tile))
            column = builder.mul(builder.urem(number, ir.Constant(_COUNT, tiles)), ir.Constant(_COUNT, tile))

            def place(start: Any, first: Any, second: Any, line: int) -> Any:
                first = builder.mul(builder.add(first, ir.Constant(_COUNT, line)), ir.Constant(_COUNT, R))
                return builder.add(start, builder.add(first, second))

            lines = [vectors.load(read_from, place(args[2], row, column, line)) for line in range(tile)]
            half = tile // 2
            low = [pick for pair in range(half) for pick in (pair, tile + pair)]
            high = [pick + half for pick in low]
            for _ in range(
                tile.bit_length() - 1
            ):  # a perfect shuffle of all the numbers each time: after log₂ of them, turned
                pairs = [(lines[line], lines[line + half]) for line in range(half)]
                lines = [vectors.shuffle(a, b, picks) for a, b in pairs for picks in (low, high)]
            for line in range(tile):
                vectors.store(lines[line], write_to, place(args[4], column, row, line))

        _repeat(builder, tiles * tiles, unroll, one_tile)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def token_step(
    typing: Any,
    rank: Any,
    columns: Any,
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    lam: Any,
    at: Any,
    mode: Any,
    free: Any,
    reads: Any,
    read_at: Any,
) -> Any:
    """Advance one state by one token.

    ``error_sq, value_sq = token_step(rank, columns, q, k, v, beta, lam, at, mode, free, reads, read_at)`` advances
    `columns` (see `scratch`) by the token whose R numbers begin at element `at` of the flat arrays `q`, `k`, `v`,
    `beta` and, where `free` (λ is given, not 1 − β), `lam`. `mode` is a `memory.rule.Mode`. If `read_at` is not
    negative, the read ``S q`` (of the state before the write) is stored at that element of `reads`. Returned are
    ‖v − S k‖² and ‖v‖² in float64, where no float32 can overflow them.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None
    signature = types.UniTuple(types.float64, 2)(
        rank, columns, q, k, v, beta, lam, types.int64, types.int64, types.boolean, reads, types.int64
    )
    return signature, _step_code(rank.literal_value)


def _step_code(rank: int) -> Any:
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _Vectors(builder, rank)
        state, q_at, k_at, v_at, beta_at, lam_at = (_data(context, builder, sig.args[n], args[n]) for n in range(1, 7))
        token, rule, free, out, out_at = (
            args[7],
            args[8],
            args[9],
            _data(context, builder, sig.args[10], args[10]),
            args[11],
        )
        unroll = rank <= UNROLLED
        width = ir.Constant(_COUNT, rank)
        zero, one = vectors.constant(0.0), vectors.constant(1.0)
        witness_at = ir.Constant(_COUNT, rank * rank)

        def times_state(factors: Any) -> Any:
            """S times a vector: two sums (even and odd columns), so that the multiply-adds overlap."""
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
            for total in sums:
                builder.store(zero, total)
            pair = 2 if rank % 2 == 0 else 1

            def two_columns(number: Any) -> None:
                for odd in range(pair):
                    j = builder.add(builder.mul(number, ir.Constant(_COUNT, pair)), ir.Constant(_COUNT, odd))
                    column = vectors.load(state, builder.mul(j, width))
                    factor = vectors.splat(builder.load(builder.gep(factors, [builder.add(token, j)])))
                    builder.store(vectors.fused(column, factor, builder.load(sums[odd])), sums[odd])

            _repeat(builder, rank // pair, unroll, two_columns)
            return builder.fadd(builder.load(sums[0]), builder.load(sums[1]))

        def bear_witness(number: Any) -> None:
            """Anything not finite turns the witness to NaN: 0 · inf and 0 · NaN are NaN."""
            vectors.store(vectors.fused(number, zero, vectors.load(state, witness_at)), state, witness_at)

        predicted = times_state(k_at)
        with builder.if_then(builder.icmp_signed(">=", out_at, ir.Constant(_COUNT, 0))):
            read = times_state(q_at)
            vectors.store(read, out, out_at)
            bear_witness(read)

        value = vectors.load(v_at, token)
        gate = vectors.load(beta_at, token)
        error = builder.fsub(value, predicted)
        bear_witness(error)
        error_sq, value_sq = vectors.sum_of_squares(error), vectors.sum_of_squares(value)

        # S_i ← keep_i S_i + (write_i v_i − erase_i (S k)_i) kᵀ, see memory.rule.
        complement = builder.fsub(one, gate)
        given = cgutils.alloca_once_value(builder, complement)
        builder.store(complement, given)
        with builder.if_then(free):
            builder.store(vectors.load(lam_at, token), given)
        given = builder.load(given)
        outside, plain = (builder.icmp_signed("==", rule, ir.Constant(rule.type, number)) for number in (1, 2))
        keep = builder.select(plain, one, given)
        erase = builder.select(outside, builder.fmul(given, gate), gate)
        change = vectors.fused(builder.fneg(erase), predicted, builder.fmul(gate, value))
        # A closed gate leaves the row alone bit for bit: no 0·NaN, no −0 + 0.
        closed = builder.and_(builder.fcmp_ordered("==", gate, zero), builder.fcmp_ordered("==", keep, one))

        def write(number: Any) -> None:
            at_column = builder.mul(number, width)
            column = vectors.load(state, at_column)
            factor = vectors.splat(builder.load(builder.gep(k_at, [builder.add(token, number)])))
            fresh = vectors.fused(change, factor, builder.fmul(keep, column))
            vectors.store(builder.select(closed, column, fresh), state, at_column)

        _repeat(builder, rank, unroll, write)
        return context.make_tuple(builder, sig.return_type, [error_sq, value_sq])

    return codegen


@intrinsic(prefer_literal=True)
def measure(typing: Any, rank: Any, columns: Any) -> Any:
    """Return the sum of the squares of the state's entries (float64) and the largest magnitude (NaN passed over)."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value
    tile = _tile(R)
    signature = types.Tuple((types.float64, types.float32))(rank, columns)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _Vectors(builder, tile)
        state = _data(context, builder, sig.args[1], args[1])
        square = cgutils.alloca_once_value(builder, ir.Constant(vectors.wide, [0.0] * tile))
        builder.store(ir.Constant(vectors.wide, [0.0] * tile), square)
        top = cgutils.alloca_once_value(builder, vectors.constant(0.0))
        builder.store(vectors.constant(0.0), top)

        def one_vector(number: Any) -> None:
            entries = vectors.load(state, builder.mul(number, ir.Constant(_COUNT, tile)))
            wide = vectors.widen(entries)
            builder.store(vectors.fused_wide(wide, wide, builder.load(square)), square)
            sizes, most = vectors.magnitude(entries), builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", sizes, most), sizes, most), top)

        _repeat(builder, R * R // tile, R <= UNROLLED, one_vector)
        name = f"llvm.vector.reduce.fmax.v{tile}f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOAT, [vectors.kind]), name)
        largest = builder.call(function, [builder.load(top)])
        return context.make_tuple(builder, sig.return_type, [vectors.total(builder.load(square)), largest])

    return signature, codegen
