"""A tape, from which some rows are taken: the parts that have any are written anew, the others stay as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory.errors import ConfigurationError, EbbtideError
from stream.append_file import AppendFile
from stream.forget.files import SUFFIX, begin_new, keep_up
from stream.forget.output import Advance, Output, Rewritten
from stream.store import OutputMark
from stream.tape.format import checksum
from stream.tape.parts import mark_of, number_of, part_path, parts_of, place_of
from stream.tape.tape_reader import TapeReader


class TapeOutput(Output):
    """The folder of a tape. See `Output` for its life.

    Parameters
    ----------
    folder
        The tape.
    mark
        The store's; None: it has none, and the tape is taken as it is.
    """

    name = "tape"

    def __init__(self, folder: Path, mark: OutputMark | None):
        self.path, self.mark = folder.resolve(), mark
        self.found: Counter[str] = Counter()
        self.total = self.unsure = 0
        self.links = 1
        self._names: set[str] = set()
        self._open: list[AppendFile] = []
        self._parts: list[Path] = []
        self._later: list[Path] = []
        self._end = (0, 0)
        self._touched: set[int] = set()

    def open(self) -> None:
        """Lock the parts, and compare the last one with the mark."""
        parts = parts_of(self.path)
        if not parts:
            raise ConfigurationError(f"--tape {self.path}: expected the folder of a tape, got one without its parts")
        if self.mark is None:
            self._end = (number_of(parts[-1]), parts[-1].stat().st_size)
        else:
            self._end = place_of(self.mark.mark)
        for part in parts:
            number = number_of(part)
            if number > self._end[0]:  # begun after the checkpoint
                self._later.append(part)
                continue
            file = AppendFile(part, of_lines=False)
            if (number, self.mark is not None) == (self._end[0], True):
                assert self.mark is not None
                file.open(self._end[1], self.mark.identity)
            else:
                file.open(part.stat().st_size)
            self.links = max(self.links, part.stat().st_nlink)
            self._open.append(file)
            self._parts.append(part)
        if not self._parts or number_of(self._parts[-1]) != self._end[0]:
            raise ConfigurationError(f"{part_path(self.path, self._end[0])}: the store goes with this part of a tape")

    @property
    def size(self) -> int:
        """Bytes to look through."""
        return sum(part.stat().st_size for part in self._parts)

    @property
    def names(self) -> set[str]:
        """Streams that have rows here, as far as `look` met them."""
        return self._names

    def _batches(self, advance: Advance) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield each record batch with its part's number, checked."""
        reader, before = TapeReader(self.path, partial=self.mark is None), (-1, 0)
        self._head = reader.head
        for batch in reader.batches():
            if reader.at > self._end:
                return
            advance(reader.at[1] - (before[1] if before[0] == reader.at[0] else 0))
            before = reader.at
            yield reader.at[0], batch

    def look(self, streams: Collection[str], advance: Advance) -> None:
        """Find the rows of these streams."""
        wanted = set(streams)
        self.found, self.total, self._touched, self._names = Counter(), 0, set(), set()
        if not self._end[1]:
            return
        for number, batch in self._batches(advance):
            self.total += len(batch)
            for name, count in Counter(batch["stream"].to_pylist()).items():
                if name in wanted:
                    self.found[name] += count
                    self._touched.add(number)
                else:
                    self._names.add(name)

    def rewrite(self, advance: Advance) -> Rewritten:
        """Write those parts anew that have rows of the streams."""
        made = Rewritten([], [str(part) for part in self._later], self.mark)
        wanted = pa.array(list(self.found), pa.utf8())
        new: AppendFile | None = None
        writing, written = -1, 0
        try:
            for number, batch in self._batches(advance):
                if number not in self._touched:
                    continue
                if number != writing:
                    if new is not None:
                        made = self._done(made, writing, new)
                        new.close()
                    new, writing, written = self._begin(number), number, 0
                assert new is not None
                kept = batch.filter(pc.invert(pc.is_in(batch["stream"], value_set=wanted)))
                if len(kept):
                    new.append(self._encode(kept, new.length))
                    written = keep_up(new, written)
            if new is not None:
                made = self._done(made, writing, new)
        finally:
            if new is not None:
                new.close()
        return made

    def _begin(self, number: int) -> AppendFile:
        part = part_path(self.path, number)
        with pa.OSFile(str(part)) as file:
            self._schema = pa.ipc.read_schema(pa.ipc.read_message(file))
            length = file.tell()
        new = begin_new(part)
        with part.open("rb") as raw:
            self._first = raw.read(length)
        new.append(self._first)
        return new

    def _done(self, made: Rewritten, number: int, new: AppendFile) -> Rewritten:
        length = new.flush()
        mark = made.mark
        if mark is not None and number == self._end[0]:
            mark = OutputMark(mark_of(number, length), new.identity)
        pair = (str(new.path), str(part_path(self.path, number)))
        return Rewritten([*made.renames, pair], made.unlinks, mark)

    def _encode(self, batch: pa.RecordBatch, place: int) -> bytes:
        """Return the bytes of a record batch with its checksum, read back once and found to be as they should."""
        # What was filtered has buffers as large as before; read back, they are as any reader will find them.
        batch, _ = self._read(self._write(batch, {}))
        placed = place if self._head.version >= 3 else None
        about = {"crc32": f"{checksum(batch, placed):08x}"} | ({} if placed is None else {"place": str(place)})
        data = self._write(batch, about)
        again, told = self._read(data)
        if told != about or checksum(again, placed) != int(about["crc32"], 16) or not _same(again, batch):
            raise EbbtideError(f"{self.path}: a record batch could not be written as it was read; nothing was removed")
        return data

    def _write(self, batch: pa.RecordBatch, about: dict[str, str]) -> bytes:
        buffer = pa.BufferOutputStream()
        pa.ipc.new_stream(buffer, self._schema).write_batch(batch, custom_metadata=about)
        head = len(self._schema.serialize())
        return bytes(memoryview(buffer.getvalue())[head:])

    def _read(self, data: bytes) -> tuple[pa.RecordBatch, dict[str, str]]:
        whole = self._schema.serialize().to_pybytes() + data
        batch, about = pa.ipc.open_stream(whole).read_next_batch_with_custom_metadata()
        told = {} if about is None else about.to_dict()
        return batch, {key.decode(): value.decode() for key, value in told.items()}

    def new_files(self) -> list[Path]:
        """Return the parts that `rewrite` made."""
        return sorted(self.path.glob("part-*" + SUFFIX))

    def close(self) -> None:
        """Let go of the parts."""
        for file in self._open:
            file.close()


def _same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether two record batches are equal; NaN is equal to itself here."""
    for left, right in zip(one.columns, other.columns, strict=True):
        if pa.types.is_floating(left.type):
            left, right = (np.asarray(each).view(np.uint8) for each in (left, right))
            if not np.array_equal(left, right):
                return False
        elif not left.equals(right):
            return False
    return True
