"""What a state still returns for pairs of the past: the compiled and the torch form of one small read."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.threads import share_out

Numbers = npt.NDArray[np.float32]


def probe_answers(
    states: Tensor, slots: Slots, keys: Numbers, values: Numbers, rows: Slots | None = None
) -> tuple[Numbers, Numbers]:
    """Ask each of n lanes for P pairs: how wrong is what it reads, and does it point the right way.

    Parameters
    ----------
    states
        `[S, H, R, R]` float32, on any device; not changed.
    slots
        `[n]` int64: the lanes' rows of `states`.
    keys, values
        `[m, P, H, R]` float32 on the host.
    rows
        `[n]` int64: each lane's row of `keys` and `values`, so that a whole column can be handed over without a copy;
        None for 0 to n − 1.

    Returns
    -------
    tuple
        The relative error ‖S k − v‖ / ‖v‖ and the cosine of S k and v, each `[n, P, H]` float32. Where ‖v‖ = 0 the
        error is 0, where S k = 0 or v = 0 the cosine is 0; where a read is not finite, both are not finite.

    Examples
    --------
    >>> states = 0.5 * torch.eye(2).reshape(1, 1, 2, 2)
    >>> pairs = np.array([[[[1, 0]], [[0, 1]]]], np.float32)
    >>> errors, cosines = probe_answers(states, np.array([0]), pairs, pairs)
    >>> errors.tolist(), cosines.tolist()
    ([[[0.5], [0.5]]], [[[1.0], [1.0]]])
    """
    if rows is None:
        rows = np.arange(len(slots))
    if states.device.type == "cpu":
        shape = (len(slots), *keys.shape[1:3])
        errors, cosines = np.empty(shape, np.float32), np.empty(shape, np.float32)
        arguments = (states.numpy(), slots, keys, values, rows, errors, cosines)
        share_out(lambda first, last: _answers(first, last, *arguments), len(slots), errors.size * keys.shape[-1] ** 2)
        return errors, cosines
    S = states[torch.from_numpy(slots).to(states.device)]
    k, v = torch.from_numpy(np.stack([keys[rows], values[rows]])).to(states.device).double()
    read = torch.einsum("nhij,nphj->nphi", S.double(), k)
    norm, size, miss = v.norm(dim=-1), read.norm(dim=-1), (read - v).norm(dim=-1)
    unit = norm * size
    error = torch.where(norm == 0, 0 * miss, miss / norm)
    cosine = torch.where(unit == 0, 0 * unit, (read * v).sum(-1) / unit)
    both: Numbers = torch.stack([error, cosine]).float().cpu().numpy()
    return both[0], both[1]


def probe_errors(states: Tensor, slots: Slots, keys: Numbers, values: Numbers) -> Numbers:
    """Return ‖S k − v‖ / ‖v‖ for P pairs on each of n lanes.

    Parameters
    ----------
    states
        `[S, H, R, R]` float32, on any device; not changed.
    slots
        `[n]` int64: the lanes' rows of `states`.
    keys, values
        `[n, P, H, R]` float32 on the host.

    Returns
    -------
    ndarray
        `[n, P, H]` float32; 0 where ‖v‖ = 0.

    Examples
    --------
    >>> states = torch.eye(2).reshape(1, 1, 2, 2)
    >>> pairs = np.array([[[[1, 0]], [[0, 1]]]], np.float32)
    >>> probe_errors(states, np.array([0]), pairs, pairs[:, ::-1].copy()).astype(float).round(3).tolist()
    [[[1.414], [1.414]]]
    """
    return probe_answers(states, slots, keys, values)[0]


# Sums may be reordered into vectors, in the same way whatever the other lanes. The bounds are deliberately no
# constants: with a small constant rank the compiler unrolls the inner loop into scalars, which takes four times as
# long.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _answers(
    first: Any, last: Any, states: Any, slots: Any, keys: Any, values: Any, rows: Any, errors: Any, cosines: Any
) -> None:
    _, pairs, heads, rank = keys.shape
    for lane in range(first, last):
        for head in range(heads):
            state = states[slots[lane], head]
            for pair in range(pairs):
                key, value = keys[rows[lane], pair, head], values[rows[lane], pair, head]
                miss, size, length, along = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                for i in range(rank):
                    read = np.float32(0)
                    for j in range(rank):
                        read += state[i, j] * key[j]
                    miss += (read - value[i]) * (read - value[i])
                    size += value[i] * value[i]
                    length += read * read
                    along += read * value[i]
                if 1e-30 < size < 1e30 and 1e-30 < length < 1e30 and miss < 1e30:
                    errors[lane, pair, head] = np.sqrt(miss / size)
                    cosines[lane, pair, head] = min(max(along / np.sqrt(size * length), np.float32(-1)), np.float32(1))
                else:
                    error, cosine = _wide(state, key, value)
                    errors[lane, pair, head], cosines[lane, pair, head] = np.float32(error), np.float32(cosine)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _wide(state: Any, key: Any, value: Any) -> Any:
    """The same in float64, for numbers whose squares float32 cannot hold, for zeros, and for what is not finite."""
    miss, size, length, along = 0.0, 0.0, 0.0, 0.0
    for i in range(len(key)):
        read = 0.0
        for j in range(len(key)):
            read += np.float64(state[i, j]) * key[j]
        miss += (read - value[i]) ** 2
        size += np.float64(value[i]) ** 2
        length += read * read
        along += read * value[i]
    if not (np.isfinite(miss) and np.isfinite(length)):
        return np.nan, np.nan
    return np.sqrt(miss / size) if size != 0 else 0.0, along / np.sqrt(size * length) if size * length > 0 else 0.0
