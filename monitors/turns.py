"""Which lanes are looked at closely now: a look costs more than a write, and every event of every lane need not pay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monitors.observations import Flags


def due(counts: npt.NDArray[np.int64], every: int) -> Flags:
    """Say which lanes have a turn: those whose count is a power of two, or a multiple of `every`.

    A young lane is looked at often and an old one once in `every` events; it depends on the lane's own count alone, so
    the lanes beside it, the batch and a restart make no difference.

    Parameters
    ----------
    counts
        `[n]` int64: events so far, this one included; 0 has no turn.
    every
        1: always.

    Returns
    -------
    ndarray
        `[n]` bool.

    Examples
    --------
    >>> (np.flatnonzero(due(np.arange(20), 6))).tolist()
    [1, 2, 4, 6, 8, 12, 16, 18]
    """
    if every == 1:
        return counts > 0
    turn: Flags = (counts > 0) & (((counts & (counts - 1)) == 0) | (counts % every == 0))
    return turn
