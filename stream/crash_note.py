"""What is noted of starts that died, in a small file beside the state store (`stream/crash_guard.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError


class Line(NamedTuple):
    """A line of the input: its partition, and where it starts and ends there, in bytes."""

    partition: str
    start: int
    end: int


class Note(BaseModel):
    """What the file holds.

    Attributes
    ----------
    store
        The identity of the state store.
    at
        Tells the positions of its checkpoint from others (`place_of`).
    starts
        How many starts in a row went on from there and have not ended in order, the running one among them.
    bytes_left, lines_left
        How many are still to be taken with care; 0 in a run at full speed.
    line, looked_at
        The line that was handed out last, and whether it is at hand.
    deaths
        Partition, offset, and how many runs died while this line was at hand.
    in_a_row
        Lines refused since an event passed.
    died
        The run ended with an error that nobody foresaw.

    Examples
    --------
    >>> note = Note(store="a1b2", at=7, starts=2)
    >>> Note.read(note.text()) == note
    True
    >>> Note.read(note.text()[:-1]) is None
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    at: NonNegativeInt
    starts: NonNegativeInt = 0
    bytes_left: NonNegativeInt = 0
    lines_left: NonNegativeInt = 0
    line: Line | None = None
    looked_at: bool = False
    deaths: tuple[tuple[str, NonNegativeInt, NonNegativeInt], ...] = ()
    in_a_row: NonNegativeInt = 0
    died: bool = False

    def text(self) -> bytes:
        """Return it as it is written."""
        text = self.model_dump_json().encode()
        return b"%s\n%08x\n" % (text, crc32(text))

    @classmethod
    def read(cls, text: bytes) -> Note | None:
        """Read it back; None where it is none, or a torn one."""
        body, _, end = text.partition(b"\n")
        if end != b"%08x\n" % crc32(body):
            return None
        try:
            return cls.model_validate_json(body)
        except ValidationError:
            return None


def place_of(offsets: Mapping[str, int]) -> int:
    """Tell positions from others: a sum over partitions, so that one that moves changes it at once.

    Parameters
    ----------
    offsets
        Partition → bytes consumed. One of which nothing was consumed does not count.

    Examples
    --------
    >>> before, after = place_of({"a": 5, "b": 9}), place_of({"a": 8, "b": 9})
    >>> before == after, place_of({"b": 9, "a": 5, "c": 0}) == before
    (False, True)
    """
    return sum(_share(partition, offset) for partition, offset in offsets.items()) % 2**63


def _share(partition: str, offset: int) -> int:
    if not offset:
        return 0
    return int.from_bytes(blake2b(f"{offset} {partition}".encode("utf-8", "surrogatepass"), digest_size=8).digest())


def starts_path(store: Path | None, dead_letters: Path | None) -> Path | None:
    """Return where starts are noted: beside an SQLite store; else beside the dead letters; else nowhere.

    >>> starts_path(Path("run/state.db"), None).name
    'state.db.starts'
    >>> starts_path(None, Path("run/out.dead.jsonl")).name
    'out.dead.jsonl.starts'
    """
    beside = store or dead_letters
    return None if beside is None else beside.with_name(beside.name + ".starts")


def trace_path(starts: Path) -> Path:
    """Return where the trace of a crash is left: beside the note of starts.

    >>> trace_path(Path("run/state.db.starts")).name
    'state.db.fatal'
    """
    return starts.with_suffix(".fatal")


def moved(at: int, line: Line) -> int:
    """Return the place after a line was consumed.

    >>> moved(place_of({"a": 5, "b": 9}), Line("a", 5, 8)) == place_of({"a": 8, "b": 9})
    True
    """
    return (at - _share(line.partition, line.start) + _share(line.partition, line.end)) % 2**63
