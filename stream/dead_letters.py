"""The dead-letter file: every line that became no event, with where it stood, why, and its bytes.

JSON Lines, one record a rejected line::

    {"partition": str, "offset": int, "line": int, "reason": str, "detail": str, "length": int, "raw": base64,
     "truncated"?: true}

Nothing of what the line says is in the open: `detail` names keys, types and places only. A gap in the source that was
accepted has a record too, of no line: reason `source_gap`, no bytes, at the offset at which it begins.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stream.append_file import AppendFile
from stream.event import Reason
from stream.sources.gap import Gap


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One rejected line.

    Attributes
    ----------
    partition
        The part of the source that it came from.
    offset
        Where it starts in the partition, in bytes.
    line
        Its number in the partition, from 1.
    reason
        One of a fixed few (`stream.event.Reason`).
    detail
        For a person.
    raw
        Its bytes, without the newline; the first `stream.event.LINE_CAP` of them if there are more.
    length
        Its true length in bytes, without the newline.
    """

    partition: str
    offset: int
    line: int
    reason: str
    detail: str
    raw: bytes
    length: int

    @property
    def truncated(self) -> bool:
        """Say whether `raw` is not all of it."""
        return self.length > len(self.raw)

    def to_json(self) -> str:
        """Return the record, without a newline."""
        record: dict[str, str | int] = {
            "partition": self.partition,
            "offset": self.offset,
            "line": self.line,
            "reason": self.reason,
            "detail": self.detail,
            "length": self.length,
            "raw": b64encode(self.raw).decode("ascii"),
        }
        if self.truncated:
            record["truncated"] = True
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, record: str | bytes) -> DeadLetter:
        """Read a record back.

        Raises
        ------
        ValueError
            It is none.
        """
        try:
            fields = json.loads(record)
            fields.pop("truncated", None)
            return cls(**{**fields, "raw": b64decode(fields["raw"], validate=True)})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a dead-letter record, got something else: {error}") from error


def letter_of_gap(gap: Gap) -> DeadLetter:
    """Return the record of what is missing of a partition: of no line, at the one that would have come next.

    Examples
    --------
    >>> from stream.sources import Position
    >>> gap = Gap("log", 120, 500, 3, "it has 0 bytes", "log", 0, Position(offset=120, lines=3, identity={}))
    >>> letter_of_gap(gap).to_json()
    '{"partition":"log","offset":120,"line":4,"reason":"source_gap","detail":"expected the rest of what was read, from byte 120 to byte 500 or later, got: it has 0 bytes; log is read from its beginning; offsets go on counting","length":0,"raw":""}'
    """  # noqa: E501
    return DeadLetter(
        partition=gap.partition,
        offset=gap.start,
        line=gap.line + 1,
        reason=Reason.SOURCE_GAP,
        detail=f"expected the rest of what was read, {gap}, got: {gap.why}; {gap.hint}",
        raw=b"",
        length=0,
    )


class DeadLetterFile(AppendFile):
    """The file that dead letters are appended to; its life is that of an `AppendFile`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "dead.jsonl"
    >>> letters = DeadLetterFile(path)
    >>> letters.open(None)
    >>> letters.write([DeadLetter("log.jsonl", 120, 3, "not_json", "expected a JSON object", b"oops", 4)])
    >>> length = letters.flush()
    >>> letters.close()
    >>> [(letter.line, letter.raw) for letter in read_dead_letters(path)]
    [(3, b'oops')]
    """

    name = "dead_letters"
    """Under which the checkpoint keeps the mark."""

    def write(self, letters: Iterable[DeadLetter]) -> None:
        """Append one record for each letter."""
        for letter in letters:
            self.append(letter.to_json().encode("ascii") + b"\n")


def read_dead_letters(path: str | Path) -> Iterator[DeadLetter]:
    """Read a dead-letter file back, in order.

    A last record without its newline is left out: it was being written when its run was killed, and the run that
    goes on from there writes it again.

    Raises
    ------
    ValueError
        A line is no dead-letter record; the message gives its number.
    """
    with open(path, "rb") as file:
        for number, record in enumerate(file, start=1):
            if not record.endswith(b"\n"):
                return
            try:
                letter = DeadLetter.from_json(record)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from error
            yield letter
