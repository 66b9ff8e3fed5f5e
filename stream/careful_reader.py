"""The reader of a careful run: one line at a time, on the loop's own thread, until nothing kills any more."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from pydantic import JsonValue

from stream.batch import Prepared, letter_of
from stream.crash_guard import IN_A_ROW, CrashGuard
from stream.crash_note import Line
from stream.event import Reason
from stream.reader import Reader
from stream.sources.source import Chunk, EndOfInput, Mark, Source

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PartMark(Mark):
    """The mark of some lines of a chunk: what the whole chunk's says, so that positions are the same."""

    whole: Chunk
    first: int

    def identity(self, chunk: Chunk, count: int) -> dict[str, JsonValue]:
        """Return the identity of the place after the part's first `count` lines."""
        return self.whole.mark.identity(self.whole, self.first + count)


def part_of(chunk: Chunk, first: int, end: int) -> Chunk:
    """Return the lines of a chunk from number `first` to before number `end`, as a chunk.

    Examples
    --------
    >>> class Nothing(Mark):
    ...     def identity(self, chunk, count):
    ...         return {"last": chunk.lines[count - 1].decode()}
    >>> chunk = Chunk("talk", 100, [b"one", b"two", b"six"], [104, 108, 112], 7, Nothing(), truncated={1: 30})
    >>> part = part_of(chunk, 1, 3)
    >>> part.line_start(0), part.first_line, part.lines, part.length(0)
    (104, 8, [b'two', b'six'], 30)
    >>> part.position(1) == chunk.position(2)
    True
    """
    return Chunk(
        partition=chunk.partition,
        start=chunk.line_start(first),
        lines=chunk.lines[first:end],
        ends=chunk.ends[first:end],
        first_line=chunk.first_line + first,
        mark=PartMark(chunk, first),
        truncated={index - first: length for index, length in chunk.truncated.items() if first <= index < end},
        faults={index - first: fault for index, fault in chunk.faults.items() if first <= index < end},
    )


class CarefulReader:
    """Stands in for a `Reader` while its guard is careful; then starts it, and passes on what it gives.

    What could kill is done by one thread, so that the line that is noted is the one that did: while a line is at hand,
    nothing is read, and no other line is handed out before it is committed.

    Parameters
    ----------
    reader
        Not started.
    source
        Its source, open.
    guard
        Begun.
    """

    def __init__(self, reader: Reader, source: Source, guard: CrashGuard):
        self._reader, self._source, self._guard = reader, source, guard
        self._chunk: Chunk | None = None
        self._next = 0
        self._started = False

    def start(self) -> None:
        """Say that this run is careful. The reader starts when there is no need for that any more."""
        log.warning(
            "careful",
            offsets=self._guard.offsets,
            hint="runs died here without progress: lines are taken one at a time, until the one that kills is found or "
            "passed",
        )
        if self._guard.hopeless:
            log.error(
                "crashing",
                file=str(self._guard.path),
                hint=f"{IN_A_ROW} lines in a row killed it, so it cannot be the lines, and no more are refused: look "
                "for another cause, such as too little memory; without this file, as many more are",
            )

    def stop(self) -> None:
        """Close the source; no more lines are handed out."""
        self._reader.stop()

    def join(self) -> None:
        """Wait for the reader's thread to end."""
        self._reader.join()

    @property
    def waiting(self) -> int:
        """Chunks read and not yet received."""
        return self._reader.waiting + (self._chunk is not None)

    def receive(self, timeout: float) -> Prepared | None:
        """Return the next line, or at full speed the next chunk; None where there is none, or one is at hand.

        Raises
        ------
        StopIteration
            The input has ended, or the run was told to stop.
        """
        if self._guard.pending:
            return None
        if self._guard.excused and not self._started:
            raise StopIteration
        if self._guard.careful:
            return self._one(timeout)
        if self._chunk is not None:
            rest, self._chunk = part_of(self._chunk, self._next, len(self._chunk)), None
            return self._reader.prepare(rest)
        if not self._started:
            self._started = True
            self._reader.start()
        return self._reader.receive(timeout)

    def _one(self, timeout: float) -> Prepared | None:
        if self._chunk is None:
            try:
                self._chunk = self._source.read(timeout)
            except EndOfInput:
                if not self._guard.excused:
                    self._guard.passed()
                raise StopIteration from None
            self._next = 0
            if self._chunk is None:
                return None
        part = part_of(self._chunk, self._next, self._next + 1)
        self._next += 1
        if self._next == len(self._chunk):
            self._chunk = None
        line = Line(part.partition, part.start, part.ends[0])
        if not self._guard.refuses(line.partition, line.start):
            self._guard.take(line)
            return self._reader.prepare(part)
        deaths = self._guard.deaths(line.partition, line.start)
        self._guard.take(line, refused=True)
        log.error(
            "line_crashed",
            partition=line.partition,
            offset=line.start,
            line=part.first_line,
            deaths=deaths,
            hint="each of so many runs died while it took in this line alone: it goes to the dead letters, unread",
        )
        detail = f"expected a line that can be taken in, got one over which {deaths} runs died"
        return Prepared(part, [], [], [], {0: letter_of(part, 0, Reason.CRASHED, detail)})
