"""The forms in which a name, or a state, may stand in a file."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import quote, quote_plus

SHORT = 4
"""Bytes below which a name stands in any large file by chance: it is searched for in quotes only."""

WINDOW = 24
"""Bytes of a state by which it is known again."""


class Needle(NamedTuple):
    """Bytes to look for.

    Attributes
    ----------
    data
        The bytes.
    form
        What they are a form of, such as ``UTF-16``.
    name
        Whose they are.
    """

    data: bytes
    form: str
    name: str


def is_short(name: str) -> bool:
    """Say whether a name is too short to be told from other bytes.

    >>> is_short("a"), is_short("ann-1")
    (True, False)
    """
    return len(name.encode("utf-8", "surrogatepass")) < SHORT


def needles_of(name: str) -> list[Needle]:
    r"""Return every form of a name.

    Examples
    --------
    >>> for needle in needles_of("ann 1"):
    ...     print(needle.form, needle.data)
    UTF-8 b'ann 1'
    UTF-16 b'a\x00n\x00n\x00 \x001\x00'
    UTF-16 b'\x00a\x00n\x00n\x00 \x001'
    percent b'ann%201'
    percent b'ann+1'
    base64 b'YW5uID'
    base64 b'FubiAx'
    base64 b'hbm4gM'
    >>> [needle.data for needle in needles_of("zoë/1") if needle.form == "JSON"]
    [b'zo\\u00eb/1', b'zo\\u00EB/1', b'zo\xc3\xab\\/1']

    A short one is searched for as a whole JSON text, quotes with it:

    >>> [(needle.form, needle.data) for needle in needles_of("a")][:2]
    [('JSON text', b'"a"'), ('base64', b'InN0cmVhbSI6ImEi')]
    """
    plain = json.dumps(name, ensure_ascii=False)
    escaped = json.dumps(name)
    if is_short(name):
        whole = [text.encode("utf-8", "surrogatepass") for text in (plain, escaped, _upper(escaped))]
        named = [b'"stream":%s%s' % (space, text) for space in (b"", b" ") for text in whole]
        return _unlike([("JSON text", each) for each in whole] + _base64(named), name)
    texts = [name, plain[1:-1], escaped[1:-1], _upper(escaped[1:-1]), plain[1:-1].replace("/", "\\/")]
    utf8 = [text.encode("utf-8", "surrogatepass") for text in texts]
    told = [("UTF-8", utf8[0]), *(("JSON", each) for each in utf8[1:])]
    told += [("UTF-16", name.encode(f"utf-16-{end}", "surrogatepass")) for end in ("le", "be")]
    percent = [quote(utf8[0], safe=""), quote_plus(utf8[0], safe=""), quote(utf8[0])]
    told += [("percent", each.encode()) for text in percent for each in (text, _lower(text))]
    return _unlike(told + _base64(utf8), name)


def state_needles(name: str, states: Iterable[bytes]) -> list[Needle]:
    """Return what tells states: a few of their bytes, and their SHA-256 as `ebbtide inspect` shows it.

    Examples
    --------
    >>> state = bytes(range(100, 228))
    >>> [needle.form for needle in state_needles("ann", [state])]
    ['SHA-256', 'state', 'state', 'state']
    >>> state_needles("ann", [bytes(128)])  # zeros tell nothing
    []
    """
    found: list[tuple[str, bytes]] = []
    for state in states:
        windows = ((at, state[at : at + WINDOW]) for at in range(0, len(state) - WINDOW + 1, 4))
        # Neither zeros nor words: what was kept with a state begins with a line that says what there is.
        places = [at for at, window in windows if len(set(window)) > WINDOW // 2 and not window.isascii()]
        if places:
            found.append(("SHA-256", sha256(state).hexdigest().encode()))
            chosen = (places[0], places[len(places) // 2], places[-1])
            found += [("state", state[at : at + WINDOW]) for at in chosen]
    return _unlike(found, name)


def _base64(texts: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Return what of each text stands in base64 whatever is around it, at the three places where it may begin."""
    found = []
    for encode in (b64encode, urlsafe_b64encode):
        for text in texts:
            for before in range(3):
                whole = encode(b"\0" * before + text).rstrip(b"=")
                last = (before + len(text)) * 8 // 6  # characters that no later byte has a part in
                found.append(("base64", whole[(0, 2, 3)[before] : last]))
    return found


def _unlike(found: Iterable[tuple[str, bytes]], name: str) -> list[Needle]:
    kept: dict[bytes, str] = {}
    for form, data in found:
        if len(data) >= 3:
            kept.setdefault(data, form)
    return [Needle(data, form, name) for data, form in kept.items()]


def _upper(escaped: str) -> str:
    r"""Return a JSON text with the digits of its escapes in capitals: both are written."""
    parts = escaped.split("\\u")
    return parts[0] + "".join("\\u" + part[:4].upper() + part[4:] for part in parts[1:])


def _lower(quoted: str) -> str:
    parts = quoted.split("%")
    return parts[0] + "".join("%" + part[:2].lower() + part[2:] for part in parts[1:])
