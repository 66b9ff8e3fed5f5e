"""One line of input in, an `Event` or a `Rejection` out.

The contract, one JSON object a line::

    {"stream": str, "text": str, "id"?: str, "ts"?: RFC 3339 or epoch seconds, "role"?: str, "meta"?: object}

or ``"tokens": [int ≥ 0, …]`` in place of ``"text"``. What the contract leaves open is settled here:

- A key that is not in the contract is kept under `Event.meta`, unless the parser is strict. Where ``meta`` holds the
  same key, what ``meta`` holds wins: its writer chose that name for it.
- Of a key that stands twice in one object, the last one counts, as in Python's own reader.
- ``null`` is a value of the wrong type, not an absence: leave the key out.
- A text of blanks is a text; only ``""`` is empty.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from math import isfinite
from typing import Any

from pydantic_core import from_json

from memory.errors import ConfigurationError

LINE_CAP = 16 * 1024 * 1024
"""Bytes of one line that are ever held in memory. Sources cut longer lines there."""

STREAM_NAME_LIMIT = 512
"""Characters in the longest name a stream may have."""

TOKEN_LIMIT = 2**63
"""Token ids are below this, whatever the vocabulary: they must fit an int64."""

KEYS = ("stream", "text", "tokens", "id", "ts", "role", "meta")
"""The keys of the contract."""

_ABSENT: Any = object()
_INTEGERS = {int}
_DATE_TIME = re.compile(
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]"
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN_KEYS = 8
_SHOWN_CHARACTERS = 64


class Reason(StrEnum):
    """Why a line became no event. The values are those of the dead-letter file and of the metrics' labels."""

    EMPTY = "empty"
    """Nothing but blanks on the line."""
    TOO_LONG = "too_long"
    """More bytes than the parser's `max_line_bytes`."""
    BAD_UTF8 = "bad_utf8"
    """The bytes are not UTF-8."""
    NOT_JSON = "not_json"
    """Not one JSON value, whole and alone."""
    TOO_DEEP = "too_deep"
    """JSON nested deeper than the reader goes (200 levels)."""
    LONE_SURROGATE = "lone_surrogate"
    r"""An escape such as ``\ud800`` without its other half: no text can hold it."""
    NON_FINITE = "non_finite"
    """NaN or Infinity, spelt out or reached by overflow such as ``1e400``, anywhere on the line."""
    NUMBER_TOO_LONG = "number_too_long"
    """An integer of more than 4,300 digits."""
    NOT_OBJECT = "not_object"
    """JSON, but not an object."""
    WRONG_TYPE = "wrong_type"
    """A key of the contract holds a value of another type, `null` included."""
    MISSING_STREAM = "missing_stream"
    """No ``stream``."""
    BAD_STREAM = "bad_stream"
    """``stream`` is empty, longer than 512 characters, or holds a NUL."""
    MISSING_CONTENT = "missing_content"
    """Neither ``text`` nor ``tokens``."""
    BOTH_CONTENTS = "both_contents"
    """``text`` as well as ``tokens``."""
    EMPTY_TEXT = "empty_text"
    """``text`` is ``""``."""
    EMPTY_TOKENS = "empty_tokens"
    """``tokens`` is ``[]``."""
    BAD_TOKEN = "bad_token"
    """A token that is no integer (a boolean is none), negative, or beyond the vocabulary or an int64."""
    BAD_TIMESTAMP = "bad_timestamp"
    """``ts`` is a text but not RFC 3339, or a number beyond every float."""
    UNKNOWN_KEY = "unknown_key"
    """A key that is not in the contract, under a strict parser."""
    CORRUPT_COMPRESSION = "corrupt_compression"
    """Said by a source, not by the parser: a compressed file is damaged or cut short, and was read up to there."""
    DUPLICATE = "duplicate"
    """Said by the loop, not by the parser: an event with the same ``id`` was among the last ones of its stream."""
    SOURCE_GAP = "source_gap"
    """Said at the start, of no line: what was still to be read is gone, and somebody accepted that."""
    CRASHED = "crashed"
    """Said by the reader, which did not parse it again: several runs died while they took in this line alone."""


