"""A place in a source, to be stored and to go on from."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt


class Position(BaseModel):
    """A place in one partition, to be stored and to go on from.

    Attributes
    ----------
    offset
        Bytes consumed, decompressed; always at the end of a line.
    lines
        Lines consumed.
    identity
        What the source needs to know the content again, such as checksums. Its own affair.

    Examples
    --------
    >>> position = Position(offset=120, lines=3, identity={"crc": 7})
    >>> Position.from_json(position.to_json()) == position
    True
    >>> position = Position(offset=1, lines=1, identity={"name": "m\\udcff.jsonl"})
    >>> Position.from_json(position.to_json()) == position
    True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: NonNegativeInt
    lines: NonNegativeInt
    identity: dict[str, JsonValue]

    def to_json(self) -> str:
        """Return it as JSON text."""
        # By Python's own: a file's name may be no UTF-8, and its bytes are half surrogate pairs then.
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Position:
        """Read it back.

        Raises
        ------
        ValueError
            The text is no position.
        """
        return cls.model_validate(json.loads(text))
