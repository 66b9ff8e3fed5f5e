"""A file that a partition has read to its end, remembered so that it is not read again under another name."""

from __future__ import annotations

from contextlib import closing
from zlib import crc32

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from stream.sources.byte_stream import CorruptFile
from stream.sources.open_file import has_head, open_stream, read_head
from stream.sources.siblings import Found, without_packing
from stream.sources.source import CHUNK_BYTES

_TELLING = 512
"""Bytes that are enough to know a file by, when its place on the disk may have passed to another."""


class Earlier(BaseModel):
    """What is remembered of such a file.

    Attributes
    ----------
    name
        Its name when last seen.
    device, inode, size, mtime_ns
        As in `os.stat`, when it was finished.
    length
        Its bytes, decompressed.
    head_length, head_crc
        CRC32 of the first ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    device: int
    inode: int
    size: NonNegativeInt
    mtime_ns: int
    length: NonNegativeInt
    head_length: NonNegativeInt
    head_crc: NonNegativeInt

    def is_at(self, found: Found, *, if_unfinished: bool) -> bool:
        """Say whether a file that was found is this one: renamed, compressed since, or just being compressed.

        Parameters
        ----------
        found
            The file.
        if_unfinished
            What to say of a compressed file that stops short, but may become this one.
        """
        if (found.device, found.inode) == (self.device, self.inode):
            if (found.size, found.mtime_ns) == (self.size, self.mtime_ns):
                return True
            # Written to since, or another file that was given the same place.
            grown = found.size > self.size and self.length >= _TELLING
            return grown and has_head(found.path, self.head_length, self.head_crc)
        repacked = found.path.name != self.name and without_packing(found.path.name) == without_packing(self.name)
        return repacked and self.is_content_of(found, if_unfinished=if_unfinished)

    def is_content_of(self, found: Found, *, if_unfinished: bool) -> bool:
        """Say whether a file, wherever it is, has this content and no more."""
        try:
            with closing(open_stream(found.path, fixed=True)) as stream:
                head = read_head(stream, self.head_length)
                if len(head) == self.head_length and crc32(head) != self.head_crc:
                    return False
                while stream.offset <= self.length and stream.read(CHUNK_BYTES):
                    pass
                if stream.stopped_short or not found.size:
                    return if_unfinished and stream.offset <= self.length
                return len(head) == self.head_length and stream.offset == self.length
        except (OSError, CorruptFile):
            return False
