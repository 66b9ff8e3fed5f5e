"""Events of several lanes at once, each lane's own in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from memory.lane_state import Slots


def rounds(slots: Slots) -> Iterator[Slots]:
    """Yield the indices of each lane's first event, then of each lane's second, and so on.

    Parameters
    ----------
    slots
        `[n]` int64, n > 0: each event's lane.

    Examples
    --------
    >>> [index.tolist() for index in rounds(np.array([7, 3, 7, 7, 3]))]
    [[0, 1], [2, 4], [3]]
    """
    order = np.argsort(slots, kind="stable")
    place = np.arange(len(slots))
    begins = np.concatenate([[True], np.diff(slots[order]) != 0])
    turn = np.empty(len(slots), np.int64)
    turn[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    for number in range(int(turn.max()) + 1):
        yield np.flatnonzero(turn == number)
