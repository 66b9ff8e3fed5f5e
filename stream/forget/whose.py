"""Whose a record or a dead letter is."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from pydantic_core import from_json

_FIRST = re.compile(rb'\{"stream":("(?:[^"\\]|\\.)*")')
_ANYWHERE = re.compile(rb'"stream"\s*:\s*("(?:[^"\\]|\\.)*")')
_SAID = frozenset({"text", "tokens", "meta", "role", "ts", "id"})
"""Keys whose values do not name a stream."""


def of_record(line: bytes) -> str | None:
    r"""Return the stream of an output record; None where the line is no record.

    Examples
    --------
    >>> of_record(b'{"stream":"a\\"b","seq":3,"id":"ann"}')
    'a"b'
    >>> of_record(b'{"seq": 3, "stream": "ann"}')
    'ann'
    >>> of_record(b"[1]") is None
    True
    """
    try:
        match = _FIRST.match(line)
        stream = from_json(match[1]) if match is not None else from_json(line)["stream"]
    except (ValueError, KeyError, TypeError):
        return None
    return stream if isinstance(stream, str) else None


def of_letter(raw: bytes) -> set[str]:
    r"""Return the streams that a refused line may be of: all that it names as such. Empty where nobody can tell.

    Examples
    --------
    >>> of_letter(b'{"stream": "ann", "text": 3}')
    {'ann'}
    >>> of_letter(b'{"stream": "ann", "text": "cut sho')
    {'ann'}
    >>> of_letter(b'{"streem": "ann", "text": "hello"}')
    {'ann'}
    >>> of_letter(b'{"stream": "bob", "text": "", "meta": {"stream": "ann"}}')
    {'bob'}
    >>> of_letter(b"ann: hello")
    set()
    """
    for text in (raw, raw.decode("utf-8", "replace")):
        with suppress(ValueError, RecursionError):
            found = json.loads(text, object_pairs_hook=_Object)
            if not isinstance(found, _Object):
                return set()
            named = {value for key, value in found if key == "stream" and isinstance(value, str)}
            # Without it, perhaps a key was spelt wrongly.
            return named or {value for key, value in found if isinstance(value, str) and key not in _SAID}
    named = set()
    for match in _ANYWHERE.finditer(raw):
        with suppress(ValueError):
            named.add(json.loads(match[1].decode("utf-8", "replace")))
    return named


class _Object(list[tuple[str, object]]):
    """A JSON object with every key that stands in it, doubled ones too."""