@dataclass(slots=True)
class Event:
    """One message of a stream.

    Attributes
    ----------
    stream
        The history that it belongs to: 1 to 512 characters.
    text, tokens
        Exactly one is not `None`, and it is not empty. Tokens are in [0, 2⁶³), and below the vocabulary if one is set.
    id
        The producer's name for the event.
    ts
        The time as it was given: RFC 3339, or finite seconds since the epoch.
    role
        Who spoke.
    meta
        What else came with it; JSON without NaN and infinities.
    """

    stream: str
    text: str | None = None
    tokens: list[int] | None = None
    id: str | None = None
    ts: str | int | float | None = None
    role: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def is_text(name: str) -> bool:
    """Say whether a name can be written as UTF-8: half of a surrogate pair cannot.

    >>> is_text("b\u00fc"), is_text("\\udcff")
    (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_name(name: str) -> None:
    """Refuse what can be no stream's name.

    Examples
    --------
    >>> check_name("ann/2024")
    >>> check_name("\\udcff")
    Traceback (most recent call last):
    ...
    memory.errors.ConfigurationError: expected names of 1 to 512 characters of text without NUL, got '\\udcff'
    """
    if not (is_text(name) and 0 < len(name) <= STREAM_NAME_LIMIT and "\0" not in name):
        raise ConfigurationError(
            f"expected names of 1 to {STREAM_NAME_LIMIT} characters of text without NUL, got {name[:40]!r}"
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a line became no event.

    Attributes
    ----------
    reason
        One of a fixed few, to count by.
    detail
        For a person: names keys, types and places, never what the event says.
    """

    reason: Reason
    detail: str


