"""Where the time of a micro-batch goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Seconds by stage, added up.

    Parameters
    ----------
    clock
        Monotonic seconds.

    Examples
    --------
    >>> ticks = iter([0.0, 1.5, 2.0, 2.25])
    >>> stages = Stages(lambda: next(ticks))
    >>> for _ in range(2):
    ...     with stages("scan"):
    ...         pass
    >>> stages.seconds
    {'scan': 1.75}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of this block to the stage `name`, however the block ends."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start
