"""Places in files: what a chunk's mark knows of its file, and a stored position understood again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from pydantic import JsonValue, ValidationError

from memory.errors import ConfigurationError
from stream.sources.earlier import Earlier
from stream.sources.file_identity import TAIL_BYTES, FileIdentity
from stream.sources.gap import steps_of
from stream.sources.position import Position
from stream.sources.siblings import look
from stream.sources.source import Chunk, Mark


@dataclass(frozen=True, slots=True)
class FileMark(Mark):
    """What is known of the file that a chunk came from; see `FileIdentity`."""

    base: int
    name: str
    device: int
    inode: int
    size: int
    head: bytes
    complete: bool
    corrupt: bool
    earlier: tuple[Earlier, ...]
    packed: bool
    mtime_ns: int

    def identify(self, chunk: Chunk, count: int) -> FileIdentity:
        """Return the identity of the place after the chunk's first `count` lines."""
        index, last = count - 1, count == len(chunk)
        head = self.head[: chunk.ends[index] - self.base]
        terminated = chunk.is_terminated(index)
        tail = b""
        if index not in chunk.truncated:
            tail = (chunk.lines[index] + b"\n" * terminated)[-TAIL_BYTES:]
        return FileIdentity(
            base=self.base,
            name=self.name,
            device=self.device,
            inode=self.inode,
            size=self.size,
            head_length=len(head),
            head_crc=crc32(head),
            head_steps=steps_of(head),
            tail_length=len(tail),
            tail_crc=crc32(tail),
            complete=self.complete and last,
            corrupt=self.corrupt,
            unterminated=not terminated,
            earlier=self.earlier,
            packed=self.packed,
            mtime_ns=self.mtime_ns,
        )

    def identity(self, chunk: Chunk, count: int) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return self.identify(chunk, count).model_dump(mode="json")


def beginning_of(path: Path, offset: int = 0, lines: int = 0) -> Position | None:
    """Return the position before the first line of a file, where its partition has come to; None if it is not there."""
    found = look(path)
    if found is None:
        return None
    identity = FileIdentity(
        base=offset,
        name=path.name,
        device=found.device,
        inode=found.inode,
        size=found.size,
        head_length=0,
        head_crc=0,
        tail_length=0,
        tail_crc=0,
        mtime_ns=found.mtime_ns,
    )
    return Position(offset=offset, lines=lines, identity=identity.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Place:
    """A position, with its identity understood."""

    offset: int
    lines: int
    identity: FileIdentity

    def position(self) -> Position:
        """Return it as it is stored."""
        return Position(offset=self.offset, lines=self.lines, identity=self.identity.model_dump(mode="json"))

    @classmethod
    def of(cls, position: Position, partition: str) -> Place:
        """Read a stored position.

        Raises
        ------
        ConfigurationError
            It was not made by this kind of source.
        """
        try:
            return cls(position.offset, position.lines, FileIdentity.model_validate(position.identity))
        except ValidationError:
            raise ConfigurationError(
                f"{partition}: expected the stored position to be one in a file, got one of kind "
                f"{position.identity.get('kind')!r}; read the same source as before, or begin anew with another state"
            ) from None
