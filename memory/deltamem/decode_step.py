"""The compiled form for a few tokens a stream: a decode step, in one call from the packed projections to the reads.

One token needs some fifty numbers of arithmetic per layer; what costs is the number of calls into torch. So the
activations, the read and the write are one compiled function here, and so is adding a low-rank correction. The
arithmetic is that of `MemoryLayer.activate` and `memory.cpu_scan`; the tests hold the two together.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np


@cache
def step_kernel(rank: int) -> Any:
    """Compile the step for one rank.

    ``kernel(packed, gate_bias, states, slots, mask, tokens, mode, normalize, write, gates, acts, reads, errors)``,
    all float32 numpy arrays but for `slots` (int64), `mask` (bool, `[B·T]` or `[0]`) and the plain numbers: `packed`
    `[B·T, W]`; `states` `[S, H, R, R]`, advanced at `slots` `[B]` if `write`; `gates` is how many gates of each kind
    W holds; `acts` `[5, B·T·H·R]` receives q, k, v, β and λ, `reads` `[B·T·H·R]` and `errors` `[B·T, H]` the rest.
    """

    @numba.njit(cache=True, nogil=True, error_model="numpy")
    def kernel(
        packed: Any, gate_bias: Any, states: Any, slots: Any, mask: Any, tokens: Any, mode: Any, normalize: Any,
        write: Any, gates: Any, acts: Any, reads: Any, errors: Any,
    ) -> None:  # fmt: skip
        heads = states.shape[1]
        width = heads * rank
        rankwise = gates == width
        free = packed.shape[1] == 3 * width + 2 * gates
        columns = np.empty((rank, rank), np.float32)  # the state transposed: its rows change alike, side by side
        predicted = np.empty(rank, np.float32)
        for row in range(len(slots)):
            for head in range(heads):
                state = states[slots[row], head]
                for i in range(rank):
                    for j in range(rank):
                        columns[j, i] = state[i, j]
                for t in range(tokens):
                    n = row * tokens + t
                    at = (n * heads + head) * rank
                    for part in range(3):
                        square = np.float32(0)
                        for i in range(rank):
                            number = packed[n, part * width + head * rank + i]
                            if normalize and part < 2:
                                number = math.tanh(number)
                                square += number * number
                            acts[part, at + i] = number
                        if normalize and part < 2:
                            norm = max(np.sqrt(square), np.float32(1e-6))
                            for i in range(rank):
                                acts[part, at + i] /= norm
                    for i in range(rank):
                        place = head * rank + i if rankwise else head
                        beta = sigmoid(packed[n, 3 * width + place] + gate_bias[place])
                        acts[3, at + i] = beta
                        if mode == 2:  # plain: no retention gate
                            acts[4, at + i] = 1
                        elif free:
                            place += gates
                            acts[4, at + i] = sigmoid(packed[n, 3 * width + place] + gate_bias[place])
                        else:
                            acts[4, at + i] = np.float32(1) - beta
                    errors[n, head] = 0
                    reads[at : at + rank] = 0
                    if len(mask) and not mask[n]:
                        continue
                    for j in range(rank):
                        for i in range(rank):
                            reads[at + i] += columns[j, i] * acts[0, at + j]
                    if write:
                        predicted[:] = 0
                        for j in range(rank):
                            for i in range(rank):
                                predicted[i] += columns[j, i] * acts[1, at + j]
                        error_sq, value_sq = 0.0, 0.0
                        for i in range(rank):
                            value, beta, lam = acts[2, at + i], acts[3, at + i], acts[4, at + i]
                            miss = np.float64(value - predicted[i])
                            error_sq += miss * miss
                            value_sq += np.float64(value) * np.float64(value)
                            predicted[i] = beta * value - (lam * beta if mode == 1 else beta) * predicted[i]
                        for j in range(rank):
                            for i in range(rank):
                                columns[j, i] = acts[4, at + i] * columns[j, i] + predicted[i] * acts[1, at + j]
                        errors[n, head] = np.sqrt(error_sq / value_sq) if value_sq != 0 else 0.0
                if write:
                    for i in range(rank):
                        for j in range(rank):
                            state[i, j] = columns[j, i]

    return kernel


@numba.njit(cache=True, nogil=True, error_model="numpy")
def sigmoid(number: Any) -> Any:
    """1 / (1 + e⁻ˣ) without overflow, in the precision of `number`."""
    one = np.float32(1)
    if number >= 0:
        return one / (one + math.exp(-number))
    power = math.exp(number)
    return power / (one + power)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
def add_low_rank(out: Any, reads: Any, weight: Any, factor: Any, norms: Any) -> None:
    """``out += factor · reads @ weight`` in place, and ‖out‖ before it.

    Parameters
    ----------
    out
        `[B, T, O]` float32, contiguous.
    reads, weight
        `[B·T·K]` and `[K, O]` float32.
    factor
        A number.
    norms
        `[B·T]` receives the norms of the rows of `out` as they came; `[0]`: they are not wanted.
    """
    rank, size = weight.shape
    rows = out.reshape((-1, size))
    for n in range(len(rows)):
        row = rows[n]
        if len(norms):
            square = 0.0
            for i in range(size):
                square += row[i] * row[i]
            norms[n] = np.sqrt(square)
        for j in range(rank):
            read = np.float32(factor * reads[n * rank + j])
            if read != 0:
                for i in range(size):
                    row[i] += read * weight[j, i]
