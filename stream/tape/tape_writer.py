"""Recording a run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from memory.errors import ConfigurationError, EbbtideError
from stream.append_file import AppendFile, make_folder
from stream.engine import Outcome
from stream.event import is_text
from stream.sinks.sink import Sink
from stream.tape.format import Encoder, TapeHead, schema_of, to_batch
from stream.tape.parts import mark_of, number_of, part_path, parts_of, place_of
from stream.tape.tape_reader import TapeReader

PART_BYTES = 1 << 30
"""A part of a tape is not added to once it has this many bytes: what is no longer needed can be deleted by parts."""


class TapeWriter(Sink):
    """Appends each micro-batch to a folder of parts, ``part-000000.arrows`` and on, each a tape of its own.

    A sink like the others: its length belongs to the checkpoint, and a restart cuts it back. A new part begins after a
    checkpoint at which the last one was large enough.

    Parameters
    ----------
    folder
        Made if need be. A fresh start refuses one that holds parts.
    head
        Of the run.
    part_bytes
        When a part is large enough.
    """

    def __init__(self, folder: Path, head: TapeHead, *, part_bytes: int = PART_BYTES):
        if not is_text(str(folder)):
            raise ConfigurationError(f"--tape {str(folder)!r}: expected a name that is text, got one that is not UTF-8")
        self.folder, self.head, self.part_bytes = folder, head, part_bytes
        self._schema = schema_of(head)
        self._encoder = Encoder(self._schema)
        self._number = 0
        self._file = self._part(0)
        self._full = self._is_open = False
        self._worker = ThreadPoolExecutor(1, "ebbtide-tape")
        self._pending: Future[None] | None = None

    @property
    def name(self) -> str:
        """Under which the checkpoint keeps the mark."""
        return "tape"

    @property
    def identity(self) -> str:
        """That of the part written to, as it was flushed."""
        return self._file.identity

    @property
    def bytes_written(self) -> int:
        """Bytes of the part written to."""
        return self._file.length

    def open(self, mark: int | None, identity: str = "") -> None:
        """Begin, or cut the tape back to a checkpoint."""
        try:
            make_folder(self.folder)
        except OSError as error:
            raise ConfigurationError(f"--tape {self.folder}: cannot be made: {error.strerror}") from None
        parts = parts_of(self.folder)
        begun = mark is None and [part.name for part in parts] == [self._part(0).path.name] and self._is_bare(parts[0])
        if mark is None and parts and not begun:
            raise ConfigurationError(
                f"--tape {self.folder}: expected a new or empty folder for a fresh start, got one with {len(parts)} "
                "parts of a tape; name another (a tape is never overwritten)"
            )
        number, length = place_of(mark or 0)
        # Killed before its first checkpoint, a run leaves a part without rows: that is begun anew.
        self._open_part(number, length if mark is not None or begun else None, identity)
        for later in parts:
            if number_of(later) > number:
                later.unlink()  # begun after the checkpoint
        self._is_open = True

    def _is_bare(self, part: Path) -> bool:
        """Whether a part holds at most this run's head, or what a power cut left of that."""
        head = self._encoder.head
        if part.stat().st_size > len(head):
            return False
        return all(byte in (0, meant) for byte, meant in zip(part.read_bytes(), head, strict=False))

    def _open_part(self, number: int, length: int | None, identity: str) -> None:
        self._number, self._file = number, self._part(number)
        self._file.open(length, identity)
        if not length:
            self._file.append(self._encoder.head)
        elif _head_of(self._file.path) != self._encoder.head:
            self._file.close()
            raise ConfigurationError(
                f"--tape {self.folder}: it was recorded under other settings; give this run its own tape"
            )

    def check(self, mark: int, identity: str = "") -> None:
        """Read all of the tape up to a mark, and say whether it is as it was written."""
        number, length = place_of(mark)
        self._part(number).check(length, identity)
        if not length:
            return
        reader = TapeReader(self.folder, partial=True)
        try:
            for _ in reader.batches():
                if reader.at >= (number, length):
                    break
        except EbbtideError as error:
            if reader.at < (number, length):
                raise ConfigurationError(str(error)) from None

    def _part(self, number: int) -> AppendFile:
        return AppendFile(part_path(self.folder, number), of_lines=False)

    def write(self, outcome: Outcome) -> None:
        """Append a micro-batch: begun here, and done at the latest when the next one is begun, or at `flush`."""
        if not outcome.events:
            return
        self._settle()
        # Half of the work is copying to the kernel, and lets go of the interpreter: beside the loop it is for free.
        self._pending = self._worker.submit(self._append, outcome)

    def _settle(self) -> None:
        """Wait for what was begun, and meet its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _append(self, outcome: Outcome) -> None:
        if self._full:  # nothing was written since the checkpoint that found it so
            self._file.close()
            self._open_part(self._number + 1, None, "")
            self._full = False
        self._file.append(self._encoder.encode(to_batch(self._schema, outcome), self._file.length))

    def flush(self) -> int:
        """Put all on the disk; return the mark."""
        self._settle()
        length = self._file.flush()
        self._full = length >= self.part_bytes
        return mark_of(self._number, length)

    def close(self) -> None:
        """Close the part."""
        self._worker.shutdown(wait=True)
        if self._is_open:
            self._file.close()
            self._is_open = False


def _head_of(path: Path) -> bytes:
    """Return the bytes before the first record batch."""
    with pa.OSFile(str(path)) as file:
        pa.ipc.read_message(file)
        length = file.tell()
        file.seek(0)
        return bytes(file.read(length))
