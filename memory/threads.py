"""How many threads a compiled loop is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba

GRAIN = 1_000_000
"""Multiply-adds, or as much other work, below which one more thread costs more than it saves.

A parallel loop waits for its slowest thread. On a busy machine that can be a scheduler's turn, milliseconds; a million
multiply-adds take about a tenth of one.
"""


@contextmanager
def threads_for(operations: int) -> Iterator[None]:
    """Let the compiled loops in this block use as many threads as `operations` are worth, at most those allowed now.

    Examples
    --------
    >>> with threads_for(10):
    ...     numba.get_num_threads()
    1
    """
    allowed = numba.get_num_threads()
    numba.set_num_threads(max(1, min(allowed, operations // GRAIN)))
    try:
        yield
    finally:
        numba.set_num_threads(allowed)
