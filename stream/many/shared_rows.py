"""Rows of numbers of which each is kept once, however many lanes hold it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from memory.lane_state import Slots
from memory.threads import share_out

ZERO = 0
"""The place of the row of zeros, which is never given away."""

NONE = -1
"""The place of nothing."""


class SharedRows:
    """Rows by place. A row is never changed while somebody holds it: what is written goes to a place of its own.

    Parameters
    ----------
    shape
        Of a row.

    Attributes
    ----------
    numbers
        `[C, *shape]` float32, by place.

    Examples
    --------
    >>> rows = SharedRows((2,))
    >>> places = rows.copied(np.array([ZERO, ZERO]))
    >>> rows.numbers[places] = [[1, 2], [3, 4]]
    >>> rows.release_all_but(np.array([places[1], NONE]))
    >>> rows.copied(places[1:]).tolist() == places[:1].tolist(), rows.numbers[places].tolist()
    (True, [[3.0, 4.0], [3.0, 4.0]])
    """

    def __init__(self, shape: tuple[int, ...]):
        self.numbers: npt.NDArray[np.float32] = np.zeros((16, *shape), np.float32)
        self._used = np.zeros(17, np.bool_)  # the last is for `NONE`
        self._used[[ZERO, NONE]] = True

    def distinct(self, places: Slots) -> Slots:
        """Return the places among these, each once, in ascending order; without `NONE`."""
        marked = np.zeros(len(self._used), np.bool_)
        marked[places] = True
        return np.flatnonzero(marked[:-1])

    def copied(self, places: Slots) -> Slots:
        """Return new places `[m]`, with copies of the rows at `places` `[m]`."""
        new = self._taken(len(places))
        flat = self._flat
        share_out(lambda first, last: _copy(first, last, flat, places, new), len(places), len(places) * flat.shape[1])
        return new

    def mixed(self, places: Slots, shares: npt.NDArray[np.float64]) -> Slots:
        """Return new places `[m]`, with the sums over `[m, W]` places of share times row, in order, in float32."""
        new = self._taken(len(places))
        flat, factors = self._flat, shares.astype(np.float32)
        work = int((shares != 0).sum()) * flat.shape[1]
        share_out(lambda first, last: _mix(first, last, flat, places, factors, new), len(places), work)
        return new

    @property
    def _flat(self) -> npt.NDArray[np.float32]:
        return self.numbers.reshape(len(self.numbers), -1)

    def _taken(self, count: int) -> Slots:
        """Return so many new places, whatever lies there."""
        free = np.flatnonzero(~self._used)
        if len(free) < count:
            have = len(self.numbers)
            more = max(have // 2, count - len(free))
            self.numbers = np.concatenate([self.numbers, np.zeros((more, *self.numbers.shape[1:]), np.float32)])
            self._used = np.concatenate([self._used[:-1], np.zeros(more, np.bool_), [True]])
            free = np.concatenate([free, np.arange(have, have + more)])
        new = free[:count]
        self._used[new] = True
        return new

    def release_all_but(self, places: Slots) -> None:
        """Let go of every row that is not at one of these places."""
        self._used[:] = False
        self._used[places] = True
        self._used[[ZERO, NONE]] = True

    def by_place(self, places: Slots, numbers: npt.NDArray[Any], nothing: float) -> npt.NDArray[Any]:
        """Return a table to look numbers up by place: those at `places`; `nothing` elsewhere, for `NONE` too."""
        table = np.full((len(self._used), *numbers.shape[1:]), nothing, numbers.dtype)
        table[places] = numbers
        return table


@numba.njit(cache=True, nogil=True)
def _copy(first: Any, last: Any, rows: Any, sources: Any, targets: Any) -> None:
    for i in range(first, last):
        for j in range(rows.shape[1]):
            rows[targets[i], j] = rows[sources[i], j]


# No fused multiply-adds here: each operation is rounded by itself, as torch does.
@numba.njit(cache=True, nogil=True)
def _mix(first: Any, last: Any, rows: Any, places: Any, shares: Any, targets: Any) -> None:
    for i in range(first, last):
        target = rows[targets[i]]
        target[:] = 0
        for way in range(places.shape[1]):
            share = shares[i, way]
            if share != 0:
                source = rows[places[i, way]]
                for j in range(len(target)):
                    target[j] += share * source[j]
