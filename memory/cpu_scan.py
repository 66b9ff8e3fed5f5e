"""The compiled CPU form: every lane and head is one unit of work, spread over the cores, with no Python in between.

The state is held transposed in a small local array for the length of the segment (see `vector_step`); statistics come
from the same pass. Compiled code is cached on disk beside this file (or where NUMBA_CACHE_DIR says), so only the first
start of a new version compiles.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch

from memory.scan import ScanInputs, ScanResult
from memory.vector_step import token_step


def cpu_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan on the host. Arguments and result as in `memory.scan`."""
    states = inputs.states.detach()
    heads, rank = states.shape[1:3]
    lanes, rows = len(inputs.slots), inputs.rows
    tensors = [
        torch.empty((rows if inputs.want_reads else 0, heads, rank)),
        torch.empty((rows, heads)),
        *(torch.empty((lanes, heads)) for _ in range(4)),
        torch.empty((lanes, heads), dtype=torch.int64),
    ]
    reads, errors, mean, largest, norm, top, met = tensors
    if lanes:
        mask = inputs.token_mask
        beta = inputs.beta.detach()
        lam = 1 - beta if inputs.lam is None else inputs.lam.detach()
        arguments = (inputs.q.detach(), inputs.k.detach(), inputs.v.detach(), beta, lam)
        _kernel(rank)(
            states.numpy(),
            inputs.slots.numpy(),
            inputs.starts.numpy(),
            inputs.lengths.numpy(),
            inputs.lane_offsets.numpy(),
            *(argument.numpy().reshape(-1) for argument in arguments),
            np.ones(0, np.bool_) if mask is None else mask.numpy(),
            int(inputs.mode),
            inputs.want_reads,
            inputs.lam is not None,
            reads.numpy().reshape(-1),
            *(tensor.numpy() for tensor in tensors[1:]),
        )
    return ScanResult(
        reads=reads if inputs.want_reads else None,
        lane_offsets=inputs.lane_offsets,
        write_error=errors,
        mean_write_error=mean,
        max_write_error=largest,
        state_norm=norm,
        state_max_abs=top,
        nonfinite=met,
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _nonfinite(numbers: Any, first: Any, length: Any, heads: Any, head: Any, rank: Any, mask: Any) -> Any:
    found = 0
    for token in range(first, first + length):
        if len(mask) == 0 or mask[token]:
            at = (token * heads + head) * rank
            for i in range(rank):
                found += not np.isfinite(numbers[at + i])
    return found


@lru_cache(maxsize=None)
def _kernel(rank: int) -> Any:
    """Compile the scan for one rank (a constant for the compiler: its loops become straight vector code)."""

    @numba.njit(cache=True, nogil=True, parallel=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def kernel(
        states: Any, slots: Any, starts: Any, lengths: Any, outs: Any,
        q: Any, k: Any, v: Any, beta: Any, lam: Any, mask: Any, mode: Any, want_reads: Any, free: Any,
        reads: Any, errors: Any, mean: Any, largest: Any, norm: Any, top: Any, met: Any,
    ) -> None:  # fmt: skip
        heads = states.shape[1]
        for unit in numba.prange(len(slots) * heads):
            lane, head = unit // heads, unit % heads
            first, length = starts[lane], lengths[lane]
            state = states[slots[lane], head]
            columns = np.empty((rank, rank), np.float32)
            for i in range(rank):
                for j in range(rank):
                    columns[j, i] = state[i, j]

            total, peak, count, sick = 0.0, 0.0, 0, False
            for t in range(length):
                token, out = first + t, outs[lane] + t
                read_at = (out * heads + head) * rank if want_reads else -1
                if len(mask) and not mask[token]:
                    errors[out, head] = 0
                    if want_reads:
                        reads[read_at : read_at + rank] = 0
                    continue
                at = (token * heads + head) * rank
                error_sq, value_sq = token_step(rank, columns, q, k, v, beta, lam, at, mode, reads, read_at)
                error = np.sqrt(error_sq / value_sq) if value_sq != 0 else 0.0
                errors[out, head] = error
                total += error
                peak = max(peak, error)
                sick |= not (error_sq < np.inf and value_sq < np.inf)
                count += 1

            square, extreme, bad = 0.0, np.float32(0), 0
            for i in range(rank):
                for j in range(rank):
                    entry = columns[j, i]
                    state[i, j] = entry
                    square += np.float64(entry) * np.float64(entry)
                    extreme = max(extreme, abs(entry))
                    bad += not np.isfinite(entry)
            if want_reads:
                bad += _nonfinite(q, first, length, heads, head, rank, mask)
            if sick or bad:  # any other non-finite number shows up in an error or in the state: only then count them
                bad += _nonfinite(k, first, length, heads, head, rank, mask) + _nonfinite(
                    v, first, length, heads, head, rank, mask
                )
                bad += _nonfinite(beta, first, length, heads, head, rank, mask)
                if free:
                    bad += _nonfinite(lam, first, length, heads, head, rank, mask)
                if not np.isfinite(total):
                    peak = total
                if np.isnan(square):
                    extreme = np.float32(np.nan)
            mean[lane, head] = total / count if count else 0
            largest[lane, head] = peak
            norm[lane, head] = np.sqrt(square)
            top[lane, head] = extreme
            met[lane, head] = bad

    return kernel
