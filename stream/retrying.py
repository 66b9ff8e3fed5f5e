"""What the disk or the database refuses for now: the run waits, says so, and does the same again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from monitors.metrics import Metrics
from stream.crash_guard import CrashGuard
from stream.stopping import Stop
from stream.store_errors import NO_ROOM, AwayError, FencedError, PassingError

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOOK = 0.2
"""Seconds between looks at whether the run was told to stop."""

PAUSES = wait_exponential(multiplier=0.1, max=10.0)
"""Seconds before the next try: 0.1, 0.2, 0.4, up to 10."""


class Insistence:
    """Does what may be refused for now as often as it takes.

    Parameters
    ----------
    metrics
        `ebbtide_waiting_for_room` is 1 while something is refused.
    guard
        Told that no line is at hand meanwhile.
    stop
        A run that was told to stop waits no longer than `may_go_on` allows.
    may_go_on
        After a stop: whether there is time left.
    tick
        Called while waiting, so that the run does not look stuck.
    clock
        Monotonic seconds.

    Examples
    --------
    >>> import errno
    >>> insist = Insistence(
    ...     Metrics(), CrashGuard(0, 1024), Stop(30.0), may_go_on=lambda: True, tick=lambda: print("waiting")
    ... )
    >>> answers = [OSError(errno.ENOSPC, "No space left on device"), 7]
    >>> def work():
    ...     answer = answers.pop(0)
    ...     if isinstance(answer, OSError):
    ...         raise answer
    ...     return answer
    >>> import structlog.testing
    >>> with structlog.testing.capture_logs() as logs:
    ...     insist(work)
    waiting
    waiting
    7
    >>> [entry["event"] for entry in logs]
    ['no_room', 'there_is_room_again']
    """

    def __init__(
        self,
        metrics: Metrics,
        guard: CrashGuard,
        stop: Stop,
        *,
        may_go_on: Callable[[], bool],
        tick: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.blocked: str | None = None
        """Why nothing is done now; None mostly."""
        self._metrics, self._guard, self._stop = metrics, guard, stop
        self._may_go_on, self._tick, self._clock = may_go_on, tick, clock
        self._lacks_room = True
        self._retrying = Retrying(
            retry=retry_if_exception(self._passes),
            wait=PAUSES,
            before_sleep=self._tell,
            sleep=self._sleep,
            reraise=True,
        )

    def __call__(self, work: Callable[[], T]) -> T:
        """Do it, and return what it returns.

        Raises
        ------
        EbbtideError, OSError
            Waiting does not help, or the run was told to stop and its deadline is over.
        """
        try:
            done = self._retrying(work)
        except FencedError:
            self._metrics.add("ebbtide_fenced_commits_total")
            raise
        if self.blocked is not None:
            log.info("there_is_room_again" if self._lacks_room else "the_store_is_back")
            self.blocked = None
            self._metrics.set("ebbtide_waiting_for_room", 0)
        return done

    def _passes(self, error: BaseException) -> bool:
        """Say whether to try again."""
        passes = isinstance(error, PassingError) or (isinstance(error, OSError) and error.errno in NO_ROOM)
        return passes and (not self._stop.told or self._may_go_on())

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if self.blocked is None:
            self._lacks_room = not isinstance(error, AwayError)
            what = "there is room" if self._lacks_room else "the database answers"
            log.error(
                "no_room" if self._lacks_room else "store_away",
                reason=str(error),
                hint=f"the run waits, reads nothing, and goes on when {what}",
            )
        self.blocked = str(error)
        self._metrics.set("ebbtide_waiting_for_room", 1)

    def _sleep(self, pause: float) -> None:
        until = self._clock() + pause
        with self._guard.waiting():
            while self._clock() < until and not self._stop.told:
                self._tick()
                time.sleep(min(LOOK, pause))
            if self._stop.told:
                time.sleep(LOOK)
        self._tick()
