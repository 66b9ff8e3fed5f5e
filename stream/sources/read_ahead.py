"""What was read of an input that cannot give it again, and is not taken in yet."""

from __future__ import annotations

from collections import deque
from threading import Lock

MOST_BYTES = 64 << 20
"""Bytes that are held. What is under way is far less; only a line that is longer comes to more."""


class ReadAhead:
    """Holds blocks of input until what is in them was taken in. Any thread may call it.

    Parameters
    ----------
    offset
        Where the first block begins.

    Examples
    --------
    >>> ahead = ReadAhead(100)
    >>> for block in (b"one\\ntw", b"o\\nthr"):
    ...     ahead.add(block)
    >>> ahead.pass_to(104)
    >>> ahead.behind(104)
    b'two\\nthr'
    >>> ahead.behind(108)
    b'thr'
    """

    def __init__(self, offset: int = 0, most: int = MOST_BYTES):
        self._blocks: deque[bytes] = deque()
        self._start = offset
        self._size, self._most = 0, most
        self._lock = Lock()

    def add(self, block: bytes) -> None:
        """Note a block that was read."""
        with self._lock:
            self._blocks.append(block)
            self._size += len(block)
            while self._size > self._most:
                self._drop()

    def pass_to(self, offset: int) -> None:
        """Let go of blocks that end there or before."""
        with self._lock:
            while self._blocks and self._start + len(self._blocks[0]) <= offset:
                self._drop()

    def behind(self, offset: int) -> bytes | None:
        """Return what was read behind an offset; None if not all of that is held."""
        with self._lock:
            if offset < self._start:
                return None
            return b"".join(self._blocks)[offset - self._start :]

    def _drop(self) -> None:
        gone = len(self._blocks.popleft())
        self._start += gone
        self._size -= gone
