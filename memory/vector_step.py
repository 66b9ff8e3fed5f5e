"""The delta rule on one state as vector code, for the compiled CPU form.

A row i of the state changes by its own gate and its own error, so the R rows are the natural vector: with the state
held transposed (column j contiguous over the rows), `S k` is R multiply-adds of whole columns and the write is R more,
with no sum across a vector. A loop compiler does not find this for small R (it unrolls the inner loop into scalars),
hence these lines of LLVM. Up to R = 16 they are straight-line code, and the state stays in registers from token to
token.

Every sum runs in one fixed order and every multiply-add is fused, so the bits depend on the inputs alone.

Functions to be called from numba code, each compiled once for each rank (a constant, like all arguments named so):

    columns, late = scratch(rank), ledger(rank)     room on the stack
    load_state(rank, states, at, columns)           a state from memory, transposed
    token_step(rank, columns, late, place, q, …)    advance it by one token; note its error and value in the ledger
    store_state(rank, columns, states, at)          the state back to memory; its size
    relative_errors(rank, late, first)              ‖error‖ / ‖value‖ of all BLOCK tokens in the ledger
    relative_error(rank, late, place)               the same of one, to the same bits
    totals(rank, late)                              the sum and the maximum of those of all blocks
    fetch(numbers, at)                              numbers that will be wanted soon
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, extending
from numba.np.arrayobj import populate_array

intrinsic: Any = extending.intrinsic  # what it decorates is called from compiled code, not as Python sees it

UNROLLED = 16  # up to this rank the state fits the vector registers
BLOCK = 16  # tokens whose errors are worked out together: a sum across a vector costs much for one token alone
_COUNT = ir.IntType(64)
_FLOAT = ir.FloatType()
_WIDE = ir.DoubleType()
_RATIOS = 2 * BLOCK  # times R: where the ledger's errors and values end and what came of them begins
_FITS = (1e-30, 1e30)  # sums of squares that float32 can be trusted with


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
        return _shuffle(self.builder, one, one, [0] * self.width)

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

    def root(self, a: Any) -> Any:
        return self._call("llvm.sqrt", "f32", self.kind, [a])

    def larger(self, a: Any, b: Any) -> Any:
        """The larger of each pair; of a and a NaN, a."""
        return self.builder.select(self.builder.fcmp_ordered(">", b, a), b, a)

    def reduce(self, kind: str, a: Any) -> Any:
        """`fmax` of a float32 vector, or `fadd` of a float64 vector as a tree."""
        scalar, suffix, flags = (_FLOAT, "f32", ()) if kind == "fmax" else (_WIDE, "f64", ("reassoc",))
        start = [ir.Constant(_WIDE, -0.0)] if kind == "fadd" else []
        function_type = ir.FunctionType(scalar, [value.type for value in (*start, a)])
        name = f"llvm.vector.reduce.{kind}.v{self.width}{suffix}"
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        return self.builder.call(function, [*start, a], fastmath=flags)

    def _address(self, base: Any, element: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(base, [element]), self.kind.as_pointer())

    def _call(self, name: str, suffix: str, kind: Any, values: list[Any]) -> Any:
        function_type = ir.FunctionType(kind, [kind] * len(values))
        function = cgutils.get_or_insert_function(self.builder.module, function_type, f"{name}.v{self.width}{suffix}")
        return self.builder.call(function, values)


def _shuffle(builder: Any, a: Any, b: Any, picks: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), picks))


def _index(number: int) -> Any:
    return ir.Constant(_COUNT, number)


def _repeat(builder: Any, times: int, unroll: bool, body: Callable[[Any], None]) -> None:
    """Emit `body(index)` `times` times, or a loop around it."""
    if unroll:
        for number in range(times):
            body(_index(number))
    else:
        with cgutils.for_range(builder, _index(times)) as loop:
            body(loop.index)


def _variable(builder: Any, start: Any) -> Any:
    """A variable that begins anew each time this code runs."""
    place = cgutils.alloca_once(builder, start.type)
    builder.store(start, place)
    return place


def _data(context: Any, builder: Any, sig: Any, args: Any, position: int) -> Any:
    return context.make_array(sig.args[position])(context, builder, args[position]).data


def _tile(rank: int) -> int:
    return next(width for width in (16, 8, 4, 2, 1) if rank % width == 0)


def _room(size: int) -> Callable[..., Any]:
    """Code for a float32 array on the stack. What nobody else can see, the compiler may keep in registers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(_FLOAT, size))
        room.align = 64
        array = context.make_array(sig.return_type)(context, builder)
        data = builder.bitcast(room, _FLOAT.as_pointer())
        populate_array(array, data=data, shape=[_index(size)], strides=[_index(4)], itemsize=_index(4), meminfo=None)
        return array._getvalue()

    return codegen


