"""Opening a file to read bytes from, and looking at how it begins."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from zlib import crc32

from stream.sources.byte_stream import ByteStream, CorruptFile, open_bytes
from stream.sources.source import CHUNK_BYTES

Opener = Callable[[Path], int]


def open_readonly(path: Path) -> int:
    """Open a file to read bytes from."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def open_stream(path: Path, *, fixed: bool, opener: Opener = open_readonly) -> ByteStream:
    """Open a file at its start; if `fixed`, only what is in it now will be read."""
    fd = opener(path)
    try:
        return open_bytes(fd, path.name, os.fstat(fd).st_size if fixed else None)
    except BaseException:
        os.close(fd)
        raise


def read_head(stream: ByteStream, length: int) -> bytes:
    """Return up to `length` first bytes of a stream at its start."""
    head = b""
    while len(head) < length and (block := stream.read(length - len(head))):
        head += block
    return head[:length]


def is_longer(path: Path, length: int) -> bool:
    """Say whether a file has more than `length` bytes, decompressed. One that cannot be read that far has not."""
    try:
        with closing(open_stream(path, fixed=True)) as stream:
            while stream.offset <= length and stream.read(CHUNK_BYTES):
                pass
            return stream.offset > length
    except (CorruptFile, OSError):
        return False


def has_head(path: Path, length: int, crc: int, *, if_unfinished: bool = False) -> bool:
    """Say whether a file's first `length` decompressed bytes have this CRC32. A file that cannot be read has not.

    Of a compressed file that stops short before, and so may still be being written, `if_unfinished` is said.
    """
    try:
        with closing(open_stream(path, fixed=True)) as stream:
            head = read_head(stream, length)
            if len(head) == length:
                return crc32(head) == crc
            return if_unfinished and (stream.stopped_short or not stream.raw_size())
    except (CorruptFile, OSError):
        return False
