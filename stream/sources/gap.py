"""A gap in a source: what was still to be read of a partition is gone, and what is there now is another content.

Nobody can say where a content that is gone ended. Known is where reading had got to, mostly how much there was at that
moment, and by checksums whether what is there now begins like what was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from stream.sources.position import Position

STEPS = tuple(64 << power for power in range(6))
"""Lengths, in bytes, of beginnings whose checksums are kept: a content that was cut short is known by the longest."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One that somebody accepted.

    Attributes
    ----------
    partition
        Where.
    start
        Offset from which on it is missing: all before it was read.
    end
        Offset up to which there was something to read when it was last looked at; None: not known.
    line
        Lines before it.
    why
        What was found in place of what was read.
    goes_on
        Name of the file that is read instead; None: there is nothing.
    known
        Bytes at its beginning that count as read, because it begins like what was read.
    position
        The place to store, from which the next run goes on.

    Examples
    --------
    >>> position = Position(offset=120, lines=3, identity={})
    >>> gap = Gap("log", 120, 500, 3, "it has 0 bytes", "log", 0, position)
    >>> str(gap)
    'from byte 120 to byte 500 or later'
    >>> gap.hint
    'log is read from its beginning; offsets go on counting'
    """

    partition: str
    start: int
    end: int | None
    line: int
    why: str
    goes_on: str | None
    known: int
    position: Position

    def __str__(self) -> str:
        return span(self.start, self.end)

    @property
    def hint(self) -> str:
        """What comes of it, for a person."""
        if self.goes_on is None:
            return "nothing is there now; should something come, it is read, and offsets go on counting"
        if not self.known:
            return f"{self.goes_on} is read from its beginning; offsets go on counting"
        return f"{self.goes_on} begins like what was read: its first {self.known} bytes are not read again"


def span(start: int, end: int | None) -> str:
    """Say from where to where something is missing, as far as it is known.

    >>> span(120, None)
    'from byte 120 to an unknown place'
    """
    return f"from byte {start} to {'an unknown place' if end is None else f'byte {end} or later'}"


def steps_of(head: bytes) -> tuple[int, ...]:
    """Return the CRC32 of each beginning of `head` that has one of the lengths `STEPS` and is not all of it.

    >>> len(steps_of(b"x" * 100)), len(steps_of(b"x" * 4096))
    (1, 6)
    """
    return tuple(crc32(head[:step]) for step in STEPS if step < len(head))


def begins_alike(head: bytes, length: int, crc: int, steps: Sequence[int]) -> bool:
    """Say whether a content that begins with `head` begins with what was read before, or is the beginning of it.

    Parameters
    ----------
    head
        The first bytes, as many as there are, up to `length`.
    length, crc, steps
        How many first bytes of what was read have checksums, the CRC32 of them, and that of shorter beginnings.

    Returns
    -------
    bool
        False too where there is too little to tell by: fewer than 64 bytes, and fewer than `length`.

    Examples
    --------
    >>> read = b"".join(b"line %d" % number for number in range(30))
    >>> known = len(read), crc32(read), steps_of(read)
    >>> begins_alike(read + b"more", *known), begins_alike(read[:100], *known), begins_alike(b"x" + read, *known)
    (True, True, False)
    """
    if len(head) >= length:
        return length > 0 and crc32(head[:length]) == crc
    longest = [(step, known) for step, known in zip(STEPS, steps, strict=False) if step <= len(head)][-1:]
    return any(crc32(head[:step]) == known for step, known in longest)
