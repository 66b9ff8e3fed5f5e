"""What a run says beside its work: never waited for.

A pipe whose reader is slow, stopped or gone must not stop the consumer. What it says goes through a thread of its own,
which writes to the descriptor and may well hang there: the thread is a daemon, and takes nothing with it.
"""

from __future__ import annotations

import logging
import os
import queue
import stat
from contextlib import suppress
from threading import Thread
from typing import TextIO

ROOM = 1_000
"""Records that wait for a slow reader of the log; more are dropped, and counted."""

PATIENCE = 2.0
"""Seconds that the end of a run waits for somebody to read what it said."""


def is_pipe(stream: TextIO) -> bool:
    """Say whether writing to a stream may wait for somebody who reads: it is a pipe or a socket.

    >>> with open(os.devnull, "w") as stream:
    ...     is_pipe(stream)
    False
    """
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # closed, or none of the system's
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def tell(text: str, stream: TextIO, patience: float = PATIENCE) -> bool:
    """Write a text, and say whether it was: False where the reader is gone or does not read within `patience` seconds.

    >>> import sys
    >>> tell("ready\\n", sys.stdout)
    ready
    True
    """
    if not is_pipe(stream):
        stream.write(text)
        stream.flush()
        return True
    with suppress(OSError):
        stream.flush()
    done: list[bool] = []
    thread = Thread(target=lambda: done.append(_write(stream.fileno(), text.encode())), name="telling", daemon=True)
    thread.start()
    thread.join(patience)
    return done == [True]


def _write(fd: int, data: bytes) -> bool:
    """Write all of it to the descriptor: a stream of Python's would hold a lock while it waits, and at exit as well."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        return False
    return True


class PatientHandler(logging.Handler):
    """Writes records to a pipe without waiting for its reader.

    The life of one: `emit` from any thread, which only puts the line into a queue; `close` at the end, which gives the
    reader a last moment.

    Parameters
    ----------
    stream
        Whose descriptor is written to.
    room
        Records that may wait.

    Examples
    --------
    >>> end, begin = os.pipe()
    >>> with os.fdopen(begin, "w") as stream:
    ...     handler = PatientHandler(stream)
    ...     handler.emit(logging.makeLogRecord({"msg": "no_room"}))
    ...     handler.close()
    >>> with os.fdopen(end) as read:
    ...     read.read()
    'no_room\\n'
    """

    def __init__(self, stream: TextIO, room: int = ROOM):
        super().__init__()
        self._stream = stream  # kept, so that the descriptor stays open
        self._lines: queue.Queue[str | None] = queue.Queue(room)
        self._dropped = 0
        self._gone = False
        self._thread = Thread(target=self._pass_on, args=(stream.fileno(),), name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; where there is no room it is dropped and counted."""
        if self._gone:
            return
        try:
            self._lines.put_nowait(self.format(record) + "\n")
        except queue.Full:
            self._dropped += 1
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Let what waits be read, for a moment."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._lines.put(None, timeout=PATIENCE)
                self._thread.join(PATIENCE)
        super().close()

    def _pass_on(self, fd: int) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if dropped:
                told = {"msg": f"log_dropped: {dropped} records, which nobody read", "levelname": "WARNING"}
                line = self.format(logging.makeLogRecord(told | {"levelno": logging.WARNING})) + "\n" + line
            if not _write(fd, line.encode("utf-8", "backslashreplace")):
                self._gone = True  # nobody reads it any more: the run goes on
                return
