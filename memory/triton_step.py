"""One token of the delta rule on the GPU: what the forward and the backward kernel share.

A program holds a few whole states, `[U, R, R]` for U units (a unit is one lane and head), in registers. Of the letters
in shapes, i counts a state's rows and j its columns. U and the number of warps follow from R alone, so that every sum
runs in the same order whatever the batch.
"""
# mypy: ignore-errors
# (a kernel is written in Triton's language, which only looks like typed Python)

from __future__ import annotations

import triton
import triton.language as tl

UNITS = {4: 8, 8: 4, 16: 1, 32: 1, 64: 1}
"""Units of a program for each rank that the kernels take: 4 to 32 numbers of the states to a thread."""
WARPS = {4: 1, 8: 1, 16: 1, 32: 1, 64: 4}

COUPLED, OUTSIDE, PLAIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # memory.rule.Mode


@triton.jit
def finite(x):
    """Whether a number is neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


INTERPRETED = not isinstance(finite, triton.JITFunction)
"""Whether Triton's interpreter runs the kernels, on the host (decided when Triton is imported)."""


@triton.jit
def load_token(
    q, k, v, beta, lam, row, within,
    READS: tl.constexpr, FREE: tl.constexpr,
):  # fmt: skip
    """Load one token's q, k, v, β and λ, `[U, R]` each. What is not needed is not loaded."""
    key = tl.load(k + row, mask=within[:, None], other=0.0)
    value = tl.load(v + row, mask=within[:, None], other=0.0)
    gate = tl.load(beta + row, mask=within[:, None], other=0.0)
    query = tl.load(q + row, mask=within[:, None], other=0.0) if READS else key
    given = tl.load(lam + row, mask=within[:, None], other=1.0) if FREE else gate
    return query, key, value, gate, given


@triton.jit
def coefficients(gate, given, MODE: tl.constexpr, FREE: tl.constexpr):
    """Return keep, erase and λ `[U, i]` for the gates β and, where FREE, λ; write is β itself. See `memory.rule`."""
    kept = given if FREE else 1.0 - gate
    keep = (tl.zeros_like(gate) + 1.0) if MODE == PLAIN else kept
    erase = (kept * gate) if MODE == OUTSIDE else gate
    return keep, erase, kept


@triton.jit
def advance(S, key, change, keep, gate, on):
    """Return the states `[U, i, j]` after a write; a closed gate leaves its row alone bit for bit, and so does a unit
    that is not `on` `[U]`.
    """
    fresh = keep[:, :, None] * S + change[:, :, None] * key[:, None, :]
    stays = ((gate == 0.0) & (keep == 1.0)) | (on[:, None] == 0)
    return tl.where(stays[:, :, None], S, fresh)
