"""Mixtures of states, in place: what actions on a lane come to."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.threads import share_out


def blend(states: Tensor, slots: Slots, shares: npt.NDArray[np.float64], others: Tensor, rows: Slots) -> None:
    """Make of n states S and others O, in place::

        S ← f · S + (1 − f) · O         and O itself, whatever S is, where f = 0

    f is rounded to float32, and so is every product and sum: the same bits on every device.

    Parameters
    ----------
    states
        `[S, H, R, R]` float32.
    slots
        `[n]` int64, all different: the rows of `states`.
    shares
        `[n]` float64: f.
    others
        `[m, H, R, R]` float32, on the device of `states`.
    rows
        `[n]` int64: which of `others` each O is.

    Examples
    --------
    >>> states, ones = torch.full((3, 1, 1, 1), 5.0), torch.ones(1, 1, 1, 1)
    >>> blend(states, np.array([2, 0]), np.array([0.5, 0.0]), ones, np.array([0, 0]))
    >>> states.flatten().tolist()
    [1.0, 5.0, 3.0]
    """
    if states.device.type == "cpu" and states.is_contiguous():
        flat, other = states.view(len(states), -1).numpy(), others.contiguous().view(len(others), -1).numpy()
        arguments = (flat, slots, shares.astype(np.float32), other, rows)
        share_out(lambda first, last: _blend(first, last, *arguments), len(slots), len(slots) * flat.shape[1])
        return
    here = states.device
    at, share = torch.from_numpy(slots).to(here), torch.from_numpy(shares.astype(np.float32)).to(here)
    share, other_rows = share[:, None, None, None], others[torch.from_numpy(rows).to(here)]
    states[at] = torch.where(share == 0, other_rows, share * states[at] + (1 - share) * other_rows)


def step_from(states: Tensor, slots: Slots, shares: npt.NDArray[np.float64], olds: Tensor, rows: Slots) -> None:
    """Go only a share g of the way from old states O to n states S, in place::

        S ← O + g · (S − O)             and O itself, whatever S is, where g = 0

    Parameters
    ----------
    states, slots, shares, olds, rows
        As in `blend`.

    Examples
    --------
    >>> states, olds = torch.full((3, 1, 1, 1), 5.0), torch.ones(1, 1, 1, 1)
    >>> step_from(states, np.array([2, 0]), np.array([0.25, 0.0]), olds, np.array([0, 0]))
    >>> states.flatten().tolist()
    [1.0, 5.0, 2.0]
    """
    if states.device.type == "cpu" and states.is_contiguous():
        flat, old = states.view(len(states), -1).numpy(), olds.contiguous().view(len(olds), -1).numpy()
        arguments = (flat, slots, shares.astype(np.float32), old, rows)
        share_out(lambda first, last: _step_from(first, last, *arguments), len(slots), len(slots) * flat.shape[1])
        return
    here = states.device
    at, share = torch.from_numpy(slots).to(here), torch.from_numpy(shares.astype(np.float32)).to(here)
    share, old_rows = share[:, None, None, None], olds[torch.from_numpy(rows).to(here)]
    states[at] = torch.where(share == 0, old_rows, old_rows + share * (states[at] - old_rows))


# No fused multiply-adds here: each operation is rounded by itself, as torch does.
@numba.njit(cache=True, nogil=True)
def _blend(first: Any, last: Any, states: Any, slots: Any, shares: Any, others: Any, rows: Any) -> None:
    one = np.float32(1)
    for lane in range(first, last):
        state, other, share = states[slots[lane]], others[rows[lane]], shares[lane]
        if share == 0:
            state[:] = other
        else:
            rest = one - share
            for i in range(len(state)):
                state[i] = share * state[i] + rest * other[i]


@numba.njit(cache=True, nogil=True)
def _step_from(first: Any, last: Any, states: Any, slots: Any, shares: Any, olds: Any, rows: Any) -> None:
    for lane in range(first, last):
        state, old, share = states[slots[lane]], olds[rows[lane]], shares[lane]
        if share == 0:
            state[:] = old
        else:
            for i in range(len(state)):
                state[i] = old[i] + share * (state[i] - old[i])
