"""Lines from a pipe: a descriptor that can be read once, from the front."""

from __future__ import annotations

import os
import select
import threading
import time
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import structlog
from pydantic import Base64Bytes, BaseModel, ConfigDict, JsonValue, NonNegativeInt, ValidationError

from memory.errors import ConfigurationError
from stream.sources.file_identity import HEAD_BYTES
from stream.sources.gap import Gap, begins_alike, span, steps_of
from stream.sources.line_cutter import Cut, LineCutter
from stream.sources.position import Position
from stream.sources.read_ahead import ReadAhead
from stream.sources.source import CHUNK_BYTES, Chunk, EndOfInput, Mark, Source

log = structlog.get_logger(__name__)


class PipeIdentity(BaseModel):
    """What a position in a pipe knows of what came before it.

    Attributes
    ----------
    base
        The partition's offset at which this input began; more than 0 when it continued an earlier one.
    crc
        CRC32 of all bytes since then.
    unterminated
        The last line consumed had no newline.
    head_length, head_crc, head_steps
        As `FileIdentity` has them.
    ahead
        What was read behind the position and not taken in, of input that will not come again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pipe"] = "pipe"
    base: NonNegativeInt
    crc: NonNegativeInt
    unterminated: bool = False
    head_length: NonNegativeInt = 0
    head_crc: NonNegativeInt = 0
    head_steps: tuple[NonNegativeInt, ...] = ()
    ahead: Base64Bytes = b""


@dataclass(frozen=True, slots=True)
class PipeMark(Mark):
    """Where this input began, its first bytes, and its checksum up to the end of the chunk's first line."""

    base: int
    head: bytes
    first_crc: int

    def identity(self, chunk: Chunk, count: int) -> dict[str, JsonValue]:
        """Return the `PipeIdentity` as JSON."""
        # Only the first line can be one whose bytes were not all kept (blocks are smaller than the cap), or one without
        # a newline (it comes alone).
        crc = self.first_crc
        if count > 1:
            crc = crc32(b"\n".join(chunk.lines[1:count]) + b"\n", crc)
        head = self.head[: chunk.ends[count - 1] - self.base]
        return PipeIdentity(
            base=self.base,
            crc=crc,
            unterminated=not chunk.is_terminated(count - 1),
            head_length=len(head),
            head_crc=crc32(head),
            head_steps=steps_of(head),
        ).model_dump(mode="json")


