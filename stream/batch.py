"""Micro-batches: whole lines, in order, across streams, bounded by count, by tokens and by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from memory.backbones.backbone import Ids
from monitors.observations import Flags
from stream.dead_letters import DeadLetter
from stream.event import Event
from stream.sources.position import Position
from stream.sources.source import Chunk


@dataclass(slots=True)
class Prepared:
    """A chunk, parsed and tokenised: what the reader hands to the loop.

    Attributes
    ----------
    chunk
        The lines as they came.
    events, ids
        The accepted events with their token ids, in order, and `lines`: the index in the chunk of each one's line.
    dead
        The rejected lines, by their index in the chunk.
    seconds
        Stage → seconds that it took to prepare.
    """

    chunk: Chunk
    events: list[Event]
    ids: list[Ids]
    lines: list[int]
    dead: dict[int, DeadLetter]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class MicroBatch:
    """Consecutive lines that are processed and committed together.

    Attributes
    ----------
    events
        The accepted events, in input order.
    ids
        Their token ids, one array each.
    dead
        The rejected lines, in input order.
    origins
        Where each accepted event stood: a chunk, and the index of its line there.
    places, dead_places
        The numbers of the accepted events' lines in this batch, and of the rejected ones.
    positions
        Partition → where to go on after this batch.
    line_count, byte_count
        Lines and bytes of input that this batch stands for.
    token_count
        Tokens of the accepted events.
    seconds
        Stage → seconds that the reader took for the chunks that begin in this batch.
    """

    events: list[Event] = field(default_factory=list)
    ids: list[Ids] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    origins: list[tuple[Chunk, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    dead_places: list[int] = field(default_factory=list)
    positions: dict[str, Position] = field(default_factory=dict)
    line_count: int = 0
    byte_count: int = 0
    token_count: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def refuse(self, refused: Flags, reason: str, detail: str) -> None:
        """Make rejected lines of some of the events.

        Parameters
        ----------
        refused
            `[n]` bool: which.
        reason, detail
            As `DeadLetter` has them.
        """
        for row in np.flatnonzero(refused).tolist():
            chunk, line = self.origins[row]
            self.dead.append(letter_of(chunk, line, reason, detail))
            self.dead_places.append(self.places[row])
            self.token_count -= len(self.ids[row])
        order = np.argsort(self.dead_places, kind="stable").tolist()
        self.dead = [self.dead[row] for row in order]
        self.dead_places = [self.dead_places[row] for row in order]
        kept = np.flatnonzero(~refused).tolist()
        self.events = [self.events[row] for row in kept]
        self.ids = [self.ids[row] for row in kept]
        self.origins = [self.origins[row] for row in kept]
        self.places = [self.places[row] for row in kept]


def letter_of(chunk: Chunk, line: int, reason: str, detail: str) -> DeadLetter:
    """Return the dead letter of a line of a chunk.

    Parameters
    ----------
    chunk, line
        The line with this index in it.
    reason, detail
        As `DeadLetter` has them.
    """
    return DeadLetter(
        partition=chunk.partition,
        offset=chunk.line_start(line),
        line=chunk.first_line + line,
        reason=reason,
        detail=detail,
        raw=chunk.lines[line],
        length=chunk.length(line),
    )


class Batcher:
    """Cuts what the reader prepared into micro-batches.

    A batch ends when it holds `max_events` events, or as many rejected lines, or `max_tokens` tokens (an event is never
    split: one that is longer makes a batch of its own), or when `linger` seconds have passed since its first line.
    Where it ends changes how fast things go, never what comes out.

    Parameters
    ----------
    receive
        Called with a timeout in seconds; returns the next `Prepared`, or None when none came in time. Raises
        `StopIteration` at the end.
    max_events, max_tokens, linger
        The bounds.
    clock
        Monotonic seconds.
    """

    def __init__(
        self,
        receive: Callable[[float], Prepared | None],
        *,
        max_events: int,
        max_tokens: int,
        linger: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._receive, self._clock = receive, clock
        self.max_events, self.max_tokens, self.linger = max_events, max_tokens, linger
        self._current: Prepared | None = None
        self._line = 0  # next line of the current chunk
        self._event = 0  # next event of the current chunk
        self._ended = False

    def batches(self, idle: float) -> Iterator[MicroBatch | None]:
        """Yield batches until the input ends; None after `idle` seconds without any."""
        while True:
            batch = self._next(idle)
            if batch is not None or not self._ended:
                yield batch
            if self._ended and self._current is None:
                return

    def _next(self, idle: float) -> MicroBatch | None:
        batch, deadline = MicroBatch(), self._clock() + idle
        while True:
            if self._current is None and not self._fetch(max(0.0, deadline - self._clock())):
                return batch if batch.line_count else None
            if not batch.line_count:
                deadline = self._clock() + self.linger
            if self._fill(batch):
                return batch

    def _fetch(self, timeout: float) -> bool:
        if self._ended:
            return False
        try:
            self._current = self._receive(timeout)
        except StopIteration:
            self._ended = True
        self._line = self._event = 0
        return self._current is not None

    def _fill(self, batch: MicroBatch) -> bool:
        """Move lines of the current chunk into the batch; say whether the batch is full."""
        prepared = self._current
        assert prepared is not None
        chunk, full = prepared.chunk, False
        first = self._line
        while prepared.seconds:
            stage, seconds = prepared.seconds.popitem()
            batch.seconds[stage] = batch.seconds.get(stage, 0.0) + seconds
        while self._line < len(chunk):
            if self._event < len(prepared.events) and prepared.lines[self._event] == self._line:
                ids = prepared.ids[self._event]
                full = len(batch.events) >= self.max_events or (
                    bool(batch.events) and batch.token_count + len(ids) > self.max_tokens
                )
                if full:
                    break
                batch.events.append(prepared.events[self._event])
                batch.origins.append((chunk, self._line))
                batch.places.append(batch.line_count + self._line - first)
                batch.ids.append(ids)
                batch.token_count += len(ids)
                self._event += 1
            else:
                full = len(batch.dead) >= self.max_events
                if full:
                    break
                batch.dead.append(prepared.dead[self._line])
                batch.dead_places.append(batch.line_count + self._line - first)
            self._line += 1
        if self._line > first:
            batch.positions[chunk.partition] = chunk.position(self._line)
            batch.line_count += self._line - first
            batch.byte_count += chunk.ends[self._line - 1] - chunk.line_start(first)
        if self._line == len(chunk):
            self._current = None
        return full
