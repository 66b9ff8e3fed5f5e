"""How well states that have not seen a segment predict it: the question that decides which of several to use."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.threads import share_out


def prediction_errors(
    states: Tensor,
    places: Slots,
    starts: Slots,
    lengths: Slots,
    k: Tensor,
    v: Tensor,
    token_mask: Tensor | None = None,
) -> npt.NDArray[np.float64]:
    """Return ‖v − S k‖ / ‖v‖ of A states on each of n segments, the mean over a segment's rows and heads. Nothing is
    written: every row is asked of the state as it is.

    A state of zeros has the error 1, exactly (if no value is zero).

    Parameters
    ----------
    states
        `[S, H, R, R]` float32, on any device; not changed.
    places
        `[n, A]` int64: the rows of `states` to ask about each segment; −1: none.
    starts, lengths
        `[n]` int64: each segment's first row of `k` and `v`, and its rows.
    k, v
        `[T, H, R]` float32, on the device of `states`.
    token_mask
        `[T]` bool: rows that are False are not asked; None: all are.

    Returns
    -------
    ndarray
        `[n, A]` float64; NaN for no state, a segment without rows, or a number that is not finite.

    Examples
    --------
    >>> states = torch.stack([torch.zeros(1, 2, 2), torch.eye(2)[None]])
    >>> key = torch.tensor([[[1.0, 0.0]]])
    >>> one = np.array([1])
    >>> prediction_errors(states, np.array([[0, 1, -1]]), 0 * one, one, key, key).tolist()
    [[1.0, 0.0, nan]]
    """
    errors = np.full(places.shape, np.nan)
    if not places.size:
        return errors
    if states.device.type == "cpu":
        mask = np.ones(0, np.bool_) if token_mask is None else token_mask.numpy()
        arguments = (states.numpy(), places, starts, lengths, k.numpy(), v.numpy(), mask, errors)
        work = int((lengths * (places >= 0).sum(axis=1)).sum()) * k.shape[1] * k.shape[2] ** 2
        share_out(lambda first, last: _errors(first, last, *arguments), len(places), work)
        return errors
    _by_torch(errors, states, places, starts, lengths, k, v, token_mask)
    return errors


def _by_torch(
    errors: npt.NDArray[np.float64],
    states: Tensor,
    places: Slots,
    starts: Slots,
    lengths: Slots,
    k: Tensor,
    v: Tensor,
    token_mask: Tensor | None,
) -> None:
    """Fill `errors` by torch's operations, on any device."""
    lane, way = np.nonzero(places >= 0)
    rows = np.concatenate([np.arange(starts[i], starts[i] + lengths[i]) for i in lane] or [np.zeros(0, np.int64)])
    owner = np.repeat(np.arange(len(lane)), lengths[lane])
    at, row, of = (torch.from_numpy(numbers).to(states.device) for numbers in (places[lane, way][owner], rows, owner))
    miss = v[row] - torch.einsum("mhij,mhj->mhi", states[at], k[row])
    size = v[row].double().norm(dim=-1)
    ratio = torch.where(size == 0, torch.zeros_like(size), miss.double().norm(dim=-1) / size).mean(dim=-1)
    asked = torch.ones_like(ratio) if token_mask is None else token_mask[row].double()
    ratio = torch.where(asked > 0, ratio, torch.zeros_like(ratio))
    total, count = (torch.zeros(len(lane), dtype=torch.float64, device=states.device) for _ in range(2))
    total.index_add_(0, of, ratio)
    count.index_add_(0, of, asked)
    mean = (total / count).cpu().numpy()
    errors[lane, way] = np.where(np.isfinite(mean), mean, np.nan)


# Sums may be reordered into vectors, in the same way whatever the other lanes. The bounds are no constants on purpose:
# see `memory.probes`.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _miss(state: Any, key: Any, value: Any) -> Any:
    rank = len(key)
    miss, size = np.float32(0), np.float32(0)
    for i in range(rank):
        read = np.float32(0)
        for j in range(rank):
            read += state[i, j] * key[j]
        miss += (read - value[i]) * (read - value[i])
        size += value[i] * value[i]
    return np.sqrt(miss / size) if size != 0 else np.float32(0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _errors(
    first: Any, last: Any, states: Any, places: Any, starts: Any, lengths: Any, k: Any, v: Any, mask: Any, errors: Any
) -> None:
    heads = k.shape[1]
    for lane in range(first, last):
        for way in range(places.shape[1]):
            place = places[lane, way]
            if place < 0:
                continue
            total, count = 0.0, 0
            for row in range(starts[lane], starts[lane] + lengths[lane]):
                if len(mask) and not mask[row]:
                    continue
                for head in range(heads):
                    total += _miss(states[place, head], k[row, head], v[row, head])
                count += heads
            if count and np.isfinite(total):
                errors[lane, way] = total / count
