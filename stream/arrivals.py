"""Events that came before, and events that came out of their order, told from each stream's own past.

A producer that sends again what it is not sure of sends events twice, with the same `id`. Of each stream the last ids
are remembered, as 64 bits each; what comes again while its id is remembered is a duplicate. (That two different
ids out of `window` have the same 64 bits happens once in 3·10¹⁷ events at a window of 64.)

The memory takes events as they come, whatever their `ts` says: a clock that jumps moves nothing. An event whose `ts` is
earlier than that of the one before it in its stream is counted, and that is all. It is compared with the one before it
and not with the latest: one time far in the future does not make all later ones late.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from memory.lane_state import Column, Columns, Slots
from monitors.observations import Flags, Floats
from stream.event import Event
from stream.lag import seconds_of
from stream.rounds import rounds

NO_ID = 0
"""Stands for an event without an id."""


class Arrivals:
    """What is remembered of each lane's last events.

    Parameters
    ----------
    window
        Ids that are remembered of each stream; 0: none, and nothing is a duplicate.

    Attributes
    ----------
    lanes
        `ids` `[window]` int64: a ring; `next`: where the next one goes; `ts`: of the last event, NaN where it had none.

    Examples
    --------
    >>> arrivals = Arrivals(window=2)
    >>> arrivals.lanes.resize(1)
    >>> lane = np.zeros(4, np.int64)
    >>> repeated, late = arrivals.take(lane, [Event("ann", "Hi", id=name) for name in "abab"])
    >>> repeated.tolist()
    [False, False, True, True]
    >>> arrivals.take(lane[:1], [Event("ann", "Hi", id="b", ts=5)])[0].tolist()
    [True]
    >>> arrivals.take(lane, [Event("ann", "Hi", ts=ts) for ts in (5, 9e9, 6, 7)])[1].tolist()
    [False, False, True, False]
    """

    def __init__(self, window: int):
        self.window = window
        columns = {"ids": Column("int64", (window,)), "next": Column("int64")} if window else {}
        self.lanes = Columns({**columns, "ts": Column("float64", fill=np.nan)})

    def take(self, slots: Slots, events: Sequence[Event]) -> tuple[Flags, Flags]:
        """Say which of these events came before, and which of the others are earlier than the one before them.

        Parameters
        ----------
        slots
            `[n]` int64: each event's lane.
        events
            In input order.
        """
        n = len(events)
        repeated, late = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        ids = _ids(events) if self.window and any(event.id is not None for event in events) else None
        times = _times(events) if any(event.ts is not None for event in events) else None
        if ids is None and times is None:
            return repeated, late
        for index in rounds(slots):
            lanes = slots[index]
            if ids is not None:
                repeated[index] = self._remember(lanes, ids[index])
            if times is not None:
                fresh = ~repeated[index] & ~np.isnan(times[index])
                lanes, now = lanes[fresh], times[index][fresh]
                late[index[fresh]] = now < self.lanes["ts"][lanes]
                self.lanes["ts"][lanes] = now
        return repeated, late

    def _remember(self, lanes: Slots, ids: Slots) -> Flags:
        """Return which ids are remembered, and remember the others. No lane is twice among `lanes`."""
        ring, place = self.lanes["ids"], self.lanes["next"]
        known: Flags = (ring[lanes] == ids[:, None]).any(axis=1) & (ids != NO_ID)
        fresh = ~known & (ids != NO_ID)
        lanes = lanes[fresh]
        ring[lanes, place[lanes]] = ids[fresh]
        place[lanes] = (place[lanes] + 1) % self.window
        return known


def _ids(events: Sequence[Event]) -> Slots:
    """Return 64 bits of each id."""
    nothing = bytes(8)
    parts = [nothing if event.id is None else blake2b(event.id.encode(), digest_size=8).digest() for event in events]
    return np.frombuffer(b"".join(parts), "<i8").astype(np.int64)


def _times(events: Sequence[Event]) -> Floats:
    """Return each `ts` as Unix time; NaN where there is none."""
    return np.array([np.nan if time is None else time for time in (seconds_of(event.ts) for event in events)])
