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
from memory.scan import ScanInputs, ScanResult
from memory.threads import PIECES, run_pieces, threads_for
from memory.vector_step import measure, scratch, token_step, turn

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
            int(inputs.mode),
            inputs.want_reads,
            lam is not None,
            *(reads, errors, statistics, met),
        )
        kernel = _kernel(rank)
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


@cache
def _kernel(rank: int) -> Any:
    """Compile the scan for one rank (a constant for the compiler: its loops become straight vector code)."""
    recipe = _RECIPE

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def kernel(
        begin: Any, end: Any, states: Any, slot_stride: Any, head_stride: Any, heads: Any,
        slots: Any, starts: Any, lengths: Any, outs: Any,
        q: Any, k: Any, v: Any, beta: Any, lam: Any, mask: Any, mode: Any, want_reads: Any, free: Any,
        reads: Any, errors: Any, statistics: Any, met: Any,
    ) -> Any:  # fmt: skip
        columns = scratch(rank)
        size = rank * rank
        for unit in range(begin, end):
            lane, head = unit // heads, unit % heads
            first, length = starts[lane], lengths[lane]
            state_at = slots[lane] * slot_stride + head * head_stride
            turn(rank, states, state_at, columns, 0)
            for i in range(rank):
                columns[size + i] = 0

            total, peak, count = 0.0, 0.0, 0
            for t in range(length):
                token, out = first + t, outs[lane] + t
                read_at = (out * heads + head) * rank if want_reads else -1
                if len(mask) and not mask[token]:
                    errors[out, head] = 0
                    if want_reads:
                        reads[read_at : read_at + rank] = 0
                    continue
                at = (token * heads + head) * rank
                error_sq, value_sq = token_step(
                    rank, columns, q, k, v, beta, lam, at, mode, free, reads, read_at
                )  # fmt: skip
                error = np.sqrt(error_sq / value_sq) if value_sq != 0 else 0.0
                errors[out, head] = error
                total += error
                peak = max(peak, error)
                count += 1

            turn(rank, columns, 0, states, state_at)
            square, extreme = measure(rank, columns)
            witness = np.float32(0)
            for i in range(rank):
                witness += columns[size + i]
            bad = 0
            # Any number that is not finite shows in a read, an error or the state: only then look for them.
            if not (np.isfinite(square) and np.isfinite(witness)):
                for i in range(size):
                    bad += not np.isfinite(columns[i])
                if want_reads:
                    bad += _nonfinite(q, first, length, heads, head, rank, mask)
                bad += _nonfinite(k, first, length, heads, head, rank, mask)
                bad += _nonfinite(v, first, length, heads, head, rank, mask)
                bad += _nonfinite(beta, first, length, heads, head, rank, mask)
                if free:
                    bad += _nonfinite(lam, first, length, heads, head, rank, mask)
                if not np.isfinite(total):
                    peak = total
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
