"""Reading a tape."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from memory.errors import ConfigurationError, EbbtideError
from stream.tape.format import VERSION, TapeHead, checksum
from stream.tape.tape_writer import parts_of


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

    Raises
    ------
    ConfigurationError
        There is no tape, or it is of another version.
    """

    def __init__(self, folder: Path, *, partial: bool = False):
        self._parts, self._partial = parts_of(folder), partial
        if not self._parts:
            raise ConfigurationError(f"{folder}: expected the folder of a tape, as --tape DIR writes, got none")
        self.torn: Path | None = None
        try:
            with pa.OSFile(str(self._parts[0])) as file:
                text = (pa.ipc.read_schema(pa.ipc.read_message(file)).metadata or {}).get(b"ebbtide")
            self.head = TapeHead.model_validate_json(text or b"")
        except (pa.ArrowException, OSError, EOFError, ValidationError) as error:
            raise ConfigurationError(f"{self._parts[0]}: this is no tape of Ebbtide: {_line(error)}") from None
        if not 1 <= self.head.version <= VERSION:
            raise ConfigurationError(
                f"{folder}: the tape has version {self.head.version}, this Ebbtide reads versions 1 to {VERSION}"
            )

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
        except (pa.ArrowException, OSError, EOFError) as error:
            raise EbbtideError(f"{part}: its head was damaged: {_line(error)}; {MEND}") from None
        while True:
            try:
                batch, about = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                if file.tell() < size:  # what ends a stream stands where more of it follows
                    raise EbbtideError(f"{part}: record batch {number} was damaged; {MEND}") from None
                return
            except (pa.ArrowException, OSError, EOFError, KeyError, ValueError) as error:
                if file.tell() >= size and part == self._parts[-1]:
                    if self._partial:
                        self.torn = part
                        return
                    raise EbbtideError(
                        f"{part}: it ends in the middle of record batch {number}: a run was killed there, or the file "
                        "was damaged; resume the run, which cuts it back, or use what comes before with --partial"
                    ) from None
                raise EbbtideError(f"{part}: record batch {number} was damaged: {_line(error)}; {MEND}") from None
            expected = None if about is None else about.get("crc32")
            if expected != f"{checksum(batch):08x}".encode() or not _is_sound(batch):
                raise EbbtideError(f"{part}: record batch {number} fails its checksum: the file was damaged; {MEND}")
            number += 1
            yield batch


def _is_sound(batch: pa.RecordBatch) -> bool:
    """Whether the parts of the record batch fit together: what tells their sizes is not in its buffers."""
    try:
        batch.validate(full=True)
    except pa.ArrowException:
        return False
    return True


MEND = "restore a copy of it, or delete that part and the later ones"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
