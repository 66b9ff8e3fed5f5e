"""What the scan is measured against: a loop in torch, a plain Triton kernel, flash-linear-attention, and itself without
statistics. All do the `plain` rule on N lanes of T tokens, in float32.
"""
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba
import torch
from torch import Tensor

from memory.vector_step import BLOCK, UNROLLED, fetch, ledger, load_state, scratch, store_state, token_step


def torch_loop(S: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """Token by token over all lanes at once: states `[N, H, R, R]`, the others `[T, N, H, R]`; the same results."""
    reads, errors = torch.empty_like(v), torch.empty(v.shape[:3], device=v.device)
    for t in range(len(q)):
        key, value = k[t], v[t]
        reads[t] = torch.matmul(S, q[t].unsqueeze(-1)).squeeze(-1)
        error = value - torch.matmul(S, key.unsqueeze(-1)).squeeze(-1)
        errors[t] = error.norm(dim=-1) / value.norm(dim=-1)
        S = S + (beta[t] * error).unsqueeze(-1) * key.unsqueeze(-2)
    flat = S.flatten(2)
    return S, reads, errors, errors.mean(0), errors.amax(0), flat.norm(dim=-1), flat.abs().amax(-1)


@cache
def without_statistics(rank: int) -> Callable[..., None]:
    """The compiled form's own steps with nothing measured: what is not used is not computed."""

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def kernel(begin, end, states, slot_stride, slots, starts, lengths, q, k, v, beta, reads):
        columns, late = scratch(rank), ledger(rank)
        for lane in range(begin, end):
            state_at = slots[lane] * slot_stride
            load_state(rank, states, state_at, columns)
            first, length, t = starts[lane], lengths[lane], 0
            while t < length:
                run = min(BLOCK, length - t)
                if rank <= UNROLLED and t + BLOCK < length:
                    for place in range(BLOCK, 2 * BLOCK, max(1, 16 // rank)):
                        ahead = (first + t + place) * rank
                        fetch(k, ahead)
                        fetch(v, ahead)
                        fetch(beta, ahead)
                        fetch(q, ahead)
                for place in range(run):
                    at = (first + t + place) * rank
                    token_step(rank, columns, late, place, q, k, v, beta, beta, at, 2, False, True, reads, at)
                t += run
            store_state(rank, columns, states, state_at)

    return kernel


def plain_triton() -> Callable[..., None]:
    """One program to a lane and head, as one would first write it: no packing, nothing fetched ahead, no statistics."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(states, q, k, v, beta, reads, tokens, heads, R: tl.constexpr):
        program = tl.program_id(0)
        lane, head = program // heads, program % heads
        across = tl.arange(0, R)
        at = states + program * R * R + across[:, None] * R + across[None, :]
        S = tl.load(at)
        for t in range(tokens):
            row = ((lane * tokens + t) * heads + head) * R + across
            key = tl.load(k + row)
            tl.store(reads + row, tl.sum(S * tl.load(q + row)[None, :], axis=1))
            error = tl.load(v + row) - tl.sum(S * key[None, :], axis=1)
            S += (tl.load(beta + row) * error)[:, None] * key[None, :]
        tl.store(at, S)

    def run(states: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, reads: Tensor, tokens: int) -> None:
        lanes, heads, rank = states.shape[:3]
        warps = 1 if rank < 32 else 4
        kernel[(lanes * heads,)](
            states, q, k, v, beta, reads, tokens, heads, R=rank, num_warps=warps, enable_fp_fusion=True
        )

    return run


def fla_recurrent() -> Callable[..., object]:
    """`fla.ops.delta_rule.fused_recurrent_delta_rule`, over `[N, T, H, R]`. Raises ImportError where it is missing."""
    from fla.ops.delta_rule import fused_recurrent_delta_rule

    def run(states: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> object:
        return fused_recurrent_delta_rule(
            q, k, v, beta, scale=1.0, initial_state=states.mT.contiguous(), output_final_state=True
        )

    return run
