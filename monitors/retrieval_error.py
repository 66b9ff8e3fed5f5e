"""What a lane still returns for what it was taught, at all ages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from memory.lane_state import Column, Columns, Slots
from memory.probes import probe_errors
from monitors.observations import Flags, Floats

EACH = 2
"""Probes kept on each level."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The probes of n lanes, measured.

    Attributes
    ----------
    error
        `[n]` float64: the mean over the lane's probes of ‖S k − v‖ / ‖v‖; NaN for a lane without probes.
    errors
        `[n, P]` float64: each probe's error, the mean over heads; NaN for an empty place.
    ages
        `[n, P]` int64: segments written since the probe's own; −1 for an empty place.
    """

    error: Floats
    errors: Floats
    ages: npt.NDArray[np.int64]


class RetrievalErrorMonitor:
    """A bounded set of remembered (key, value) pairs of each lane, and the state's error on them.

    Which pairs: segment n of a lane (n = 1, 2, …) goes to level min(number of trailing zero bits of n, `levels` − 1),
    and each level keeps its last two. Level l is reached every 2^(l+1) segments (the top one every 2^l), so its two
    probes are at most 2^(l+2) segments old, and at least one is older than 2^l once the stream is: every age up to
    2^`levels` has a probe within a factor of 4 of it. No randomness, no search, and the same probes whatever the batch.

    Parameters
    ----------
    heads, rank
        H (layers times heads) and R.
    levels
        Two probes on each.

    Examples
    --------
    After 16 segments with 3 levels, the probes' ages in segments:

    >>> monitor = RetrievalErrorMonitor(1, 2, levels=3)
    >>> monitor.lanes.resize(1)
    >>> lane, pair = np.array([0]), np.ones((1, 1, 2), np.float32)
    >>> for _ in range(16):
    ...     monitor.remember(lane, pair, pair)
    >>> sorted(monitor.ages(lane)[0].tolist())
    [0, 1, 2, 3, 4, 6]
    """

    def __init__(self, heads: int, rank: int, levels: int = 8):
        self.levels = levels
        self.size = EACH * levels
        pair = (self.size, heads, rank)
        self.lanes = Columns(
            {
                "count": Column("int64"),
                "written": Column("int64", (self.size,), fill=0),  # the segment's number; 0 for an empty place
                "key": Column("float32", pair),
                "value": Column("float32", pair),
            }
        )

    def remember(self, slots: Slots, keys: npt.NDArray[np.float32], values: npt.NDArray[np.float32]) -> None:
        """Take in the pair that each lane's segment wrote.

        Parameters
        ----------
        slots
            `[n]` int64, all different.
        keys, values
            `[n, H, R]` float32.
        """
        counts = self._integers("count")
        counts[slots] += 1
        number = counts[slots]
        lowest_bit = number & -number
        level = np.minimum(np.frexp(lowest_bit.astype(np.float64))[1] - 1, self.levels - 1)
        stride = np.where(level < self.levels - 1, level + 1, level)  # the top level takes every multiple of 2^level
        place = EACH * level + ((number >> stride) & 1)
        self._integers("written")[slots, place] = number
        self.lanes["key"][slots, place] = keys
        self.lanes["value"][slots, place] = values

    def ages(self, slots: Slots) -> npt.NDArray[np.int64]:
        """Return the ages of the lanes' probes, `[n, P]` int64, in segments; −1 for an empty place."""
        written = self._integers("written")[slots]
        ages: npt.NDArray[np.int64] = np.where(written > 0, self._integers("count")[slots][:, None] - written, -1)
        return ages

    def measure(self, states: Tensor, slots: Slots) -> Retrieval:
        """Ask `states` `[S, H, R, R]` float32 for the probes of the lanes at `slots` `[n]`."""
        keys = cast("npt.NDArray[np.float32]", self.lanes["key"][slots])
        values = cast("npt.NDArray[np.float32]", self.lanes["value"][slots])
        ages = self.ages(slots)
        held: Flags = ages >= 0
        by_head = probe_errors(states, slots, keys, values).astype(np.float64)
        errors = np.where(held, by_head.mean(axis=2), np.nan)
        count = held.sum(axis=1)
        total = np.where(held, errors, 0.0).sum(axis=1)
        with np.errstate(invalid="ignore"):
            error = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return Retrieval(error, errors, ages)

    def _integers(self, name: str) -> npt.NDArray[np.int64]:
        return cast("npt.NDArray[np.int64]", self.lanes[name])
