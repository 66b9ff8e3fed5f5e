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


def probe_errors(
    states: Tensor, slots: Slots, keys: npt.NDArray[np.float32], values: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
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
    if states.device.type == "cpu":
        errors = np.empty(keys.shape[:3], np.float32)
        arguments = (states.numpy(), slots, keys, values, errors)
        share_out(lambda first, last: _errors(first, last, *arguments), len(slots), keys.size * keys.shape[-1])
        return errors
    S = states[torch.from_numpy(slots).to(states.device)]
    k, v = (torch.from_numpy(pairs).to(states.device) for pairs in (keys, values))
    norm = v.norm(dim=-1)
    miss = (torch.einsum("nhij,nphj->nphi", S, k) - v).norm(dim=-1)
    result: npt.NDArray[np.float32] = torch.where(norm == 0, torch.zeros_like(norm), miss / norm).cpu().numpy()
    return result


# Sums may be reordered into vectors, in the same way whatever the other lanes. The bounds are deliberately no
# constants: with a small constant rank the compiler unrolls the inner loop into scalars, which takes four times as
# long.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _errors(first: Any, last: Any, states: Any, slots: Any, keys: Any, values: Any, errors: Any) -> None:
    _, pairs, heads, rank = keys.shape
    for lane in range(first, last):
        for head in range(heads):
            state = states[slots[lane], head]
            for pair in range(pairs):
                key, value = keys[lane, pair, head], values[lane, pair, head]
                miss, size = np.float32(0), np.float32(0)
                for i in range(rank):
                    read = np.float32(0)
                    for j in range(rank):
                        read += state[i, j] * key[j]
                    miss += (read - value[i]) * (read - value[i])
                    size += value[i] * value[i]
                errors[lane, pair, head] = np.sqrt(miss / size) if size != 0 else np.float32(0)
