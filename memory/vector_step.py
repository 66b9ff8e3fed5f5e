"""One token of the delta rule as vector code, for the compiled CPU form.

A row i of the state changes by its own gate and its own error, so the R rows are the natural vector: with the state held
transposed (column j contiguous over the rows), `S k` is R multiply-adds of whole columns and the write is R more, with
no sum across a vector. A loop compiler does not find this for small R (it unrolls the inner loop into scalars), hence
these few lines of LLVM: 4× to 8× faster than the same loops in plain numba (`python -m benchmarks.scan`).

Every sum runs in one fixed order and every multiply-add is fused, so the bits depend on the inputs alone.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
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
    reads: Any,
    read_at: Any,
) -> Any:
    """Advance one state by one token: called from numba code, compiled once for each rank.

    ``error_sq, value_sq = token_step(rank, columns, q, k, v, beta, lam, at, mode, reads, read_at)`` advances `columns`, the
    transposed state `[R, R]` float32, by the token whose R numbers begin at element `at` of the flat arrays `q`, `k`, `v`,
    `beta`, `lam`. `rank` is a constant; `mode` is a `memory.rule.Mode`. If `read_at` is not negative, the read ``S q``
    (of the state before the write) is stored at that element of `reads`. Returned are ‖v − S k‖² and ‖v‖² in float64,
    where no float32 can overflow them.
    """
    if not isinstance(rank, types.IntegerLiteral):
        return None  # numba then asks again with the literal
    signature = types.UniTuple(types.float64, 2)(rank, columns, q, k, v, beta, lam, at, mode, reads, read_at)
    return signature, _codegen(rank.literal_value)


def _codegen(rank: int) -> Any:
    vector = ir.VectorType(ir.FloatType(), rank)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(sig.args[position])(context, builder, args[position]).data

        def constant(value: float) -> Any:
            return ir.Constant(vector, [value] * rank)

        def splat(scalar: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), rank), [0] * rank)
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)

        def address(base: Any, element: Any) -> Any:
            return builder.bitcast(builder.gep(base, [element]), vector.as_pointer())

        def load(base: Any, element: Any) -> Any:
            return builder.load(address(base, element), align=4)

        def store(value: Any, base: Any, element: Any) -> None:
            builder.store(value, address(base, element), align=4)

        def fused(a: Any, b: Any, c: Any) -> Any:
            kind = ir.FunctionType(vector, [vector] * 3)
            function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{rank}f32")
            return builder.call(function, [a, b, c])

        def sum_of_squares(value: Any) -> Any:
            wide = builder.fpext(value, ir.VectorType(ir.DoubleType(), rank))
            name = f"llvm.vector.reduce.fadd.v{rank}f64"
            kind = ir.FunctionType(ir.DoubleType(), [ir.DoubleType(), wide.type])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            zero = ir.Constant(ir.DoubleType(), -0.0)
            return builder.call(function, [zero, builder.fmul(wide, wide)], fastmath=("reassoc",))

        state, q_at, k_at, v_at, beta_at, lam_at = (pointer(position) for position in range(1, 7))
        token, rule, out, out_at = args[7], args[8], pointer(9), args[10]
        index = token.type
        width = ir.Constant(index, rank)

        # S k and S q: two sums each (even and odd columns), so that the multiply-adds overlap.
        sums = [cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(4)]
        pair = 2 if rank % 2 == 0 else 1
        with cgutils.for_range(builder, ir.Constant(index, rank // pair)) as loop:
            for odd in range(pair):
                j = builder.add(builder.mul(loop.index, ir.Constant(index, pair)), ir.Constant(index, odd))
                column = load(state, builder.mul(j, width))
                for base, total_at in ((k_at, sums[odd]), (q_at, sums[2 + odd])):
                    factor = splat(builder.load(builder.gep(base, [builder.add(token, j)])))
                    builder.store(fused(column, factor, builder.load(total_at)), total_at)
        predicted = builder.fadd(builder.load(sums[0]), builder.load(sums[1]))
        with builder.if_then(builder.icmp_signed(">=", out_at, ir.Constant(index, 0))):
            store(builder.fadd(builder.load(sums[2]), builder.load(sums[3])), out, out_at)

        value = load(v_at, token)
        gate = load(beta_at, token)
        given = load(lam_at, token)
        error_sq = sum_of_squares(builder.fsub(value, predicted))
        value_sq = sum_of_squares(value)

        # S_i ← keep_i S_i + (write_i v_i − erase_i (S k)_i) kᵀ, see memory.rule.
        one = constant(1.0)
        coupled, outside, plain = (
            builder.icmp_signed("==", rule, ir.Constant(rule.type, number)) for number in (0, 1, 2)
        )
        keep = builder.select(coupled, builder.fsub(one, gate), builder.select(plain, one, given))
        erase = builder.select(outside, builder.fmul(given, gate), gate)
        change = builder.fsub(builder.fmul(gate, value), builder.fmul(erase, predicted))
        # A closed gate leaves the row alone bit for bit: no 0·NaN, no −0 + 0.
        closed = builder.and_(builder.fcmp_ordered("==", gate, constant(0.0)), builder.fcmp_ordered("==", keep, one))
        with cgutils.for_range(builder, width) as loop:
            at_column = builder.mul(loop.index, width)
            column = load(state, at_column)
            factor = splat(builder.load(builder.gep(k_at, [builder.add(token, loop.index)])))
            fresh = fused(change, factor, builder.fmul(keep, column))
            store(builder.select(closed, column, fresh), state, at_column)

        return context.make_tuple(builder, sig.return_type, [error_sq, value_sq])

    return codegen
