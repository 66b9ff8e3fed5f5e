"""How far behind its events a consumer is, from the events' own times."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from stream.event import Event

SAMPLE = 16
"""Events of a micro-batch that are looked at: reading a date costs as much as a tenth of the whole work on an event."""


def lags(events: Sequence[Event], now: float) -> npt.NDArray[np.float64]:
    """Return seconds between the events' `ts` and `now`, of at most `SAMPLE` of them.

    Events without a time are left out; a time in the future counts as 0.

    Parameters
    ----------
    events
        In order.
    now
        Unix time in seconds.

    Examples
    --------
    >>> lags([Event("ann", "Hi", ts="1970-01-01T00:01:00Z"), Event("ann", "Hi", ts=99), Event("ann", "Hi")], now=100)
    array([40.,  1.])
    """
    step = max(1, -(-len(events) // SAMPLE))
    times = [seconds_of(event.ts) for event in events[::step]]
    return np.array([max(0.0, now - time) for time in times if time is not None])


def seconds_of(ts: str | float | None) -> float | None:
    """Return an event's `ts` as Unix time; None where there is none, or one that no clock shows, such as a leap second.

    Examples
    --------
    >>> seconds_of("2024-05-06T07:08:09.5+02:00"), seconds_of("1998-12-31T23:59:60Z"), seconds_of(None)
    (1714972089.5, None, None)
    """
    if not isinstance(ts, str):
        return None if ts is None else float(ts)
    try:
        time = datetime.fromisoformat(ts)
    except ValueError:
        try:
            time = datetime.fromisoformat(ts.upper())
        except ValueError:
            return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
