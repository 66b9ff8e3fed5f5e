"""The compiled CPU form: every lane and head is one unit of work, spread over the cores, with no Python in between.

The state is held transposed in a small local array for the length of the segment (see `vector_step`); statistics come
from the same pass. Compiled code is cached on disk beside this file (or where NUMBA_CACHE_DIR says), so only the first
start of a new version compiles.

The units are shared out in a few pieces of like work, taken from a common list by the caller's thread and by helper
threads, `memory.threads.threads()` in all. A unit is computed by one thread from its own inputs, so its bits depend
neither on the number of threads nor on who took it. Any number of Python threads may scan at once (different states).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from memory import vector_step
from memory.scan_forms import ScanInputs, ScanResult
from memory.threads import PIECES, run_pieces, threads_for
from memory.vector_step import (
    BLOCK,
    UNROLLED,
    fetch,
    ledger,
    load_state,
    relative_error,
    relative_errors,
    scratch,
    store_state,
    token_step,
    totals,
)

LANE_COST = 4  # what a lane costs before its first token (its state in and out), in tokens


def cpu_scan(inputs: ScanInputs) -> ScanResult:
    """Run the scan on the host. Arguments and result as in `memory.scan`."""
    heads, rank = inputs.states.shape[1:3]
    lanes, rows = len(inputs.slots), inputs.rows
    reads = np.empty(rows * heads * rank if inputs.want_reads else 0, np.float32)
    errors = np.empty((rows, heads), np.float32)
    statistics = np.empty((4, lanes, heads), np.float32)
    met = np.empty((lanes, heads), np.int64)
    if lanes:
        mask, lam = inputs.token_mask, inputs.lam
        q, k, v, beta = (_flat(tensor) for tensor in (inputs.q, inputs.k, inputs.v, inputs.beta))
        arguments = (
            *_flat_states(inputs.states),
            inputs.slots,
            inputs.starts,
            inputs.lengths,
            inputs.lane_offsets,
            *(q, k, v, beta, beta if lam is None else _flat(lam)),
            _NO_MASK if mask is None else mask.numpy(),
            *(reads, errors, statistics, met),
        )
        kernel = compiled(rank, int(inputs.mode), lam is not None, inputs.want_reads)
        _share_out(lambda first, last: kernel(first, last, *arguments), inputs)
    mean, largest, norm, top = torch.from_numpy(statistics).unbind()
    return ScanResult(
        reads=torch.from_numpy(reads).view(rows, heads, rank) if inputs.want_reads else None,
        lane_offsets=torch.from_numpy(inputs.lane_offsets),
        write_error=torch.from_numpy(errors),
        mean_write_error=mean,
        max_write_error=largest,
        state_norm=norm,
        state_max_abs=top,
        nonfinite=torch.from_numpy(met),
    )


_NO_MASK = np.ones(0, np.bool_)


def _flat(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    numbers: npt.NDArray[np.float32] = tensor.numpy(force=True).reshape(-1)
    return numbers


def _flat_states(states: torch.Tensor) -> tuple[npt.NDArray[np.float32], int, int, int]:
    """Return the states' numbers in a row, the distance from slot to slot and from head to head, and H."""
    strides = states.stride()
    if states.is_contiguous():
        return _flat(states), strides[0], strides[1], states.shape[1]
    extent = 1 + sum((size - 1) * stride for size, stride in zip(states.shape, strides, strict=True))
    flat = states.detach().as_strided((extent,), (1,))
    return flat.numpy(), strides[0], strides[1], states.shape[1]


def _share_out(run: Callable[[int, int], None], inputs: ScanInputs) -> None:
    """Run units 0 to N · H, by one thread if they are few, else in pieces by all."""
    heads, rank = inputs.states.shape[1:3]
    units = len(inputs.slots) * heads
    work = (inputs.rows + LANE_COST * len(inputs.slots)) * heads * 3 * rank * rank
    count = threads_for(work, units)
    run_pieces(run, _pieces(inputs, heads, count * PIECES) if count > 1 else [(0, units)], count)


def _pieces(inputs: ScanInputs, heads: int, pieces: int) -> list[tuple[int, int]]:
    """Cut the units into at most so many ranges, of about the same work each."""
    lanes = np.arange(1, len(inputs.lengths) + 1)
    done = (inputs.lane_offsets[1:] + LANE_COST * lanes) * heads  # work up to each lane's end
    goals = np.arange(1, pieces) * (int(done[-1]) / pieces)
    lane = np.searchsorted(done, goals)
    before = done[lane] - (inputs.lengths[lane] + LANE_COST) * heads
    head = (goals - before) / (inputs.lengths[lane] + LANE_COST)
    cuts = np.unique(
        np.concatenate([[0], lane * heads + np.rint(head).astype(np.int64), [len(lanes) * heads]])
    ).tolist()
    return list(pairwise(cuts))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _nonfinite(numbers: Any, first: Any, length: Any, heads: Any, head: Any, rank: Any, mask: Any) -> Any:
    found = 0
    for token in range(first, first + length):
        if len(mask) == 0 or mask[token]:
            at = (token * heads + head) * rank
            for i in range(rank):
                found += not np.isfinite(numbers[at + i])
    return found


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _relative_wide(late: Any, place: Any, rank: Any) -> Any:
    """‖error‖ / ‖value‖ of one token in float64, where no float32 can overflow it."""
    error_sq, value_sq = 0.0, 0.0
    for i in range(rank):
        error, value = np.float64(late[place * rank + i]), np.float64(late[(BLOCK + place) * rank + i])
        error_sq += error * error
        value_sq += value * value
    return np.sqrt(error_sq / value_sq) if value_sq != 0 else 0.0


