"""One file as a row of decompressed bytes, read forward only, whether it is plain, gzip or zstd."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import zstandard

_MAGIC_GZIP = b"\x1f\x8b"
_MAGICS_ZSTD = (
    b"\x28\xb5\x2f\xfd",
    *(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16)),
)  # a frame; skippable ones
_SLICE = 512  # compressed bytes taken at a time: no more than 16 MiB can come of them in either format
_RAW_BLOCK = 64 * 1024

COMPRESSED = (".gz", ".zst")
"""Endings of the names of compressed files."""


class CorruptFile(Exception):  # noqa: N818 (a finding about the file, which the source turns into a rejection)
    """A compressed file is damaged at this point."""


class ByteStream(ABC):
    """The bytes of one open file. It owns the descriptor.

    Attributes
    ----------
    fd
        The open file.
    offset
        Decompressed bytes given out.
    raw_offset
        Bytes of the file taken in.
    """

    def __init__(self, fd: int, limit: int | None):
        self.fd = fd
        self.offset = 0
        self.raw_offset = 0
        self._limit = limit

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer if there are no more now; none: nothing more now.

        Raises
        ------
        CorruptFile
            What comes next cannot be decompressed. All before it has been given out.
        """

    @property
    def stopped_short(self) -> bool:
        """Say whether the file, as far as it was read, ends where a whole one cannot."""
        return False

    def raw_size(self) -> int:
        """Return the bytes in the file now, or up to the limit."""
        size = os.fstat(self.fd).st_size
        return size if self._limit is None else min(size, self._limit)

    @property
    def exhausted(self) -> bool:
        """Say whether nothing more would come now. False may also mean: not known yet."""
        return self.raw_offset >= self.raw_size()

    def raw_rest(self) -> int:
        """Return the bytes of the file that are not yet decompressed."""
        return self.raw_size() - self.raw_offset

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _raw(self, size: int) -> bytes:
        """Return the file's next bytes, at most `size`."""
        if self._limit is not None:
            size = min(size, self._limit - self.raw_offset)
        # Reading by place leaves alone the descriptor's own, which others (a shell) may share.
        data = os.pread(self.fd, size, self.raw_offset) if size > 0 else b""
        self.raw_offset += len(data)
        return data


class PlainBytes(ByteStream):
    """A file that is not compressed."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes."""
        data = self._raw(size)
        self.offset = self.raw_offset
        return data

    def seek(self, offset: int) -> None:
        """Go on at `offset`."""
        self.offset = self.raw_offset = offset


class Decoder(Protocol):
    """What zlib and zstandard have in common: one member, or frame, of a compressed file."""

    @property
    def eof(self) -> bool: ...  # noqa: D102

    @property
    def unused_data(self) -> bytes: ...  # noqa: D102

    def decompress(self, data: bytes, /) -> bytes: ...  # noqa: D102


def _gzip_decoder() -> Decoder:
    return zlib.decompressobj(wbits=31)


def _zstd_decoder() -> Decoder:
    # A frame may ask for a window of at most 128 MiB: the library's own limit, so memory stays bounded.
    return zstandard.ZstdDecompressor().decompressobj()


class CompressedBytes(ByteStream):
    """A gzip or zstd file of any number of members or frames."""

    def __init__(self, fd: int, limit: int | None, new_decoder: Callable[[], Decoder]):
        super().__init__(fd, limit)
        self._new_decoder = new_decoder
        self._decoder: Decoder | None = None
        self._raw_block = b""
        self._at = 0
        self._surplus = memoryview(b"")
        self._error: str | None = None

    @property
    def stopped_short(self) -> bool:
        """Say whether a member or frame has begun and not ended."""
        return self._decoder is not None

    @property
    def exhausted(self) -> bool:
        """Say whether the file was read to the end of its last member or frame."""
        return self._decoder is None and not self._surplus and self._at >= len(self._raw_block) and super().exhausted

    def raw_rest(self) -> int:
        """Return the bytes of the file that are not yet decompressed."""
        return super().raw_rest() + len(self._raw_block) - self._at

    def read(self, size: int) -> bytes:
        """Decompress until `size` bytes have come, or the file ends."""
        parts: list[bytes | memoryview] = [self._surplus[:size]]
        self._surplus = self._surplus[size:]
        count = len(parts[0])
        while count < size and self._error is None:
            data = self._raw_block[self._at : self._at + _SLICE]
            if not data:
                self._raw_block, self._at = self._raw(_RAW_BLOCK), 0
                if not self._raw_block:
                    break
                continue
            try:
                part = self._decode(data)
            except (zlib.error, zstandard.ZstdError) as error:
                self._error = str(error)
                break
            if count + len(part) > size:
                self._surplus = memoryview(part)[size - count :]
                part = part[: size - count]
            parts.append(part)
            count += len(part)
        if self._error is not None and not count:
            raise CorruptFile(self._error)
        self.offset += count
        return b"".join(parts)

    def _decode(self, data: bytes) -> bytes:
        """Decompress the slice at hand, or what of it belongs to one member."""
        if self._decoder is None:
            padding = len(data) - len(data.lstrip(b"\0"))  # tapes and tar pad members with zeros
            if padding:
                self._at += padding
                return b""
            self._decoder = self._new_decoder()
        part = self._decoder.decompress(data)
        self._at += len(data)
        if self._decoder.eof:
            self._at -= len(self._decoder.unused_data)
            self._decoder = None
        return part


def open_bytes(fd: int, name: str, limit: int | None = None) -> ByteStream:
    """Make the stream that fits an open file: by its first bytes, else by its name.

    Parameters
    ----------
    fd
        The open regular file; the stream closes it.
    name
        The file's name.
    limit
        Bytes of the file that there are; None: all, also those that come later.
    """
    head = os.pread(fd, 4, 0)
    if head.startswith(_MAGIC_GZIP):
        return CompressedBytes(fd, limit, _gzip_decoder)
    if head.startswith(_MAGICS_ZSTD):
        return CompressedBytes(fd, limit, _zstd_decoder)
    if name.endswith(".gz"):
        return CompressedBytes(fd, limit, _gzip_decoder)
    if name.endswith(".zst"):
        return CompressedBytes(fd, limit, _zstd_decoder)
    return PlainBytes(fd, limit)
