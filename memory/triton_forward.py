"""The forward kernel: each program takes a few units through their whole segments, states in registers throughout."""
# mypy: ignore-errors
# (a kernel is written in Triton's language, which only looks like typed Python)

from __future__ import annotations

import triton
import triton.language as tl

from memory.triton_step import advance, coefficients, finite, load_token


@triton.jit
def _relative(error, value, on):
    """‖error‖ / ‖value‖ `[U]`. In float32 where the squares fit, else (rarely) in float64; 0 where not `on`."""
    error_sq, value_sq = tl.sum(error * error, axis=1), tl.sum(value * value, axis=1)
    fits = (error_sq > 1e-30) & (error_sq < 1e30) & (value_sq > 1e-30) & (value_sq < 1e30)
    ratio = tl.sqrt(tl.where(fits, error_sq, 1.0) / tl.where(fits, value_sq, 1.0))
    odd = on & (fits == 0)
    if tl.max(odd.to(tl.int32), axis=0) > 0:
        error_wide, value_wide = error.to(tl.float64), value.to(tl.float64)
        error_all, value_all = tl.sum(error_wide * error_wide, axis=1), tl.sum(value_wide * value_wide, axis=1)
        silent = value_all == 0
        wide = tl.where(silent, 0.0, tl.sqrt(error_all / tl.where(silent, 1.0, value_all)))
        ratio = tl.where(odd, wide.to(tl.float32), ratio)
    return tl.where(on, ratio, 0.0)


@triton.jit
def _count(x, row, on):
    numbers = tl.load(x + row, mask=on[:, None], other=0.0)
    return tl.sum((finite(numbers) == 0).to(tl.int64), axis=1)


INDICES = ["slots", "starts", "lengths", "outs", "chunks", "order", "met"]


@triton.jit(do_not_specialize=["units", "heads"], do_not_specialize_on_alignment=INDICES)
def forward_kernel(
    states, slots, starts, lengths, outs, chunks, order,
    q, k, v, beta, lam, token_mask,
    reads, errors, statistics, met, checkpoints,
    slot_stride, head_stride, units, heads,
    R: tl.constexpr, U: tl.constexpr, MODE: tl.constexpr, FREE: tl.constexpr, MASKED: tl.constexpr,
    READS: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Advance all units. With EVERY not 0 the state before each EVERY-th token is stored for the backward kernel."""
    unit = tl.program_id(0).to(tl.int64) * U + tl.arange(0, U)
    live = unit < units
    lane, head = tl.load(order + unit // heads, mask=live, other=0), unit % heads
    slot = tl.load(slots + lane, mask=live, other=0)
    first = tl.load(starts + lane, mask=live, other=0)
    length = tl.load(lengths + lane, mask=live, other=0)
    out = tl.load(outs + lane, mask=live, other=0)
    place = lane * heads + head  # of this unit's statistics

    across = tl.arange(0, R)
    entry = across[None, :, None] * R + across[None, None, :]
    state_at = (slot * slot_stride + head * head_stride)[:, None, None] + entry
    S = tl.load(states + state_at, mask=live[:, None, None], other=0.0)
    if EVERY > 0:
        chunk = tl.load(chunks + lane, mask=live, other=0)

    total, lost, peak = tl.zeros([U], tl.float32), tl.zeros([U], tl.float32), tl.zeros([U], tl.float32)
    count, sick = tl.zeros([U], tl.int32), tl.zeros([U, R], tl.int32)
    longest = tl.max(length, axis=0)
    row = ((first * heads + head) * R)[:, None] + across[None, :]
    query, key, value, gate, given = load_token(q, k, v, beta, lam, row, live & (length > 0), READS, FREE)
    for t in range(longest):
        within = live & (t < length)
        on = within
        if MASKED:
            on = within & (tl.load(token_mask + first + t, mask=within, other=0) != 0)
        if EVERY > 0:  # noqa: SIM102 (a constant, decided when the kernel is compiled)
            if t % EVERY == 0:
                kept_at = (((chunk + t // EVERY) * heads + head) * (R * R))[:, None, None] + entry
                tl.store(checkpoints + kept_at, S, mask=within[:, None, None])
        # The next token is on its way while this one is worked on: a lane alone would wait for it otherwise.
        row += heads * R
        next_query, next_key, next_value, next_gate, next_given = load_token(
            q, k, v, beta, lam, row, live & (t + 1 < length), READS, FREE
        )

        predicted = tl.sum(S * key[:, None, :], axis=2)
        error = value - predicted
        ill = finite(error) == 0
        if READS:
            read = tl.sum(S * query[:, None, :], axis=2)
            ill = ill | (finite(read) == 0)
            read_at = (((out + t) * heads + head) * R)[:, None] + across[None, :]
            tl.store(reads + read_at, tl.where(on[:, None], read, 0.0), mask=within[:, None])
        sick = sick | (ill & on[:, None]).to(tl.int32)
        keep, erase, _ = coefficients(gate, given, MODE, FREE)
        S = advance(S, key, gate * value - erase * predicted, keep, gate, on)

        relative = _relative(error, value, on)
        tl.store(errors + (out + t) * heads + head, relative, mask=within)
        peak = tl.maximum(peak, relative, propagate_nan=tl.PropagateNan.ALL)
        step = relative - lost  # Kahan's sum: what is lost in rounding is added next time
        grown = total + step
        lost = tl.where(finite(grown), (grown - total) - step, 0.0)
        total = grown
        count += on.to(tl.int32)
        query, key, value, gate, given = next_query, next_key, next_value, next_gate, next_given

    tl.store(states + state_at, S, mask=live[:, None, None])
    wide = S.to(tl.float64)
    square = tl.sum(tl.sum(wide * wide, axis=2), axis=1)
    top = tl.max(tl.max(tl.where(S == S, tl.abs(S), 0.0), axis=2), axis=1)
    tl.store(statistics + place, total / tl.maximum(count, 1).to(tl.float32), mask=live)
    tl.store(statistics + units + place, peak, mask=live)
    tl.store(statistics + 2 * units + place, tl.sqrt(square).to(tl.float32), mask=live)
    tl.store(statistics + 3 * units + place, tl.where(square == square, top, float("nan")), mask=live)

    # Any number that is not finite shows in a read, an error or the state: only then are they looked for.
    bad = tl.sum(tl.sum((finite(S) == 0).to(tl.int64), axis=2), axis=1)
    if tl.max(tl.max(sick, axis=1).to(tl.int64) + bad, axis=0) > 0:
        for t in range(longest):
            on = live & (t < length)
            if MASKED:
                on = on & (tl.load(token_mask + first + t, mask=on, other=0) != 0)
            row = (((first + t) * heads + head) * R)[:, None] + across[None, :]
            bad += _count(k, row, on) + _count(v, row, on) + _count(beta, row, on)
            if FREE:
                bad += _count(lam, row, on)
            if READS:
                bad += _count(q, row, on)
    tl.store(met + place, bad, mask=live)
