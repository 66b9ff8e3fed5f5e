r"""How large a state can become, given its gates and values.

A write with coefficients keep, erase and write (`memory.rule`) and a key of length at most 1 takes S to

    S' = keep S + (write v − erase S k) kᵀ

With g = keep − erase, ‖S'‖² = keep² (‖S‖² − ‖S k‖²) + ‖g S k + write v‖² for a unit key. Where |g| < keep, the worst
S k gives ‖S'‖² ≤ keep² ‖S‖² + G ‖v‖², with G = write² keep² / (keep² − g²). So ‖S'‖ ≤ max(‖S‖, reach) with

    reach = ‖v‖ · sqrt(G / (1 − keep²))                                   if |g| < keep < 1
    reach = ‖v‖ · write / (1 − |g|)                                       if keep ≤ |g| < 1

and by induction a state that began at zero never exceeds the largest reach written. With keep = 1 (mode `plain`) and
with |g| ≥ 1 no bound of this kind exists. There, what stands in for it is the level at which the norm settles in the
mean when unrelated keys and values go on being written (k uniform on the sphere, v of mean zero):

    level² = write² ‖v‖² / (1 − keep² + (keep² − g²) / R)

`docs/signals.md` has the proofs and what this gives for each mode.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from memory.rule import Mode

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32] | Floats


def write_reach(mode: str, rank: int, values: Array, beta: Array | float, lam: Array | float | None = None) -> Floats:
    """Return reach² of each write: how large it allows a state to become.

    Parameters
    ----------
    mode
        The delta rule's, by name.
    rank
        R.
    values
        `[M, H, R]`: v.
    beta, lam
        The gates: numbers, or `[M, H, 1]` or `[M, H, R]`; `lam` as `memory.scan` takes it.

    Returns
    -------
    ndarray
        Float64. Where all rows of a head share their gates, `[M, H, 1]`, for ‖S‖²; else `[M, H, R]`, for each row's
        ‖s_i‖², since the rows never meet. The level where there is no bound (the module's docstring).

    Examples
    --------
    The same pair written again and again ends at v / 2 in mode `coupled`; the bound is close to that.

    >>> value = np.array([[[0.6, 0.8]]], np.float32)
    >>> np.sqrt(write_reach("coupled", 2, value, 0.18)).round(3).tolist()
    [[[0.503]]]
    >>> np.sqrt(write_reach("decay_outside", 2, value, 0.5)).round(6).tolist()  # v / (2 − β), which is reached
    [[[0.666667]]]
    >>> np.sqrt(write_reach("plain", 2, value, 0.5)).round(3).tolist()  # no bound: the level
    [[[0.816]]]
    """
    keep, erase, write = _coefficients(mode, beta, lam)
    if max(part.shape[-1] if part.ndim else 1 for part in (keep, erase, write)) == 1:
        squares: Floats = np.einsum("mhr,mhr->mh", values, values)[..., None].astype(np.float64)
    else:
        squares = np.square(values, dtype=np.float64)
    return squares * _share(keep, np.abs(keep - erase), write, rank)


def largest_by_event(reach: Floats, bounds: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the largest reach² among each event's writes.

    Parameters
    ----------
    reach
        `[M, H, 1]` or `[M, H, R]` float64: `write_reach`.
    bounds
        `[n + 1]` int64, not falling: event i wrote the rows `bounds[i]:bounds[i + 1]`.

    Returns
    -------
    ndarray
        `[n, H, 1]` or `[n, H, R]` float32; 0 for an event without writes.

    Examples
    --------
    >>> largest_by_event(np.array([3.0, 5.0, 4.0]).reshape(3, 1, 1), np.array([0, 2, 2, 3])).ravel().tolist()
    [5.0, 0.0, 4.0]
    """
    largest = np.zeros((len(bounds) - 1, *reach.shape[1:]), np.float32)
    wrote = bounds[1:] > bounds[:-1]
    if wrote.any():  # events without writes have no rows in between, so the starts of the others are enough
        largest[wrote] = np.maximum.reduceat(reach, bounds[:-1][wrote], axis=0)
    return largest


def _coefficients(mode: str, beta: Array | float, lam: Array | float | None) -> tuple[Floats, Floats, Floats]:
    """As `memory.rule.coefficients`, for numpy."""
    rule, b = Mode.parse(mode), np.asarray(beta, np.float64)
    if rule is Mode.PLAIN:
        return np.ones_like(b), b, b
    if rule is Mode.GATED and lam is None:
        raise ValueError("mode 'gated' needs lam: the retention gate of each row")
    keep = 1 - b if lam is None or rule is Mode.COUPLED else np.asarray(lam, np.float64)
    return keep, keep * b if rule is Mode.DECAY_OUTSIDE else b, b


def _share(keep: Floats, g: Floats, write: Floats, rank: int) -> Floats:
    """Return reach² / ‖v‖²."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.where(
            g < keep, write**2 * keep**2 / ((keep**2 - g**2) * (1 - keep**2)), (write / np.maximum(1 - g, 0)) ** 2
        )
    bound = np.where(write == 0, 0.0, bound)
    return np.where(np.isfinite(bound), bound, _level(keep, g, write, rank))


def _level(keep: Floats, g: Floats, write: Floats, rank: int) -> Floats:
    """Return level² / ‖v‖²; infinite where not even the mean settles."""
    settles = 1 - keep**2 + (keep**2 - g**2) / rank
    with np.errstate(divide="ignore"):
        level: Floats = np.where(settles > 0, write**2 / np.where(settles > 0, settles, 1), np.inf)
    return np.where(write == 0, 0.0, level)
