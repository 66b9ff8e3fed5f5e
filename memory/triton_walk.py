"""The chunk form's only serial part as one kernel: the walk from chunk to chunk.

Row i of the state goes its own way (its own gates), so a program takes a few rows of one lane and head through all
their chunks, with the rows in registers.
"""

# mypy: ignore-errors
# (a kernel is written in Triton's language, which only looks like typed Python)
from __future__ import annotations

import triton
import triton.language as tl

ROWS = 8
"""Rows to a program (4 where R = 4): R · C · ROWS products at a time."""


@triton.jit(do_not_specialize=["heads", "parts"])
def walk_kernel(
    states, befores, changes, key, fresh, pull, after, whole, closed, active, firsts, heads, parts,
    R: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Advance `states` `[N, H, R, R]` by all chunks; lane n has chunk number p if n < active[p], at firsts[p] + n."""
    lane, head, block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    i, j, t = block * ROWS + tl.arange(0, ROWS), tl.arange(0, R), tl.arange(0, C)
    state_at = states + ((lane * heads + head) * R + i[:, None]) * R + j[None, :]
    S = tl.load(state_at)
    for part in range(parts):
        if lane < tl.load(active + part):
            row = ((tl.load(firsts + part) + lane) * heads + head) * R + i  # [ROWS]: of this chunk, head and row i
            tokens = row[:, None] * C + t[None, :]
            tl.store(befores + row[:, None] * R + j[None, :], S)
            first_key = ((tl.load(firsts + part) + lane) * heads + head) * C
            K = tl.load(key + (first_key + t[:, None]) * R + j[None, :])  # [C, R]
            P = tl.load(pull + tokens[:, :, None] * C + t[None, None, :])  # [ROWS, C, C]
            predicted = tl.sum(S[:, None, :] * K[None, :, :], axis=2)
            change = tl.load(fresh + tokens) - tl.sum(P * predicted[:, None, :], axis=2)
            tl.store(changes + tokens, change)
            weighted = change * tl.load(after + tokens)
            grown = tl.sum(weighted[:, :, None] * K[None, :, :], axis=1)
            gone_on = tl.load(whole + row)[:, None] * S + grown
            S = tl.where(tl.load(closed + row)[:, None] != 0, S, gone_on)
    tl.store(state_at, S)