class EventParser:
    """Turns lines into events.

    Parameters
    ----------
    strict
        Refuse keys that are not in the contract, rather than keep them under `Event.meta`.
    max_line_bytes
        Bytes in the longest line accepted; less than `LINE_CAP`, so that a line that a source had to cut is refused.
    vocabulary
        Number of token ids; `None`: any that fits an int64.

    Examples
    --------
    >>> parser = EventParser(vocabulary=30_522)
    >>> parser.parse(b'{"stream": "ann", "text": "Hello", "id": "m1", "lang": "en"}')
    Event(stream='ann', text='Hello', tokens=None, id='m1', ts=None, role=None, meta={'lang': 'en'})
    >>> parser.parse(b'{"stream": "ann", "tokens": [7, 99999]}')
    Rejection(reason=<Reason.BAD_TOKEN: 'bad_token'>,
              detail='tokens[1]: expected an integer in [0, 30522), got a larger one')
    """

    def __init__(self, strict: bool = False, max_line_bytes: int = 1024 * 1024, vocabulary: int | None = None):
        if not 1 <= max_line_bytes < LINE_CAP:
            raise ValueError(
                f"max_line_bytes: expected 1 to {LINE_CAP - 1} (sources cut lines there), got {max_line_bytes}"
            )
        if vocabulary is not None and not 1 <= vocabulary <= TOKEN_LIMIT:
            raise ValueError(f"vocabulary: expected 1 to 2**63 token ids, or None, got {vocabulary}")
        self.strict = strict
        self.max_line_bytes = max_line_bytes
        self.vocabulary = vocabulary
        self._token_limit = TOKEN_LIMIT if vocabulary is None else vocabulary

    def parse(self, line: bytes) -> Event | Rejection:
        """Return the event on `line`, which comes without its newline, or why there is none. Never raises."""
        if len(line) > self.max_line_bytes:
            return Rejection(Reason.TOO_LONG, f"expected at most {self.max_line_bytes} bytes, got more")
        try:
            found = from_json(line, allow_inf_nan=False, cache_strings="keys")
        except ValueError as error:
            return _why_not_json(line, error)
        if type(found) is not dict:
            return Rejection(Reason.NOT_OBJECT, f"expected a JSON object, got {_kind(found)}")

        # What these leave behind in `found` are the unknown keys.
        take = found.pop
        stream = take("stream", _ABSENT)
        text = take("text", _ABSENT)
        tokens = take("tokens", _ABSENT)
        name = take("id", _ABSENT)
        ts = take("ts", _ABSENT)
        role = take("role", _ABSENT)
        meta = take("meta", _ABSENT)

        if type(stream) is not str:
            return _no_stream(stream, found)
        if not 0 < len(stream) <= STREAM_NAME_LIMIT or "\0" in stream:
            return _bad_stream(stream)
        if tokens is _ABSENT:
            tokens = None
            if type(text) is not str:
                return _no_text(text)
            if not text:
                return Rejection(Reason.EMPTY_TEXT, "text: expected at least one character, got none")
        else:
            if text is not _ABSENT:
                return Rejection(Reason.BOTH_CONTENTS, "expected text or tokens, got both")
            text = None
            if type(tokens) is not list:
                return _wrong_type("tokens", "an array of integers", tokens)
            if not tokens:
                return Rejection(Reason.EMPTY_TOKENS, "tokens: expected at least one, got none")
            if set(map(type, tokens)) != _INTEGERS or min(tokens) < 0 or max(tokens) >= self._token_limit:
                return self._bad_token(tokens)
        if name is _ABSENT:
            name = None
        elif type(name) is not str:
            return _wrong_type("id", "a string", name)
        if ts is _ABSENT:
            ts = None
        elif type(ts) is str:
            match = _DATE_TIME.fullmatch(ts)
            if match is None or (match[2] > "28" and not _day_exists(ts)):
                return Rejection(
                    Reason.BAD_TIMESTAMP, "ts: expected RFC 3339 (as 2024-05-06T07:08:09Z), got another string"
                )
        elif type(ts) is float or type(ts) is int:
            if not _is_finite(ts):
                return _overflow("ts")
        else:
            return _wrong_type("ts", "a string or a number", ts)
        if role is _ABSENT:
            role = None
        elif type(role) is not str:
            return _wrong_type("role", "a string", role)
        if meta is not _ABSENT and type(meta) is not dict:
            return _wrong_type("meta", "an object", meta)
        if found:
            if self.strict:
                return _unknown_key(found)
            if meta is not _ABSENT:
                found.update(meta)
        elif meta is not _ABSENT:
            found = meta
        if found and _holds_infinity(found):
            return _overflow("meta")
        return Event(stream, text, tokens, name, ts, role, found)

    def _bad_token(self, tokens: list[Any]) -> Rejection:
        """Name the first token that is none."""
        limit = "2**63" if self.vocabulary is None else str(self.vocabulary)
        for index, token in enumerate(tokens):
            if type(token) is not int:
                got = _kind(token)
            elif token < 0:
                got = "a negative one"
            elif token >= self._token_limit:
                got = "a larger one"
            else:
                continue
            if type(token) is float and not isfinite(token):
                return _overflow(f"tokens[{index}]")
            return Rejection(Reason.BAD_TOKEN, f"tokens[{index}]: expected an integer in [0, {limit}), got {got}")
        raise AssertionError("every token is good")


