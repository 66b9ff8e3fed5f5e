"""The backward kernel.

With G the gradient of the state after a token and S the state before, p = S k, x = v − p and c = write·v − erase·p, a
token's gradients are (row i, column j; ∂r and ∂e are those of the read and of the write error ‖x‖/‖v‖):

    ∂k = Gᵀ c + Sᵀ ∂p          ∂p = −erase · (G k) − a·x          a = ∂e / (e ‖v‖²)
    ∂q = Sᵀ ∂r                 ∂v = write · (G k) + a·x − a·e²·v
    ∂keep = Σ_j G S            ∂write = v · (G k)                 ∂erase = −p · (G k)
    ∂S = keep · G + ∂p kᵀ + ∂r qᵀ

The state before each token is needed. The forward kernel has kept it at the start of every chunk of EVERY tokens; here
a chunk is run once more from there, into room for one chunk, and then walked backwards.
"""
# mypy: ignore-errors
# (a kernel is written in Triton's language, which only looks like typed Python)

from __future__ import annotations

import triton
import triton.language as tl

from memory.triton_step import COUPLED, OUTSIDE, advance, coefficients, load_token

INDICES = ["starts", "lengths", "outs", "chunks", "order"]


@triton.jit(do_not_specialize=["units", "heads", "depth"], do_not_specialize_on_alignment=INDICES)
def backward_kernel(
    starts, lengths, outs, chunks, order,
    q, k, v, beta, lam, token_mask, checkpoints, room,
    grad_reads, grad_errors, grad_states,
    grad_q, grad_k, grad_v, grad_beta, grad_lam,
    units, heads, depth,
    R: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, FREE: tl.constexpr, MASKED: tl.constexpr,
    READS: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Turn `grad_states` `[N, H, R, R]` from the gradient of the states after into that of the states before.

    `room` `[N · H, depth, R, R]` holds the states before each token of the chunk that each unit is in.
    """
    program = tl.program_id(0).to(tl.int64)
    unit = program * U + tl.arange(0, U)
    live = unit < units
    lane, head = tl.load(order + unit // heads, mask=live, other=0), unit % heads
    first = tl.load(starts + lane, mask=live, other=0)
    length = tl.load(lengths + lane, mask=live, other=0)
    out = tl.load(outs + lane, mask=live, other=0)
    chunk = tl.load(chunks + lane, mask=live, other=0)

    across = tl.arange(0, R)
    entry = across[None, :, None] * R + across[None, None, :]
    grad_at = ((lane * heads + head) * (R * R))[:, None, None] + entry
    G = tl.load(grad_states + grad_at, mask=live[:, None, None], other=0.0)
    longest = tl.max(length, axis=0)
    parts = (longest + EVERY - 1) // EVERY
    for back in range(parts):
        part = parts - 1 - back
        begin = part * EVERY
        end = tl.minimum(begin + EVERY, longest)
        kept_at = (((chunk + part) * heads + head) * (R * R))[:, None, None] + entry
        S = tl.load(checkpoints + kept_at, mask=(live & (begin < length))[:, None, None], other=0.0)
        for t in range(begin, end):
            within = live & (t < length)
            on = within
            if MASKED:
                on = within & (tl.load(token_mask + first + t, mask=within, other=0) != 0)
            room_at = ((unit * depth + (t - begin)) * (R * R))[:, None, None] + entry
            tl.store(room + room_at, S, mask=within[:, None, None])
            row = (((first + t) * heads + head) * R)[:, None] + across[None, :]
            _, key, value, gate, given = load_token(q, k, v, beta, lam, row, on, False, FREE)
            keep, erase, _ = coefficients(gate, given, MODE, FREE)
            predicted = tl.sum(S * key[:, None, :], axis=2)
            S = advance(S, key, gate * value - erase * predicted, keep, gate, on)
        tl.debug_barrier()  # what was stored is read by the same program, if perhaps by another thread
        for ago in range(end - begin):
            t = end - 1 - ago
            within = live & (t < length)
            on = within
            if MASKED:
                on = within & (tl.load(token_mask + first + t, mask=within, other=0) != 0)
            room_at = ((unit * depth + (t - begin)) * (R * R))[:, None, None] + entry
            S = tl.load(room + room_at, mask=on[:, None, None], other=0.0)
            row = (((first + t) * heads + head) * R)[:, None] + across[None, :]
            row_out = (((out + t) * heads + head) * R)[:, None] + across[None, :]
            query, key, value, gate, given = load_token(q, k, v, beta, lam, row, on, READS, FREE)
            keep, erase, kept = coefficients(gate, given, MODE, FREE)
            predicted = tl.sum(S * key[:, None, :], axis=2)
            error = value - predicted
            pulled = tl.sum(G * key[:, None, :], axis=2)

            grad_error = tl.load(grad_errors + (out + t) * heads + head, mask=on, other=0.0)
            error_sq, value_sq = tl.sum(error * error, axis=1), tl.sum(value * value, axis=1)
            usual = (error_sq > 0.0) & (value_sq > 0.0) & (grad_error != 0.0)
            error_sq, value_sq = tl.where(usual, error_sq, 1.0), tl.where(usual, value_sq, 1.0)
            relative = tl.sqrt(error_sq / value_sq)
            a = tl.where(usual, grad_error / (relative * value_sq), 0.0)
            shrink = tl.where(usual, grad_error * relative / value_sq, 0.0)

            to_predicted = -erase * pulled - a[:, None] * error
            to_value = gate * pulled + a[:, None] * error - shrink[:, None] * value
            change = gate * value - erase * predicted
            to_key = tl.sum(G * change[:, :, None] + S * to_predicted[:, :, None], axis=1)
            to_keep, to_write, to_erase = tl.sum(G * S, axis=2), value * pulled, -predicted * pulled
            if MODE == COUPLED:
                to_beta, to_lam = to_write + to_erase - to_keep, to_keep
            elif MODE == OUTSIDE:
                to_lam = to_keep + gate * to_erase
                to_beta = to_write + kept * to_erase
                if not FREE:
                    to_beta -= to_lam
            else:
                to_beta, to_lam = to_write + to_erase, to_keep
            fresh = keep[:, :, None] * G + to_predicted[:, :, None] * key[:, None, :]
            if READS:
                grad_read = tl.load(grad_reads + row_out, mask=on[:, None], other=0.0)
                to_query = tl.sum(S * grad_read[:, :, None], axis=1)
                tl.store(grad_q + row_out, tl.where(on[:, None], to_query, 0.0), mask=within[:, None])
                fresh += grad_read[:, :, None] * query[:, None, :]
            G = tl.where(on[:, None, None], fresh, G)
            tl.store(grad_k + row_out, tl.where(on[:, None], to_key, 0.0), mask=within[:, None])
            tl.store(grad_v + row_out, tl.where(on[:, None], to_value, 0.0), mask=within[:, None])
            tl.store(grad_beta + row_out, tl.where(on[:, None], to_beta, 0.0), mask=within[:, None])
            if FREE:
                tl.store(grad_lam + row_out, tl.where(on[:, None], to_lam, 0.0), mask=within[:, None])
        tl.debug_barrier()
    tl.store(grad_states + grad_at, G, mask=live[:, None, None])
