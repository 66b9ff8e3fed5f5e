"""How fast requests and connections are taken: a burst at once, then evenly."""

from __future__ import annotations

import math


class Pace:
    """Spaces requests, or connections, out once a burst of them is used up.

    Parameters
    ----------
    rate
        How many a second in the long run.
    burst
        How many may come at once after a quiet time.

    Examples
    --------
    >>> pace = Pace(rate=4, burst=2)
    >>> [pace.delay(now=10.0) for _ in range(4)]
    [0.0, 0.0, 0.25, 0.5]
    >>> pace.delay(now=12.0)
    0.0
    """

    def __init__(self, rate: float, burst: int):
        self._spacing = 1 / rate
        self._slack = (burst - 1) / rate
        self._next = -math.inf

    def delay(self, now: float) -> float:
        """Return how many seconds a request that comes at `now` has to wait. Requests come in the order of `now`."""
        turn = max(self._next, now - self._slack)
        self._next = turn + self._spacing
        return max(0.0, turn - now)
