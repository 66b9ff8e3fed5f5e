"""Cuts blocks of bytes into lines, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from stream.event import LINE_CAP

_PIECES = 4096  # so that a line that grows byte by byte is not held as millions of objects


@dataclass(frozen=True, slots=True)
class Cut:
    """Lines cut from a block: the fields of a `Chunk` with the same names."""

    start: int
    lines: list[bytes]
    ends: list[int]
    first_line: int
    truncated: dict[int, int]


class LineCutter:
    """Takes blocks of any size and gives back whole lines; what is not yet a line waits.

    Of a line longer than `cap` the first `cap` bytes are kept and the rest is counted.

    Parameters
    ----------
    offset
        Where the first block begins.
    lines
        Lines before it.
    owed
        The line before the first block was taken without its newline: if the block begins with one, it is that line's.
        If it does not, that line has been continued, and the rest of it is taken for a line of its own.
    cap
        Bytes of one line that are kept.

    Examples
    --------
    >>> cutter = LineCutter()
    >>> cutter.feed(b"one\\ntw")
    Cut(start=0, lines=[b'one'], ends=[4], first_line=1, truncated={})
    >>> cutter.feed(b"o")
    >>> cutter.flush()
    Cut(start=4, lines=[b'two'], ends=[7], first_line=2, truncated={})
    """

    def __init__(self, offset: int = 0, lines: int = 0, owed: bool = False, cap: int = LINE_CAP):
        self.offset = offset
        self.lines = lines
        self.owed = owed
        self._cap = cap
        self._held: list[bytes] = []
        self._kept = 0
        self._length = 0

    @property
    def waiting(self) -> int:
        """Bytes of the line that waits for its newline, its true length. It begins at `offset`."""
        return self._length

    def feed(self, block: bytes) -> Cut | None:
        """Take the next bytes, at least one; return the lines that they complete, if any."""
        if self.owed:
            self.owed = False
            if block.startswith(b"\n"):
                self.offset += 1
                block = block[1:]
        lines = block.split(b"\n")
        rest = lines.pop()
        if not lines:
            self._hold(rest)
            return None
        lines[0], length = self._join(lines[0])
        lengths = list(map(len, lines))
        lengths[0] = length
        truncated = {}
        if max(lengths) > self._cap:
            truncated = {index: length for index, length in enumerate(lengths) if length > self._cap}
            for index in truncated:
                lines[index] = lines[index][: self._cap]
        cut = self._cut(lines, [length + 1 for length in lengths], truncated)
        self._hold(rest)
        return cut

    def flush(self, even_if_empty: bool = False) -> Cut | None:
        """Return the line that waits, if any, as one without a newline; if told so, even a line of no bytes."""
        if not self._length and not even_if_empty:
            return None
        line, length = self._join(b"")
        return self._cut([line], [length], {0: length} if length > self._cap else {})

    def drop(self) -> None:
        """Forget the line that waits."""
        self._held.clear()
        self._kept = self._length = 0

    def _cut(self, lines: list[bytes], lengths: list[int], truncated: dict[int, int]) -> Cut:
        start, first_line = self.offset, self.lines + 1
        lengths[0] += start
        ends = list(accumulate(lengths))
        self.offset = ends[-1]
        self.lines += len(lines)
        return Cut(start, lines, ends, first_line, truncated)

    def _hold(self, piece: bytes) -> None:
        """Add to the line that waits."""
        if not piece:
            return
        room = self._cap - self._kept
        if room > 0:
            self._held.append(piece[:room])
            self._kept += min(room, len(piece))
            if len(self._held) > _PIECES:
                self._held = [b"".join(self._held)]
        self._length += len(piece)

    def _join(self, end: bytes) -> tuple[bytes, int]:
        """Return the line that waits with its end, and its true length."""
        if not self._length:
            return end, len(end)
        self._hold(end)
        line, length = b"".join(self._held), self._length
        self.drop()
        return line, length