def _kind(value: object) -> str:
    """Name the JSON type of a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _shown(key: str) -> str:
    """Quote a key, cut to a length that a message bears."""
    return repr(key if len(key) <= _SHOWN_CHARACTERS else key[:_SHOWN_CHARACTERS] + "…")


def _wrong_type(key: str, expected: str, value: object) -> Rejection:
    if type(value) is float and not isfinite(value):
        return _overflow(key)
    slip = " (leave the key out instead)" if value is None else ""
    return Rejection(Reason.WRONG_TYPE, f"{key}: expected {expected}, got {_kind(value)}{slip}")


def _overflow(key: str) -> Rejection:
    return Rejection(Reason.NON_FINITE, f"{key}: expected finite numbers, got one that overflows")


def _no_stream(stream: object, others: dict[str, Any]) -> Rejection:
    if stream is not _ABSENT:
        return _wrong_type("stream", "a string", stream)
    near = get_close_matches("stream", [key for key in others if len(key) <= _SHOWN_CHARACTERS], 1)
    slip = f"; {_shown(near[0])} looks like it" if near else ""
    return Rejection(Reason.MISSING_STREAM, f"expected the key 'stream', got none{slip}")


def _bad_stream(stream: str) -> Rejection:
    if not stream:
        got = "an empty one"
    elif len(stream) > STREAM_NAME_LIMIT:
        got = f"{len(stream)} characters"
    else:
        got = "one with a NUL"
    return Rejection(Reason.BAD_STREAM, f"stream: expected 1 to {STREAM_NAME_LIMIT} characters without NUL, got {got}")


def _no_text(text: object) -> Rejection:
    if text is _ABSENT:
        return Rejection(Reason.MISSING_CONTENT, "expected the key 'text' or 'tokens', got neither")
    return _wrong_type("text", "a string", text)


def _unknown_key(unknown: dict[str, Any]) -> Rejection:
    first = next(iter(unknown))
    near = get_close_matches(first[:_SHOWN_CHARACTERS], KEYS, 1)
    slip = f"; did you mean {near[0]!r}?" if near else ""
    return Rejection(Reason.UNKNOWN_KEY, f"expected only {', '.join(KEYS)}, got {_shown(first)}{slip}")


def _day_exists(ts: str) -> bool:
    """Say whether the day of a well-formed date is in its month. Year 0 counts as a leap year, as RFC 3339 has it."""
    year, month, day = int(ts[:4]), int(ts[5:7]), int(ts[8:10])
    if month == 2:
        return day <= (29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28)
    return day <= (30 if month in (4, 6, 9, 11) else 31)


def _is_finite(number: int | float) -> bool:
    """Say whether a number is, or fits, a finite float."""
    try:
        return isfinite(number)
    except OverflowError:
        return False


def _holds_infinity(value: dict[str, Any]) -> bool:
    """Say whether an infinite float is anywhere inside. A loop, not a recursion: no depth can exhaust the stack."""
    waiting: list[Any] = [value]
    while waiting:
        inside = waiting.pop()
        for item in inside.values() if type(inside) is dict else inside:
            kind = type(item)
            if kind is float:
                if not isfinite(item):
                    return True
            elif kind is dict or kind is list:
                waiting.append(item)
    return False


def _why_not_json(line: bytes, error: ValueError) -> Rejection:
    """Find the exact reason why the fast reader refused a line."""
    if not line.strip():
        return Rejection(Reason.EMPTY, "expected a JSON object, got a blank line")
    try:
        text = line.decode()
    except UnicodeDecodeError as wrong:
        return Rejection(Reason.BAD_UTF8, f"expected UTF-8, got other bytes at byte {wrong.start} of the line")
    said = str(error)
    if said.startswith("recursion limit"):
        return Rejection(Reason.TOO_DEEP, "expected at most 200 nested arrays and objects, got more")
    if text.startswith("\ufeff"):
        return Rejection(Reason.NOT_JSON, "expected a JSON object, got a byte order mark (save the file without it)")
    # A more lenient reader tells apart what is no JSON at all from JSON that no text or float can hold.
    try:
        from_json(line, allow_inf_nan=True)
    except ValueError:
        pass
    else:
        return Rejection(Reason.NON_FINITE, f"expected finite numbers, got NaN or Infinity: {said}")
    if said.startswith("number out of range"):
        return Rejection(Reason.NUMBER_TOO_LONG, f"expected integers of at most 4300 digits, got more: {said}")
    if _is_json_with_surrogate(text):
        return Rejection(Reason.LONE_SURROGATE, "expected Unicode text, got one half of a surrogate pair as an escape")
    return Rejection(Reason.NOT_JSON, f"expected a JSON object: {said}")


def _is_json_with_surrogate(text: str) -> bool:
    """Say whether a text is JSON to a reader that lets lone surrogates pass."""
    if _ESCAPED_SURROGATE.search(text) is None:
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
