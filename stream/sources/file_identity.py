"""How a file that was read before is known again: by where it is on the disk, and by checksums of what was read."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from stream.sources.byte_stream import COMPRESSED, ByteStream, CorruptFile, PlainBytes
from stream.sources.earlier import Earlier
from stream.sources.open_file import Opener, open_readonly, open_stream, read_head
from stream.sources.source import CHUNK_BYTES, EndOfInput

HEAD_BYTES = 4096
"""Bytes at the beginning of a file that its checksum covers."""

TAIL_BYTES = 4096
"""Bytes before the position, all of the last line, that the second checksum covers at most."""


class FileIdentity(BaseModel):
    """What a position in a file knows of that file.

    Attributes
    ----------
    base
        The partition's offset at which this file begins; more than 0 after a rotation.
    name
        The file's name when it was read.
    device, inode
        Where it was on the disk.
    size
        Its size when it was read, in bytes as stored.
    head_length, head_crc
        CRC32 of the first bytes consumed, at most `HEAD_BYTES` of them.
    head_steps
        CRC32 of shorter beginnings of them (`stream.sources.gap.STEPS`).
    tail_length, tail_crc
        CRC32 of the last bytes consumed, at most `TAIL_BYTES` of them and at most a line.
    complete
        All of the file, at that size, is consumed.
    corrupt
        Its compression turned out to be damaged here: nothing more can be read of it.
    unterminated
        The last line consumed had no newline.
    earlier
        With follow: the files that the partition read before this one and that are still there.
    packed
        It is compressed: its size says nothing of how much there is to read.
    mtime_ns
        When it had last been written to, as in `os.stat`; 0: not known.
    passed
        The file was gone, and somebody accepted that: whatever comes in its place is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["file"] = "file"
    base: NonNegativeInt
    name: str
    device: int
    inode: int
    size: NonNegativeInt
    head_length: NonNegativeInt
    head_crc: NonNegativeInt
    head_steps: tuple[NonNegativeInt, ...] = ()
    tail_length: NonNegativeInt
    tail_crc: NonNegativeInt
    complete: bool = False
    corrupt: bool = False
    unterminated: bool = False
    earlier: tuple[Earlier, ...] = ()
    packed: bool = False
    mtime_ns: int = 0
    passed: bool = False

    def known_end(self, consumed: int) -> int | None:
        """Return the partition's offset up to which there was something to read, where it is more than was consumed."""
        packed = self.packed or self.name.endswith(COMPRESSED)
        return self.base + self.size if not packed and self.size > consumed else None


class OtherContent(Exception):  # noqa: N818 (a finding, which its reader words as an error)
    """A file does not hold what was read before."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """A file known again: its stream, which goes on behind what was consumed, and its first bytes."""

    stream: ByteStream
    head: bytes


def reopen(
    path: Path,
    identity: FileIdentity,
    consumed: int,
    *,
    fixed: bool,
    stop: threading.Event,
    opener: Opener = open_readonly,
) -> Reopened:
    """Open a file at `consumed` decompressed bytes from its start, having checked that they are the ones read before.

    If `fixed`, only what is in the file now will be read.

    Raises
    ------
    OtherContent
        They are not; the message says what differs.
    EndOfInput
        `stop` was set meanwhile.
    OSError
        The file cannot be opened or read.
    """
    stream = open_stream(path, fixed=fixed, opener=opener)
    try:
        if isinstance(stream, PlainBytes):
            size = stream.raw_size()
            if size < consumed:
                raise OtherContent(f"it has {size} bytes, fewer than the {consumed} that were read")
            head = os.pread(stream.fd, min(consumed, HEAD_BYTES), 0)
            _check_head(head, identity, consumed)
            tail = os.pread(stream.fd, identity.tail_length, consumed - identity.tail_length)
            stream.seek(consumed)
        else:
            head, tail = _pass_over(stream, identity, consumed, stop)
        if crc32(tail) != identity.tail_crc:
            raise OtherContent(f"the {identity.tail_length} bytes before byte {consumed} are others")
    except BaseException:
        stream.close()
        raise
    return Reopened(stream, head)


def _check_head(head: bytes, identity: FileIdentity, consumed: int) -> None:
    if len(head) < identity.head_length:
        raise OtherContent(f"it has {len(head)} bytes, fewer than the {consumed} that were read")
    if crc32(head[: identity.head_length]) != identity.head_crc:
        raise OtherContent(f"its first {identity.head_length} bytes are others")


def _pass_over(stream: ByteStream, identity: FileIdentity, consumed: int, stop: threading.Event) -> tuple[bytes, bytes]:
    """Decompress up to `consumed`, which is the only way to get there; return the head, and the tail before it."""
    try:
        tail = head = read_head(stream, min(consumed, HEAD_BYTES))
        _check_head(head, identity, consumed)
        while stream.offset < consumed:
            if stop.is_set():
                raise EndOfInput
            block = stream.read(min(CHUNK_BYTES, consumed - stream.offset))
            if not block:
                raise OtherContent(f"it has {stream.offset} bytes, fewer than the {consumed} that were read")
            tail = (tail + block)[-TAIL_BYTES:]
    except CorruptFile as error:
        raise OtherContent(f"it cannot be decompressed up to byte {consumed}: {error}") from None
    return head, tail[len(tail) - identity.tail_length :]
