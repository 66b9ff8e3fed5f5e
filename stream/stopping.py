"""A run that was told to stop: since when, and how much of its deadline is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event as Flag


class Stop:
    """Told once, by a signal's handler or by any thread, at any time.

    Parameters
    ----------
    deadline
        Seconds that the run has for what it has read already.
    clock
        Monotonic seconds.

    Examples
    --------
    >>> now = 100.0
    >>> stop = Stop(30.0, clock=lambda: now)
    >>> stop.told, stop.left()
    (False, inf)
    >>> stop.tell("the terminal is gone")
    >>> now += 12
    >>> stop.told, stop.left(), stop.hint
    (True, 18.0, 'the terminal is gone')
    """

    def __init__(self, deadline: float, clock: Callable[[], float] = time.monotonic):
        self.deadline = deadline
        self.hint: str | None = None
        """For the log: what told it, where that is worth a word."""
        self._clock = clock
        self._at: float | None = None
        self._flag = Flag()
        """Waited for on other threads only: a signal's handler sets it in the midst of whatever the loop's does."""

    def tell(self, hint: str | None = None) -> None:
        """Tell it. A second time changes nothing."""
        if self._at is None:
            self.hint = hint
            self._at = self._clock()
        self._flag.set()

    @property
    def told(self) -> bool:
        """Whether it was told."""
        return self._flag.is_set()

    def left(self) -> float:
        """Return the seconds until the deadline, below 0 after it; infinite where nobody told it to stop."""
        return float("inf") if self._at is None else self._at + self.deadline - self._clock()

    def wait(self) -> None:
        """Wait until it was told, or the run is over. Not on the loop's own thread."""
        self._flag.wait()

    def over(self) -> None:
        """Let go of whoever waits: the run has ended."""
        self._flag.set()
