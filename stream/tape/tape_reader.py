"""Reading a tape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pyarrow as pa

from memory.errors import ConfigurationError, EbbtideError
from stream.tape.format import VERSION, TapeHead, checksum, schema_of
from stream.tape.parts import number_of, parts_of


class TapeReader:
    """The record batches of a tape, in order, each checked against its checksum.

    Parameters
    ----------
    folder
        The tape.
    partial
        Whether a tape that ends in the middle of a record batch is read up to there, rather than refused.

    Attributes
    ----------
    head
        Of the run that was recorded.
    torn
        With `partial`: the part that ends in the middle of a record batch, once it was come to.
    at
        Up to where the tape was read and is sound: a part's number, and bytes of it.

    Raises
    ------
    ConfigurationError
        There is no tape, its head or one of its parts is not as it was written, or it is of another version.
    """

    def __init__(self, folder: Path, *, partial: bool = False):
        self._parts, self._partial = parts_of(folder), partial
        if not self._parts:
            raise ConfigurationError(f"{folder}: expected the folder of a tape, as --tape DIR writes, got none")
        self.torn: Path | None = None
        self.at = (0, 0)
        numbers = [number_of(part) for part in self._parts]
        if numbers != list(range(numbers[0], numbers[-1] + 1)):
            raise ConfigurationError(f"{folder}: expected parts with numbers that follow each other, got {numbers}")
        self.head, self._schema = _read_head(self._parts[0])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the record batches.

        Raises
        ------
        EbbtideError
            One fails its checksum, or is none.
        """
        for part in self._parts:
            with pa.OSFile(str(part)) as file:
                yield from self._batches(part, file)

    def _batches(self, part: Path, file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
        size, number = part.stat().st_size, 0
        try:
            reader = pa.ipc.open_stream(file)
        except (pa.ArrowException, *DAMAGE) as error:
            raise EbbtideError(f"{part}: its head was damaged: {_line(error)}; {MEND}") from None
        if not reader.schema.equals(self._schema, check_metadata=True):
            raise EbbtideError(
                f"{part}: its head is not that of the tape: it was damaged, or is of another run; {MEND}"
            )
        while True:
            place = file.tell()
            self.at = (number_of(part), place)
            try:
                batch, about = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                if file.tell() < size:  # what ends a stream stands where more of it follows
                    raise EbbtideError(f"{part}: record batch {number} was damaged; {MEND}") from None
                return
            except (pa.ArrowException, *DAMAGE) as error:
                if file.tell() >= size and part == self._parts[-1]:
                    if self._partial:
                        self.torn = part
                        return
                    raise EbbtideError(
                        f"{part}: it ends in the middle of record batch {number}: a run was killed there, or the file "
                        "was damaged; resume the run, which cuts it back, or use what comes before with --partial"
                    ) from None
                raise EbbtideError(f"{part}: record batch {number} was damaged: {_line(error)}; {MEND}") from None
            told = {} if about is None else about.to_dict()
            placed = self.head.version >= 3
            if (
                not _is_sound(batch)
                or told.get(b"crc32") != f"{checksum(batch, place if placed else None):08x}".encode()
            ):
                moved = placed and told.get(b"place") != str(place).encode()
                what = "is not where it was written" if moved else "fails its checksum"
                raise EbbtideError(f"{part}: record batch {number} {what}: the file was damaged; {MEND}")
            number += 1
            self.at = (number_of(part), file.tell())
            yield batch


def _read_head(part: Path) -> tuple[TapeHead, pa.Schema]:
    """Return what the head of a part says, and the schema that goes with it."""
    try:
        with pa.OSFile(str(part)) as file:
            message = pa.ipc.read_message(file)
            if message.type != "schema":  # Arrow would read it as one all the same, and crash
                raise ValueError(f"it begins with a message of type {message.type}")
            schema = pa.ipc.read_schema(message)
            about = schema.metadata or {}
        text = about.get(b"ebbtide") or b""
        head = TapeHead.model_validate_json(text)
    except (pa.ArrowException, *DAMAGE) as error:
        raise ConfigurationError(f"{part}: this is no tape of Ebbtide: {_line(error)}") from None
    if not 1 <= head.version <= VERSION:
        raise ConfigurationError(
            f"{part}: the tape has version {head.version}, this Ebbtide reads versions 1 to {VERSION}"
        )
    if (head.version >= 3 or b"crc32" in about) and about.get(b"crc32") != f"{crc32(text):08x}".encode():
        raise ConfigurationError(f"{part}: the head of the tape fails its checksum: the file was damaged; {MEND}")
    if not schema.equals(schema_of(head), check_metadata=head.version >= 3):
        raise ConfigurationError(
            f"{part}: expected the columns of a tape of version {head.version}, got others; {MEND}"
        )
    return head, schema


def _is_sound(batch: pa.RecordBatch) -> bool:
    """Whether the parts of the record batch fit together: what tells their sizes is not in its buffers."""
    try:
        batch.validate(full=True)
    except pa.ArrowException:
        return False
    return True


MEND = "restore a copy of it, or delete that part and the later ones"

DAMAGE = (OSError, EOFError, KeyError, ValueError, MemoryError)
"""What else reading a damaged file comes to; a length that was flipped asks for more memory than there is."""


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
