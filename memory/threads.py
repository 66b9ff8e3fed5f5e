"""Sharing compiled work between threads, without waiting for a thread that the machine is not running.

A loop that is cut into as many parts as there are threads ends with its slowest part: on a busy machine that is a
scheduler's turn, milliseconds, for work of microseconds. Here the parts are more and smaller, and lie in a common
list: the caller's thread takes from it too, and a helper that has not begun when the list is empty is not waited for.

What is shared must be independent units, so that the bits depend neither on the number of threads nor on who took what.

torch's own threads do wait for each other. Its small operations are therefore run by one (`torch_threads(1)`), and
only a model's forward pass gets all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import torch

WORTH = 400_000
"""Multiply-adds, or as much other work, worth waking one more thread for: some tens of microseconds."""

PIECES = 4
"""Pieces for each thread: a thread that is held up leaves the rest of the list to the others."""


_threads = len(os.sched_getaffinity(0))


def threads() -> int:
    """Return how many threads Ebbtide may compute with: the cores it may run on, unless `set_threads` said
    otherwise."""
    return _threads


def set_threads(count: int) -> None:
    """Compute with so many threads from now on.

    Raises
    ------
    ValueError
        Fewer than one.
    """
    global _threads
    if count < 1:
        raise ValueError(f"expected at least one thread, got {count}")
    _threads = count


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch's operations in this block use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(operations: int, units: int) -> int:
    """Return how many threads so much work in so many units is worth."""
    return max(1, min(_threads, units, operations // WORTH))


def share_out(run: Callable[[int, int], None], units: int, operations: int) -> None:
    """Run units 0 to `units`, of like size, by as many threads as they are worth.

    Parameters
    ----------
    run
        Called with the first unit and the one after the last, by several threads; should release the interpreter.
    units
        Independent units of work.
    operations
        Multiply-adds in all, or as much other work.

    Examples
    --------
    >>> done = []
    >>> share_out(lambda first, last: done.extend(range(first, last)), 5, operations=100)
    >>> done
    [0, 1, 2, 3, 4]
    """
    count = threads_for(operations, units)
    cuts = [units * piece // (count * PIECES) for piece in range(count * PIECES + 1)]
    run_pieces(run, list(pairwise(cuts)) if count > 1 else [(0, units)], count)


def run_pieces(run: Callable[[int, int], None], pieces: Sequence[tuple[int, int]], count: int) -> None:
    """Run these pieces, each a range of units, by `count` threads, the caller's among them."""
    rest = iter(pieces)  # a list's iterator: two threads never get the same piece

    def take() -> None:
        for first, last in rest:
            if last > first:
                run(first, last)

    helpers = [_pool().submit(take) for _ in range(count - 1)]
    take()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun by now has nothing left to do
            helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="ebbtide-work")


os.register_at_fork(after_in_child=_pool.cache_clear)  # the helper threads stay behind in the parent
