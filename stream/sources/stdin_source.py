"""Lines from standard input, be it a pipe, a terminal or a file."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from memory.errors import ConfigurationError
from stream.sources.file_log import FileLog
from stream.sources.file_source import FileSource
from stream.sources.pipe_source import PipeSource
from stream.sources.position import Position
from stream.sources.source import Chunk, EndOfInput, Source


class StdinSource(Source):
    """Reads standard input as one partition, named ``stdin``.

    A regular file (``< FILE``) that nobody has read from yet is read like a file: a position is sought, and checked.
    Everything else is read like a pipe, see `PipeSource`.

    Parameters
    ----------
    follow
        Refused for a regular file, whose rotations cannot be seen from here; a pipe goes on as long as its writer does
        anyway.
    continues
        The input begins where the last one left off.
    accept_gap
        Whether to go on where the input is another than what was read before.
    fd
        The descriptor; it is borrowed, and not closed.
    """

    def __init__(self, *, follow: bool = False, continues: bool = False, accept_gap: bool = False, fd: int = 0):
        super().__init__()
        self.follow = follow
        self.continues = continues
        self.accept_gap = accept_gap
        self.fd = fd
        self._inner: Source | None = None

    def _open(self, positions: Mapping[str, Position]) -> None:
        self._inner = self._choose(positions)
        self.counts = self._inner.counts
        if self._stop.is_set():  # `close` may have come too early to see the inner source
            raise EndOfInput
        self._inner.open(positions)
        self.gaps = self._inner.gaps

    def beginnings(self) -> Mapping[str, Position]:
        """Those of what standard input turned out to be."""
        return self._inner.beginnings() if self._inner is not None else {}

    def _choose(self, positions: Mapping[str, Position]) -> Source:
        try:
            status = os.fstat(self.fd)
        except OSError as error:
            raise ConfigurationError(f"stdin: expected an open descriptor {self.fd}, got: {error.strerror}") from None
        if stat.S_ISDIR(status.st_mode):
            raise ConfigurationError("stdin: expected a file or a pipe, got a folder; use file:PATH")
        was_pipe = any(position.identity.get("kind") == "pipe" for position in positions.values())
        is_file = stat.S_ISREG(status.st_mode) and os.lseek(self.fd, 0, os.SEEK_CUR) == 0
        if not is_file or was_pipe or self.continues:
            return PipeSource(self.fd, continues=self.continues, accept_gap=self.accept_gap)
        if self.follow:
            raise ConfigurationError(
                "stdin: expected a pipe to follow, got a regular file; use file:PATH with --follow"
            )
        return _GivenFile(self.fd, self.accept_gap)

    def _read(self, timeout: float) -> Chunk | None:
        assert self._inner is not None, "read before open"
        return self._inner.read(timeout)

    def passed(self, positions: Mapping[str, Position]) -> None:
        """Pass it on."""
        if self._inner is not None:
            self._inner.passed(positions)

    def left(self) -> Mapping[str, Position]:
        """What a pipe that cannot give it again has left."""
        return self._inner.left() if self._inner is not None else {}

    def _wake(self) -> None:
        if self._inner is not None:
            self._inner.close()

    def _close(self) -> None:
        self._wake()

    def backlog(self) -> int | None:
        """Return the bytes not yet read of a regular file; None for a pipe."""
        return self._inner.backlog() if self._inner is not None else None

    @property
    def total_bytes(self) -> int | None:
        """Bytes in a regular file; None for a pipe."""
        return self._inner.total_bytes if self._inner is not None else None


class _GivenFile(FileSource):
    """A file that came as an open descriptor, without its name."""

    def __init__(self, fd: int, accept_gap: bool):
        super().__init__(Path("/dev/stdin" if fd == 0 else f"/dev/fd/{fd}"), accept_gap=accept_gap)
        self._fd = fd

    def _open(self, positions: Mapping[str, Position]) -> None:
        only = FileLog(
            "stdin",
            self.path,
            follow=None,
            stop=self._stop,
            clock=time.monotonic,
            counts=self.counts,
            opener=lambda _: os.dup(self._fd),
            accept_gap=self.accept_gap,
        )
        self._open_only(only, positions)
        self._note_gaps()
        self._total = os.fstat(self._fd).st_size
        self._note_rests()