@cache
def compiled(rank: int, mode: int, free: bool, want_reads: bool) -> Any:
    """Compile the scan for one rank and rule: constants for the compiler, so that a token is straight vector code."""
    recipe = _RECIPE

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def kernel(
        begin: Any, end: Any, states: Any, slot_stride: Any, head_stride: Any, heads: Any,
        slots: Any, starts: Any, lengths: Any, outs: Any, q: Any, k: Any, v: Any, beta: Any, lam: Any, mask: Any,
        reads: Any, errors: Any, statistics: Any, met: Any,
    ) -> Any:  # fmt: skip
        columns, late = scratch(rank), ledger(rank)
        for unit in range(begin, end):
            lane, head = unit // heads, unit % heads
            first, length = starts[lane], lengths[lane]
            state_at = slots[lane] * slot_stride + head * head_stride
            load_state(rank, states, state_at, columns)

            total, peak, count, blocks, t = 0.0, np.float32(0), 0, 0, 0
            while t < length:
                out = outs[lane] + t
                if len(mask) and not mask[first + t]:
                    errors[out, head] = 0
                    if want_reads:
                        reads[(out * heads + head) * rank : (out * heads + head + 1) * rank] = 0
                    t += 1
                    continue
                run = min(BLOCK, length - t)  # tokens in a row that are not masked
                if len(mask):
                    for ahead in range(1, run):
                        if not mask[first + t + ahead]:
                            run = ahead
                            break
                if rank <= UNROLLED and t + BLOCK < length:  # a token takes less time than its numbers from memory
                    for place in range(BLOCK, 2 * BLOCK, max(1, 16 // (rank * heads))):
                        at = ((first + t + place) * heads + head) * rank
                        fetch(k, at)
                        fetch(v, at)
                        fetch(beta, at)
                        if want_reads:
                            fetch(q, at)
                        if free:
                            fetch(lam, at)
                for place in range(run):
                    at = ((first + t + place) * heads + head) * rank
                    read_at = ((out + place) * heads + head) * rank
                    token_step(
                        rank, columns, late, place, q, k, v, beta, lam, at, mode, free, want_reads, reads, read_at
                    )
                trusted = False
                if run == BLOCK:
                    trusted = relative_errors(rank, late, blocks == 0)
                    if trusted:
                        blocks += 1
                        if heads == 1:
                            errors[out : out + BLOCK, 0] = late[2 * BLOCK * rank : 2 * BLOCK * rank + BLOCK]
                        else:
                            for place in range(BLOCK):
                                errors[out + place, head] = late[2 * BLOCK * rank + place]
                if not trusted:
                    for place in range(run):
                        error, fits = relative_error(rank, late, place)
                        if not fits:
                            error = np.float32(_relative_wide(late, place, rank))
                        errors[out + place, head] = error
                        total += error
                        peak = max(peak, error)
                count += run
                t += run
            if blocks:
                sum_of_blocks, peak_of_blocks = totals(rank, late)
                total += sum_of_blocks
                peak = max(peak, peak_of_blocks)

            square, extreme, well = store_state(rank, columns, states, state_at)
            bad = 0
            # Any number that is not finite shows in a read, an error or the state: only then are they looked for.
            if not (well and np.isfinite(total)):
                for i in range(rank * rank):
                    bad += not np.isfinite(states[state_at + i])
                if want_reads:
                    bad += _nonfinite(q, first, length, heads, head, rank, mask)
                bad += _nonfinite(k, first, length, heads, head, rank, mask)
                bad += _nonfinite(v, first, length, heads, head, rank, mask)
                bad += _nonfinite(beta, first, length, heads, head, rank, mask)
                if free:
                    bad += _nonfinite(lam, first, length, heads, head, rank, mask)
                if not np.isfinite(total):
                    peak = np.float32(total)
                if np.isnan(square):
                    extreme = np.float32(np.nan)
            statistics[0, lane, head] = total / count if count else 0
            statistics[1, lane, head] = peak
            statistics[2, lane, head] = np.sqrt(square)
            statistics[3, lane, head] = extreme
            met[lane, head] = bad
        return recipe

    return kernel


# Numba's cache knows when this file has changed, not when `vector_step` has: its checksum is made part of the code.
_RECIPE = zlib.crc32(Path(vector_step.__file__).read_bytes())
