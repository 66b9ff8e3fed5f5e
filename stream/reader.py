"""The reader's thread: lines in, events with token ids out, a bounded queue between it and the loop."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np

from memory.backbones.backbone import Backbone, Ids
from stream.batch import Prepared, letter_of
from stream.dead_letters import DeadLetter
from stream.event import Event, EventParser, Rejection
from stream.sources.source import Chunk, EndOfInput, Source


class Reader:
    """Reads, parses and tokenises ahead of the loop, at most `depth` chunks.

    Life: `start()` once; `receive(timeout)` from the loop; `stop()` to end early: the source is closed, and what was
    read already can still be received. An error in the thread is raised by `receive`, after all that came before it.

    Parameters
    ----------
    source
        Open already.
    parser, backbone
        What turns a line into an event and its text into token ids.
    depth
        Chunks that may wait: this bounds the memory, and is how backpressure reaches the source.
    """

    def __init__(self, source: Source, parser: EventParser, backbone: Backbone, *, depth: int = 8):
        self._source, self._parser, self._backbone = source, parser, backbone
        self._queue: queue.Queue[Prepared | BaseException] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Close the source; what was read before can still be received."""
        self._stopping.set()
        self._source.close()

    def join(self) -> None:
        """Wait for the thread to end; nobody may be waiting to receive from it."""
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)  # it may be waiting for room
            except queue.Empty:
                continue

    @property
    def waiting(self) -> int:
        """Chunks read and not yet received."""
        return self._queue.qsize()

    def receive(self, timeout: float) -> Prepared | None:
        """Return the next chunk, or None when none came within `timeout` seconds.

        Raises
        ------
        StopIteration
            The input has ended.
        """
        try:
            item = self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, EndOfInput):
            self._queue.put(item)  # and again, should somebody ask again
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                chunk = self._source.read(0.2)
                if chunk is not None:
                    self._queue.put(self.prepare(chunk))
            self._queue.put(EndOfInput())
        except BaseException as error:  # the loop's thread raises it, EndOfInput included
            self._queue.put(error)

    def prepare(self, chunk: Chunk) -> Prepared:
        """Parse and tokenise one chunk."""
        events: list[Event] = []
        lines: list[int] = []
        dead: dict[int, DeadLetter] = {}
        parse, clock = self._parser.parse, time.perf_counter
        start = clock()
        for index, line in enumerate(chunk.lines):
            outcome = chunk.faults.get(index) or parse(line)
            if isinstance(outcome, Rejection):
                dead[index] = letter_of(chunk, index, outcome.reason, outcome.detail)
            else:
                events.append(outcome)
                lines.append(index)
        parsed = clock()
        texts = [event.text for event in events if event.text is not None]
        tokenised = iter(self._backbone.tokenize(texts))
        ids: list[Ids] = [
            next(tokenised) if event.tokens is None else np.array(event.tokens, np.int64) for event in events
        ]
        return Prepared(chunk, events, ids, lines, dead, {"parse": parsed - start, "tokenize": clock() - parsed})
