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

LEAST, MOST, GAIN = 2, 16, np.float32(1e-3)
"""Power iterations: at least `LEAST`, then on while one more raises σ₁² by more than this share, at most `MOST`."""

FRESH = np.float32(0.25)
"""How much of the state's longest row is added to the direction of the last event, both of length 1."""


LOW, HIGH = np.float32(1e-25), np.float32(1e30)
"""Squares that float32 can be trusted with."""


def largest_singular_value(
    states: Tensor, slots: Slots, directions: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Estimate σ₁ of every head of n lanes by power iteration, from below.

    One event changes a state little, so the direction found after the last event is a good start for the next (as
    spectral normalisation does from step to step): five iterations then do, on average. Some of the longest row is
    added, since what was written across the old direction would else stay unseen.

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
        `[n, H]` float32, at most σ₁; 0 for a state of zeros, NaN for one with a number that is not finite.

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
            4 * LEAST * directions.size * directions.shape[-1],
        )
        if (sigma == -1).any():
            _out_of_range(states.numpy(), slots, sigma)
        return sigma
    S = states[torch.from_numpy(slots).to(states.device)]
    size = S.abs().amax((-2, -1))  # squares of numbers of size 1 are safe
    S = S / torch.where(size == 0, torch.ones_like(size), size)[..., None, None]
    u = torch.from_numpy(directions).to(states.device).nan_to_num(0, 0, 0)
    longest = S.norm(dim=-1).argmax(-1)[..., None, None].expand(-1, -1, 1, S.shape[-1])
    row = torch.nn.functional.normalize(S.gather(2, longest)[..., 0, :], dim=-1, eps=1e-30)
    aside = (u * row).sum(-1, keepdim=True) < 0
    u = torch.nn.functional.normalize(u, dim=-1, eps=1e-30) + float(FRESH) * torch.where(aside, -row, row)
    for _ in range(MOST):  # so many for each: when a lane stops must not depend on the others
        u = torch.nn.functional.normalize((S.mT @ (S @ u[..., None]))[..., 0], dim=-1, eps=1e-30)
    found = torch.cat([u, ((S @ u[..., None])[..., 0].norm(dim=-1) * size)[..., None]], -1).cpu().numpy()  # one copy
    directions[:] = found[..., :-1]
    result: npt.NDArray[np.float32] = found[..., -1]
    return result


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"}, error_model="numpy")
def _iterate(first: Any, last: Any, states: Any, slots: Any, directions: Any, sigma: Any) -> None:
    heads, rank = directions.shape[1:]
    back = np.empty(rank, np.float32)
    for lane in range(first, last):
        for head in range(heads):
            state, u = states[slots[lane], head], directions[lane, head]
            longest, row = np.float32(0), 0
            for i in range(rank):
                size = np.float32(0)
                for j in range(rank):
                    size += state[i, j] * state[i, j]
                if size > longest:
                    longest, row = size, i
            if not LOW < longest < HIGH:
                sigma[lane, head] = -1
                continue
            size, along = np.float32(0), np.float32(0)
            for j in range(rank):
                size += u[j] * u[j]
                along += u[j] * state[row, j]
            if not size < np.inf:  # left by a state that was not finite
                size, along, u[:] = np.float32(0), np.float32(0), np.float32(0)
            old = np.float32(1) / np.sqrt(size) if size != 0 else np.float32(0)
            new = FRESH / np.sqrt(longest)
            if along < 0:
                new = -new
            for j in range(rank):
                u[j] = old * u[j] + new * state[row, j]
            stretch = np.float32(0)
            for turn in range(MOST + 1):
                before = stretch
                size = np.float32(0)
                for j in range(rank):
                    size += u[j] * u[j]
                scale = np.float32(1) / np.sqrt(size) if size != 0 else np.float32(0)
                for j in range(rank):
                    u[j] *= scale
                    back[j] = 0
                stretch = np.float32(0)
                for i in range(rank):  # S u and Sᵀ S u, a row at a time
                    read = np.float32(0)
                    for j in range(rank):
                        read += state[i, j] * u[j]
                    stretch += read * read
                    for j in range(rank):
                        back[j] += read * state[i, j]
                if turn == MOST or (turn >= LEAST and not stretch - before > GAIN * stretch):
                    break
                for j in range(rank):
                    u[j] = back[j]
            sigma[lane, head] = np.sqrt(stretch)


def _out_of_range(states: npt.NDArray[np.float32], slots: Slots, sigma: npt.NDArray[np.float32]) -> None:
    """Fill in what the compiled form left (−1): states of zeros, and numbers whose squares float32 cannot hold."""
    for lane, head in np.argwhere(sigma == -1).tolist():
        state = states[slots[lane], head].astype(np.float64)
        if not state.any():
            sigma[lane, head] = 0
        else:
            fine = np.isfinite(state).all()
            sigma[lane, head] = np.linalg.svd(state, compute_uv=False)[0] if fine else np.nan