class PipeSource(Source):
    """Reads a descriptor from the front to its end. It is borrowed: not closed here.

    To go on from a position, the same input must be given again from its beginning: what was consumed is read once
    more, compared by checksum, and passed over. Or, with `continues`, the input begins where the last one left off.

    Parameters
    ----------
    fd
        The descriptor.
    partition
        The partition's name.
    continues
        The input goes on behind what was read: nothing is passed over, and the offset goes on counting. A run that is
        told to stop keeps what it read and could not take in, or was half a line, in its last position (`left`).
    accept_gap
        Whether to take input that is not the same again: what begins like it is passed over as far as it goes, anything
        else is read from its beginning.

    Examples
    --------
    >>> def given(data, **settings):
    ...     end, begin = os.pipe()
    ...     _ = os.write(begin, data)
    ...     os.close(begin)
    ...     return PipeSource(end, **settings)
    >>> source = given(b"one\\ntwo\\n")
    >>> source.open({})
    >>> position = source.read(timeout=1).position(1)
    >>> source = given(b"one\\ntwo\\n")
    >>> source.open({"stdin": position})
    >>> source.read(timeout=1).lines
    [b'two']
    >>> source = given(b"drei\\n", continues=True)
    >>> source.open({"stdin": position})
    >>> chunk = source.read(timeout=1)
    >>> chunk.start, chunk.lines
    (4, [b'drei'])
    """

    def __init__(self, fd: int = 0, *, partition: str = "stdin", continues: bool = False, accept_gap: bool = False):
        super().__init__()
        self.fd = fd
        self.partition = partition
        self.continues = continues
        self.accept_gap = accept_gap
        self._cutter = LineCutter()
        self._base = 0
        self._head = b""  # the first bytes since `base`
        self._crc = 0  # of all bytes since `base` that were read
        self._unread = b""  # read already, and to be read again
        self._begun: dict[str, Position] = {}
        self._ahead: ReadAhead | None = None
        self._taken = Position(offset=0, lines=0, identity=PipeIdentity(base=0, crc=0).model_dump(mode="json"))
        self._ended = False
        self._alarm: tuple[int, int] | None = None  # a pipe of our own, written to by `close`
        self._alarm_lock = threading.Lock()

    def _open(self, positions: Mapping[str, Position]) -> None:
        strangers = sorted(set(positions) - {self.partition})
        if strangers:
            raise ConfigurationError(
                f"stdin: expected a stored position of {self.partition!r}, got one of {strangers[0]!r}; "
                "read the same source as before, or begin anew with another state"
            )
        try:
            os.fstat(self.fd)
        except OSError as error:
            raise ConfigurationError(f"stdin: expected an open descriptor {self.fd}, got: {error.strerror}") from None
        self._alarm = os.pipe()
        position = positions.get(self.partition)
        if self.continues:
            self._go_on_behind(position or self._taken)
            return
        if position is None:
            return
        try:
            identity = PipeIdentity.model_validate(position.identity)
        except ValidationError:
            raise ConfigurationError(
                f"stdin: expected the stored position to be one in a pipe, got one of kind "
                f"{position.identity.get('kind')!r}; give the file itself again (stdin: < FILE), or "
                "--stdin-continues if this input begins where the last one left off"
            ) from None
        self._base = identity.base
        self._cutter = LineCutter(position.offset, position.lines, owed=identity.unterminated)
        self._pass_over(position, identity)

    def _go_on_behind(self, position: Position) -> None:
        """Begin with what an earlier run left, then what comes."""
        try:
            identity = PipeIdentity.model_validate(position.identity)
        except ValidationError:  # it was a regular file before
            identity = PipeIdentity(base=position.offset, crc=0)
        self._unread = identity.ahead
        self._taken = position.model_copy(update={"identity": identity.model_dump(mode="json", exclude={"ahead"})})
        self._base = position.offset
        self._cutter = LineCutter(position.offset, position.lines)
        self._ahead = ReadAhead(position.offset)

    def passed(self, positions: Mapping[str, Position]) -> None:
        """Let go of what was taken in."""
        if self._ahead is not None and self.partition in positions:
            self._taken = positions[self.partition]
            self._ahead.pass_to(self._taken.offset)

    def left(self) -> Mapping[str, Position]:
        """Return the position with what was read behind it."""
        if self._ahead is None:
            return {}
        read = self._ahead.behind(self._taken.offset)
        if read is None:
            log.error(
                "read_ahead_lost",
                partition=self.partition,
                offset=self._taken.offset,
                hint="a line of more than was held was under way; what was read of it cannot be read again",
            )
            read = b""
        if not read + self._unread:
            return {}
        identity = self._taken.identity | {"ahead": b64encode(read + self._unread).decode("ascii")}
        return {self.partition: self._taken.model_copy(update={"identity": identity})}

    def _pass_over(self, position: Position, identity: PipeIdentity) -> None:
        """Read what was consumed before, and see that it is the same."""
        count = position.offset - identity.base
        accepts = self.accept_gap and identity.head_length > 0
        first = self._read_all(min(count, HEAD_BYTES))
        alike = begins_alike(self._head, identity.head_length, identity.head_crc, identity.head_steps)
        if accepts and not alike:
            self._unread, self._head, self._crc = first, b"", 0
            why = "its first bytes are others" if first else "it has no bytes"
            self._go_on_instead(position, why, 0, b"")
            return
        rest, last = count - len(first), first[-1:]
        while rest and (block := self._read_block(None, rest)):
            rest, last = rest - len(block), block[-1:]
        if not rest and self._crc == identity.crc:
            return
        if rest:
            why = f"it has {count - rest} bytes, fewer than the {count} that were read"
            got = f"{count} bytes of which were read before, got only {count - rest}; give it from its beginning"
        else:
            sums = f"CRC32 {self._crc:08x}, not {identity.crc:08x}"
            why = f"its first {count} bytes are others ({sums})"
            got = f"got other content in its first {count} bytes ({sums}); give the same input"
        if not accepts:
            raise ConfigurationError(
                f"stdin: expected the same input again, {got}, or use --stdin-continues if this input begins where the "
                f"last one left off, or --accept-gap to go on without the rest of the old one: the gap goes "
                f"{span(position.offset, None)}"
            )
        self._go_on_instead(position, why, count - rest, last)

    def _read_all(self, size: int) -> bytes:
        """Return the next `size` bytes, or all if there are fewer."""
        got = b""
        while len(got) < size and (block := self._read_block(None, size - len(got))):
            got += block
        return got

    def _go_on_instead(self, position: Position, why: str, known: int, last: bytes) -> None:
        """Take the input as what comes behind the position, its first `known` bytes as read."""
        in_line = bool(last) and last != b"\n"
        self._base = position.offset - known
        self._cutter = LineCutter(position.offset, position.lines, owed=in_line)
        identity = PipeIdentity(
            base=self._base,
            crc=self._crc,
            unterminated=in_line,
            head_length=len(self._head),
            head_crc=crc32(self._head),
            head_steps=steps_of(self._head),
        )
        self.gaps = [
            Gap(
                partition=self.partition,
                start=position.offset,
                end=None,
                line=position.lines,
                why=why,
                goes_on="stdin",
                known=known,
                position=position.model_copy(update={"identity": identity.model_dump(mode="json")}),
            )
        ]
        self._begun = {gap.partition: gap.position for gap in self.gaps}

    def beginnings(self) -> Mapping[str, Position]:
        """That of input behind a gap, once."""
        begun, self._begun = self._begun, {}
        return begun

    def _read(self, timeout: float) -> Chunk | None:
        deadline = time.monotonic() + timeout
        while not self._ended:
            before = self._crc
            block = self._read_block(deadline, CHUNK_BYTES)
            if block is None:
                return None
            if not block:
                self._ended = True
                cut = self._cutter.flush()
                if cut is not None:
                    return self._chunk(cut, before)
                break
            owed = self._cutter.owed
            if owed and not block.startswith(b"\n"):
                self.counts["source_line_continued"] += 1
                log.warning("source_line_continued", partition=self.partition, offset=self._cutter.offset)
            cut = self._cutter.feed(block)
            if cut is not None:
                first_end = block.index(b"\n", 1 if owed and block.startswith(b"\n") else 0) + 1
                return self._chunk(cut, crc32(block[:first_end], before))
        raise EndOfInput

    def _chunk(self, cut: Cut, first_crc: int) -> Chunk:
        return Chunk(
            partition=self.partition,
            start=cut.start,
            lines=cut.lines,
            ends=cut.ends,
            first_line=cut.first_line,
            mark=PipeMark(self._base, self._head, first_crc),
            truncated=cut.truncated,
        )

    def _read_block(self, deadline: float | None, size: int) -> bytes | None:
        """Return the next bytes, at most `size`; none at the end; None if nothing came before the deadline."""
        assert self._alarm is not None
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
            return self._noted(block)
        poll = select.poll()
        poll.register(self._alarm[0], select.POLLIN)
        poll.register(self.fd, select.POLLIN)
        while not self._stop.is_set():
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(wait)}
            if self._stop.is_set():
                break
            if self.fd in ready:
                try:
                    block = os.read(self.fd, min(size, CHUNK_BYTES))
                except BlockingIOError:  # another reader of the same descriptor was faster
                    continue
                return self._noted(block)
            if deadline is not None and time.monotonic() >= deadline:
                return None
        raise EndOfInput

    def _noted(self, block: bytes) -> bytes:
        self._crc = crc32(block, self._crc)
        if self._ahead is not None:
            self._ahead.add(block)
        if len(self._head) < HEAD_BYTES:
            self._head += block[: HEAD_BYTES - len(self._head)]
        return block

    def _wake(self) -> None:
        with self._alarm_lock:
            if self._alarm is not None:
                os.write(self._alarm[1], b"!")

    def _close(self) -> None:
        with self._alarm_lock:
            if self._alarm is not None:
                for fd in self._alarm:
                    os.close(fd)
                self._alarm = None
