"""A connection to PostgreSQL that does not wait for ever.

A server that hangs, as one whose machine is stopped or whose disk does not answer, leaves its connections open and says
nothing. The network's own deadlines do not notice that: its kernel still confirms what is sent. So each wait for the
server has a deadline here, counted from the last sign of life. Then the connection is closed, and the error is that of
a connection that was cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import cache
from typing import Any

SILENCE = 30.0
"""Seconds for which a server may say nothing while it is waited for: less than what makes a loop count as stuck."""


def usual() -> float:
    """Return `SILENCE`.

    >>> usual()
    30.0
    """
    return SILENCE


def heard(
    work: Generator[Any, Any, Any],
    patience: Callable[[], float],
    give_up: Callable[[float], Exception],
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Any, Any, Any]:
    """Do what a generator of psycopg does, until nothing was heard of the server for too long.

    Parameters
    ----------
    work
        Yields what it waits for, and is sent what the socket is ready for: 0, several times a second, while it is not.
    patience
        Gives the seconds; asked anew each time, as a stop makes them fewer.
    give_up
        Is told the seconds that were waited, and returns what is raised.
    clock
        Monotonic seconds.

    Examples
    --------
    >>> def ask():
    ...     while not (yield "to read"):
    ...         pass
    ...     return "an answer"
    >>> now = iter([0.0, 0.1, 31.0])
    >>> waiting = heard(ask(), lambda: 30.0, lambda seconds: TimeoutError(seconds), lambda: next(now))
    >>> next(waiting), waiting.send(0)
    ('to read', 'to read')
    >>> waiting.send(0)
    Traceback (most recent call last):
    TimeoutError: 31.0
    """
    last = clock()
    try:
        wanted = next(work)
        while True:
            ready = yield wanted
            now = clock()
            if ready:
                last = now
            elif now - last > patience():
                raise give_up(now - last)
            wanted = work.send(ready)
    except StopIteration as done:
        return done.value


@cache
def connection_type(patience: Callable[[], float]) -> Any:
    """Return psycopg's connection, but one that gives up.

    Parameters
    ----------
    patience
        Gives the seconds for which the server may say nothing.
    """
    import psycopg

    class PatientConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, *more: Any, **options: Any) -> Any:
            def give_up(seconds: float) -> Exception:
                self.pgconn.finish()  # it may still do what it was sent: whether it did is seen when it is back
                return psycopg.OperationalError(f"the server said nothing for {seconds:.1f} s")

            return super().wait(heard(gen, patience, give_up), *more, **options)

    return PatientConnection
