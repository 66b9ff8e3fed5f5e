"""The largest singular value of each state, followed from event to event."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memory.lane_state import Slots
from memory.threads import share_out

COLD, WARM = 12, 2
"""Power iterations for a lane without a direction yet, and for one that has the direction of its last event."""


def largest_singular_value(
    states: Tensor, slots: Slots, directions: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Estimate σ₁ of every head of n lanes by power iteration, from below.

    One event changes a state little, so the direction found after the last event is a good start for the next: two
    iterations are then enough (as spectral normalisation does from step to step).

    Parameters
    ----------
    states
        `[S, H, R, R]` float32, on any device; not changed.
    slots
        `[n]` int64: the lanes' rows of `states`.
    directions
        `[n, H, R]` float32: each head's right singular vector as last found, zeros for none. Changed in place.

    Returns
    -------
    ndarray
        `[n, H]` float32, at most σ₁; 0 for a state of zeros, NaN for a state with a NaN.

    References
    ----------
    Miyato, Kataoka, Koyama, Yoshida: Spectral normalization for generative adversarial networks, ICLR 2018, section
    2.1.

    Examples
    --------
    >>> state = torch.diag(torch.tensor([3.0, 1.0])).reshape(1, 1, 2, 2)
    >>> found = largest_singular_value(state, np.array([0]), np.zeros((1, 1, 2), np.float32))
    >>> round(float(found[0, 0]), 3)
    3.0
    """
    if states.device.type == "cpu":
        sigma = np.empty(directions.shape[:2], np.float32)
        arguments = (states.numpy(), slots, directions, sigma)
        share_out(
            lambda first, last: _iterate(first, last, *arguments),
            len(slots),
            2 * WARM * directions.size * directions.shape[-1],
        )
        return sigma
    S = states[torch.from_numpy(slots).to(states.device)]
    u = torch.from_numpy(directions).to(states.device)
    cold = (u == 0).all(-1, keepdim=True)
    widest = S.norm(dim=-1).argmax(-1)[..., None, None].expand(-1, -1, 1, S.shape[-1])
    u = torch.where(cold, S.gather(2, widest)[..., 0, :], u)
    for _ in range(COLD if bool(cold.any()) else WARM):
        u = torch.nn.functional.normalize((S.mT @ (S @ u[..., None]))[..., 0], dim=-1, eps=1e-30)
    directions[:] = u.cpu().numpy()
    result: npt.NDArray[np.float32] = (S @ u[..., None])[..., 0].norm(dim=-1).cpu().numpy()
    return result


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _iterate(first: Any, last: Any, states: Any, slots: Any, directions: Any, sigma: Any) -> None:
    heads, rank = directions.shape[1:]
    image = np.empty(rank, np.float32)
    back = np.empty(rank, np.float32)
    for lane in range(first, last):
        for head in range(heads):
            state, u = states[slots[lane], head], directions[lane, head]
            size = np.float32(0)
            for j in range(rank):
                size += u[j] * u[j]
            rounds = WARM
            if size == 0:  # start from the longest row: S cannot send it to zero
                rounds = COLD
                longest, row = np.float32(-1), 0
                for i in range(rank):
                    size = np.float32(0)
                    for j in range(rank):
                        size += state[i, j] * state[i, j]
                    if size > longest:
                        longest, row = size, i
                for j in range(rank):
                    u[j] = state[row, j]
            stretch = np.float32(0)
            for turn in range(rounds + 1):
                size = np.float32(0)
                for j in range(rank):
                    size += u[j] * u[j]
                scale = np.float32(1) / np.sqrt(size) if size != 0 else np.float32(0)
                for j in range(rank):
                    u[j] *= scale
                    back[j] = 0
                stretch = np.float32(0)
                for i in range(rank):
                    read = np.float32(0)
                    for j in range(rank):
                        read += state[i, j] * u[j]
                    image[i] = read
                    stretch += read * read
                if turn < rounds:
                    for i in range(rank):
                        for j in range(rank):
                            back[j] += image[i] * state[i, j]
                    for j in range(rank):
                        u[j] = back[j]
            sigma[lane, head] = np.sqrt(stretch)