@intrinsic(prefer_literal=True)
def scratch(typing: Any, rank: Any) -> Any:
    """Return `[R · R + R]` float32: a transposed state, and a witness that turns NaN once a read was not finite."""
    if not isinstance(rank, types.IntegerLiteral):
        return None  # numba then asks again with the literal
    return types.Array(types.float32, 1, "C")(rank), _room(rank.literal_value * (rank.literal_value + 1))


@intrinsic(prefer_literal=True)
def ledger(typing: Any, rank: Any) -> Any:
    """Return `[2 · BLOCK · R + 4 · BLOCK]` float32: errors and values of up to BLOCK tokens, and what came of them."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    return types.Array(types.float32, 1, "C")(rank), _room(_RATIOS * rank.literal_value + 4 * BLOCK)


def _turn(builder: Any, rank: int, source: Any, at: Any, target: Any, to: Any) -> None:
    """Transpose R × R numbers, tile by tile: a tile's rows are loaded, interleaved in registers, and stored."""
    tile = _tile(rank)
    vectors, tiles, half = _Vectors(builder, tile), rank // tile, tile // 2
    low = [pick for pair in range(half) for pick in (pair, tile + pair)]
    high = [pick + half for pick in low]

    def one_tile(number: Any) -> None:
        row = builder.mul(builder.udiv(number, _index(tiles)), _index(tile))
        column = builder.mul(builder.urem(number, _index(tiles)), _index(tile))

        def place(start: Any, first: Any, second: Any, line: int) -> Any:
            return builder.add(start, builder.add(builder.mul(builder.add(first, _index(line)), _index(rank)), second))

        lines = [vectors.load(source, place(at, row, column, line)) for line in range(tile)]
        for _ in range(tile.bit_length() - 1):  # each time a perfect shuffle of all the numbers: in the end, turned
            pairs = [(lines[line], lines[line + half]) for line in range(half)]
            lines = [_shuffle(builder, a, b, picks) for a, b in pairs for picks in (low, high)]
        for line in range(tile):
            vectors.store(lines[line], target, place(to, column, row, line))

    _repeat(builder, tiles * tiles, rank <= UNROLLED, one_tile)


