"""What every source is: partitions of lines in, chunks and positions out.

A source has partitions (a file is one, standard input is one), and each is an endless row of bytes that only grows. A
place in it is a byte offset, always at the end of a line. Offsets count decompressed bytes and go on counting when a
log is rotated, so that a partition's name and an offset name a line for good.

The consumer stores one `Position` for each partition, in the transaction that holds what the lines before it did. A
source that opens with these positions gives out exactly the lines behind them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from stream.event import Rejection
from stream.sources.gap import Gap
from stream.sources.position import Position

CHUNK_BYTES = 256 * 1024
"""Bytes that a source reads at a time, and so about the size of a chunk."""


class EndOfInput(Exception):  # noqa: N818 (an end, like StopIteration, and not an error)
    """There is nothing more to read, now or ever; or the source was closed."""


class Mark(ABC):
    """What a source attaches to a chunk, so that a position in it can be told without the source."""

    @abstractmethod
    def identity(self, chunk: Chunk, count: int) -> dict[str, JsonValue]:
        """Return the identity of the place after the chunk's first `count` lines, `count` ≥ 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some whole lines of one partition, in order. Never empty, never changed once it is handed out.

    Attributes
    ----------
    partition
        The partition's name.
    start
        Offset of the first line.
    lines
        The lines, without their newlines. A last line without a newline is a line too.
    ends
        Offset after each line, and after its newline if it has one.
    first_line
        Number of the first line in the partition, from 1.
    truncated
        Index of a line cut at `stream.event.LINE_CAP` → its true length in bytes, without the newline.
    faults
        Index of an entry that is no line of the input but a rejection that the source itself makes (a damaged
        compressed file) → the rejection. The entry's bytes are what was read of the line before the fault; maybe none.
    mark
        The source's own.
    """

    partition: str
    start: int
    lines: list[bytes]
    ends: list[int]
    first_line: int
    mark: Mark
    truncated: Mapping[int, int] = field(default_factory=dict)
    faults: Mapping[int, Rejection] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def line_start(self, index: int) -> int:
        """Return the offset at which line `index` starts."""
        return self.ends[index - 1] if index else self.start

    def length(self, index: int) -> int:
        """Return the true length of line `index` in bytes, without its newline."""
        return self.truncated.get(index, len(self.lines[index]))

    def is_terminated(self, index: int) -> bool:
        """Say whether line `index` has its newline; only the last one of a file may lack it."""
        return self.ends[index] - self.line_start(index) > self.length(index)

    def position(self, count: int) -> Position:
        """Return the position to store when the first `count` lines of this chunk have been processed.

        Needs nothing of the source, which may be reading on in another thread, or be closed.
        """
        if not 1 <= count <= len(self.lines):
            raise ValueError(f"count: expected 1 to {len(self.lines)} lines of the chunk, got {count}")
        return Position(
            offset=self.ends[count - 1],
            lines=self.first_line + count - 1,
            identity=self.mark.identity(self, count),
        )


class Source(ABC):
    """Where lines come from. The life of one:

    1. Construction takes settings and touches nothing.
    2. ``open(positions)``, once, before anything else: `{}` for a fresh start, or the stored position of each
       partition. It checks that the content is still the one that the positions were taken from. If it is not, or
       a file cannot be read, it raises `ConfigurationError`; no line is ever skipped or given twice to get over that,
       unless somebody accepted the gap: then it goes on in what is there now, and `gaps` tells.
       It may take long (a compressed file is decompressed up to its position), and `close` interrupts it.
    3. ``read(timeout)`` over and over, from one thread. A chunk; or None: nothing yet, ask again; or `EndOfInput`. The
       lines of a partition come in order and without gaps. A partition without follow ends where it ended at
       ``open``: what is appended later is not read.
    4. ``chunk.position(count)`` at any time, in any thread, even after `close`.
    5. ``backlog()`` and ``total_bytes`` at any time after `open`, in any thread.
    6. ``close()``, from any thread and any number of times: a ``read`` or ``open`` that waits returns at once, every
       later ``read`` raises `EndOfInput`, and all files are closed. Chunks handed out before stay good.

    What must never happen: a line lost, given twice, or given in part without saying so; memory that grows with the
    input, or with the length of a line; a write to the input.

    A subclass implements the three abstract methods and asks ``self._stop`` whenever it waits or works long.

    Attributes
    ----------
    counts
        Things worth counting that happened, by name, such as ``source_rotated``; each has been logged under that name.
    gaps
        What was missing at `open`, and accepted; none unless that was asked for.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gaps: list[Gap] = []
        self._stop = threading.Event()
        self._at_work = threading.Lock()

    def open(self, positions: Mapping[str, Position]) -> None:
        """Be ready to give the lines behind `positions` (partition → position; a partition without one: all its lines).

        Raises
        ------
        ConfigurationError
            What is to be read is not there, cannot be read, or is not what the positions were taken from.
        """
        with self._at_work:
            try:
                self._open(positions)
            except EndOfInput:  # closed meanwhile; `read` says so
                self._stop.set()
            except BaseException:
                self._stop.set()
                self._close()
                raise

    def beginnings(self) -> Mapping[str, Position]:
        """Return positions before the first line, of partitions that began since this was asked last: because their
        content is another than it was, or since their file may be renamed meanwhile. From any thread.

        Stored by the next checkpoint: a file that is renamed before a line of it is committed is found again, and a
        gap is accepted once.
        """
        return {}

    def passed(self, positions: Mapping[str, Position]) -> None:  # noqa: B027 (optional)
        """Note that these partitions were taken in up to there. From any thread."""

    def left(self) -> Mapping[str, Position]:
        """Return positions that hold what was read and not taken in, of an input that cannot give it again.

        Stored by the last checkpoint of a run that was told to stop; asked for when nothing is read any more.
        """
        return {}

    def read(self, timeout: float) -> Chunk | None:
        """Return the next chunk, or None when none came within `timeout` seconds (0: what is there now).

        Raises
        ------
        EndOfInput
            There is nothing more, or the source was closed.
        ConfigurationError
            What is being read turned out not to be what the positions were taken from.
        """
        with self._at_work:
            if self._stop.is_set():
                raise EndOfInput
            return self._read(timeout)

    def close(self) -> None:
        """Stop reading and close all files."""
        self._stop.set()
        self._wake()
        with self._at_work:
            self._close()

    def backlog(self) -> int | None:
        """Return the bytes, as stored (compressed ones if they are), not yet read; None where nobody can know."""
        return None

    @property
    def total_bytes(self) -> int | None:
        """Bytes, as stored, that are read from the first line to the end; None where nobody can know."""
        return None

    @abstractmethod
    def _open(self, positions: Mapping[str, Position]) -> None:
        """Do what `open` says."""

    @abstractmethod
    def _read(self, timeout: float) -> Chunk | None:
        """Do what `read` says."""

    @abstractmethod
    def _close(self) -> None:
        """Close all files. May be called more than once, and after an `_open` that failed half way."""

    def _wake(self) -> None:  # noqa: B027 (optional)
        """Interrupt a wait that does not watch ``self._stop``."""
