"""Lanes that are put aside: what an event would have made of their states is no number.

Such a lane is put back to what it was before that event, whole, and takes no further write until a person lets it go
on (`ebbtide act … release`, `reset`, `decay` or `restore`). Its events are still counted and have their records. No
other lane feels any of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memory.lane_state import Column, Columns, Slots
from memory.state_pool import LaneRecord, StatePool
from memory.writers import Batch
from monitors.observations import Flags, Floats

RISK = 1e9
"""A state's norm, or the size of a value, from which on a write may end in numbers that are none: before it, a copy of
the lane is made. A sound memory's norm is below 100."""

LIMIT = 1e18
"""A state's norm from which on it is as good as not finite: its square does not fit float32 any more."""

REASON = "quarantined: the state would not be finite"


class Quarantine:
    """Which lanes are put aside, and copies of those that may have to be.

    Attributes
    ----------
    lanes
        `since`: the number of the event that did it; −1: the lane is sound.
    """

    def __init__(self) -> None:
        self.lanes = Columns({"since": Column("int64", fill=-1)})

    def holds(self, slots: Slots) -> Flags:
        """Return which of these lanes are put aside."""
        held: Flags = self.lanes["since"][slots] >= 0
        return held

    def copy(
        self, pool: StatePool, names: Sequence[str], norms: Floats, batch: Batch, index: Slots
    ) -> dict[int, LaneRecord]:
        """Return copies of the lanes at risk, by their place in `index`.

        Parameters
        ----------
        pool
            Where they are.
        names
            The lanes' names.
        norms
            `[n]` float64: their states' norms; NaN where unknown.
        batch, index
            What is about to be written.
        """
        risky = (norms > RISK) | (batch.largest(index) > RISK)
        return {place: pool.record(names[place]) for place in np.flatnonzero(risky).tolist()}

    def put_aside(
        self,
        pool: StatePool,
        names: Sequence[str],
        slots: Slots,
        seq: Slots,
        sick: Flags,
        copies: dict[int, LaneRecord],
    ) -> Flags:
        """Put back those lanes whose states are too large or not finite now, and hold them; return which.

        A lane of which there is no copy begins again from zeros.

        Parameters
        ----------
        pool, names, copies
            As `copy` takes and returns them.
        slots, seq
            `[n]` int64: the lanes' slots, and the number of this event.
        sick
            `[n]` bool: those whose norm was not below `LIMIT` after the write; the others are not looked at.
        """
        held = np.zeros(len(slots), np.bool_)
        for place in np.flatnonzero(sick).tolist():
            slot = int(slots[place])
            if float(torch.linalg.vector_norm(pool.states[slot].double())) < LIMIT:
                continue  # the policy has dealt with it
            if place in copies:
                pool.put_back(names[place], copies[place])
            else:
                pool.states[slot] = 0
                for component in pool.beside.values():
                    component.clear(slots[place : place + 1])
            self.lanes["since"][slot] = seq[place]
            held[place] = True
        return held
