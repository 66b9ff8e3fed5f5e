"""Going on in what is there instead of what was read before: from its start, or behind what counts as read of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from stream.sources.byte_stream import ByteStream, CorruptFile, PlainBytes
from stream.sources.file_identity import HEAD_BYTES, TAIL_BYTES, FileIdentity
from stream.sources.file_mark import Place
from stream.sources.gap import begins_alike, steps_of
from stream.sources.open_file import read_head
from stream.sources.source import CHUNK_BYTES, EndOfInput


@dataclass(frozen=True, slots=True)
class Entered:
    """A file in which reading goes on.

    Attributes
    ----------
    stream
        Its bytes, behind those that count as read.
    head
        The first of these, at most `HEAD_BYTES`.
    tail
        The last of these, at most `TAIL_BYTES`.
    """

    stream: ByteStream
    head: bytes
    tail: bytes

    @property
    def in_line(self) -> bool:
        """Say whether that is in the middle of a line: what follows up to the newline is the rest of one."""
        return bool(self.tail) and not self.tail.endswith(b"\n")

    def place(self, name: str, before: Place) -> Place:
        """Return the place, in the partition that had got to `before`."""
        status, known = os.fstat(self.stream.fd), self.stream.offset
        is_plain = isinstance(self.stream, PlainBytes)
        identity = FileIdentity(
            base=before.offset - known,
            name=name,
            device=status.st_dev,
            inode=status.st_ino,
            size=self.stream.raw_size(),
            head_length=len(self.head),
            head_crc=crc32(self.head),
            head_steps=steps_of(self.head),
            tail_length=len(self.tail),
            tail_crc=crc32(self.tail),
            complete=is_plain and 0 < known == self.stream.raw_size(),
            unterminated=self.in_line,
            earlier=before.identity.earlier,
            packed=not is_plain,
            mtime_ns=status.st_mtime_ns,
        )
        return Place(before.offset, before.lines, identity)


def enter(reopen: Callable[[], ByteStream], before: Place, stop: threading.Event) -> Entered:
    """Open a file that is not the one of a place, at its start; or, if it begins like that one, behind as much.

    Where it departs from what was read nobody can tell then: nothing is read twice.

    Raises
    ------
    EndOfInput
        `stop` was set meanwhile.
    OSError
        It cannot be opened or read.
    """
    identity, consumed = before.identity, before.offset - before.identity.base
    stream = reopen()
    try:
        head = b""
        try:
            head = read_head(stream, min(consumed, HEAD_BYTES))
            if begins_alike(head, identity.head_length, identity.head_crc, identity.head_steps):
                return Entered(stream, head, _pass_over(stream, head, consumed, stop))
        except CorruptFile:  # and will be once more when it is read: then there is a record of it
            pass
    except BaseException:
        stream.close()
        raise
    stream.close()
    return Entered(reopen(), b"", b"")


def _pass_over(stream: ByteStream, head: bytes, consumed: int, stop: threading.Event) -> bytes:
    """Go on to `consumed` bytes from the start, or to the end; return the bytes before that."""
    if isinstance(stream, PlainBytes):
        known = min(consumed, stream.raw_size())
        length = min(known, TAIL_BYTES)
        stream.seek(known)
        return os.pread(stream.fd, length, known - length)
    tail = head[-TAIL_BYTES:]
    while stream.offset < consumed:
        if stop.is_set():
            raise EndOfInput
        try:
            block = stream.read(min(CHUNK_BYTES, consumed - stream.offset))
        except CorruptFile:
            break
        if not block:
            break
        tail = (tail + block)[-TAIL_BYTES:]
    return tail