@intrinsic(prefer_literal=True)
def load_state(typing: Any, rank: Any, states: Any, at: Any, columns: Any) -> Any:
    """Bring the state `states[at : at + R²]` into `columns`, transposed, with a fresh witness."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        state, columns = _data(context, builder, sig, args, 1), _data(context, builder, sig, args, 3)
        _turn(builder, R, state, args[2], columns, _index(0))
        vectors = _Vectors(builder, R)
        vectors.store(vectors.constant(0.0), columns, _index(R * R))
        return context.get_dummy_value()

    return types.void(rank, states, types.int64, columns), codegen


@intrinsic(prefer_literal=True)
def store_state(typing: Any, rank: Any, columns: Any, states: Any, at: Any) -> Any:
    """Bring the state back to memory.

    Returns the sum of its squares (float64), its largest magnitude (NaN passed over), and whether all was well: neither
    it nor any read met a number that is not finite.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        columns, state = _data(context, builder, sig, args, 1), _data(context, builder, sig, args, 2)
        _turn(builder, R, columns, _index(0), state, args[3])
        vectors = _Vectors(builder, _tile(R))
        square = _variable(builder, ir.Constant(vectors.wide, [0.0] * vectors.width))
        top = _variable(builder, vectors.constant(0.0))
        doubt = _variable(builder, vectors.constant(0.0))

        def one_vector(number: Any) -> None:
            entries = vectors.load(columns, builder.mul(number, _index(vectors.width)))
            wide = builder.fpext(entries, vectors.wide)
            builder.store(vectors.fused_wide(wide, wide, builder.load(square)), square)
            builder.store(vectors.larger(builder.load(top), vectors.magnitude(entries)), top)

        def one_witness(number: Any) -> None:
            at = builder.add(_index(R * R), builder.mul(number, _index(vectors.width)))
            builder.store(builder.fadd(builder.load(doubt), vectors.load(columns, at)), doubt)

        _repeat(builder, R * R // vectors.width, R <= UNROLLED, one_vector)
        _repeat(builder, R // vectors.width, True, one_witness)
        total = vectors.reduce("fadd", builder.load(square))
        doubts = vectors.reduce("fadd", builder.fpext(builder.load(doubt), vectors.wide))
        finite = builder.fcmp_ordered("<", builder.fadd(total, doubts), ir.Constant(_WIDE, float("inf")))
        values = [total, vectors.reduce("fmax", builder.load(top)), finite]
        return context.make_tuple(builder, sig.return_type, values)

    measured = types.Tuple((types.float64, types.float32, types.boolean))
    return measured(rank, columns, states, types.int64), codegen


@intrinsic
def fetch(typing: Any, numbers: Any, at: Any) -> Any:
    """Have the line around `numbers[at]` brought into the cache; past the end nothing happens."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.bitcast(builder.gep(_data(context, builder, sig, args, 0), [args[1]]), byte)
        builder.call(function, [place, *(ir.Constant(word, choice) for choice in (0, 3, 1))])  # to read, to keep, data
        return context.get_dummy_value()

    return types.void(numbers, types.int64), codegen


@intrinsic(prefer_literal=True)
def token_step(
    typing: Any,
    rank: Any,
    columns: Any,
    late: Any,
    place: Any,
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    lam: Any,
    at: Any,
    mode: Any,
    free: Any,
    wanted: Any,
    reads: Any,
    read_at: Any,
) -> Any:
    """Advance one state by one token.

    ``token_step(rank, columns, late, place, q, k, v, beta, lam, at, mode, free, wanted, reads, read_at)`` advances
    `columns` (see `scratch`) by the token whose R numbers begin at element `at` of the flat arrays `q`, `k`, `v`,
    `beta` and, where `free` (λ is given, not 1 − β), `lam`. `mode` is a `memory.rule.Mode`. If `wanted`, the read
    ``S q`` (of the state before the write) is stored from element `read_at` of `reads`. v − S k and v are left in the
    ledger `late` as number `place`. The code is smallest where `mode`, `free` and `wanted` are constants.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None
    number, boolean = types.int64, types.boolean
    signature = types.void(
        rank, columns, late, number, q, k, v, beta, lam, number, number, boolean, boolean, reads, number
    )  # fmt: skip
    return signature, _step_code(rank.literal_value)


def _step_code(rank: int) -> Any:
    # Partial sums, so that multiply-adds overlap: the next token waits for S k.
    chains = next(count for count in ((4, 2, 1) if rank <= UNROLLED else (2, 1)) if rank % count == 0)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _Vectors(builder, rank)
        state, late = _data(context, builder, sig, args, 1), _data(context, builder, sig, args, 2)
        place, token, rule, free, wanted, out_at = (args[n] for n in (3, 9, 10, 11, 12, 14))
        q_at, k_at, v_at, beta_at, lam_at = (_data(context, builder, sig, args, n) for n in range(4, 9))
        out = _data(context, builder, sig, args, 13)
        unroll, width = rank <= UNROLLED, _index(rank)
        zero, one = vectors.constant(0.0), vectors.constant(1.0)

        def times_state(*factors: Any) -> list[Any]:
            """S times each vector, the columns of S loaded once for all."""
            sums = [[_variable(builder, zero) for _ in range(chains)] for _ in factors]

            def some_columns(number: Any) -> None:
                for chain in range(chains):
                    j = builder.add(builder.mul(number, _index(chains)), _index(chain))
                    column = vectors.load(state, builder.mul(j, width))
                    for base, partial in zip(factors, sums, strict=True):
                        factor = vectors.splat(builder.load(builder.gep(base, [builder.add(token, j)])))
                        total = vectors.fused(column, factor, builder.load(partial[chain]))
                        builder.store(total, partial[chain])

            _repeat(builder, rank // chains, unroll, some_columns)
            totals = []
            for partial in sums:
                terms = [builder.load(one_sum) for one_sum in partial]
                while len(terms) > 1:
                    terms = [builder.fadd(a, b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
                totals += terms
            return totals

        def store_read(read: Any) -> None:
            vectors.store(read, out, out_at)
            witness = vectors.load(state, _index(rank * rank))  # 0 · inf and 0 · NaN are NaN
            vectors.store(vectors.fused(read, zero, witness), state, _index(rank * rank))

        if unroll:  # the state is in registers
            (predicted,) = times_state(k_at)
            with builder.if_then(wanted):
                store_read(*times_state(q_at))
        else:
            result = _variable(builder, zero)
            with builder.if_else(wanted) as (then, otherwise):
                with then:
                    predicted, read = times_state(k_at, q_at)
                    store_read(read)
                    builder.store(predicted, result)
                with otherwise:
                    builder.store(*times_state(k_at), result)
            predicted = builder.load(result)

        value, gate = vectors.load(v_at, token), vectors.load(beta_at, token)
        noted = builder.mul(place, width)
        vectors.store(builder.fsub(value, predicted), late, noted)
        vectors.store(value, late, builder.add(noted, _index(BLOCK * rank)))

        # S_i ← keep_i S_i + (write_i v_i − erase_i (S k)_i) kᵀ, see memory.rule.
        given = _variable(builder, builder.fsub(one, gate))
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
        return context.get_dummy_value()

    return codegen


def _sum_of_squares(builder: Any, rank: int, base: Any, start: Any) -> Any:
    """Return the sum of the squares of R neighbours in `base`, in float32: a vector of one.

    Pieces of 16 numbers are added up, then the halves of one, then neighbours in pairs, again and again.
    """
    total = _piece_sums(builder, rank, base, start)
    if total.type.count == 16:
        total = _fold(builder, total, total, [*range(8)], 8)
    while total.type.count > 1:
        total = _fold(builder, total, total, [*range(0, total.type.count, 2)], 1)
    return total


def _sums_of_squares(builder: Any, rank: int, base: Any) -> Any:
    """Return a vector of BLOCK such sums, of R neighbours each: the same additions, many tokens to a vector of 16."""
    piece = _tile(rank)
    if piece < 4:
        sums = [(_sum_of_squares(builder, rank, base, _index(token * rank)), [token]) for token in range(BLOCK)]
    else:
        width = min(piece, 8)
        sums = []
        for first in range(0, BLOCK, 16 // width):
            tokens = range(first, first + 16 // width)
            totals = [_piece_sums(builder, rank, base, _index(token * rank)) for token in tokens]
            if piece == 16:
                numbers = _fold(builder, totals[0], totals[1], [*range(8), *range(16, 24)], 8)
            else:
                numbers = _end_to_end(builder, totals)
            sums.append((numbers, [token for token in tokens for _ in range(width)]))

        def together(picks: list[int], apart: int) -> list[tuple[Any, list[int]]]:
            folded = []
            for (a, of_a), (b, of_b) in zip(sums[::2], sums[1::2], strict=True):
                tokens = of_a + of_b
                assert all(tokens[pick] == tokens[pick + apart] for pick in picks)
                folded.append((_fold(builder, a, b, picks, apart), [tokens[pick] for pick in picks]))
            return folded

        for _ in range(2):  # neighbours, within each 4 numbers of either vector
            sums = together([source + four + x for four in range(0, 16, 4) for source in (0, 16) for x in (0, 2)], 1)
        if width == 8:
            sums = together([source + four + x for source in (0, 16) for four in (0, 8) for x in range(4)], 4)
    everything = _end_to_end(builder, [numbers for numbers, _ in sums])
    order = [token for _, tokens in sums for token in tokens]
    return _shuffle(builder, everything, everything, [order.index(token) for token in range(BLOCK)])


def _piece_sums(builder: Any, rank: int, base: Any, start: Any) -> Any:
    """Add up the squares of R numbers by pieces of 16, 8, 4, 2 or 1: one piece is left."""
    vectors = _Vectors(builder, _tile(rank))
    total = vectors.constant(0.0)
    for part in range(0, rank, vectors.width):
        numbers = vectors.load(base, builder.add(start, _index(part)))
        total = vectors.fused(numbers, numbers, total)
    return total


def _fold(builder: Any, a: Any, b: Any, picks: list[int], apart: int) -> Any:
    """Of a and b end to end, add to each number picked the one so far behind it."""
    return builder.fadd(_shuffle(builder, a, b, picks), _shuffle(builder, a, b, [pick + apart for pick in picks]))


def _end_to_end(builder: Any, vectors: list[Any]) -> Any:
    """Many vectors as one."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [_shuffle(builder, a, b, [*range(2 * a.type.count)]) for a, b in pairs]
    return vectors[0]


def _ratio(builder: Any, error_sq: Any, value_sq: Any) -> tuple[Any, Any]:
    """Return ‖error‖ / ‖value‖ from their squares, and whether float32 could be trusted with those."""
    vectors = _Vectors(builder, error_sq.type.count)
    fits = None
    for total in (error_sq, value_sq):
        for sign, limit in zip((">", "<"), _FITS, strict=True):
            holds = builder.fcmp_ordered(sign, total, vectors.constant(limit))
            fits = holds if fits is None else builder.and_(fits, holds)
    return vectors.root(builder.fdiv(error_sq, value_sq)), fits


@intrinsic(prefer_literal=True)
def relative_error(typing: Any, rank: Any, late: Any, place: Any) -> Any:
    """Return ‖error‖ / ‖value‖ of one token in the ledger, and whether float32 could be trusted with it."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        late, at = _data(context, builder, sig, args, 1), builder.mul(args[2], _index(R))
        squares = (_sum_of_squares(builder, R, late, builder.add(at, _index(of * BLOCK * R))) for of in (0, 1))
        first = ir.Constant(ir.IntType(32), 0)
        values = [builder.extract_element(value, first) for value in _ratio(builder, *squares)]
        return context.make_tuple(builder, sig.return_type, values)

    return types.Tuple((types.float32, types.boolean))(rank, late, types.int64), codegen


@intrinsic(prefer_literal=True)
def relative_errors(typing: Any, rank: Any, late: Any, first: Any) -> Any:
    """Work out ‖error‖ / ‖value‖ of the BLOCK tokens in the ledger, and leave them at element 2 · BLOCK · R.

    Returns whether float32 could be trusted with all. If so, they have been added to the ledger's totals (which begin
    anew if this is the `first` block); if not, nothing has.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors, late = _Vectors(builder, BLOCK), _data(context, builder, sig, args, 1)
        values = builder.gep(late, [_index(BLOCK * R)])
        ratios, fits = _ratio(builder, _sums_of_squares(builder, R, late), _sums_of_squares(builder, R, values))
        vectors.store(ratios, late, _index(_RATIOS * R))
        every = builder.icmp_signed("==", builder.bitcast(fits, ir.IntType(BLOCK)), ir.Constant(ir.IntType(BLOCK), -1))
        with builder.if_then(every):
            total, peak = _totals(builder, late, R)
            zero, wide_zero = vectors.constant(0.0), ir.Constant(vectors.wide, [0.0] * BLOCK)
            before = builder.select(args[2], wide_zero, builder.load(total, align=4))
            builder.store(builder.fadd(before, builder.fpext(ratios, vectors.wide)), total, align=4)
            builder.store(vectors.larger(builder.select(args[2], zero, builder.load(peak)), ratios), peak, align=4)
        return every

    return types.boolean(rank, late, types.boolean), codegen


@intrinsic(prefer_literal=True)
def totals(typing: Any, rank: Any, late: Any) -> Any:
    """Return the sum (float64) and the maximum of what `relative_errors` has added to the ledger's totals."""
    if not isinstance(rank, types.IntegerLiteral):
        return None
    R = rank.literal_value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _Vectors(builder, BLOCK)
        total, peak = _totals(builder, _data(context, builder, sig, args, 1), R)
        values = [vectors.reduce("fadd", builder.load(total, align=4)), vectors.reduce("fmax", builder.load(peak))]
        return context.make_tuple(builder, sig.return_type, values)

    return types.Tuple((types.float64, types.float32))(rank, late), codegen


def _totals(builder: Any, late: Any, rank: int) -> tuple[Any, Any]:
    """Where in the ledger the sums and the maxima are, by place in the block: BLOCK float64 and BLOCK float32."""
    vectors, after = _Vectors(builder, BLOCK), _RATIOS * rank + BLOCK
    total = builder.bitcast(builder.gep(late, [_index(after)]), vectors.wide.as_pointer())
    return total, builder.bitcast(builder.gep(late, [_index(after + 2 * BLOCK)]), vectors.kind.as_pointer())
